"""No byte outside the arrays is read or written: a touch is a SIGSEGV, and ends this suite."""

import numpy as np
import pytest
from helpers.layouts import FILLER, guarded
from helpers.log_probs import gradient_of
from helpers.support import TARGETS, assert_bits, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

CLASSES = [1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 255, 256, 257]
CLASSES += [300, 511, 1000, 1025, 5003]
SIDES = ("before", "after")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 35])
def test_rows(dtype, rows, side, kind):
    for classes in CLASSES:
        check(make_logits((rows, classes), dtype), kind, side)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("inner", [2, 3, 15, 16, 17, 33, 97, 129])
def test_columns(dtype, inner, side, kind):
    for classes in (1, 2, 5, 21, 64, 301):
        check(make_logits((2, classes, inner), dtype), kind, side)


@pytest.mark.parametrize("extra", [0, 1, 2, 3, 17])
def test_short_rows_after_the_last_full_group(extra):
    """A group of about 1,024 elements may be followed by less than a vector."""
    for classes in (1, 2, 3, 4, 5, 6, 7, 9, 11, 15, 17, 33):
        for dtype in ("float32", "float64"):
            rows = 1024 // classes // 16 * 16 + extra
            check(make_logits((rows, classes), dtype), "labels", "after")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(1_100_003, 1), (110_003, 10), (1103, 1001), (2, 9, 60_001)])
def test_streamed_stores(shape, side):
    check(make_logits(shape), "labels", side)


def check(x, kind, side):
    """The guarded call gives the bits of the free one and leaves the slack alone."""
    what = f"{x.shape} {x.dtype} {kind}"
    target = make_target(kind, x.shape, dtype=x.dtype)
    weight = np.linspace(0.5, 2, x.shape[1]).astype("float32")
    repeat = np.ones(np.delete(x.shape, 1), "float32")
    logits, around_logits = guarded(x, side)
    out, around_out = guarded(np.zeros_like(x), side)
    inputs = [guarded(a, side)[0] for a in (target, weight, repeat)]
    options = {"reduction": "none", "sample_weight": inputs[2]}
    loss, grad = xe.cross_entropy_with_grad(x, target, weight, reduction="none")
    given = xe.cross_entropy_with_grad(logits, *inputs[:2], out=out, **options)
    alone = xe.cross_entropy(logits, *inputs[:2], **options)
    place = xe.cross_entropy_with_grad(logits, *inputs[:2], out=logits, **options)
    for actual in (given[0], alone, place[0]):
        assert_bits(actual, loss, f"loss {what}")
    for actual in (out, logits):
        assert_bits(actual, grad, f"gradient {what}")
    for around in (around_logits, around_out):
        assert (around == FILLER).all(), f"{what}: wrote beside the array"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_softmax_family(dtype, rows, side):
    for classes in CLASSES:
        x, around = guarded(make_logits((rows, classes), dtype), side)
        t = guarded(make_target("probabilities", x.shape), side)[0]
        free = x.copy()
        for call in (xe.softmax, xe.log_softmax):
            out, beside = guarded(np.zeros_like(x), side)
            assert_bits(call(x, 1, out=out), call(free, 1), f"{call.__name__} {classes}")
            assert (beside == FILLER).all(), f"{call.__name__} {classes}: wrote beside out"
        assert_bits(xe.logsumexp(x, 1), xe.logsumexp(free, 1))
        assert_bits(xe.entropy(x), xe.entropy(free))
        labels = guarded(make_target("labels", x.shape), side)[0]
        for found, exact in zip(
            xe.row_statistics(x, labels), xe.row_statistics(free, labels), strict=True
        ):
            assert_bits(found, exact, f"statistics {classes}")
        out, beside = guarded(np.zeros_like(x), side)
        upstream = np.ones(rows), np.ones(rows)
        gradient_of(x, labels, *upstream, out=out)
        assert_bits(out, gradient_of(free, labels, *upstream), f"log-probabilities {classes}")
        assert (beside == FILLER).all(), f"log-probabilities {classes}: wrote beside out"
        kl = xe.kl_divergence(t, x, reduction="none")
        assert_bits(kl, xe.kl_divergence(t.copy(), free, reduction="none"))
        assert (around == FILLER).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 35])
def test_distillation(dtype, rows, side):
    for classes in CLASSES:
        free = [make_logits((rows, classes), dtype, seed=seed) for seed in range(2)]
        (x, around_x), (y, around_y) = (guarded(a, side) for a in free)
        out, around_out = guarded(np.zeros_like(x), side)
        weights = np.where(np.arange(rows) % 7 == 6, 0.0 if rows > 17 else 2.0, 1.0)
        # Rows of weight 0 are copied with their neighbours; the others are read in place.
        options = {"reduction": "none", "sample_weight": guarded(weights, side)[0]}
        loss, grad = xe.distillation_loss_with_grad(*free, **options)
        for to in (out, x):
            given = xe.distillation_loss_with_grad(x, y, out=to, **options)
            assert_bits(given[0], loss, f"loss {classes}")
            assert_bits(to, grad, f"gradient {classes}")
        for around in (around_x, around_y, around_out):
            assert (around == FILLER).all(), f"{classes}: wrote beside the array"
