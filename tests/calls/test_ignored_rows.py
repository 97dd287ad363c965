"""Rows that do not count: exactly 0 whatever they hold, and they are not read."""

import numpy as np
import pytest
from helpers.layouts import PAGE, forbid, pages
from helpers.support import TARGETS, assert_bits, assert_within, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize("hidden", ["ignore_index", "sample_weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40, 10), (40, 100), (9, 300), (5, 3000), (3, 21, 130)])
def test_rows_that_do_not_count_get_exactly_zero(dtype, shape, value, hidden):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    gone = np.random.default_rng(5).random(target.shape) < 0.4
    gone.flat[0], gone.flat[-1] = True, False
    clean = x.copy()
    np.moveaxis(x, 1, -1)[gone] = value
    target = np.where(gone, 7 if hidden == "ignore_index" else 0, np.where(target == 7, 8, target))
    options = {"ignore_index": 7} if hidden == "ignore_index" else {"sample_weight": 1.0 - gone}
    for layout in (np.ascontiguousarray, np.asfortranarray):
        out = layout(np.full(shape, np.nan).astype(dtype))
        loss, grad = xe.cross_entropy_with_grad(layout(x), target, out=out, **options)
        assert (np.moveaxis(grad, 1, -1)[gone] == 0).all()
        same, slope = xe.cross_entropy_with_grad(layout(clean), target, **options)
        assert loss == same
        np.testing.assert_array_equal(grad, slope)
        rows = xe.cross_entropy(layout(x), target, reduction="none", **options)
        assert (rows[gone] == 0).all()
        assert (rows[~gone] > 0).all()


@pytest.mark.parametrize("classes", [PAGE // 4, PAGE // 64, 3 * PAGE // 4])
@pytest.mark.parametrize("hidden", ["ignore_index", "sample_weight"])
@pytest.mark.parametrize("stored", ["f4", ">f4", "f2", "f8"])
def test_rows_that_do_not_count_are_not_read(hidden, classes, stored):
    """The ignored rows lie in memory that may not be read."""
    stored = np.dtype(stored)
    per_page = max(1, PAGE // stored.itemsize // classes)
    classes *= 4 // min(4, stored.itemsize) if classes > PAGE // 4 else 1
    rows = 6 * per_page
    x = pages(rows * classes * stored.itemsize).view(stored).reshape(rows, classes)
    x[:] = make_logits(x.shape)
    target = make_target("labels", x.shape)
    gone = np.arange(rows) // per_page % 3 == 1
    expected = target.copy(), 1.0 - gone
    options = {"sample_weight": expected[1]}
    if hidden == "ignore_index":
        target[gone], options = -100, {}
    copy = x.copy()
    for first in np.flatnonzero(gone)[::per_page]:
        forbid(x[first:].ctypes.data, max(PAGE, classes * stored.itemsize))
    for reduction in ("none", "mean"):
        actual = xe.cross_entropy_with_grad(x, target, reduction=reduction, **options)
        same = xe.cross_entropy_with_grad(copy, target, reduction=reduction, **options)
        np.testing.assert_array_equal(actual[0], same[0])
        np.testing.assert_array_equal(actual[1], same[1])
        alone = xe.cross_entropy(x, target, reduction=reduction, **options)
        np.testing.assert_array_equal(alone, same[0])


@pytest.mark.parametrize("classes", [3, 10, 17, 33])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_ignored_rows_behind_a_group_are_not_read(dtype, classes, smoothing):
    """A group of about 1,024 elements, then a page that must not be touched, then other rows."""
    group, size = 1024 // classes // 16 * 16, classes * dtype.itemsize
    ignored = -(-PAGE // size)
    shape = (group + ignored + 40, classes)
    memory = pages(4 * PAGE + shape[0] * size)
    first = 2 * PAGE - group * size
    x = memory[first : first + shape[0] * size].view(dtype).reshape(shape)
    x[:] = make_logits(shape, dtype)
    target = make_target("labels", shape)
    target[group : group + ignored] = -100
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, grad = xe.cross_entropy_with_grad(x, target, **options)
    forbid(x[group:].ctypes.data, PAGE)
    again, slope = xe.cross_entropy_with_grad(x, target, **options)
    assert_bits(again, loss)
    assert_bits(slope, grad)


@pytest.mark.parametrize("shape", [(40, 10), (5, 3000), (3, 21, 130)])
def test_a_batch_of_ignored_rows(dtype, shape):
    x = np.full(shape, np.nan).astype(dtype)
    target = np.full((shape[0], *shape[2:]), -100)
    for reduction, expected in (("mean", np.nan), ("sum", 0.0)):
        loss, grad = xe.cross_entropy_with_grad(x, target, reduction=reduction)
        assert_within(loss, expected, 0)
        assert (grad == 0).all()
    rows, grad = xe.cross_entropy_with_grad(x, target, reduction="none", grad_output=np.nan)
    assert (rows == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(40, 10), (9, 300), (3, 21, 130)])
def test_rows_that_do_not_count_get_zero_whatever_out_held(dtype, shape, kind):
    x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
    gone = np.random.default_rng(5).random((shape[0], *shape[2:])) < 0.4
    gone.flat[0], gone.flat[-1] = True, False
    np.moveaxis(x, 1, -1)[gone] = np.nan
    options = {"weight": np.linspace(0.5, 2, shape[1]), "label_smoothing": 0.1}
    for layout in (np.ascontiguousarray, np.asfortranarray):
        out = layout(np.full(shape, np.nan).astype(dtype))
        loss, _ = xe.cross_entropy_with_grad(
            layout(x), target, out=out, sample_weight=1.0 - gone, **options
        )
        assert np.isfinite(loss)
        out = np.moveaxis(out, 1, -1).astype(np.float32)
        assert (out[gone] == 0).all()
        assert (out[~gone] != 0).any(axis=1).all()
