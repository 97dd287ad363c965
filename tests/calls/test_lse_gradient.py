"""The gradient from a given lse, with an upstream gradient of the lse itself."""

import numpy as np
import pytest
from helpers.support import assert_bits, assert_within, eps, make_logits

from xentropy import _kernels, reference

pytestmark = pytest.mark.usefixtures("tier")


def gradient(x, labels, g, h, more=0.0, **options):
    """Of sum(g log p_y) + sum(h lse), where the lse is that of these logits plus `more`."""
    record = _kernels.make_options(reduction="none", **options)
    every = np.where(labels == -100, 0, labels)
    log_p, entropy, lse = _kernels.selected_log_probs(x, every, record)
    arrays = labels, lse + more, log_p - more, entropy, g, None
    return _kernels.selected_log_probs_grad(x, *arrays, record, grad_lse=h)


def expected(x, labels, g, h, more=0.0, logit_scale=1.0, softcap=None):
    """g (delta - p) + h p, and the sum of the absolute values of these terms."""
    x, slope = reference._capped(x.astype(np.float64) * logit_scale, softcap)
    rows, own = reference._Rows(x), np.arange(x.shape[1]) == labels[:, None]
    p, g, h = rows.p * np.exp(-more), np.where(labels == -100, 0, g)[:, None], h[:, None]
    rest = rows.not_p if more == 0 else 1 - p
    slope = slope * logit_scale
    terms = np.abs(g) * np.where(own, rest, p) + np.abs(h) * p
    return slope * (np.where(own, g * rest, -g * p) + h * p), slope * terms


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.7}, {"softcap": 4.0}], ids=str)
@pytest.mark.parametrize("shape", [(20, 1), (20, 17), (9, 320), (3, 2051)], ids=str)
def test_every_length(dtype, shape, options):
    """Rows with a label, and rows without one, that are read all the same."""
    x, rng = make_logits(shape, dtype), np.random.default_rng(7)
    labels = rng.integers(shape[1], size=shape[0])
    labels[::3] = -100
    g, h = rng.uniform(-1, 1, (2, shape[0]))
    for more in (0.0, 0.5):
        found = gradient(x, labels, g, h, more, **options)
        exact, terms = expected(x, labels, g, h, more, **options)
        units = 16 * (1 + options.get("softcap", 0))  # capped logits are rounded
        rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype.name, 0) * np.abs(exact)
        rounding = rounding + (2.0**-25 if dtype == np.float16 else 0)
        assert_within(found.astype(np.float64), exact, units * eps(dtype) * terms + rounding)


def test_a_row_of_neither_is_not_read(dtype):
    x = make_logits((4, 20), dtype).copy()
    x[1] = np.nan
    labels, h = np.full(4, -100), np.array([1.0, 0, 1, -1])
    found = gradient(x, labels, np.zeros(4), h)
    assert not found[1].any()
    x[1] = 0
    assert_bits(np.delete(found, 1, 0), np.delete(gradient(x, labels, np.zeros(4), h), 1, 0))


def test_rows_without_a_softmax():
    x = make_logits((3, 20), "float32").copy()
    x[1, 3], x[2] = np.inf, -np.inf
    found = gradient(x, np.full(3, -100), np.zeros(3), np.ones(3))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()
