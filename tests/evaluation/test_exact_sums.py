"""Exact sums: against fractions and `math.fsum`, for numbers of every size, in any order."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xentropy._evaluation import _exact
from xentropy._evaluation._exact import ExactSums, exact_sum, products, to_float

FINITE = st.floats(allow_nan=False, allow_infinity=False)
LISTS = st.lists(FINITE | st.sampled_from([5e-324, -5e-324, 1.7e308, -0.0, 2.0**-1022]))


def total(values):
    return exact_sum(np.array(values, np.float64))


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@given(LISTS)
def test_is_the_sum_of_fractions(values):
    assert total(values) == sum(map(Fraction, values))


@given(LISTS)
def test_is_rounded_as_fsum_does(values):
    try:
        expected = math.fsum(values)
    except OverflowError:  # on the way; fsum gives up
        return
    rounded = to_float(total(values))
    assert rounded == expected
    assert math.copysign(1, rounded) == (1 if expected == 0 else math.copysign(1, expected))


@given(st.lists(st.floats(), max_size=8))
def test_infinities_and_nan_add_up_as_in_float64(values):
    special = [v for v in values if not math.isfinite(v)]
    if special:
        assert same(to_float(total(values)), sum(special))
        merged = ExactSums(["x"])
        for value in values:
            part = ExactSums(["x"])
            part.add(["a"], np.zeros(1, np.intp), {"x": [np.array([value])]})
            merged.merge(part)
        assert same(merged.floats("x")[0], sum(special))
        assert same(to_float(merged.exact("a", "x")), sum(special))


def test_sums_beyond_the_largest_float_are_infinite_and_come_back():
    largest = np.finfo(np.float64).max
    assert to_float(total([largest, largest])) == math.inf
    assert to_float(total([-largest, -largest])) == -math.inf
    assert to_float(total([largest] * 3 + [-largest] * 2)) == largest


@given(st.lists(st.tuples(st.integers(0, 3), FINITE)), st.randoms())
def test_groups_and_merges_in_any_order(pairs, random):
    """A random tree of merges of random parts, against a sum for each group."""
    sums = [ExactSums(["x", "y"]) for _ in range(3)]
    for key, x in pairs:
        columns = {"x": [np.array([x])], "y": [np.array([1.0])]}
        random.choice(sums).add([key], np.zeros(1, np.intp), columns)
    random.shuffle(sums)
    while len(sums) > 1:
        part = pickle.loads(pickle.dumps(sums.pop()))
        random.choice(sums).merge(part)
    for key in range(4):
        mine = [Fraction(x) for k, x in pairs if k == key]
        assert sums[0].exact(key, "x") == sum(mine)
        assert sums[0].exact(key, "y") == len(mine)
    rounded = [to_float(sums[0].exact(key, "x")) for key in sums[0]._sums]
    assert sums[0].floats("x").tolist() == rounded


def test_more_than_a_block():
    rng = np.random.default_rng(0)
    n = 2 * _exact.BLOCK + 17
    values = rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n)
    codes = rng.integers(3, size=n)
    sums = ExactSums(["x"])
    sums.add(list("abc"), codes, {"x": [values]})
    for code, key in enumerate("abc"):
        assert to_float(sums.exact(key, "x")) == math.fsum(values[codes == code])


def test_many_equal_numbers_do_not_round():
    """A block full of the worst case: all digits, all of one sign."""
    values = np.full(_exact.BLOCK, np.nextafter(2.0, 0))
    assert total(values) == _exact.BLOCK * Fraction(float(values[0]))


@given(st.lists(st.tuples(*[st.floats(-1e140, 1e140)] * 2), min_size=1))
def test_products_are_exact(pairs):
    a, b = np.array(pairs).T
    a, b = (np.where(np.abs(x) < 1e-140, 0.0, x) for x in (a, b))
    high, low = products(a, b)
    for x, y, h, rest in zip(a, b, high, low, strict=True):
        assert Fraction(h) + Fraction(rest) == Fraction(x) * Fraction(y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_products_that_overflow_are_infinite():
    high, low = products(np.array([1e300, 1e155]), np.array([2.0, 1e155]))
    assert (high + low).tolist() == [2e300, math.inf]
