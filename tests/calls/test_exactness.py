"""Loss and gradient to 4 units in the last place, for every row length and row count."""

import numpy as np
import pytest
from helpers.support import (
    HALVES,
    LENGTHS,
    TARGETS,
    assert_bits,
    assert_plain,
    assert_within,
    eps,
    make_logits,
    make_target,
)
from helpers.tiers import HERE

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
@pytest.mark.parametrize("kind", TARGETS)
def test_every_row_length(dtype, kind, rows):
    for classes in LENGTHS:
        x = make_logits((rows, classes), dtype, seed=classes)
        assert_plain(x, make_target(kind, x.shape, dtype=dtype), what=f"{rows} x {classes}")


@pytest.mark.parametrize("kind", TARGETS)
def test_every_column_length(dtype, kind):
    for classes in (1, 2, 3, 5, 8, 21, 64, 100, 257, 1000):
        for inner in (2, 3, 7, 16, 31, 33, 95, 97, 128, 129, 200):
            if classes * inner > 30_000:
                continue
            x = make_logits((2, classes, inner), dtype, seed=classes * inner)
            what = f"2 x {classes} x {inner}"
            assert_plain(x, make_target(kind, x.shape, dtype=dtype), what=what)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_vocabulary(dtype, kind):
    x = make_logits((3, 50257), dtype)
    assert_plain(x, make_target(kind, x.shape, dtype=dtype))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("rows", [1, 2])
def test_rows_longer_than_the_cache(kind, rows):
    x = make_logits((rows, 1_200_001))
    assert_plain(x, make_target(kind, x.shape), reduction="sum")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(300_000, 1), (100_000, 3), (30_000, 10), (3000, 127)])
def test_many_short_rows(shape, kind):
    x = make_logits(shape)
    for reduction in ("none", "mean"):
        assert_plain(x, make_target(kind, shape), reduction=reduction)


@pytest.mark.parametrize("tier", HERE[-1:], indirect=True)  # of the same source as the others
def test_more_elements_than_an_int_can_count(tier):
    one = make_logits((1, 1025))
    rows = 2**21 + 5
    target = np.zeros(rows, int)
    target[-1] = 1024
    loss = xe.cross_entropy(np.broadcast_to(one, (rows, 1025)), target, reduction="none")
    first, last = xe.cross_entropy(one, [0]), xe.cross_entropy(one, [1024])
    assert (loss[:-1] == np.float32(first)).all()
    assert loss[-1] == np.float32(last)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_single_class_costs_nothing(dtype, kind, smoothing):
    x = make_logits((40, 1), dtype, spread=100)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, grad = xe.cross_entropy_with_grad(x, make_target(kind, x.shape), **options)
    assert (loss == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("spread", [1e-3, 0.1, 30.0, 1000.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_flat_and_steep_rows(dtype, kind, spread):
    for shape in ((40, 10), (5, 700), (2, 7, 40)):
        x = make_logits(shape, dtype, spread=spread)
        assert_plain(x, make_target(kind, shape, dtype=dtype), what=str(shape))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reduced_losses_are_summed_in_float64(dtype, reduction):
    x = make_logits((70_000, 2), dtype, spread=0.1)
    target = make_target("labels", x.shape)
    rows = xe.cross_entropy(x, target, reduction="none").astype(np.float64)
    exact = rows.sum() / (len(rows) if reduction == "mean" else 1)
    # the rows before their rounding to float32 may differ by half a unit from `rows`
    actual = xe.cross_entropy(x, target, reduction=reduction)
    assert_within(actual, exact, (eps(dtype) + len(rows) * 2.0**-53) * exact)


@pytest.mark.parametrize("dtype", HALVES, indirect=True)
def test_half_precision_gradients_are_float32_gradients_rounded_once(dtype):
    for shape in ((300, 5), (33, 64), (9, 300), (3, 5000), (3, 21, 130)):
        for kind in TARGETS:
            x = make_logits(shape, dtype)
            target = make_target(kind, shape)
            for options in ({}, {"reduction": "sum", "label_smoothing": 0.1, "z_loss": 0.01}):
                loss, grad = xe.cross_entropy_with_grad(x, target, **options)
                wide = x.astype(np.float32)
                wide_loss, wide_grad = xe.cross_entropy_with_grad(wide, target, **options)
                assert_bits(grad, wide_grad.astype(dtype), f"{shape} {kind}")
                assert_bits(loss, wide_loss, f"{shape} {kind}")


@pytest.mark.parametrize("dtype", HALVES, indirect=True)
def test_every_finite_half_is_read_right(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    x = np.stack([every, np.zeros_like(every)], axis=1)
    x = x[np.isfinite(every.astype(np.float32))]
    for layout in (np.ascontiguousarray, np.asfortranarray):
        assert_plain(layout(x), np.ones(len(x), int))


@pytest.mark.parametrize("dtype", HALVES, indirect=True)
def test_every_half_gradient_is_rounded_to_nearest_even(dtype):
    upstream = np.exp(-np.linspace(0, 18, 40_001)).astype(np.float32)  # to float16 subnormals
    x = np.zeros((len(upstream), 3), dtype)
    options = {"reduction": "none", "grad_output": upstream}
    target = np.zeros(len(x), int)
    grad = xe.cross_entropy_with_grad(x, target, **options)[1]
    wide = xe.cross_entropy_with_grad(x.astype(np.float32), target, **options)[1]
    assert_bits(grad, wide.astype(dtype))


@pytest.mark.parametrize("integer", "bBhHiIlLqQ")
def test_labels_of_every_integer_type(integer):
    x = make_logits((9, 7))
    target = np.arange(9) % 7
    expected = xe.cross_entropy_with_grad(x, target)
    for labels in (target.astype(integer), target.astype(np.dtype(integer).newbyteorder())):
        actual = xe.cross_entropy_with_grad(x, labels)
        assert_bits(actual[0], expected[0])
        assert_bits(actual[1], expected[1])


@pytest.mark.parametrize("kind", TARGETS)
def test_types_of_the_answers(dtype, kind):
    wide = np.dtype("float64" if dtype == np.float64 else "float32")
    for shape in ((4, 3), (2, 3, 5), (0, 3), (2, 3, 0), (3,)):
        x, target = make_logits(shape, dtype), make_target(kind, shape)
        empty_mean = 0 in shape
        for reduction in ("sum",) if empty_mean else ("sum", "mean"):
            loss, grad = xe.cross_entropy_with_grad(x, target, reduction=reduction)
            assert type(loss) is float
            assert type(xe.cross_entropy(x, target, reduction=reduction)) is float
        rows, grad = xe.cross_entropy_with_grad(x, target, reduction="none")
        assert rows.dtype == wide
        assert rows.shape == shape[:1] * (len(shape) > 1) + shape[2:]
        assert isinstance(rows, np.generic if len(shape) == 1 else np.ndarray)
        assert (grad.dtype, grad.shape) == (dtype, shape)


def test_out_is_what_comes_back():
    x, out = make_logits((4, 3)), np.empty((4, 3), np.float32)
    assert xe.cross_entropy_with_grad(x, [0, 1, 2, 0], out=out)[1] is out
    assert xe.cross_entropy_with_grad(x, [0, 1, 2, 0], out=x)[1] is x


def test_inputs_are_left_alone():
    x, target = make_logits((40, 30)), make_target("probabilities", (40, 30))
    weight, rows = np.linspace(0, 1, 30), np.linspace(0, 2, 40)
    before = [a.copy() for a in (x, target, weight, rows)]
    xe.cross_entropy_with_grad(x, target, weight, sample_weight=rows)
    for now, then in zip((x, target, weight, rows), before, strict=True):
        assert_bits(now, then)


@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0), (0, 5, 0, 2)])
@pytest.mark.parametrize("kind", TARGETS)
def test_empty_batches(dtype, kind, shape):
    x, target = np.zeros(shape, dtype), make_target(kind, shape)
    for reduction, expected in (("sum", 0.0), ("mean", np.nan)):
        loss, grad = xe.cross_entropy_with_grad(x, target, reduction=reduction)
        assert_within(loss, expected, 0)
        assert grad.shape == shape
    assert xe.cross_entropy(x, target, reduction="none").size == 0


@pytest.mark.parametrize("classes", [9, 40, 100, 185, 1000])
def test_many_equal_exps_that_are_lost_one_by_one_beside_the_first(classes):
    """Each is half a unit in the last place of the largest: only what roundings lose keeps them."""
    x = np.full((20, classes), -36.75)
    x[:, 0] = 0
    assert_plain(x, np.ones(20, int))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [256, 384])
def test_one_large_exp_among_many_equal_ones(dtype, classes):
    """The worst case of a sum: every exp beside the large one is rounded to its unit."""
    rng, rows = np.random.default_rng(0), 2000
    x = make_logits((rows, classes), dtype, spread=0.05)
    x[np.arange(rows), rng.integers(classes, size=rows)] += rng.uniform(0, 10, rows).astype(dtype)
    assert_plain(x, make_target("labels", x.shape))
