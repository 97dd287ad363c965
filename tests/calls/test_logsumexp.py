"""logsumexp with weights, signs and complex numbers; test_softmax.py has the plain sums."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from helpers.support import assert_bits, assert_within, case, eps, make_logits
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import special

import xentropy as xe
from xentropy import reference

EPS = eps("float64")
NAN, INF = np.nan, np.inf


def exact_sum(x, b):
    """log|S|, S/|S| and sum|b e^x| / |S| of one row, by mpmath; S = 0 gives -inf, 0 and 0."""
    with mpmath.workdps(400):
        pairs = [[mpmath.mpmathify(each) for each in pair] for pair in zip(x, b, strict=True)]
        terms = [w * mpmath.exp(v) for v, w in pairs if w]
        total, size = mpmath.fsum(terms), mpmath.fsum(map(abs, terms))
        if total == 0:
            return -INF, 0, 0
        return mpmath.log(abs(total)), total / abs(total), float(size / abs(total))


def assert_sum(x, b, *, cancels=True):
    """log|S| and sign: off by two units of the largest of |x| and |log|S||, and of the terms."""
    log, sign = xe.logsumexp(x, b=b, return_sign=True)
    exact, exact_sign, condition = exact_sum(x, b)
    assert sign == int(exact_sign)
    if sign == 0:
        assert log == -INF
        return
    size = float(abs(exact)) + max(abs(v) for v, w in zip(x, b, strict=True) if w)
    condition = condition if cancels else 0
    assert abs(mpmath.mpf(float(log)) - exact) <= 2 * EPS * (size + condition), (log, exact)
    without = xe.logsumexp(x, b=b)
    assert math.isnan(without) if sign < 0 else without == log


# ---- how exact the sums are

WEIGHTS = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda w: abs(w) > 1e-12)
ROWS = st.lists(st.tuples(st.floats(-50, 50), WEIGHTS), min_size=1, max_size=12)


@given(ROWS)
def test_sums_of_either_sign(row):
    assert_sum(*np.array(row).T)


@given(ROWS, st.floats(1e-14, 1e-2), WEIGHTS, st.floats(-60, 60))
def test_severe_cancellation(row, step, weight, place):
    x, b = np.array(row).T
    assert_sum(np.r_[x, x * (1 - step)], np.r_[b, -b])
    assert_sum(np.r_[x, x * (1 - step), place], np.r_[b, -b, weight])


@given(ROWS, st.floats(-60, 60), WEIGHTS)
def test_terms_of_equal_x_cancel_exactly(row, place, weight):
    """What remains is as exact as alone, whatever was there."""
    x, b = np.array(row).T
    apart = np.where(x == place, place + 1, x)
    x, b = np.r_[apart, place, apart], np.r_[b, weight, -b]
    log, sign = xe.logsumexp(x, b=b, return_sign=True)
    expected = place + np.log(abs(weight))
    assert sign == np.sign(weight)
    assert_within(log, expected, 3 * EPS * (abs(expected) + abs(place)))


@pytest.mark.parametrize(
    ("x", "b", "expected"),
    [
        (np.log([1e20, 1e20, 1.1]), [1, -1, 1], np.log(1.1)),
        (np.log([1.1, 1e20, 1e20]), [1, 1, -1], np.log(1.1)),
        (np.log([1e20, 1e10, 1.1, 1e10, 1e20]), [1, 1, 1, -1, -1], np.log(1.1)),
        ([1000.0, 1000, 0], [1, -1, 1], 0.0),  # exp(-1000) is 0
        ([1000.0, 1000, 1000, -1000], [3, -1, -2, 2], -1000 + np.log(2)),
        ([5.0, 5, 5, 5], [1e20, 1.1, -1e20, -0.1], 5.0),
        ([0.0, 0, 0, 0], [1e40, 1e20, -1e40, 1 - 1e20], -INF),
        ([0.0, 0, 0, 0, 0], [1e40, 1e20, 1, -1e20, -1e40], 0.0),
        ([0.0, 0, 0, 1], [1e308, 1e308, -1e308, -1e-320], np.log(1e308)),
        ([0.0, 0, 0, 0, 1], [1.5e308, 1.5e308, -1.5e308, -1.5e308, 1], 1.0),
        ([0.0, 0, 1], [5e-324, -5e-324, 5e-324], 1 + np.log(5e-324)),
        ([7.0, 7], [2.5, -2.5], -INF),
        ([-INF, 7, 7], [1, 2.5, -2.5], -INF),
    ],
)
def test_what_cancels_leaves_nothing_behind(x, b, expected):
    for order in ([*range(len(x))], [*reversed(range(len(x)))]):
        x, b = np.asarray(x)[order], np.asarray(b, float)[order]
        log, sign = xe.logsumexp(x, b=b, return_sign=True)
        assert sign == (expected > -INF)
        assert_within(log, expected, 2 * EPS * np.abs(expected))
        assert_bits(xe.logsumexp(x, b=b), log)
        as_complex, phase = xe.logsumexp(x + 0j, b=b, return_sign=True)
        assert phase == sign
        assert_within(as_complex, expected, 2 * EPS * np.abs(expected))


@given(st.floats(-700, 700), st.floats(1e-15, 1.0), st.floats(1e-300, 1e300))
def test_the_difference_of_two_terms_is_as_exact_as_if_nothing_cancelled(x, step, weight):
    pair = np.array([x, x - step * max(abs(x), 1)])
    assert_sum(pair, np.array([weight, -weight]), cancels=False)
    assert_sum(pair, np.array([-weight, weight]), cancels=False)


def test_a_sum_that_is_almost_1_has_an_exact_logarithm():
    tail = np.exp(-40.0)
    for b in ([1, 1], [1, -1], [1, 3], [0.5, -0.25]):
        x = np.array([-np.log(b[0]), -40.0])
        for scale in (1, 1 + 0j):
            log = np.real(xe.logsumexp(x * scale, b=b))
            if b[0] == 1:  # -log(1) is exact
                assert_within(log, b[1] * tail, 2 * EPS * tail)
            assert_within(log, b[1] * tail, 2 * EPS)


@pytest.mark.usefixtures("tier")
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-300, 1e300)), min_size=1))
def test_positive_weights(row):
    x, b = np.array(row).T
    log, sign = xe.logsumexp(x, b=b, return_sign=True)
    exact, _, _ = exact_sum(x, b)
    size = float(abs(exact)) + np.max(np.abs(x)) + np.max(np.abs(np.log(b)))
    assert sign == 1
    assert abs(mpmath.mpf(float(log)) - exact) <= 4 * EPS * size


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-300, 300)), min_size=2, max_size=6))
def test_the_largest_term_need_not_have_the_largest_x(row):
    x, exponent = np.array(row).T
    b = 10.0**exponent
    b[::2] *= -1
    assert_sum(x, b)


@pytest.mark.parametrize("gap", [50.3, 350.9, 700.3, 1000.3, 1400.7])
def test_terms_of_one_size_whose_x_are_far_from_each_other(gap):
    x = np.array([0.1, gap + 0.2])
    with mpmath.workdps(50):
        as_large = float(1e306 * mpmath.exp(mpmath.mpf(x[0]) - mpmath.mpf(x[1])))
    for ratio in (1 + 1e-5, 1 - 1e-5, 0.5):
        for order in (slice(None), slice(None, None, -1)):
            assert_sum(x[order], np.array([1e306, -ratio * as_large])[order])


def test_float32_is_summed_in_float64():
    x, b = make_logits((50, 300)), make_logits((50, 300), seed=1)
    b[25:] = np.abs(b[25:])
    for rows in (b, b.astype("f2"), np.asarray(b, "bfloat16")):
        for terms in (x, x.astype("f2"), np.asarray(x, "bfloat16")):
            log, sign = xe.logsumexp(terms, 1, rows, return_sign=True)
            wide = terms.astype("f8"), 1, rows.astype("f8")
            exact, exact_sign = xe.logsumexp(*wide, return_sign=True)
            assert_bits(log, exact.astype("f4"))
            assert_bits(sign, exact_sign.astype("f4"))


@pytest.mark.parametrize("shape", [(1, 100_003), (2000, 7), (3, 4097)])
def test_long_rows_and_many(shape):
    x, b = make_logits(shape, "float64", spread=30.0), make_logits(shape, "float64", seed=1)
    log, sign = xe.logsumexp(x, 1, b, return_sign=True)
    wide = x.astype("longdouble"), b.astype("longdouble")
    total = (wide[1] * np.exp(wide[0] - np.max(x, 1, keepdims=True))).sum(1)
    size = (np.abs(wide[1]) * np.exp(wide[0] - np.max(x, 1, keepdims=True))).sum(1)
    exact = np.max(x, 1) + np.log(np.abs(total))
    bound = 2 * EPS * (np.abs(exact) + np.max(np.abs(x), 1) + size / np.abs(total))
    assert_within(log, exact, bound)
    assert_bits(sign, np.sign(total).astype("f8"))


def parts(values):
    """Complex numbers as pairs of real ones, for comparisons of bits."""
    values = np.atleast_1d(values)
    return np.stack([values.real, values.imag])


def test_a_row_does_not_depend_on_the_others():
    x, b = make_logits((40, 33), "float64").copy(), make_logits((40, 33), "float64", seed=1).copy()
    b[::3] = np.abs(b[::3])
    b[1::4, 16:32], x[1::4, 16:32] = -b[1::4, :16], x[1::4, :16]
    x[5, 3], b[6, 4], x[7, 0] = INF, NAN, -INF
    for weights in (b, b[0], b + 1j * b):
        whole = xe.logsumexp(x, 1, weights, return_sign=True)
        for row, each in enumerate(np.broadcast_to(weights, x.shape)):
            alone = xe.logsumexp(x[row], b=each, return_sign=True)
            for values, one in zip(whole, alone, strict=True):
                assert_bits(parts(values[row]), parts(one))


# ---- special values


def ieee_sum(x, b):
    """S = sum_c b_c e^x_c by the rules of IEEE 754; a term of weight 0 is not there."""
    terms = [w * np.exp(np.float64(v)) for v, w in zip(x, b, strict=True) if w != 0]
    return np.sum(np.array(terms, np.float64))


@pytest.mark.parametrize("weights", [*itertools.product([-INF, -1, 0, 2, INF, NAN], repeat=2)])
def test_special_values(weights):
    for x in itertools.product([-INF, -2.0, 0.0, 1.0, INF, NAN], repeat=2):
        with case(f"{x}, {weights}"), np.errstate(all="ignore"):
            total = ieee_sum(x, weights)
            log, sign = xe.logsumexp(x, b=weights, return_sign=True)
            assert_bits(sign, np.sign(total))
            assert_within(log, np.log(np.abs(total)), 4 * EPS)
            assert_within(xe.logsumexp(x, b=weights), np.log(total), 4 * EPS)
            log, sign = reference.logsumexp(x, b=weights, return_sign=True)
            if np.isfinite(x).all():
                assert_bits(sign, np.sign(total))


def test_infinite_weights_of_terms_below_the_range():
    for weight in (INF, -INF):
        answer = xe.logsumexp([-1000.0, 0], b=[weight, -1], return_sign=True)
        assert answer == (INF, np.sign(weight))


def test_no_warning_and_nothing_written():
    x = np.array([[0.0, INF, NAN, -INF], [800.0, -800, 1e308, -1e308], [1, 1, 1, 1]])
    b = np.array([[0.0, -INF, 0, 1], [1, -1e308, 1e-308, 5e-324], [1, -1, 2, -2]])
    kept = x.copy(), b.copy()
    x.flags.writeable = b.flags.writeable = False
    for terms, weights in itertools.product((x, x + 1j, x[::2].astype("f4")), (b, 1j * b[1], -1)):
        weights = weights[: len(terms)] if np.ndim(weights) == 2 else weights
        with np.errstate(all="raise"):
            xe.logsumexp(terms, 1, weights, return_sign=True)
            xe.logsumexp(terms, 0, weights)
    assert_bits(x, kept[0])
    assert_bits(b, kept[1])


# ---- complex numbers


def complex_rows(rows, classes, dtype="complex128"):
    x, y, b, c = (make_logits((rows, classes), "float64", seed=seed) for seed in range(4))
    return (x + 3j * y).astype(dtype), (b + 1j * c).astype(dtype)


@pytest.mark.parametrize("classes", [1, 2, 5, 17])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_sums(classes, dtype):
    x, b = complex_rows(6, classes, dtype)
    unit = EPS if dtype == "complex128" else eps("float32")
    for terms, weights in ((x, None), (x, b), (x.real, b), (x, b.real)):
        result = xe.logsumexp(terms, 1, weights)
        log, phase = xe.logsumexp(terms, 1, weights, return_sign=True)
        assert result.dtype == phase.dtype == dtype
        assert_bits(log, result.real)
        for row in range(len(x)):
            with case(f"row {row}"):
                w = np.ones(classes) if weights is None else weights[row]
                exact, exact_phase, condition = exact_sum(terms[row], w)
                size = float(abs(exact)) + np.max(np.abs(terms[row].real)) + condition
                assert abs(log[row] - float(exact)) <= 2 * unit * size
                assert abs(phase[row] - complex(exact_phase)) <= 4 * unit * condition
                angle = float(mpmath.arg(exact_phase))
                assert abs(np.exp(1j * (result[row].imag - angle)) - 1) <= 4 * unit * (
                    condition + 4
                )


@given(ROWS)
@example([(25.0, 1e-10)])  # its term is the largest, and so 25 is added to the logarithm
def test_equal_complex_terms_cancel_exactly(row):
    x, b = np.array(row).T
    x = x + 1j * b
    log, phase = xe.logsumexp(np.r_[x, 2j, x], b=np.r_[b, 3j, -b], return_sign=True)
    exact = 3j * np.exp(2j)
    assume(not (x == 2j).any())
    # As for every sum, units are those of the largest |x|.
    assert abs(log - np.log(3)) <= 2 * EPS * max(1, np.max(np.abs(x.real)))
    assert abs(phase - exact / 3) <= 2 * EPS


def test_angles_are_in_the_principal_range():
    x, b = complex_rows(300, 3)
    result = xe.logsumexp(20 * x, 1, b)
    assert (np.abs(result.imag) <= np.pi).all()
    assert np.max(np.abs(result.imag)) > 3
    _, phase = xe.logsumexp(20 * x, 1, b, return_sign=True)
    assert_within(parts(np.exp(1j * result.imag)), parts(phase), 8 * EPS)
    for minus in (-1, complex(-1, -0.0), complex(-1, 0.0)):  # on the cut: pi, never -pi
        for one in (0, complex(0, -0.0), complex(0, 0.0)):
            assert xe.logsumexp([one + 0j], b=minus) == 1j * np.pi
    assert xe.logsumexp([0, 2.0**-60 * 1j]).imag == 2.0**-61


def test_complex_infinities():
    infinite = np.array([complex(INF, angle) for angle in (0.0, 0.5, 2.5, -2.5, -0.5)])
    for x in infinite:
        for others in ([], [800 + 1j], [complex(-INF, 2), complex(-INF, INF)]):
            log, phase = xe.logsumexp([x, *others], return_sign=True)
            assert log == INF
            assert_within(np.angle(phase), np.angle(np.exp(x)), EPS)
            assert xe.logsumexp([x, *others]) == np.log(np.exp(x))
    assert np.isnan(xe.logsumexp([INF, complex(INF, 2.5)]).imag)
    assert xe.logsumexp([complex(-INF, 2), complex(-INF, INF)]) == -INF
    assert xe.logsumexp([NAN + 1j, INF, 1j], b=[0, 0, 1]) == 1j
    assert np.isnan(xe.logsumexp([NAN + 1j, 1j]))
    assert xe.logsumexp([0, 0j], b=[-INF, 1], return_sign=True) == (INF, -1)


# ---- arguments and results


@pytest.mark.parametrize("axis", [None, 0, -1, 1, (0, 1), (-1, 0), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((3, 5, 4), (3, 5, 4)),
        ((3, 5, 4), ()),
        ((3, 5, 4), (4,)),
        ((3, 5, 4), (5, 1)),
        ((4,), (3, 5, 4)),
        ((3, 1, 4), (5, 1)),
        ((), (3, 5, 4)),
    ],
)
def test_axes_and_broadcasting(shape, weights, axis, keepdims):
    x = make_logits(shape, "float64") * np.ones(())
    for b in (make_logits(weights, "float64", seed=1), np.abs(make_logits(weights, "float64"))):
        for scale in (1, 1 + 0.5j):
            given = scale * x, axis, b
            actual = xe.logsumexp(*given, keepdims, True)
            for each, exact, theirs in zip(
                actual,
                reference.logsumexp(*given, keepdims=keepdims, return_sign=True),
                special.logsumexp(*given, keepdims, True),
                strict=True,
            ):
                assert each.shape == exact.shape == theirs.shape
                assert each.dtype == theirs.dtype
                assert_within(parts(each), parts(exact), 1e-12)  # no row cancels much
                assert type(each) is type(theirs)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), ()], ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (0, 0), (2, 0, 3)], ids=str)
def test_no_elements(shape, axis):
    if axis in (1, (0, 1)) and len(shape) < 2:
        return
    x = np.zeros(shape)
    expected = np.sum(x, axis)
    for keepdims in (False, True):
        for terms, b in ((x, None), (x, x), (x, -1.0), (x + 0j, None), (x, 1j)):
            log, sign = xe.logsumexp(terms, axis, b, keepdims, return_sign=True)
            assert log.shape == sign.shape == np.sum(x, axis, keepdims=keepdims).shape
            assert np.all(log == -INF)
            assert np.all(sign == 0)
            assert np.all(xe.logsumexp(terms, axis, b, keepdims) == -INF)
    assert xe.logsumexp(x, axis).shape == expected.shape


def test_no_axis_is_the_logarithm_of_every_term():
    x, b = make_logits((3, 4), "float64"), make_logits((3, 4), "float64", seed=1)
    assert_bits(xe.logsumexp(x, ()), x)
    log, sign = xe.logsumexp(x, (), b, return_sign=True)
    assert_within(log, x + np.log(np.abs(b)), 4 * EPS * 16)
    assert_bits(sign, np.sign(b))


def test_scalars():
    for x in (3, 3.0, np.float64(3), np.array(3.0), True + 2, 3 + 0j, np.complex64(3)):
        for axis in (None, 0, -1, ()):
            for b in (None, 1, np.ones(())):
                result = xe.logsumexp(x, axis, b)
                assert result == 3
                assert isinstance(result, np.generic)
        assert xe.logsumexp(x, b=-1, return_sign=True) == (3, -1)
    for axis in (1, -2, (0, 0)):
        with pytest.raises(ValueError, match="axis"):
            xe.logsumexp(3.0, axis)


def test_arguments_have_the_places_and_names_of_scipy():
    x, b = make_logits((3, 4), "float64"), make_logits((3, 4), "float64", seed=1)
    by_place = xe.logsumexp(x, 1, b, True, True)
    by_name = xe.logsumexp(a=x, axis=1, b=b, keepdims=True, return_sign=True)
    for each, same in zip(by_place, by_name, strict=True):
        assert_bits(each, same)
        assert each.shape == (3, 1)
    assert_bits(xe.logsumexp(a=x, axis=1), xe.logsumexp(x, 1))
    with pytest.raises(TypeError, match="x and a"):
        xe.logsumexp(x, a=x)
    with pytest.raises(TypeError, match="x must be"):
        xe.logsumexp()


TYPES = ["bool", "int8", "int16", "int64", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("b_type", TYPES)
def test_dtypes_are_those_of_scipy(x_type, b_type):
    x, b = np.array([2, 1]).astype(x_type), np.array([1, 1]).astype(b_type)
    for order in ("=", ">"):
        given = x.astype(x.dtype.newbyteorder(order)), None, b.astype(b.dtype.newbyteorder(order))
        for ours, theirs in (
            (xe.logsumexp(*given, return_sign=True)[0], xe.logsumexp(*given).real),
            (xe.logsumexp(*given, return_sign=True)[1], xe.logsumexp(*given) * 0 + 1),
            (xe.logsumexp(*given), special.logsumexp(x, b=b)),
            (xe.logsumexp(given[0]), special.logsumexp(x)),
            (xe.logsumexp(given[0], b=2), special.logsumexp(x, b=2)),
            (xe.logsumexp(given[0], b=-2.5), special.logsumexp(x, b=-2.5)),
            (xe.logsumexp(given[0], b=1j), special.logsumexp(x, b=1j)),
            (xe.logsumexp(1.0, b=given[2]), special.logsumexp(1.0, b=b)),
        ):
            assert ours.dtype == theirs.dtype
            assert_within(ours.real, theirs.real, 1e-6)


def test_sixteen_bits_are_summed_to_float32(dtype):
    for b in (None, -1, np.ones(2, dtype)):
        for result in xe.logsumexp(np.zeros(2, dtype), b=b, return_sign=True):
            assert result.dtype == ("float64" if dtype == np.float64 else "float32")
    assert xe.logsumexp(np.zeros(2, dtype), b=1j).dtype == (
        "complex128" if dtype == np.float64 else "complex64"
    )


@pytest.mark.usefixtures("tier")
def test_the_sign_of_a_plain_sum_and_weights_of_1_change_nothing(dtype):
    x = make_logits((7, 33), dtype).copy()
    x[1], x[2, 3], x[3, 4] = -INF, INF, NAN
    plain = xe.logsumexp(x, 1)
    log, sign = xe.logsumexp(x, 1, return_sign=True)
    assert_bits(log, plain)
    assert_bits(sign, np.array([1, 0, 1, NAN, 1, 1, 1], plain.dtype))
    weighted = xe.logsumexp(x, 1, np.ones(33, dtype))
    assert_bits(weighted, xe.logsumexp(x.astype("f8"), 1).astype(plain.dtype))


def test_layouts_and_subclasses():
    x, b = make_logits((6, 5, 4), "float64"), make_logits((6, 5, 4), "float64", seed=1)
    for axis in (0, 1, (0, 2), None):
        expected = xe.logsumexp(x, axis, b, return_sign=True)
        for lay_out in (np.asfortranarray, lambda a: a[::-1][::-1], lambda a: a.view(np.memmap)):
            given = lay_out(x), axis, lay_out(b)
            for each, same in zip(xe.logsumexp(*given, return_sign=True), expected, strict=True):
                assert type(each) in (np.ndarray, np.float64)
                assert_within(each, same, 1e-13)


def test_weights_of_0_are_a_mask():
    """What SciPy's documentation recommends for masked arrays, which are refused."""
    masked = np.ma.array([np.log(2), NAN, np.log(3)], mask=[False, True, False])
    log = xe.logsumexp(masked.data, b=~masked.mask)
    assert_within(log, np.log(5), 2 * EPS)
    for arguments in ({"x": masked}, {"x": [1.0, 2, 3], "b": masked}):
        with pytest.raises(TypeError, match="masked"):
            xe.logsumexp(**arguments)
