"""Sums of float64 numbers without rounding: the same for every order and split.

A sum is an integer of Python, which has any number of digits, times a power of two. Arrays are
reduced to a few such numbers by extraction (Rump, Ogita and Oishi, "Accurate floating-point
summation, part I", SIAM J. Sci. Comput. 31, 2008): to add a large power of two to every element
and to subtract it again cuts all of them at the same bit. What stands before the cut adds up in
float64 without rounding; the rest is cut again, until nothing is left.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Column = Floats | Bools
Codes = np.ndarray[Any, np.dtype[np.intp]]
Exact = Fraction | float  # a float is inf or nan

# Elements that are worked on at a time: the fewer, the more bits a cut takes, and the more of them
# stay in the cache; but each block takes some 20 us.
BLOCK = 1 << 15
DIGITS = 53  # of the mantissa
COARSEST = 971  # exponent of the unit in the last place of the largest float64
HUGE, SCALE = 2.0**900, 600  # no power of two overflows that cuts elements below HUGE


def to_float(number: Exact) -> float:
    """The nearest float64, by one rounding; there is one nan."""
    if isinstance(number, Fraction):
        return _quotient(number.numerator, number.denominator)
    return math.nan if math.isnan(number) else float(number)


def _quotient(a: int, b: int) -> float:
    """a / b, rounded once; b is positive."""
    try:
        return a / b
    except OverflowError:
        return math.inf if a > 0 else -math.inf


def exp(x: float) -> float:
    """exp, inf where it overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def products(a: Floats, b: Floats) -> list[Floats]:
    """a * b as the sum of two arrays, without rounding (Dekker 1971).

    Rounded as usual where a factor is beyond 1e299, or the product below 1e-290 or beyond 1e308.
    """
    high, low = np.empty_like(a), np.empty_like(a)
    for start in range(0, len(a), BLOCK):
        part = slice(start, start + BLOCK)
        x = a[part]
        high[part], low[part] = _product(x, x if a is b else b[part])
    return [high, low]


def _product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    high = a * b
    a1, a2 = _halves(a)
    b1, b2 = (a1, a2) if a is b else _halves(b)
    low = a1 * b1
    low -= high
    low += a1 * b2
    low += a2 * b1
    low += a2 * b2
    return high, np.where(np.isfinite(low), low, 0.0)


def _halves(a: Floats) -> tuple[Floats, Floats]:
    """Two numbers of 26 bits that add up to each element (Veltkamp's splitting)."""
    shifted = a * float((1 << 27) + 1)
    high = shifted - (shifted - a)
    return high, a - high


def _extracted(values: Floats, codes: Codes, groups: int) -> Iterator[tuple[int, list[int]]]:
    """Units, as exponents of 2, and for each the sums of every group in it: the whole, in parts.

    At most BLOCK values, and finite.
    """
    largest = max(float(values.max()), -float(values.min()))
    if largest >= HUGE:
        huge = np.abs(values) >= HUGE
        for unit, sums in _extracted(np.where(huge, values * 2.0**-SCALE, 0.0), codes, groups):
            yield unit + SCALE, sums
        values = np.where(huge, 0.0, values)
        largest = HUGE
    exponent = math.frexp(largest)[1]
    while values.any():
        # n numbers up to 2**exponent: their sum is below 2**cut, a multiple of 2**(cut - 53).
        cut = exponent + len(values).bit_length()
        top = values + math.ldexp(1.0, cut)
        top -= math.ldexp(1.0, cut)
        values = values - top
        exponent = cut - DIGITS  # of the unit, and of what is left
        whole: Any = top.sum(keepdims=True) if groups == 1 else np.bincount(codes, top, groups)
        yield exponent, np.ldexp(whole, -exponent).astype(np.int64).tolist()


def exact_sums(values: Any, codes: Codes, groups: int) -> tuple[int, list[int], dict[int, float]]:
    """The sum over each group: a common unit, integers in it, and infinities and nan by group.

    `codes` has the number of every value's group; True is 1.
    """
    if values.dtype == bool:
        if groups == 1:
            return 0, [int(np.count_nonzero(values))], {}
        return 0, np.bincount(codes, values, groups).astype(np.int64).tolist(), {}
    unit, sums, special = COARSEST, [0] * groups, {}
    finite = np.isfinite(values)
    if not finite.all():
        odd = np.bincount(codes[~finite], values[~finite], groups)
        special = {int(code): float(odd[code]) for code in np.unique(codes[~finite])}
        values = np.where(finite, values, 0.0)
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        for exponent, part in _extracted(values[block], codes[block], groups):
            if exponent < unit:
                sums = [n << (unit - exponent) for n in sums]
                unit = exponent
            shift = exponent - unit
            sums = [n + (more << shift) for n, more in zip(sums, part, strict=True)]
    return unit, sums, special


def exact_sum(values: Floats) -> Exact:
    """The sum of all values."""
    total = ExactSums(["sum"])
    total.add([None], np.zeros(len(values), np.intp), {"sum": [values]})
    return total.exact(None, "sum")


class ExactSums:
    """Sums of several columns of numbers, one of each for every key: exact, and mergeable.

    Some 50 bytes for each column of each key, as long as the numbers of a column have about the
    same size.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(columns)}
        self._units = [COARSEST] * len(columns)
        self._sums: dict[Hashable, list[int]] = {}
        self._special: dict[tuple[Hashable, int], float] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(
        self, keys: Sequence[Hashable], codes: Codes, columns: Mapping[str, Sequence[Column]]
    ) -> None:
        """Add rows: arrays of one number a row, the sum of which is what a column gets.

        `codes` has the place of a row's key among `keys`. Columns of the same array are added up
        once.
        """
        found: dict[int, Any] = {}
        for arrays in columns.values():
            for values in arrays:
                if id(values) not in found:
                    found[id(values)] = exact_sums(values, codes, len(keys))
        for name, arrays in columns.items():
            for values in arrays:
                unit, sums, special = found[id(values)]
                odd = {keys[code]: value for code, value in special.items()}
                self._add(self._places[name], unit, zip(keys, sums, strict=True), odd)

    def merge(self, other: ExactSums) -> None:
        """Add the sums of another object with the same columns."""
        for place, unit in enumerate(other._units):
            sums = [(key, numbers[place]) for key, numbers in other._sums.items()]
            special = {key: value for (key, at), value in other._special.items() if at == place}
            self._add(place, unit, sums, special)

    def _add(self, place: int, unit: int, sums: Any, special: Mapping[Hashable, float]) -> None:
        self._refine(place, unit)
        shift = unit - self._units[place]
        for key, number in sums:
            if key not in self._sums:
                self._sums[key] = [0] * len(self._units)
            self._sums[key][place] += number << shift
        for key, value in special.items():
            self._special[key, place] = self._special.get((key, place), 0.0) + value

    def _refine(self, place: int, unit: int) -> None:
        """From now on, a column's sums are in units of 2**unit, if that is finer."""
        shift = self._units[place] - unit
        if shift > 0:
            for numbers in self._sums.values():
                numbers[place] <<= shift
            self._units[place] = unit

    def exact(self, key: Hashable, name: str) -> Exact:
        """The sum of a column; 0 for a key that is not there."""
        place = self._places[name]
        if (key, place) in self._special:
            return self._special[key, place]
        number = self._sums[key][place] if key in self._sums else 0
        return Fraction(number) * Fraction(2) ** self._units[place]

    def sum(self, name: str) -> Fraction:
        """Of a column without infinities, the sum over all keys."""
        place = self._places[name]
        whole = sum(numbers[place] for numbers in self._sums.values())
        return Fraction(whole) * Fraction(2) ** self._units[place]

    def floats(self, name: str) -> Floats:
        """The sums of a column, each rounded once, in the order of their keys."""
        place = self._places[name]
        unit = Fraction(2) ** self._units[place]
        up, down = unit.numerator, unit.denominator
        rounded = np.array([_quotient(n[place] * up, down) for n in self._sums.values()])
        for number, key in enumerate(self._sums):
            if (key, place) in self._special:
                rounded[number] = to_float(self._special[key, place])
        return rounded
