"""logsumexp with weights and signs; test_softmax.py has the plain sums."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from helpers.signed_sums import EPS, INF, NAN, ROWS, WEIGHTS, exact_sum, parts
from helpers.support import assert_bits, assert_within, case, make_logits
from hypothesis import given
from hypothesis import strategies as st

import xentropy as xe
from xentropy import reference


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


# --- how exact the sums are ---


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


# --- special values ---


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
