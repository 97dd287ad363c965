"""inf, nan, huge, tiny: the row they are in answers for itself, and for no other row."""

import itertools

import numpy as np
import pytest
from helpers.layouts import PAGE, forbid, pages
from helpers.support import (
    EXACT,
    HALVES,
    TARGETS,
    assert_bits,
    assert_options,
    assert_plain,
    assert_ulps,
    assert_within,
    make_logits,
    make_target,
)

import xentropy as xe
from xentropy import reference

pytestmark = pytest.mark.usefixtures("tier")

INF = np.inf

# What a row becomes; `at` is the position of its label, `other` of another class.
SPECIALS = {
    "-inf beside the target": lambda row, at, other: row.__setitem__(other, -INF),
    "-inf at the target": lambda row, at, other: row.__setitem__(at, -INF),
    "-inf everywhere but the target": lambda row, at, other: row.__setitem__(mask(row, at), -INF),
    "-inf everywhere but one other": lambda row, at, other: row.__setitem__(mask(row, other), -INF),
    "all -inf": lambda row, at, other: row.fill(-INF),
    "+inf at the target": lambda row, at, other: row.__setitem__(at, INF),
    "+inf beside the target": lambda row, at, other: row.__setitem__(other, INF),
    "+inf everywhere": lambda row, at, other: row.fill(INF),
    "+inf and -inf": lambda row, at, other: row.__setitem__([at, other], [INF, -INF]),
    "nan at the target": lambda row, at, other: row.__setitem__(at, np.nan),
    "nan beside the target": lambda row, at, other: row.__setitem__(other, np.nan),
    "nan and +inf": lambda row, at, other: row.__setitem__([at, other], [np.nan, INF]),
    "nan and -inf": lambda row, at, other: row.__setitem__([at, other], [np.nan, -INF]),
}
SHAPES = [(37, 2), (37, 10), (20, 64), (18, 100), (7, 300), (7, 1000), (5, 5000)]


def mask(row, keep):
    return np.arange(len(row)) != keep


@pytest.mark.parametrize(("dtype", "least"), [("float32", -726_817), ("float64", -744_261_117)])
@pytest.mark.parametrize("shape", [(3, 400), (1, 400, 17)], ids=str)
def test_a_row_that_begins_with_nothing_but_minus_infinity(dtype, least, shape):
    """Its other logits are where the exponent that is guessed from -inf happens to be right."""
    x = make_logits(shape, dtype) + np.dtype(dtype).type(least)
    x[:, :64] = -INF
    target = make_target("labels", shape) % 100 + 100
    for options in ({}, {"z_loss": 1e-12}):
        assert_options(x, target, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_special_rows(dtype, shape):
    rows, classes = shape
    places = [[0], [rows // 2], [rows - 1], [0, 1, 2, 3], range(rows)]
    for special, where in itertools.product(SPECIALS, places):
        x, target = make_logits(shape, dtype), make_target("labels", shape)
        for row in where:
            other = (target[row] + 1 + row) % classes
            other = other if other != target[row] else (other + 1) % classes
            SPECIALS[special](x[row], target[row], other)
        what = f"{special}, rows {list(where)[:4]}"
        loss, grad = assert_plain(x, target, what=what)
        assert_plain(np.asfortranarray(x), target, what=f"{what}, columns")
        calm = np.delete(np.arange(rows), where)
        assert np.isfinite(loss[calm]).all(), what
        assert np.isfinite(grad[calm].astype(float)).all(), what


@pytest.mark.parametrize("shape", [(9, 10), (5, 300), (4, 5000)])
def test_special_rows_with_probabilities(dtype, shape):
    for special, row in itertools.product(SPECIALS, (0, shape[0] - 1)):
        x = make_logits(shape, dtype)
        target = make_target("probabilities", shape, dtype=dtype)
        SPECIALS[special](x[row], 1, 0)  # class 0 has probability 0: 0 * inf = 0
        assert_plain(x, target, what=f"{special}, row {row}")
        assert_plain(np.asfortranarray(x), target, what=f"{special}, row {row}, columns")


def test_minus_inf_at_the_target_costs_inf_and_has_a_finite_gradient(dtype):
    x = np.array([[0.0, -INF, 0.0]]).astype(dtype)
    loss, grad = xe.cross_entropy_with_grad(x, [1])
    assert loss == INF
    assert grad.tolist() == [[0.5, -1.0, 0.5]]


@pytest.mark.parametrize("shape", [(33, 300), (5, 2000), (40, 100), (2, 301, 40)])
def test_the_first_classes_may_be_minus_inf(dtype, shape):
    for count in (1, 16, 63, 64, 65, 99, 256, 299):
        if count < shape[1]:
            x = make_logits(shape, dtype)
            x[:, :count] = -INF
            target = count + make_target("labels", shape) % (shape[1] - count)
            assert_plain(x, target, what=f"first {count}")
            assert_plain(np.flip(x, 1).copy(), shape[1] - 1 - target, what=f"last {count}")


def test_a_guess_from_nothing_but_minus_inf_is_not_taken(dtype):
    """Offsets where the row's total would look right without any probed logit."""
    for offset in (-240, -700_000, -726_800)[: 1 if dtype == np.float16 else 3]:
        x = (make_logits((5, 300), np.float64) + offset).astype(dtype)
        x[:, :64] = -INF
        loss = xe.cross_entropy(x, [64, 100, 200, 250, 299], z_loss=1e-3)
        expected = reference.cross_entropy(x, np.array([64, 100, 200, 250, 299]), z_loss=1e-3)
        assert loss == pytest.approx(expected, rel=1e-6), offset  # float32's lse, squared


@pytest.mark.parametrize("shape", [(40, 10), (50, 300), (6, 3000)])
@pytest.mark.parametrize("count", [1, 2, 16, 39])
def test_the_first_rows_may_be_masked_out(dtype, shape, count):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    x[: min(count, shape[0] - 1)] = -INF
    assert_plain(x, target)


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


@pytest.mark.parametrize("upstream", [1e30, 1.0, 1e-30, 1e-38, 1e-40, 1e-44, INF, np.nan, 0.0])
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


@pytest.mark.parametrize("hidden", ["ignore_index", "sample_weight"])
@pytest.mark.parametrize("value", [np.nan, INF, -INF])
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
def test_zero_mass_costs_nothing_at_minus_inf(dtype, kind):
    """0 * inf = 0 for masked classes of weight 0, whatever the option."""
    shape = (9, 12)
    x, weight = make_logits(shape, dtype), np.ones(12)
    x[:, 3], weight[3] = -INF, 0
    target = make_target(kind, shape, dtype=dtype)
    if kind == "labels":
        target[target == 3] = 4
    loss, _ = assert_options(x, target, weight=weight, label_smoothing=0.1)
    assert np.isfinite(loss)


def test_an_infinite_upstream_of_one_row_stays_in_that_row():
    x = make_logits((6, 10))
    upstream = np.float32([1, INF, 1, np.nan, 1, 0])
    grad = xe.cross_entropy_with_grad(x, np.arange(6), reduction="none", grad_output=upstream)[1]
    plain = xe.cross_entropy_with_grad(x, np.arange(6), reduction="none")[1]
    assert_ulps(grad[[0, 2, 4]], plain[[0, 2, 4]], 0)
    assert np.isinf(grad[1]).all()
    assert np.isnan(grad[3]).all()
    assert (grad[5] == 0).all()


def test_a_divisor_of_0_gives_infinities_of_the_right_sign():
    x = np.array([[0.0, -200.0, 1.0], [0.0, 1.0, 2.0]], np.float32)
    options = {"sample_weight": [1.0, -1.0]}
    loss, grad = xe.cross_entropy_with_grad(x, [1, 0], **options)
    expected = reference.cross_entropy_with_grad(x, np.array([1, 0]), **options)
    assert loss == expected[0] == INF
    assert grad.tolist() == expected[1].tolist()


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


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("classes", [2, 10, 300, 5000])
def test_sums_of_huge_logits_do_not_overflow(kind, classes):
    x = np.full((3, classes), 3e38, np.float32)
    x[0, 1:], x[1, :-1], x[2, ::2] = -3e38, -3e38, -3e38  # differences of 6e38
    target = make_target(kind, x.shape)
    loss, _ = assert_options(x, target, reduction="sum", label_smoothing=0.1)
    assert np.isfinite(loss)


@pytest.mark.parametrize("shape", [(9, 12), (9, 300)])
def test_a_target_of_weight_zero_costs_nothing_at_minus_inf(dtype, shape):
    x, weight = make_logits(shape, dtype), np.ones(shape[1])
    x[:, 3], weight[3] = -INF, 0
    target = make_target("labels", shape)
    target[::2], target[1::2] = 3, 5
    rows, grad = assert_options(x, target, weight=weight, reduction="none")
    assert (rows[::2] == 0).all()
    assert (grad[::2] == 0).all()
    x[0, 7] = np.nan  # but a nan is not hidden
    assert np.isnan(xe.cross_entropy(x, target, weight, reduction="none")[0])


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_smoothing_gives_mass_to_a_class_of_minus_inf(reduction):
    for shape in ((1, 3), (9, 12), (40, 100), (3, 192)):
        for dtype in ("float32", "float64"):
            x = make_logits(shape, dtype)
            x[:, 0] = -INF
            target = np.maximum(make_target("labels", shape), 1)
            loss, grad = assert_options(x, target, label_smoothing=0.1, reduction=reduction)
            assert (np.asarray(loss) == INF).all()
            assert np.isfinite(grad).all()


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
