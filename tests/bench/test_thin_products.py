"""The study of thinner products: each method computes what its name says."""

import numpy as np
import pytest

import xentropy as xe
from bench.studies import thin_products as thin

BOUND = 2.0**-5


@pytest.fixture
def layer():
    """Slopes, input, weight, labels."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((20, 6), np.float32), rng.standard_normal((200, 6), np.float32)
    y = rng.integers(len(w), size=len(x))
    _, slopes = xe.cross_entropy_with_grad(2 * x @ w.T, y)
    return slopes, x, w, y


def test_skip_below_is_the_gradient_of_the_classes_that_stay(layer):
    g, x, w, y = layer
    classes = thin.needed_classes(g, y, BOUND)
    assert set(y) <= set(classes)
    left_out = np.setdiff1d(np.arange(len(w)), classes)
    assert 0 < len(left_out) < len(w)
    assert g[:, left_out].max() < BOUND / len(g)
    whole = g.copy()
    whole[:, left_out] = 0
    for found, wanted in zip(
        thin.skip_below(g, x, w, y, BOUND), thin.exact(whole, x, w, y), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    stay, mean, worst = thin.share_skipped(g, y, BOUND)
    assert stay == len(classes) / len(w)
    assert 0 < mean < worst < 1


def test_sparse_slopes_are_exact_in_expectation_and_above_the_bound(layer):
    g, *_ = layer
    limit, draws = np.float32(BOUND / len(g)), 400
    mean = sum(thin.sparse_slopes(g, BOUND, seed).toarray() for seed in range(draws)) / draws
    large = (g >= limit) | (g < 0)
    np.testing.assert_allclose(mean[large], g[large], rtol=1e-5)
    # A mean of draws of 0 or `limit`: five standard deviations, of so many entries.
    deviation = np.sqrt(np.maximum(g, 0) * limit / draws)
    assert np.all(np.abs(mean - g)[~large] <= (5 * deviation + limit / draws)[~large])
    one = thin.sparse_slopes(g, BOUND, 7)
    assert (one != thin.sparse_slopes(g, BOUND, 7)).nnz == 0
    assert one.nnz < 0.5 * g.size


def test_a_bound_that_nothing_is_below_changes_nothing(layer):
    g, x, w, y = layer
    for method in (thin.skip_below, lambda *a: thin.sparse_tail(*a, seed=0)):
        for found, wanted in zip(method(g, x, w, y, 0.0), thin.exact(g, x, w, y), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
