"""Addresses, store modes and output kinds change no bit of the answer."""

import numpy as np
import pytest
from helpers.layouts import FILLER, at_offset, surroundings
from helpers.support import TARGETS, assert_bits, assert_plain, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

SMALL = [(7, 3), (64, 10), (9, 100), (5, 257), (3, 1025), (2, 21, 131)]
# more than 4 MB of float32: stores that stream past the cache
STREAMED = [(400_000, 3), (110_001, 10), (4200, 257), (1101, 1001), (5, 230_001), (3, 21, 18_001)]


def both(x, target, **options):
    loss, grad = xe.cross_entropy_with_grad(x, target, **options)
    return loss, grad


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("kind", TARGETS)
def test_every_offset_of_logits_and_out(dtype, shape, kind):
    x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
    loss, grad = assert_plain(x, target)
    for k in range(18):
        out = at_offset(np.zeros_like(x), (5 * k + 1) % 18)
        moved = at_offset(target, k % 7)
        again = both(at_offset(x, k), moved, reduction="none", out=out)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(again[1], grad, f"gradient, offset {k}")
        assert_bits(xe.cross_entropy(at_offset(x, k), moved, reduction="none"), loss)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_unaligned_addresses(dtype, shape):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    loss, grad = assert_plain(x, target)
    for odd in (1, 3, 7):
        out = at_offset(np.zeros_like(x), 2, odd)
        again = both(at_offset(x, 1, odd), target, reduction="none", out=out)
        assert_bits(again[0], loss, f"loss, {odd} bytes off")
        assert_bits(again[1].copy(), grad, f"gradient, {odd} bytes off")


@pytest.mark.parametrize("shape", STREAMED, ids=str)
def test_streamed_stores_at_every_offset(shape):
    x, target = make_logits(shape), make_target("labels", shape)
    loss, grad = assert_plain(x, target)
    for k in range(18):
        out = at_offset(np.zeros_like(x), (5 * k + 1) % 18)
        again = both(at_offset(x, k), target, reduction="none", out=out)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(again[1], grad, f"gradient, offset {k}")
        assert (surroundings(out)() == FILLER).all(), f"offset {k}: wrote outside"


@pytest.mark.parametrize("kind", TARGETS)
def test_streamed_stores_of_every_type_at_many_offsets(dtype, kind):
    shape = (4_500_000 // dtype.itemsize // 1001, 1001)
    x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
    loss, grad = assert_plain(x, target)
    for k in (1, 2, 5, 15, 16, 17, 31):
        out = at_offset(np.zeros_like(x), k)
        again = both(at_offset(x, 32 - k), target, reduction="none", out=out)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(again[1], grad, f"gradient, offset {k}")
        assert (surroundings(out)() == FILLER).all(), f"offset {k}: wrote outside"


@pytest.mark.parametrize("shape", STREAMED, ids=str)
def test_streamed_regular_and_in_place_stores_agree(dtype, shape):
    rows = shape[0] if dtype.itemsize >= 4 else 2 * shape[0] + 1
    shape = (rows, *shape[1:])
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    loss, grad = both(x, target, reduction="none")
    part = max(1, rows // 10)
    for start in (0, part, rows - part):
        cut = slice(start, start + part)
        small = both(x[cut].copy(), target[cut], reduction="none")
        assert_bits(small[0], loss[cut], f"loss of rows from {start}")
        assert_bits(small[1], grad[cut], f"gradient of rows from {start}")
    assert_plain(x[:part], target[:part])
    place = both(x, target, reduction="none", out=x)
    assert_bits(place[0], loss, "loss in place")
    assert_bits(place[1], grad, "gradient in place")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_fresh_given_and_in_place_outputs_agree(dtype, shape, kind):
    x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
    for options in ({}, {"reduction": "sum", "label_smoothing": 0.2, "z_loss": 0.1}):
        loss, grad = both(x, target, **options)
        out = np.full_like(x, 7)
        place = x.copy()
        for where in (out, place):
            source = place if where is place else x
            again = both(source, target, out=where, **options)
            assert_bits(again[0], loss)
            assert_bits(where, grad)


@pytest.mark.parametrize("odd", [1, 2, 3])
def test_unaligned_out_of_the_size_that_is_streamed(odd):
    x, target = make_logits((4200, 257)), make_target("labels", (4200, 257))
    grad = xe.cross_entropy_with_grad(x, target)[1]
    out = at_offset(np.zeros_like(x), 2, odd)
    xe.cross_entropy_with_grad(x, target, out=out)
    assert_bits(out.copy(), grad)
    assert (surroundings(out)() == FILLER).all()
