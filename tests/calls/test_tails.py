"""Confident predictions keep every digit: log1p(others / e_target) and -others / total."""

import numpy as np
import pytest
from helpers.confident import confident_rows
from helpers.layouts import every_second, reversed_axis
from helpers.support import HALVES, assert_plain, assert_ulps, gradient_ulps, make_logits, plain

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


def one_hot(x, label):
    rows = np.zeros(x.shape, "float32")
    rows[:, label] = 1
    return rows


AS_TARGET = {"label": lambda x, label: np.full(len(x), label), "probability": one_hot}


def test_the_promise():
    x = np.array([[20, 0]], np.float32)
    for target in ([0], np.array([[1, 0]], np.float32)):
        loss, grad = xe.cross_entropy_with_grad(x, target)
        assert_ulps(np.float32(loss), 2.0611536e-9, 4)
        assert_ulps(grad, np.array([[-2.0611536e-9, 2.0611536e-9]]), 4)


# Shifts at which both logits stay exactly representable.
SHIFTS = {"float16": 1000.0, "bfloat16": 128.0, "float32": 1e6, "float64": 1e15}


@pytest.mark.parametrize("kind", AS_TARGET)
@pytest.mark.parametrize("side", [0, 1, -1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_twenty_against_zero(dtype, reduction, side, kind):
    exact_loss, exact_grad = confident_rows([20.0], 2)
    shift = side * SHIFTS[dtype.name]
    for rows in (1, 5, 40):
        x = np.tile(np.array([[20 + shift, shift]]).astype(dtype), (rows, 1))
        divisor = rows if reduction == "mean" else 1
        for layout in (np.ascontiguousarray, np.asfortranarray, every_second, reversed_axis):
            target = AS_TARGET[kind](x, 0)
            loss, grad = xe.cross_entropy_with_grad(layout(x), target, reduction=reduction)
            assert_ulps(grad, np.tile(exact_grad / divisor, (rows, 1)), gradient_ulps(dtype))
            rounded = loss if reduction == "none" else np.float32(loss)  # 4 float32 units
            exact = (
                np.tile(exact_loss, rows)
                if reduction == "none"
                else np.float64(exact_loss[0] * rows / divisor)
            )
            assert_ulps(rounded, exact, plain("float32"))


@pytest.mark.parametrize("kind", AS_TARGET)
@pytest.mark.parametrize("classes", [2, 3, 10, 16, 17, 100, 256, 257, 1000])
def test_every_confident_margin(dtype, classes, kind):
    last = 11 if dtype == np.float16 else 700 if dtype == np.float64 else 87
    margins = np.arange(1, last + 1, 1 if last < 100 else 13)
    exact_loss, exact_grad = confident_rows(margins, classes)
    x = np.zeros((len(margins), classes), dtype)
    x[:, 0] = margins
    for layout in (np.ascontiguousarray, np.asfortranarray):
        target = AS_TARGET[kind](x, 0)
        loss, grad = xe.cross_entropy_with_grad(layout(x), target, reduction="none")
        assert_ulps(loss, exact_loss, plain(dtype), f"{kind}: loss")
        assert_ulps(grad, exact_grad, gradient_ulps(dtype), f"{kind}: gradient")


@pytest.mark.parametrize("kind", AS_TARGET)
def test_subnormal_tails(kind):
    margins = np.arange(87.0, 104.0, 0.25, dtype=np.float32)
    exact_loss, exact_grad = confident_rows(margins, 2)
    x = np.stack([margins, np.zeros_like(margins)], axis=1)
    loss, grad = xe.cross_entropy_with_grad(x, AS_TARGET[kind](x, 0), reduction="none")
    assert_ulps(grad, exact_grad, plain("float32"))
    assert_ulps(loss, exact_loss, plain("float32"))


@pytest.mark.parametrize("classes", [8, 64, 100, 255, 300, 1000, 5000])
def test_the_confident_class_may_be_anywhere(dtype, classes):
    edges = {0, 1, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, 257, 511, 512, classes - 1}
    labels = np.array(sorted(e for e in edges if e < classes))
    x = make_logits((len(labels), classes), dtype)
    x[np.arange(len(labels)), labels] = 40
    assert_plain(x, labels)
    assert_plain(np.asfortranarray(x), labels)
    assert_plain(x, np.eye(classes, dtype="float32")[labels])


@pytest.mark.parametrize("classes", [2, 10, 100, 300, 5000])
def test_losses_beyond_the_underflow_of_exp(dtype, classes):
    if dtype == np.float64:
        depths = [100, 700, 744, 745, 746, 800, 1e4, 1e10, 1e300]
    else:
        depths = [80, 87, 88, 100, 103, 104, 105, 106, 110, 150, 200, 1e3, 1e4]
        depths += [] if dtype == np.float16 else [1e6, 1e7, 1e30, 3e38]
    x = make_logits((len(depths), classes), dtype, spread=1)
    x[:, -1] = -np.array(depths)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        assert_plain(layout(x), np.full(len(x), classes - 1), what="labels")
        assert_plain(layout(x), one_hot(x, -1), what="probabilities")


@pytest.mark.parametrize("dtype", HALVES, indirect=True)
def test_seventy_thousand_half_rows_have_a_finite_mean(dtype):
    x = make_logits((70_000, 4), dtype)
    assert_plain(x, np.zeros(len(x), int), reduction="mean")


@pytest.mark.parametrize("shape", [(64, 10), (40, 100), (12, 400), (6, 3000)])
def test_a_row_does_not_depend_on_the_size_of_its_neighbours(dtype, shape):
    """Kernels guess the scale of a row from the row before: a wrong guess changes no bit."""
    x = make_logits(shape, "float64", spread=2)
    offsets = [0, 60, -60, 87, -87, 300, -300, 1000, -1000, 3e4, -3e4, 0]
    offsets += [] if dtype == np.float16 else [2e6, -2e6, 1e9, -1e9, 1e30, -1e30, 0]
    x += np.resize(offsets, shape[0])[:, None]
    x = x.astype(dtype)
    labels = np.arange(shape[0]) % shape[1]
    loss, grad = assert_plain(x, labels)
    assert_plain(np.asfortranarray(x), labels)
    for row in range(shape[0]):
        alone = xe.cross_entropy_with_grad(x[row : row + 1], labels[row : row + 1], reduction="sum")
        assert_ulps(np.asarray(alone[0]).astype(loss.dtype), loss[row], 0, f"row {row}")
        np.testing.assert_array_equal(alone[1][0], grad[row], err_msg=f"row {row}")


@pytest.mark.parametrize("classes", [2, 10, 100, 300, 5000])
def test_losses_whose_shifted_exp_is_subnormal(dtype, classes):
    first = 980 if dtype == np.float64 else 118
    depths = np.arange(first, first + 50)
    x = make_logits((len(depths), classes), dtype, spread=1)
    x[:, -1] = -depths
    for layout in (np.ascontiguousarray, np.asfortranarray):
        assert_plain(layout(x), np.full(len(x), classes - 1))
        t = np.zeros(x.shape, "float32")
        t[:, -1] = 1
        assert_plain(layout(x), t)
