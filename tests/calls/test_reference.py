"""The specification against closed forms, mpmath, scipy, torch and finite differences."""

import math

import mpmath
import numpy as np
import pytest
from helpers.finite_differences import OPTIONS, problem, slopes
from helpers.support import TARGETS, assert_within, make_logits, make_target
from scipy import special

from xentropy import reference

# A handful of float64 roundings (exp, sum, division, log1p), each half a unit.
CLOSE = 8 * 2.0**-53


def after_shift(x):
    """x - max(x) is rounded before exp: that costs half a unit of its own size, relatively."""
    return CLOSE + (x.max() - x.min()) * 2.0**-53


def exact_row(x, t, dps=60):
    """(H(t, softmax(x)), gradient) of one row in 60 digits."""
    with mpmath.workdps(dps):
        x, t = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in t]
        total = mpmath.fsum(mpmath.exp(v) for v in x)
        p = [mpmath.exp(v) / total for v in x]
        loss = mpmath.fsum(w * (mpmath.log(total) - v) for v, w in zip(x, t, strict=True) if w)
        whole = mpmath.fsum(t)
        grad = [float(whole * a - b) for a, b in zip(p, t, strict=True)]
    return float(loss), np.array(grad)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 1000])
def test_equal_logits_cost_log_of_the_class_count(classes):
    x = np.full((4, classes), 7.25)
    loss, grad = reference.cross_entropy_with_grad(x, np.zeros(4, int), reduction="none")
    assert_within(loss, np.full(4, math.log(classes)), CLOSE * math.log(classes))
    assert_within(grad[:, 1:], np.full((4, classes - 1), 1 / classes), CLOSE / classes)
    assert_within(reference.entropy(x), np.full(4, math.log(classes)), CLOSE * math.log(classes))


@pytest.mark.parametrize("margin", [-800.0, -20.0, -1.0, 0.0, 0.5, 20.0, 40.0, 700.0])
def test_two_classes_are_logistic_regression(margin):
    loss, grad = reference.cross_entropy_with_grad([[margin, 0.0]], [0])
    with mpmath.workdps(400):
        exact = mpmath.log1p(mpmath.exp(-mpmath.mpf(margin)))
        slope = 1 / (1 + mpmath.exp(mpmath.mpf(margin)))
        exact, slope = float(exact), float(slope)
    assert_within(loss, exact, CLOSE * exact)
    assert_within(grad, np.array([[-slope, slope]]), CLOSE * slope)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 17])
@pytest.mark.parametrize("kind", TARGETS)
def test_against_sixty_digits(kind, classes, spread):
    x = make_logits((5, classes), "float64", spread=spread)
    target = make_target(kind, x.shape, dtype="float64")
    t = np.eye(classes)[target] if kind == "labels" else target
    loss, grad = reference.cross_entropy_with_grad(x, target, reduction="none")
    for row in range(5):
        exact_loss, exact_grad = exact_row(x[row], t[row])
        assert_within(loss[row], exact_loss, after_shift(x[row]) * exact_loss)
        # p and t may cancel for probabilities: relative to both
        size = np.abs(exact_grad) + (2 * t[row] if kind == "probabilities" else 0)
        assert_within(grad[row], exact_grad, after_shift(x[row]) * size)


def test_softmax_family_against_sixty_digits():
    x = make_logits((6, 9), "float64", spread=10)
    for row in x:
        with mpmath.workdps(60):
            e = [mpmath.exp(mpmath.mpf(v)) for v in row]
            total = mpmath.fsum(e)
            p = np.array([float(v / total) for v in e])
            log_p = np.array([float(mpmath.log(v / total)) for v in e])
            lse = float(mpmath.log(total))
            h = float(-mpmath.fsum(v / total * mpmath.log(v / total) for v in e))
        assert_within(reference.softmax(row), p, after_shift(row) * p)
        assert_within(reference.log_softmax(row), log_p, after_shift(row) * np.abs(log_p))
        assert_within(reference.logsumexp(row), lse, CLOSE * np.abs(row).max())
        assert_within(reference.entropy(row), h, after_shift(row) * h)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None])
def test_softmax_family_agrees_with_scipy(axis):
    x = make_logits((3, 4, 5), "float64")
    # scipy subtracts the maximum and then a logarithm: a few units of the largest logit
    for name in ("softmax", "log_softmax", "logsumexp"):
        ours, theirs = getattr(reference, name)(x, axis), getattr(special, name)(x, axis)
        assert_within(ours, theirs, 8 * np.finfo(float).eps * np.abs(x).max(), name)


def test_kl_divergence_agrees_with_scipy():
    x, t = make_logits((7, 5), "float64"), make_target("probabilities", (7, 5), dtype="float64")
    exact = special.rel_entr(t, special.softmax(x, 1)).sum(1)
    # terms of both signs: relative to their largest, |log p| < 32
    assert_within(reference.kl_divergence(t, x, reduction="none"), exact, 32 * CLOSE)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_slope_of_the_loss(name, kind):
    x, target, options, tolerance = problem(kind, OPTIONS[name])
    upstream = options.pop("grad_output", None)
    _, grad = reference.cross_entropy_with_grad(x, target, grad_output=upstream, **options)
    exact = slopes(reference.cross_entropy, x, target, upstream, options)
    assert_within(grad, exact, tolerance, name)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_in_probabilities_is_the_slope_of_the_loss(name):
    x, target, options, tolerance = problem("probabilities", OPTIONS[name])
    upstream = options.pop("grad_output", None)
    exact = slopes(
        lambda t, x, **options: reference.cross_entropy(x, t, **options),
        target,
        x,
        upstream,
        options,
    )
    options.pop("ignore_index", None)  # labels only
    grad = reference.cross_entropy_target_grad(x, target, grad_output=upstream, **options)
    assert_within(grad, exact, tolerance, name)


def test_edges_follow_the_written_semantics():
    inf, nan = np.inf, np.nan
    x = np.array([[0, -inf], [0, -inf], [-inf, -inf], [inf, 0], [nan, 0], [2, 2]])
    loss, grad = reference.cross_entropy_with_grad(x, [0, 1, 0, 0, 0, 0], reduction="none")
    assert_within(loss, [0, inf, nan, nan, nan, math.log(2)], CLOSE)
    assert_within(grad[[0, 1, 5]], [[0, 0], [1, -1], [-0.5, 0.5]], 0)
    assert np.isnan(grad[2:5]).all()
    assert math.isnan(reference.cross_entropy(x, np.full(6, -100)))
    assert math.isnan(reference.cross_entropy(np.zeros((0, 3)), np.zeros(0, int)))
    assert reference.cross_entropy(np.zeros((0, 3)), np.zeros(0, int), reduction="sum") == 0.0
