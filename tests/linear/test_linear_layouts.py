"""Linear cross entropy of any strides, alignment and byte order, read and written."""

import numpy as np
import pytest
from helpers.layouts import LAYOUTS, WRITABLE, surroundings
from helpers.linear import NAMES, allowed_errors, make_layer, make_linear_target
from helpers.support import TARGETS, assert_bits, assert_within, case

import xentropy as xe

ROWS, FEATURES, CLASSES = 37, 12, 29
LOGITS_BYTES = 16 * CLASSES * 8


def arranged(layout, a):
    """The array in this layout; one of a single axis stays where that has two."""
    return a if a.ndim == 1 and layout.endswith("axis 1") else LAYOUTS[layout](a)


def call(x, weight, target, **options):
    options = {"logits_bytes": LOGITS_BYTES, **options}
    return xe.linear_cross_entropy_with_grad(x, weight, target, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TARGETS)
def test_arguments(dtype, kind, layout):
    """The same numbers, within twice what an order of additions may change."""
    x, weight, bias = make_layer(ROWS, FEATURES, CLASSES, dtype)
    target = make_linear_target(kind, ROWS, CLASSES, dtype)
    weights = np.random.default_rng(1).uniform(0.5, 2, ROWS).astype(dtype)
    plain = call(x, weight, target, linear_bias=bias, sample_weight=weights)
    ours = call(
        arranged(layout, x),
        arranged(layout, weight),
        arranged(layout, target),
        linear_bias=arranged(layout, bias),
        sample_weight=arranged(layout, weights),
    )
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    loss_off, off = allowed_errors(
        x, weight, target, arithmetic, linear_bias=bias, sample_weight=weights.astype("f8")
    )
    assert_within(ours[0], plain[0], 2 * loss_off)
    for name, grad, theirs, bound in zip(NAMES, ours[1], plain[1], off, strict=True):
        assert grad.flags.c_contiguous
        assert grad.dtype == dtype
        unit = np.spacing(np.abs(theirs)).astype("f8")
        assert_within(grad, theirs, 2 * bound + unit, name)


@pytest.mark.parametrize("layout", WRITABLE)
def test_out(dtype, layout):
    """Its numbers are those of a fresh result; what lies between them is not touched."""
    x, weight, bias = make_layer(ROWS, FEATURES, CLASSES, dtype)
    target = make_linear_target("labels", ROWS, CLASSES)
    target[::3] = -100
    _, fresh = call(x, weight, target, linear_bias=bias)
    out = tuple(arranged(layout, np.full_like(a, 7)) for a in (x, weight, bias))
    around = [surroundings(a) for a in out]
    before = [read().copy() for read in around]
    _, grads = call(x, weight, target, linear_bias=bias, out=out)
    for name, given, ours, expected in zip(NAMES, out, grads, fresh, strict=True):
        assert ours is given
        assert_bits(ours.astype(dtype), expected, name)
    for was, read in zip(before, around, strict=True):
        assert (was == read()).all()


def test_forms_of_out():
    x, weight, bias = make_layer(ROWS, FEATURES, CLASSES)
    target = make_linear_target("labels", ROWS, CLASSES)
    loss, fresh = call(x, weight, target, linear_bias=bias)
    out = type(fresh)(np.empty_like(x), None, np.empty_like(bias))
    forms = (out, tuple(out), {"input": out.input, "linear_bias": out.linear_bias}, {})
    for form in forms:
        again, grads = call(x, weight, target, linear_bias=bias, out=form)
        assert again == loss
        if form:
            assert grads.input is out.input
            assert grads.linear_bias is out.linear_bias
        for name in NAMES:
            assert_bits(getattr(grads, name), getattr(fresh, name), name)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_float32_gradients_of_16_bits(stored):
    """What a 16-bit gradient is before it is rounded."""
    x, weight, bias = make_layer(ROWS, FEATURES, CLASSES, stored)
    target = make_linear_target("labels", ROWS, CLASSES)
    for logits_bytes in (LOGITS_BYTES, None):
        options = {"linear_bias": bias, "logits_bytes": logits_bytes}
        _, halves = call(x, weight, target, **options)
        out = tuple(np.empty(a.shape, "f4") for a in (x, weight, bias))
        _, whole = call(x, weight, target, out=out, **options)
        for name, half, full in zip(NAMES, halves, whole, strict=True):
            assert_bits(half, full.astype(stored), name)


VIEWS = {
    "swapped axes": lambda a: a.swapaxes(0, 1),
    "reversed": lambda a: a[::-1, ::-1],
    "every second": lambda a: a[:, ::2],
    "features first": lambda a: np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", TARGETS)
def test_leading_axes_that_do_not_merge(kind, view):
    x, weight, _ = make_layer(24, FEATURES, CLASSES)
    target = make_linear_target(kind, 24, CLASSES)
    shaped = x.reshape(4, 6, FEATURES), target.reshape(4, 6, *target.shape[1:])
    if view == "features first" and kind == "labels":
        x, target = VIEWS[view](shaped[0]), shaped[1]
    else:
        x, target = map(VIEWS[view], shaped)
    dense = np.ascontiguousarray(x), np.ascontiguousarray(target)
    for left_out in (False, True):
        sample_weight = np.arange(target.size // (CLASSES if kind != "labels" else 1)) % 3 + 0.0
        sample_weight = sample_weight.reshape(x.shape[:2]) if left_out else None
        options = {"sample_weight": sample_weight, "reduction": "none"}
        out = {"input": np.full(x.shape[::-1], np.float32(7)).T}
        with case(left_out):
            loss, grads = call(x, weight, target, out=out, **options)
            expected_loss, expected = call(*dense[:1], weight, dense[1], **options)
            assert_bits(loss, expected_loss)
            assert_bits(grads.input, expected.input)
            assert_bits(grads.linear_weight, expected.linear_weight)
