"""selected_log_probs: every number against the reference and against other calls."""

import itertools
import pickle

import numpy as np
import pytest
from helpers.bad_arguments import masked, refused
from helpers.layouts import LAYOUTS, PAGE, forbid, pages
from helpers.log_probs import make_index
from helpers.support import (
    CAP_ULPS,
    EXACT,
    assert_bits,
    assert_ulps,
    assert_within,
    eps,
    make_logits,
    oracle,
    plain,
    wide_of,
)

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

NAN, INF = np.nan, np.inf
# Short rows and long ones; the last vector, line, chunk; several chunks.
SHAPES = [(37, 1), (37, 2), (20, 17), (18, 100), (7, 320), (7, 321), (3, 5003)]
# An exp, two sums and a quotient more than the loss.
ULPS = 2


def assert_selected(x, index, **options):
    """log_prob and entropy to the last places, lse to those of float64."""
    found = xe.selected_log_probs(x, index, **options)
    exact = oracle(wide_of(x)).selected_log_probs(x, index, **options)
    assert found.log_prob.dtype == found.entropy.dtype == wide_of(x)
    assert found.lse.dtype == np.float64
    units = ULPS * plain(x.dtype)
    assert_ulps(found.log_prob, exact[0], units, "log_prob")
    assert_ulps(found.entropy, exact[1], units, "entropy")
    # The maximum plus a logarithm, which is exact to the digits of the sum of exps.
    finite = np.where(np.isfinite(exact[2]), np.abs(exact[2]), 0).astype("f8")
    assert_within(found.lse, exact[2], units * eps(x.dtype) + 2.0**-51 * (finite + 50), "lse")
    return found


@pytest.mark.parametrize("spread", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_numbers_are_those_of_the_reference(dtype, shape, spread):
    x, index = make_logits(shape, dtype, spread=spread), make_index(shape)
    index[2] = -100
    for scale in (1.0, 0.7, 6):
        assert_selected(x, index, logit_scale=scale)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_several_classes_a_row(dtype, shape, k):
    x, index = make_logits(shape, dtype), make_index(shape, k)
    index[1], index[2, 0], index[0] = -100, -100, index[0, 0]
    found = assert_selected(x, index, logit_scale=0.7)
    for j in range(k):
        one = xe.selected_log_probs(x, index[:, j], logit_scale=0.7)
        assert_bits(one.log_prob, found.log_prob[:, j])
        counted = index[:, j] != -100
        assert_bits(one.entropy[counted], found.entropy[counted])


def test_several_classes_along_any_axis(dtype):
    for axis, shape in ((0, (9, 4, 3)), (1, (4, 400, 3)), (-1, (3, 2, 50)), (0, (6,)), (1, (6,))):
        x, index = make_logits(shape, dtype), make_index(shape, 3, axis=axis * (len(shape) > 1))
        found = assert_selected(x, index, axis=axis)
        assert found.log_prob.shape == index.shape
        axis = axis % len(shape) if len(shape) > 1 else 0
        taken = np.take_along_axis(xe.log_softmax(x.astype("f8"), axis), index, axis)
        assert_within(found.log_prob, taken, 1e-5 * (1 + np.abs(taken)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_numbers_are_those_of_row_statistics(dtype, shape):
    x, index = make_logits(shape, dtype), make_index(shape)
    for options in ({}, {"logit_scale": 0.3}, {"softcap": 4.0}):
        found = xe.selected_log_probs(x, index, **options)
        s = xe.row_statistics(x, index, **options)
        assert_bits(found.log_prob, 0 - s.loss)
        assert_bits(found.entropy, s.entropy)
        assert_bits(found.lse.astype(wide_of(x)), s.lse)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", [2, 100, 321, 5003])
def test_tails_of_certain_rows(dtype, classes):
    """log p and the entropy are relatively exact where both are almost 0."""
    for gap in (10, 30, 60, 100):
        x = np.zeros((3, classes), dtype)
        x[[0, 1, 2], [0, classes // 2, classes - 1]] = gap
        found = xe.selected_log_probs(x, [0, classes // 2, 0])
        tail = (classes - 1) * np.exp(-np.longdouble(gap))
        loss = np.log1p(tail)
        exact = -np.array([loss, loss, loss + gap])
        assert_ulps(found.log_prob, exact, ULPS * plain(dtype))
        entropy = np.full(3, loss + tail * gap / (1 + tail))
        assert_ulps(found.entropy, entropy, ULPS * plain(dtype))


@pytest.mark.parametrize("classes", [3, 17, 400])
def test_rows_without_a_softmax_answer_for_themselves(dtype, classes):
    clean, index = make_logits((8, classes), dtype), make_index((8, classes), 2)
    x = clean.copy()
    x[1, 2], x[2, 0], x[3], x[4, 1], x[5, index[5, 0]] = INF, NAN, -INF, -INF, -INF
    x[6, 0], x[6, 2] = INF, NAN
    found = assert_selected(x, index)
    assert np.isnan(found.log_prob[[1, 2, 3, 6]]).all()
    assert (found.lse[[1, 3]] == [INF, -INF]).all()
    assert found.log_prob[5, 0] == -INF
    before = xe.selected_log_probs(clean, index)
    for name in found._fields:
        rows = [0, 7]
        assert_bits(getattr(found, name)[rows], getattr(before, name)[rows])


@pytest.mark.parametrize("classes", [7, 100, 321, 2000])
def test_softcap(dtype, classes):
    x, index = make_logits((11, classes), dtype, spread=6.0), make_index((11, classes), 2)
    for scale in (1.0, 0.5):
        options = {"softcap": 5.0, "logit_scale": scale}
        found = xe.selected_log_probs(x, index, **options)
        exact = oracle(wide_of(x)).selected_log_probs(x, index, **options)
        moved = 4 * CAP_ULPS * eps(x.dtype) * 5.0  # capped logits, absolutely
        for value, of in zip(found, exact, strict=True):
            near = (moved + ULPS * plain(x.dtype) * eps(x.dtype)) * (1 + np.abs(of))
            assert_within(value, of, near)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 33, 4), 1), ((3, 4, 400), 2), ((350, 20), 0), ((2, 21, 64), 1)],  # the last: columns
)
def test_layouts_threads_and_types_of_index_change_no_bit(dtype, shape, axis):
    x, index = make_logits(shape, dtype), make_index(shape, 2, axis=axis)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1).reshape(-1, shape[axis]))
    flat = np.ascontiguousarray(np.moveaxis(index, axis, -1).reshape(-1, 2))
    for options in ({}, {"softcap": 4.0, "logit_scale": 0.7}):
        alone = xe.selected_log_probs(rows, flat, **options)
        for layout, integers in itertools.product(LAYOUTS, ("i2", ">i4", "u8")):
            lay = LAYOUTS[layout]
            placed = lay(index).astype(integers)
            laid = xe.selected_log_probs(lay(x), placed, axis=axis, n_threads=2, **options)
            log_prob = np.moveaxis(laid.log_prob, axis, -1).reshape(-1, 2)
            assert_bits(log_prob, alone.log_prob, layout)
            assert_bits(laid.entropy.reshape(-1), alone.entropy, layout)
            assert_bits(laid.lse.reshape(-1), alone.lse, layout)


@pytest.mark.parametrize("classes", [4, 128, 512, 4096])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
def test_rows_left_out_are_not_read(dtype, classes, options):
    """The pages that they fill cannot be."""
    per_page = max(1, PAGE // (classes * dtype.itemsize))
    shape = 6 * per_page, classes
    x = pages(shape[0] * classes * dtype.itemsize)[: shape[0] * classes * dtype.itemsize]
    x = x.view(dtype).reshape(shape)
    x[...] = make_logits(shape, dtype)
    index = make_index(shape, 2)
    gone = np.arange(shape[0]) // per_page % 3 == 1
    index[gone] = -100
    before = xe.selected_log_probs(x.copy(), index, **options)
    for first in np.flatnonzero(gone)[::per_page]:
        forbid(x[first:].ctypes.data, max(PAGE, classes * dtype.itemsize))
    after = xe.selected_log_probs(x, index, **options)
    for value, old in zip(after, before, strict=True):
        assert_bits(value, old)
        assert (value[gone] == 0).all()


def test_one_row_no_row_and_lists():
    found = xe.selected_log_probs([0.0, 0.0], 1)
    assert np.ndim(found.log_prob) == 0
    assert_ulps(found.entropy, np.log(2), 1)
    found = xe.selected_log_probs(np.zeros((0, 3), "f4"), np.zeros((0, 2), int))
    assert found.log_prob.shape == (0, 2)
    assert found.lse.shape == (0,)
    assert pickle.loads(pickle.dumps(found)).entropy.dtype == np.float32


X, Y = np.zeros((3, 4), "f4"), np.array([0, 1, 2])
MISTAKES = [
    ({"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ({"logits": np.zeros((3, 0), "f4")}, ValueError, ["no classes"]),
    ({"index": masked(Y)}, TypeError, ["index", "masked"]),
    ({"index": X}, TypeError, ["index", "integers", "float32"]),
    ({"index": None}, TypeError, ["index", "None"]),
    ({"index": Y[:2]}, ValueError, ["index", r"\(2,\)", r"\(3,\)"]),
    ({"index": np.zeros((2, 5), int)}, ValueError, ["index", r"\(2, 5\)", r"\(3, 5\)"]),
    ({"index": np.zeros((3, 0), int)}, ValueError, ["index", r"\(3, 0\)", "axis 1"]),
    ({"index": np.array([0, 4, 0])}, IndexError, [r"index\[1\] = 4", "4 classes"]),
    ({"index": np.array([[0, 1], [0, 0], [2, -1]])}, IndexError, [r"index\[2, 1\] = -1"]),
    ({"axis": 2}, ValueError, ["axis = 2"]),
    ({"ignore_index": 1.5}, TypeError, ["ignore_index"]),
    ({"logit_scale": 0}, ValueError, ["logit_scale"]),
    ({"softcap": -1}, ValueError, ["softcap"]),
    ({"n_threads": 0}, ValueError, ["n_threads"]),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    refused(xe.selected_log_probs, {"logits": X, "index": Y, **spoiled}, error, says)
