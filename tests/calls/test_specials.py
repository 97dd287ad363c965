"""inf and nan: the row they are in answers for itself, and for no other row."""

import itertools

import numpy as np
import pytest
from helpers.support import (
    TARGETS,
    assert_options,
    assert_plain,
    assert_ulps,
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
