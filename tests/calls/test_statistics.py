"""row_statistics: every number against the reference, by itself and against other calls."""

import itertools
import pickle

import numpy as np
import pytest
from helpers.bad_arguments import masked, refused
from helpers.layouts import LAYOUTS, PAGE, forbid, pages
from helpers.support import (
    CAP_ULPS,
    EXACT,
    assert_bits,
    assert_ulps,
    assert_within,
    eps,
    make_logits,
    make_target,
    oracle,
    plain,
    wide_of,
)

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

FLOATS = ("lse", "loss", "entropy", "max_log_prob", "sum_squares")
CLASSES = ("argmax", "rank")
# Short rows and long ones; the last vector, line, chunk; several chunks; several parts.
SHAPES = [(37, 1), (37, 2), (19, 5), (20, 17), (18, 100), (7, 320), (7, 321), (7, 1000), (3, 5003)]
SHAPES += [(6, 33_001)]
# An exp, two sums and a quotient more than the loss.
ULPS = 2


def statistics(x, target, **options):
    """The numbers by name, in the right dtypes."""
    found = xe.row_statistics(x, target, **options)._asdict()
    for name, value in found.items():
        if value is not None:
            wanted = np.int64 if name in CLASSES else wide_of(x)
            assert value.dtype == wanted, name
    return found


def assert_statistics(x, target, **options):
    """All numbers are those of the reference: entropies and losses to the last places."""
    found = statistics(x, target, **options)
    exact = oracle(wide_of(x)).row_statistics(x, target, **options)
    for name, value in found.items():
        if name in CLASSES or value is None:
            assert value is exact[name] is None or np.array_equal(value, exact[name]), name
        elif name == "lse":  # the maximum plus a logarithm, of which one may be negative
            finite = np.abs(np.where(np.isfinite(x.astype("f8")), x.astype("f8"), 0)).max()
            size = np.abs(exact["lse"]) + finite * options.get("logit_scale", 1)
            assert_within(value, exact[name], plain(x.dtype) * eps(x.dtype) * size, name)
        else:
            assert_ulps(value, exact[name], ULPS * plain(x.dtype), name)
    return found


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_numbers_are_those_of_the_reference(dtype, shape, spread):
    x, target = make_logits(shape, dtype, spread=spread), make_target("labels", shape).copy()
    target[2] = -100
    for scale in (1.0, 0.7, 6):
        assert_statistics(x, target, logit_scale=scale)
    assert_statistics(x, None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_maximum_at_any_place_and_far_above_what_came_before(dtype, shape):
    """In a long row it moves: from below the guess of the first logits, to beyond its range."""
    rows, classes = shape
    for above in (0.0, 1.0, 20.0, 80.0, 700.0):
        x = make_logits(shape, dtype).copy()
        for r in range(rows):
            at = r * classes // rows
            x[r, at] += x.dtype.type(above)
            x[r, at // 2] += x.dtype.type(above / 2)
        assert_statistics(x, make_target("labels", shape))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", [2, 100, 321, 5003])
def test_tails_of_certain_rows(dtype, classes):
    """Loss, entropy and 1 - p are relatively exact where all of them are almost 0."""
    for gap in (10, 30, 60, 100):
        x = np.zeros((3, classes), dtype)
        x[[0, 1, 2], [0, classes // 2, classes - 1]] = gap
        target = [0, classes // 2, 0]
        s = statistics(x, target)
        tail = (classes - 1) * np.exp(-np.longdouble(gap))
        loss = np.log1p(tail)
        entropy = loss + tail * gap / (1 + tail)
        assert_ulps(s["entropy"], np.full(3, entropy), ULPS * plain(dtype))
        assert_ulps(-s["max_log_prob"], np.full(3, loss), ULPS * plain(dtype))
        assert_ulps(s["loss"], np.array([loss, loss, loss + gap]), ULPS * plain(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_calls_agree(dtype, shape):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    s, units = statistics(x, target), 3 * plain(dtype)
    assert_ulps(s["loss"], xe.cross_entropy(x, target, reduction="none").astype("f8"), units)
    assert_ulps(s["entropy"], xe.entropy(x).astype("f8"), units)
    lse = xe.logsumexp(x, 1).astype("f8")
    assert_within(s["lse"], lse, units * eps(x.dtype) * (np.abs(lse) + 20))
    assert np.array_equal(s["argmax"], np.argmax(x.astype("f8"), 1))
    order = np.argsort(-x.astype("f8"), axis=1, kind="stable")
    assert np.array_equal(s["rank"], np.argmax(order == target[:, None], axis=1))


@pytest.mark.parametrize("classes", [3, 50, 320, 321, 700, 3000, 17_000])
def test_equal_logits_rank_by_index(dtype, classes):
    x = np.random.default_rng(0).integers(-2, 3, (40, classes)).astype(dtype)
    x[x == 1] = -np.inf
    x[:, 0] = 0
    x[::5] = -0.0
    target = np.arange(40) * classes // 40
    s = statistics(x, target)
    order = np.argsort(-x.astype("f8"), axis=1, kind="stable")
    assert np.array_equal(s["rank"], np.argmax(order == target[:, None], axis=1))
    assert np.array_equal(s["argmax"], order[:, 0])


def test_a_part_of_a_long_row_without_finite_logits(dtype):
    """Of the parts of 16,384 classes that are summed by themselves, or of what is probed first."""
    x = make_logits((5, 50_000), dtype).copy()
    x[0, 16_384:32_768] = -np.inf
    x[1, :16_384] = -np.inf
    x[2, :100] = -np.inf
    x[3, :-1] = -np.inf
    x[4, 20_000:] -= x.dtype.type(5000)  # their exps are 0
    for y in (0, 16_385, 49_999):
        assert_statistics(x, np.full(5, y))


INF, NAN = np.inf, np.nan
SPECIALS = list(itertools.product([(INF,), (-INF,), (NAN,), (NAN, INF), (INF, -INF)], [0, 1, -1]))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_rows_without_a_softmax_answer_for_themselves(dtype, shape):
    rows, classes = shape
    clean, target = make_logits(shape, dtype), make_target("labels", shape)
    x = clean.copy()
    for r, (values, at) in enumerate(SPECIALS[: rows - 2]):
        for i, value in enumerate(values):
            x[r, (at + i) % classes] = value
    x[rows - 1] = -INF
    found, before = assert_statistics(x, target), statistics(clean, target)
    untouched = (x == clean).all(axis=1)
    for name in found:
        assert_bits(found[name][untouched], before[name][untouched], name)
    with_nan = np.isnan(x.astype("f4")).any(axis=1)
    assert (found["rank"][with_nan] == classes).all()


@pytest.mark.parametrize("classes", [5, 400])
@pytest.mark.parametrize("size", [1e6, 1e30])
def test_huge_logits(classes, size):
    x = np.round(make_logits((9, classes), "float64"), 0) * size
    target = make_target("labels", x.shape)
    for dtype in EXACT:
        s = statistics(x.astype(dtype), target)
        assert np.array_equal(s["argmax"], np.argmax(x, axis=1))
        ties = (x == x.max(axis=1, keepdims=True)).sum(axis=1)
        assert_ulps(s["entropy"], np.log(ties), plain(dtype))
        assert_ulps(s["sum_squares"], 1 / ties, plain(dtype))


@pytest.mark.parametrize("classes", [7, 100, 321, 2000])
def test_softcap(dtype, classes):
    x, target = make_logits((11, classes), dtype, spread=6.0), make_target("labels", (11, classes))
    for scale in (1.0, 0.5):
        options = {"softcap": 5.0, "logit_scale": scale}
        found = statistics(x, target, **options)
        exact = oracle(wide_of(x)).row_statistics(x, target, **options)
        moved = 4 * CAP_ULPS * eps(x.dtype) * 5.0  # capped logits, absolutely
        for name in FLOATS:
            near = (moved + ULPS * plain(x.dtype) * eps(x.dtype)) * (1 + np.abs(exact[name]))
            assert_within(found[name], exact[name], near, name)


@pytest.mark.parametrize(
    ("shape", "axis"),
    # a run of rows too short for lanes; long rows; short ones, a row a lane: 30, 100, 17 in a run
    [
        ((5, 33, 4), 1),
        ((3, 4, 400), 2),
        ((350, 20), 0),
        ((7, 30), 0),
        ((2, 21, 100), 1),
        ((320, 17), 0),
    ],
)
def test_layouts_and_threads_change_no_bit(dtype, shape, axis):
    x, target = make_logits(shape, dtype), make_target("labels", shape, axis)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1).reshape(-1, shape[axis]))
    for options in ({}, {"softcap": 4.0, "logit_scale": 0.7}):
        plain_rows = statistics(rows, target.reshape(-1), **options)
        for layout, lay in LAYOUTS.items():
            laid = statistics(lay(x), target, axis=axis, n_threads=2, **options)
            for name, value in laid.items():
                assert_bits(value.reshape(-1), plain_rows[name], f"{name}, {layout}")


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_rows_of_any_kind_with_a_strided_class_axis(dtype, classes):
    """Neighbours in a vector: ignored, without a softmax, confident, huge, with ties."""
    x = make_logits((300, classes), dtype).copy()
    target = make_target("labels", x.shape).copy()
    kinds = [np.full(classes, value) for value in (-INF, INF, NAN)]
    kinds += [np.where(np.arange(classes) == 1, value, 0) for value in (NAN, INF, -INF, 90, 3e4)]
    kinds += [np.repeat([1.0, 2.0], [1, classes - 1]), np.zeros(classes)]
    for i, kind in enumerate(kinds):
        x[7 * i] = kind
    x[100:200:3] = np.round(x[100:200:3])
    target[80:140], target[::9] = -100, -100
    for options in ({}, {"logit_scale": 0.7}, {"logit_scale": 64}):
        rows = statistics(x, target, **options)
        columns = statistics(np.asfortranarray(x).T, target, axis=0, **options)
        for name, value in rows.items():
            assert_bits(columns[name], value, name)
    assert_statistics(np.asfortranarray(x).T, target, axis=0)


def test_ignored_rows_of_a_strided_class_axis_are_not_read(dtype):
    per_page = PAGE // dtype.itemsize
    memory = pages(12 * PAGE).view(dtype).reshape(4, 3 * per_page)
    x, start = memory[:, 5:], per_page - 5  # rows in the same vectors as ignored ones
    x[...] = make_logits(x.shape, dtype)
    target = make_target("labels", x.shape, 0).copy()
    target[start : start + per_page] = -100
    before = statistics(x.copy(), target, axis=0)
    for row in memory:
        forbid(row[per_page:].ctypes.data, PAGE)
    after = statistics(x, target, axis=0)
    for name, value in after.items():
        assert_bits(value, before[name], name)


def test_threads_and_neighbours_change_no_bit(dtype):
    x, target = make_logits((2500, 120), dtype), make_target("labels", (2500, 120))
    alone, team = statistics(x, target, n_threads=1), statistics(x, target, n_threads=3)
    for name, value in alone.items():
        assert_bits(team[name], value)
    for r in (0, 1, 17, 2499):
        one = statistics(x[r : r + 1], target[r : r + 1])
        for name, value in one.items():
            assert_bits(value, alone[name][r : r + 1], name)


@pytest.mark.parametrize("classes", [4, 128, 512, 4096])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
def test_ignored_rows_are_not_read(dtype, classes, options):
    """The pages that they fill cannot be."""
    per_page = max(1, PAGE // (classes * dtype.itemsize))
    shape = 6 * per_page, classes
    x = pages(shape[0] * classes * dtype.itemsize)[: shape[0] * classes * dtype.itemsize]
    x = x.view(dtype).reshape(shape)
    x[...] = make_logits(shape, dtype)
    target = make_target("labels", shape).copy()
    gone = np.arange(shape[0]) // per_page % 3 == 1
    target[gone] = -100
    before = statistics(x.copy(), target, **options)
    for first in np.flatnonzero(gone)[::per_page]:
        forbid(x[first:].ctypes.data, max(PAGE, classes * dtype.itemsize))
    after = statistics(x, target, **options)
    for name, value in after.items():
        assert_bits(value, before[name], name)
        ignored = {"loss": 0, "argmax": -1, "rank": -1}.get(name, NAN)
        assert np.array_equal(value[gone], np.full_like(value[gone], ignored), equal_nan=True), name


def test_without_a_target_the_rest_is_the_same(dtype):
    for shape in ((40, 7), (5, 1000)):
        x = make_logits(shape, dtype)
        s, rest = statistics(x, make_target("labels", shape)), statistics(x, None)
        assert rest["loss"] is rest["rank"] is None
        for name in ("lse", "entropy", "argmax", "max_log_prob", "sum_squares"):
            assert_bits(rest[name], s[name])


def test_one_row_no_row_and_lists():
    s = xe.row_statistics([0.0, 0.0], 1)
    assert (s.rank, s.argmax, s.sum_squares) == (1, 0, 0.5)
    assert np.ndim(s.loss) == 0
    for target in (np.zeros(0, int), None):
        s = xe.row_statistics(np.zeros((0, 3), "f4"), target)
        assert s.lse.shape == s.argmax.shape == (0,)
    assert pickle.loads(pickle.dumps(s)).entropy.dtype == np.float32


X, Y = np.zeros((3, 4), "f4"), np.array([0, 1, 2])
MISTAKES = [
    ({"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ({"logits": Y}, TypeError, ["logits", "swapped"]),
    ({"logits": np.zeros((3, 0), "f4")}, ValueError, ["no classes"]),
    ({"target": X}, TypeError, ["target", "integers", "float32"]),
    ({"target": Y[:2]}, ValueError, ["target", r"\(2,\)", r"\(3,\)"]),
    ({"target": np.array([0, 4, 0])}, IndexError, [r"target\[1\] = 4", "4 classes"]),
    ({"axis": 2}, ValueError, ["axis = 2"]),
    ({"ignore_index": 1.5}, TypeError, ["ignore_index"]),
    ({"ignore_index": "a", "target": None}, TypeError, ["ignore_index"]),
    ({"logit_scale": 0}, ValueError, ["logit_scale"]),
    ({"softcap": -1}, ValueError, ["softcap"]),
    ({"n_threads": 0}, ValueError, ["n_threads"]),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    refused(xe.row_statistics, {"logits": X, "target": Y, **spoiled}, error, says)
