"""The gradient of selected log-probabilities and of the entropy, from the numbers of a row."""

import mpmath
import numpy as np
import pytest
from helpers.bad_arguments import masked, refused
from helpers.layouts import LAYOUTS, PAGE, WRITABLE, forbid, pages
from helpers.log_probs import assert_gradient, gradient_of, make_index, make_upstream
from helpers.remember import remembered
from helpers.support import (
    EXACT,
    assert_bits,
    assert_ulps,
    assert_within,
    eps,
    gradient_ulps,
    make_logits,
    oracle,
)
from hypothesis import given
from hypothesis import strategies as st

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

NAN, INF = np.nan, np.inf
SHAPES = [(37, 1), (37, 2), (20, 17), (18, 100), (7, 320), (7, 321), (3, 1027)]


@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_that_of_the_reference(dtype, shape, spread):
    x, index = make_logits(shape, dtype, spread=spread), make_index(shape)
    index[2] = -100
    g, h = make_upstream(shape, index)
    for scale in (1.0, 0.7, 6):
        assert_gradient(x, index, g, logit_scale=scale, what="of log_prob")
        assert_gradient(x, index, 0.0, h, logit_scale=scale, what="of the entropy")
        assert_gradient(x, index, g, h, logit_scale=scale, what="of both")


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_several_classes_a_row(dtype, shape, k):
    x, index = make_logits(shape, dtype), make_index(shape, k)
    index[1], index[2, 0], index[0] = -100, -100, index[0, 0]
    g, h = make_upstream(shape, index)
    assert_gradient(x, index, g, h)
    assert_gradient(x, index, g, logit_scale=2)


def test_every_axis(dtype):
    for axis, shape in ((0, (9, 4, 3)), (1, (4, 400, 3)), (-1, (3, 2, 50))):
        x, index = make_logits(shape, dtype), make_index(shape, 3, axis=axis)
        g, h = make_upstream(shape, index, axis)
        assert_gradient(x, index, g, h, axis=axis % 3)
    x = make_logits((6,), dtype)
    assert_gradient(x, np.array(2), 1.5, 0.5)
    assert_gradient(x, np.array([2, 3]), np.array([1.5, -1]), 0.5)


@pytest.mark.parametrize("spread", [1.0, 3.0, 40.0])
@pytest.mark.parametrize("classes", [10, 321, 2051])
def test_float32_gradients_are_within_8_units_of_the_largest_entry_of_their_row(classes, spread):
    """As issue and docstring promise, for usual logits: nothing cancels in the largest entry."""
    shape = 50, classes
    x, index = make_logits(shape, spread=spread), make_index(shape)
    for g, h in ((np.ones(50), np.zeros(50)), (np.zeros(50), np.ones(50))):
        exact = oracle(x.dtype).selected_log_probs_grad(x, index, g, h)
        largest = np.abs(exact).max(axis=1, keepdims=True)
        assert_within(gradient_of(x, index, g, h), exact, 8 * eps(x.dtype) / 2 * largest)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_with_upstream_gradient_minus_1_it_is_that_of_the_loss(dtype, shape):
    x, index = make_logits(shape, dtype), make_index(shape)
    exact = oracle(x.dtype).cross_entropy_with_grad(x, index, reduction="none")[1]
    far = 0 if dtype != np.float64 else 14  # |lse| 2^-53, the digits of the lse
    assert_ulps(gradient_of(x, index, -1.0), exact, gradient_ulps(dtype) + far)


@remembered
def exact_row(x, y, g, h):
    """The gradient of one row in 60 digits."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(float(v)) for v in x]
        e = [mpmath.exp(v) for v in x]
        total = mpmath.fsum(e)
        p = [v / total for v in e]
        entropy = -mpmath.fsum(v * mpmath.log(v) for v in p)
        at = [mpmath.mpf(g) * (c == y) for c in range(len(x))]
        rest = [a - g * v - h * v * (mpmath.log(v) + entropy) for a, v in zip(at, p, strict=True)]
        return np.array([np.longdouble(str(v)) for v in rest])


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", [2, 5, 330])
@pytest.mark.parametrize("gap", [3, 8, 20, 45, 80])
def test_tails_of_certain_rows(dtype, classes, gap):
    """The most probable class selected, and another one: every entry keeps its digits."""
    x = np.round(make_logits((3, classes), "float64", spread=1), 3).astype(dtype)
    top, at = x.max(axis=1), [0, classes // 2, classes - 1]
    x[[0, 1, 2], at] = top + gap
    for y in (at, [1, 0, 0]):
        for g, h in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5)):
            found = gradient_of(x, np.array(y), g, np.full(3, h))
            exact = np.stack([exact_row(r, c, g, h) for r, c in zip(x, y, strict=True)])
            largest = np.abs(exact).max(axis=1, keepdims=True)
            # log p and H of float32: two units of either, and H / (log p + H) < 1.6 here
            far = 4 * 2.0**-53 * (np.abs(x.astype("f8")).max() + 10)
            assert_within(found, exact, (8 * eps(dtype) + far) * largest, f"{y} {g} {h}")


@pytest.mark.parametrize("dtype", EXACT)
def test_a_certain_class_that_is_not_selected_has_minus_the_sum_of_the_others(dtype):
    """exp(-40) is lost in 1 + exp(-40), and so is log p + H of the certain class in float64."""
    for classes in (3, 400):
        x = np.zeros((1, classes), dtype)
        x[0, 1] = 40
        found = gradient_of(x, np.array([0]), 0.0, np.ones(1))[0].astype(np.longdouble)
        others = np.delete(found, 1)
        assert_ulps(others.astype(dtype), exact_row(x[0], 0, 0, 1)[[0, *range(2, classes)]], 20)
        assert abs(found[1] + others.sum()) <= 2 * eps(dtype) * abs(found[1])


@pytest.mark.parametrize("dtype", EXACT)
@given(data=st.data())
def test_rows_add_up_to_0(dtype, data):
    """Softmax does not change when all logits do."""
    rows, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 700))
    spread = data.draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    shift = data.draw(st.sampled_from([0, 3, -200, 4096]))
    x = make_logits((rows, classes), dtype, seed=data.draw(st.integers(0, 99)), spread=spread)
    x = (x + dtype_of(dtype)(shift)).astype(dtype)
    index = make_index(x.shape, data.draw(st.integers(1, 3)))
    g, h = make_upstream(x.shape, index)
    found = assert_gradient(x, index, g, h).astype(np.longdouble)
    size = np.abs(g).sum(axis=1) + np.abs(h) * (1 + np.log(classes))
    step = 8 * eps(dtype) + 2.0**-51 * (abs(shift) + 100)
    assert (np.abs(found.sum(axis=1)) <= step * size).all()


def dtype_of(name):
    return np.dtype(name).type


def test_finite_differences():
    x, index = make_logits((4, 30), "float64"), make_index((4, 30), 2)
    g, h = make_upstream(x.shape, index)
    options = {"logit_scale": 0.7, "softcap": 6.0}

    def value(x):
        found = xe.selected_log_probs(x, index, **options)
        return (g * found.log_prob).sum() + (h * found.entropy).sum()

    found = gradient_of(x, index, g, h, **options)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = 1e-5
        slope = (value(x + step) - value(x - step)) / 2e-5
        assert abs(slope - found[at]) < 1e-7, at


@pytest.mark.parametrize("classes", [3, 17, 400])
def test_rows_without_a_softmax_are_nan_and_others_are_not(dtype, classes):
    clean, index = make_logits((8, classes), dtype), make_index((8, classes), 2)
    x = clean.copy()
    x[1, 2], x[2, 0], x[3], x[4, 1], x[5, index[5, 0]] = INF, NAN, -INF, -INF, -INF
    g, h = make_upstream(x.shape, index)
    found, before = gradient_of(x, index, g, h), gradient_of(clean, index, g, h)
    assert np.isnan(found[1:4].astype("f4")).all()
    assert_bits(found[[0, 6, 7]], before[[0, 6, 7]])
    exact = oracle(x.dtype).selected_log_probs_grad(x[4:6], index[4:6], g[4:6], h[4:6])
    assert_within(found[4:6], exact, 0.02 if dtype.itemsize == 2 else 1e-5)
    assert found[4, 1] == 0 or 1 in index[4]


@pytest.mark.parametrize("classes", [5, 400])
def test_upstream_gradients_of_every_size(dtype, classes):
    """Those that leave the range of the fast path, by either side, and 0: relatively exact."""
    x, index = make_logits((6, classes), dtype), make_index((6, classes))
    far = 0 if dtype != np.float64 else 14
    sizes = (1e-30, 1e-22, 1e-9, 1e9, 1e20) if dtype.itemsize > 2 else (1e-3, 8.0)
    for size in (*sizes, 1e-250) if dtype == np.float64 else sizes:
        exact = oracle(x.dtype).selected_log_probs_grad(x, index, np.full(6, size))
        assert_within(
            gradient_of(x, index, np.full(6, size)),
            exact,
            (gradient_ulps(dtype) + far) * np.spacing(np.abs(exact).astype(x.dtype)).astype("f8")
            + np.finfo("f4").tiny * (dtype != np.float64),
        )
    assert not gradient_of(x, index, 0.0, 0.0).astype("f4").any()
    assert np.isnan(gradient_of(x, index, NAN).astype("f4")).all()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("offset", [1e3, -1e5, 1e7, 3e9, -1e30])
def test_logits_far_from_0(dtype, offset):
    """The digits of p are those of a float64 lse: all, some, or only who is the largest."""
    spread = 300 * max(1, abs(offset) / 1e4)
    x = np.round(make_logits((9, 400), "float64", spread=spread)).astype(dtype)
    x = (x + dtype_of(dtype)(offset)).astype(dtype)
    index = make_index(x.shape)
    exact = oracle(x.dtype).selected_log_probs_grad(x, index, 1.0)
    ties = (x == x.max(axis=1, keepdims=True)).sum(axis=1) > 1
    known = 2.0**-52 * abs(offset) + 8 * eps(dtype)
    assert_within(gradient_of(x, index, 1.0)[~ties], exact[~ties], min(known, 1e-3))


@pytest.mark.parametrize("classes", [7, 100, 321, 1100])
def test_softcap(dtype, classes):
    shape = 11, classes
    x, index = make_logits(shape, dtype, spread=6.0), make_index(shape, 2)
    g, h = make_upstream(shape, index)
    for scale in (1.0, 0.5):
        assert_gradient(x, index, g, h, softcap=5.0, logit_scale=scale)


@pytest.mark.parametrize(("shape", "axis"), [((5, 33, 4), 1), ((3, 4, 400), 2), ((350, 20), 0)])
def test_layouts_threads_and_places_change_no_bit(dtype, shape, axis):
    x, index = make_logits(shape, dtype), make_index(shape, 2, axis=axis)
    g, h = make_upstream(shape, index, axis)
    rows = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in (x, index, g)]
    for options in ({}, {"softcap": 4.0, "logit_scale": 0.7}):
        alone = gradient_of(*rows, h, axis=-1, **options)
        for layout in WRITABLE:
            lay = LAYOUTS[layout]
            laid, out = lay(x), lay(np.zeros_like(x))
            given = [*(lay(a) for a in (index, g.astype("f4"))), h[..., ::-1][..., ::-1]]
            place = gradient_of(laid, *given, out=out, axis=axis, n_threads=2, **options)
            assert place is out
            assert_bits(np.moveaxis(out, axis, -1).astype(x.dtype), alone, layout)
            gradient_of(laid, *given, out=laid, axis=axis, **options)
            assert_bits(np.moveaxis(laid, axis, -1).astype(x.dtype), alone, f"{layout}, in place")


def test_threads_neighbours_and_streamed_stores_change_no_bit(dtype):
    """The rows straddle cache lines, and the result is larger than what fits into caches."""
    for shape in ((2003, 1201), (70_001, 35)):
        x, index = make_logits(shape, dtype), make_index(shape)
        index[::5] = -100
        g, h = make_upstream(shape, index)
        out = np.empty_like(x)
        alone = gradient_of(x, index, g, h, n_threads=1)
        gradient_of(x, index, g, h, out=out, n_threads=3)
        assert_bits(out, alone)
        assert not out[::5].astype("f4").any()
        for r in (0, 1, 17, shape[0] - 1):
            one = slice(r, r + 1)
            assert_bits(gradient_of(x[one], index[one], g[one], h[one]), alone[one])


@pytest.mark.parametrize("classes", [4, 128, 512, 4096])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
def test_rows_left_out_are_not_read(dtype, classes, options):
    """The pages that they fill cannot be."""
    per_page = max(1, PAGE // (classes * dtype.itemsize))
    shape = 6 * per_page, classes
    x = pages(shape[0] * classes * dtype.itemsize)[: shape[0] * classes * dtype.itemsize]
    x = x.view(dtype).reshape(shape)
    x[...] = make_logits(shape, dtype)
    index = make_index(shape)
    gone = np.arange(shape[0]) // per_page % 3 == 1
    index[gone] = -100
    before = gradient_of(x.copy(), index, 1.0, 0.5, **options)
    for first in np.flatnonzero(gone)[::per_page]:
        forbid(x[first:].ctypes.data, max(PAGE, classes * dtype.itemsize))
    assert_bits(gradient_of(x, index, 1.0, 0.5, **options), before)
    assert not before[gone].astype("f4").any()


X, Y = np.zeros((3, 4), "f4"), np.array([0, 1, 2])
ONE, ROWS = np.ones(3, "f4"), {"lse", "log_prob", "entropy", "grad_log_prob", "grad_entropy"}
CALL = {"logits": X, "index": Y, **dict.fromkeys(sorted(ROWS), ONE)}
MISTAKES = [
    ({"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ({"index": Y[:2]}, ValueError, ["index", r"\(2,\)", r"\(3,\)"]),
    ({"index": np.array([0, 4, 0])}, IndexError, [r"index\[1\] = 4", "4 classes"]),
    *(({name: ONE[:2]}, ValueError, [name, r"\(2,\)", r"\(3,\)"]) for name in ROWS),
    *(({name: masked(ONE)}, TypeError, [name, "masked"]) for name in ROWS),
    *(({name: ONE * 1j}, TypeError, [name, "complex"]) for name in ROWS),
    ({"index": Y[:, None], "grad_log_prob": ONE}, ValueError, [r"\(3,\)", r"\(3, 1\)"]),
    ({"out": X[:, :3]}, ValueError, ["out", r"\(3, 3\)"]),
    ({"out": X.astype("f8")}, TypeError, ["out", "float64"]),
    ({"out": X.T}, ValueError, ["out"]),
    ({"softcap": -1}, ValueError, ["softcap"]),
    ({"n_threads": 0}, ValueError, ["n_threads"]),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    refused(xe.selected_log_probs_grad, {**CALL, **spoiled}, error, says)


def test_out_may_not_overlap_other_arguments():
    memory = np.zeros((4, 4), "f4")
    for name in sorted(ROWS):
        overlapping = {**CALL, name: memory[0, :3], "out": memory[:3]}
        refused(xe.selected_log_probs_grad, overlapping, ValueError, ["out overlaps", name])
