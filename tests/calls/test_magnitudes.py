"""Huge and tiny logits, offsets, upstream gradients, weights and divisors."""

import numpy as np
import pytest
from helpers.support import (
    EXACT,
    HALVES,
    TARGETS,
    assert_options,
    assert_plain,
    assert_within,
    make_logits,
    make_target,
)

import xentropy as xe
from xentropy import reference

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 300, 5000])
def test_huge_and_tiny_logits(dtype, classes):
    most = 3e38 if dtype.kind == "V" else float(np.finfo(dtype).max)  # V: bfloat16
    values = [most, -most, most / 2, 1e-40, -1e-40, 5e-324 if dtype == np.float64 else 1e-45, 0.0]
    values += [1e4, -1e4] if dtype == np.float16 else [1e6, -1e6, 1e7, -1e7, 1e30, -1e30]
    lone = np.zeros((len(values), classes), dtype)  # one huge logit among zeros
    lone[:, 0] = values
    level = np.repeat(np.array(values)[:, None], classes, axis=1).astype(dtype)  # all alike
    both = lone.copy()
    both[:, -1] = -both[:, 0]  # opposite signs: the difference may overflow
    for x in (lone, level, both):
        for label in {0, classes // 2, classes - 1}:
            target = np.full(len(x), label)
            with np.errstate(over="ignore"):
                assert_plain(x, target, what=f"label {label}")
                assert_plain(np.asfortranarray(x), target, what=f"label {label}, columns")


@pytest.mark.parametrize(  # 16 bits leave no digit beside more than 1e3
    ("dtype", "offset"),
    [(dtype, 1e3) for dtype in HALVES]
    + [(dtype, offset) for dtype in EXACT for offset in (1e3, 1e6, 1e7, -1e6, 1e30)],
    indirect=["dtype"],
)
@pytest.mark.parametrize("shape", [(33, 10), (9, 300), (4, 5000), (2, 21, 130)])
def test_a_large_common_offset(dtype, shape, offset):
    x = (np.round(make_logits(shape, "float64")) + offset).astype(dtype)
    target = make_target("labels", shape)
    assert_plain(x, target)
    assert_plain(x, make_target("probabilities", shape, dtype=dtype))
    for weight in (None, np.linspace(0.5, 2, shape[1])):
        assert_options(x, target, weight=weight, label_smoothing=0.1, reduction="none")


@pytest.mark.parametrize("upstream", [1e30, 1.0, 1e-30, 1e-38, 1e-40, 1e-44, np.inf, np.nan, 0.0])
@pytest.mark.parametrize("shape", [(33, 10), (9, 300), (4, 5000), (2, 21, 130)])
def test_any_size_of_grad_output(shape, upstream):
    x, target = make_logits(shape), make_target("labels", shape)
    for options in ({"reduction": "sum"}, {"reduction": "none"}):
        exact = {**options, "grad_output": np.float32(upstream)}
        assert_plain(x, target, what="logits", **exact)
        assert_plain(np.moveaxis(x, 1, 0).copy(), target, axis=0, what="columns", **exact)


@pytest.mark.parametrize("shape", [(5, 10), (5, 300), (3, 5000)])
def test_a_large_upstream_lifts_small_probabilities(shape):
    x, target = make_logits(shape), make_target("labels", shape)
    x[:, 0] = -75.0  # p is about 1e-33
    assert_plain(x, np.maximum(target, 1), grad_output=np.float32(1e30))


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_a_finite_gradient_survives_factors_beyond_float32(weight):
    x, target = make_logits((3, 5), np.float32), np.array([1, 0, 3])
    options = {"label_smoothing": 0.1, "grad_output": 1e39}
    grad = xe.cross_entropy_with_grad(x, target, weight, **options)[1]
    expected = reference.cross_entropy_with_grad(x, target, weight, **options)[1]
    with np.errstate(over="ignore"):
        assert_within(grad, expected.astype(np.float32), 1e-5 * np.abs(expected).max())


def test_class_weights_keep_float64():
    x = make_logits((2, 3), np.float32)
    for weight in ([0.1, 0.1, 0.1], [1e-46, 1.0, 1.0], [1e39, 1e39, 1e39]):
        expected = reference.cross_entropy(x, np.array([0, 1]), weight, reduction="sum")
        # The loss of each row is float32's, good to 4 ulp; the weights are not rounded.
        loss = xe.cross_entropy(x, [0, 1], weight, reduction="sum")
        assert loss == pytest.approx(expected, rel=2**-21)
        once = xe.cross_entropy(x, [0, 1], np.ones(3), reduction="sum")
        if weight[0] == weight[1]:
            assert loss == pytest.approx(once * weight[0], rel=1e-15)


@pytest.mark.parametrize("dtype", EXACT, indirect=True)
@pytest.mark.parametrize("limit", [360, 2.0**19, 2.0**20, 2.0**30])  # the tiers' kMaxShift
def test_the_tail_of_a_row_just_below_the_smallest_shift(dtype, limit):
    """There k is clamped and the first exps are small: the others must not vanish."""
    limit = min(limit, 2.0**20) if dtype == np.float32 else limit  # beyond, no digit is left
    for below in (1, 30, 90, 150, 1000):
        top = np.round(-(limit + below) * np.log(2))
        x = np.tile(top - np.linspace(0, 80, 100).round(), (5, 1)).astype(dtype)
        assert_plain(x, np.arange(5) * 20, what=f"{below} below")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", [2, 10, 300, 5000])
def test_sums_of_huge_logits_do_not_overflow(kind, classes):
    x = np.full((3, classes), 3e38, np.float32)
    x[0, 1:], x[1, :-1], x[2, ::2] = -3e38, -3e38, -3e38  # differences of 6e38
    target = make_target(kind, x.shape)
    loss, _ = assert_options(x, target, reduction="sum", label_smoothing=0.1)
    assert np.isfinite(loss)


@pytest.mark.parametrize("offset", [1e6, -1e10, 1e30])
def test_smoothing_of_columns_beyond_every_shift(tier, offset):
    """Rows that start anew from their maximum are made where they lie."""
    for shape in ((8, 400), (3, 1000), (2, 600, 9)):
        for dtype in ("float32", "float64"):
            x = (np.round(make_logits(shape, "float64")) + offset).astype(dtype)
            x, target = np.asfortranarray(x), make_target("labels", shape)
            assert_options(x, target, label_smoothing=0.1, reduction="none", what=str(shape))


@pytest.mark.parametrize("classes", [10, 40, 321, 1000])
@pytest.mark.parametrize("size", [1e115, 1e180, 1e284])
def test_a_normalizer_whose_product_with_a_sum_of_exps_overflows(classes, size):
    for dtype in ("float32", "float64"):
        x, y = make_logits((19, classes), dtype), np.arange(19) % classes
        _, plain = xe.cross_entropy_with_grad(x, y, normalizer=1)
        _, gradient = xe.cross_entropy_with_grad(x, y, normalizer=size, grad_output=size)
        assert_within(gradient, plain, 4 * np.finfo(dtype).eps * np.abs(plain), dtype)
