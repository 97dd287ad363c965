"""distillation_loss: layouts, threads and neighbours change no bit; rows that share a vector."""

import numpy as np
import pytest
from helpers.divergences import pair
from helpers.layouts import LAYOUTS, WRITABLE, surroundings
from helpers.short_rows import wild
from helpers.support import EXACT, assert_bits, case

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize(("shape", "axis"), [((5, 33, 4), 1), ((3, 4, 400), 2), ((350, 20), 0)])
def test_layouts_and_threads_change_no_bit(dtype, shape, axis):
    x, y = pair(shape, dtype)
    weights = np.random.default_rng(0).integers(0, 3, np.delete(shape, axis))
    rows = [np.ascontiguousarray(np.moveaxis(a, axis, -1)).reshape(-1, shape[axis]) for a in (x, y)]
    for beta in (0.0, 0.3, 1.0):
        options = {"beta": beta, "temperature": 1.5, "reduction": "sum"}
        plain = xe.distillation_loss_with_grad(*rows, sample_weight=weights.ravel(), **options)
        options |= {"axis": axis, "n_threads": 2, "sample_weight": weights}
        for layout, lay in LAYOUTS.items():
            with case(layout):
                assert_laid_out(x, y, lay, layout in WRITABLE, plain, options)


def assert_laid_out(x, y, lay, writable, plain, options):
    """Fresh, given and in place: the loss and the bits of the gradient of plain rows."""
    laid = xe.distillation_loss_with_grad(lay(x), lay(y), **options)
    assert laid[0] == plain[0]
    moved = np.moveaxis(laid[1], options["axis"], -1).reshape(plain[1].shape)
    assert_bits(moved.astype(x.dtype), plain[1])
    if not writable:
        return
    out = lay(x)
    around = surroundings(out)
    before = around()
    xe.distillation_loss_with_grad(x, y, out=out, **options)
    assert_bits(out.astype(x.dtype), laid[1].astype(x.dtype))
    assert np.array_equal(around(), before)
    own = lay(x)
    xe.distillation_loss_with_grad(own, lay(y), out=own, **options)
    assert_bits(own.astype(x.dtype), laid[1].astype(x.dtype))


def test_threads_and_neighbours_change_no_bit(dtype):
    x, y = pair((1200, 130), dtype)
    alone = xe.distillation_loss_with_grad(x, y, beta=0.5, reduction="none", n_threads=1)
    team = xe.distillation_loss_with_grad(x, y, beta=0.5, reduction="none", n_threads=3)
    assert_bits(team[0], alone[0])
    assert_bits(team[1], alone[1])
    total = xe.distillation_loss(x, y, n_threads=1), xe.distillation_loss(x, y, n_threads=3)
    assert total[0] == total[1]
    for r in (0, 1, 17, 1199):
        one = xe.distillation_loss_with_grad(x[r], y[r], beta=0.5, reduction="none")
        assert_bits(one[0], alone[0][r])
        assert_bits(one[1], alone[1][r])


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", [2, 3, 8, 17, 150])
def test_rows_of_any_kind_share_a_vector(dtype, classes):
    """Rows that are ignored or computed one by one, among others; gradients of adjacent rows."""
    x, y = (wild((67, classes), dtype, seed) for seed in range(2))
    weights = np.random.default_rng(0).integers(0, 4, 67) / 2
    for beta in (0.0, 0.5, 1.0):
        options = {"beta": beta, "reduction": "none"}
        loss, grad = xe.distillation_loss_with_grad(x, y, sample_weight=weights, **options)
        assert_bits(xe.distillation_loss(x, y, sample_weight=weights, **options), loss)
        for r in range(67):
            one = xe.distillation_loss_with_grad(
                x[r : r + 1], y[r : r + 1], sample_weight=weights[r : r + 1], **options
            )
            assert_bits(one[0], loss[r : r + 1])
            assert_bits(one[1], grad[r : r + 1])
        assert not grad[weights == 0].astype("f4").any()
        own = x.copy()
        xe.distillation_loss_with_grad(own, y, sample_weight=weights, out=own, **options)
        assert_bits(own, grad)
