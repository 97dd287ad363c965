"""Sums of b_c exp(x_c) of either sign, real and complex, whose terms may cancel.

The row's largest term, at x_p, is the unit: with d_c = x_c - x_p, whose rounding error is kept,

    S = exp(x_p) sum_c b_c exp(d_c),   exp(d) = 1 + expm1(d) where d is small,

so that exp(d) is off by a unit in the last place of itself or of expm1(d), and its product with
b_c by another half. The products are added in twice the precision of float64.

Where most of a row cancels, weights of equal x are added exactly, and the sum is formed anew from
its largest term: what the terms that are gone have pushed below the range of float64 comes back.
"""

import math

import numpy as np

BLOCK = 1 << 12  # elements that are worked on at a time: a dozen temporaries stay in the L2 cache
LEFT = 2.0**-10  # of the largest term: if less than this is left, equal x are looked for
LN2 = math.log(2)
# Steps that keep exp(d) far from overflow: 2**1024 = exp(STEP + STEP_LOW).
STEP, STEP_LOW = 1024 * LN2, 1024 * 2.3190468138462996e-17
FAR = 2000.0  # more than the logarithms of two weights differ: exp(-FAR) does not count


def log_of_sums(x, b):
    """log|S| of every row, and S over a positive number; x and b are float64 or complex128."""
    log = np.full(len(x), -np.inf)
    sums = np.zeros(len(x), np.result_type(x, b))
    if x.shape[1] == 0:
        return log, sums
    step = max(1, BLOCK // x.shape[1])
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        log[rows], sums[rows] = _log_of_block(x[rows], b[rows])
    return log, sums


def _log_of_block(x, b):
    finite = np.isfinite(x) & np.isfinite(b)
    kept = np.where(finite, b, 0)
    *sums, largest = _sums(x, kept)
    again = np.abs(sums[0]) <= LEFT * largest
    again[again] = _repeated(x[again], kept[again])
    if again.any():
        merged, scale = _merged(x[again], kept[again])
        *anew, _ = _sums(*merged)
        anew[-1] += scale
        for whole, part in zip(sums, anew, strict=True):
            whole[again] = part
    log, total = _log_abs(*sums), sums[0]
    if finite.all():
        return log, total
    infinite = _infinite_terms(x, np.where(finite, 0, b)).astype(total.dtype)
    return (
        np.where(infinite == 0, log, np.log(np.abs(infinite))),
        np.where(infinite == 0, total, _direction(infinite)),
    )


def _sums(x, b):
    """Every row: S = exp(peak) 2**exponent (high + low), as (high, low, peak, exponent, largest).

    `largest` is the largest |term| of high. Terms of weight 0 are not read.
    """
    dead, size = b == 0, np.abs(b)
    top = np.max(np.where(dead, -np.inf, x.real), axis=1, keepdims=True)
    log_term = np.where(dead, -np.inf, (x.real - top) + np.log(size))
    at = np.argmax(log_term, axis=1)[:, None]
    peak = np.take_along_axis(np.where(dead, 0, x.real), at, axis=1)
    exponent = np.frexp(np.take_along_axis(size, at, axis=1))[1].astype(np.int64)
    x = np.where(dead, peak, x)
    e, one, steps = _exp(x.real, peak)
    b = _ldexp(b, 1024 * steps - exponent)
    if np.result_type(x, b).kind == "c":
        whole = e + one
        real, imag = whole * np.cos(x.imag), whole * np.sin(x.imag)
        high, low = _sum_rows(b.real * real, -b.imag * imag)
        high_imag, low_imag = _sum_rows(b.real * imag, b.imag * real)
        high, low = high + 1j * high_imag, low + 1j * low_imag
    else:
        high, low = _sum_rows(b * one, b * e)
    largest = np.max(np.abs(b) * (e + one), axis=1)
    return *_two_sum(high, low), peak[:, 0], exponent[:, 0], largest


def _exp(x, peak):
    """exp(x - peak) = (e + one) 2**(1024 steps), where one is 1 for small differences, else 0."""
    d, low = _two_sum(x, -peak)
    low = np.where(d > -FAR, low, 0.0)
    d = np.maximum(d, -FAR)
    steps = np.rint(d / STEP)
    d -= steps * STEP
    low -= steps * STEP_LOW
    small = np.abs(d) < 0.5
    e, one = np.where(small, np.expm1(d), np.exp(d)), small.astype(np.float64)
    return e + low * (e + one), one, steps.astype(np.int64)


def _two_sum(a, b):
    """a + b, and its rounding error; of complex numbers too."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def _sum_rows(first, second):
    """The sums of first + second over every row, high + low."""
    high, low = _two_sum(first, second)
    while (n := high.shape[1]) > 1:
        half = n // 2
        total, rounding = _two_sum(high[:, :half], high[:, n - half :])
        rest = low[:, :half] + low[:, n - half :] + rounding
        high = np.concatenate([total, high[:, half : n - half]], axis=1)
        low = np.concatenate([rest, low[:, half : n - half]], axis=1)
    return high[:, 0], low[:, 0]


def _ldexp(value, exponent):
    """value * 2**exponent; of complex numbers too."""
    if value.dtype.kind != "c":
        return np.ldexp(value, exponent)
    return np.ldexp(value.real, exponent) + 1j * np.ldexp(value.imag, exponent)


def _log_abs(high, low, peak, exponent):
    """peak + log|(high + low) 2**exponent|; near 1 by log1p(|.|**2 - 1) / 2."""
    shift = -np.frexp(np.abs(high))[1].astype(np.int64)
    exponent = exponent - shift
    near = (exponent == 0) | (exponent == 1)
    shift += np.where(near, exponent, 0)
    high, low = _ldexp(high, shift), _ldexp(low, shift)
    cross = high.real * low.real + high.imag * low.imag
    log1p = np.log1p((high.real - 1) * (high.real + 1) + (high.imag**2 + 2 * cross)) / 2
    size = np.abs(high)
    log = np.where(near, log1p, np.log(size) + (cross / size**2 + exponent * LN2))
    return np.where(size == 0, -np.inf, peak + log)


def _repeated(x, b):
    """Are there equal x in a row?"""
    ordered = np.sort(np.where(b == 0, np.nan, x), axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)


def _merged(x, b):
    """The rows with every x once, its weights added exactly, and what they are to be scaled by.

    Places that become free have weight 0.
    """
    scale = np.where(np.max(np.abs(b), axis=1) > 2.0**900, 64, 0)  # so that no sum overflows
    once, total = [], []
    for places, weights in zip(x.tolist(), _ldexp(b, -scale[:, None]).tolist(), strict=True):
        of = {}
        for place, weight in zip(places, weights, strict=True):
            if weight:
                of.setdefault(place, []).append(weight)
        free = [0.0] * (len(places) - len(of))
        once.append([*of, *free])
        total.append([*map(_exact_sum, of.values()), *free])
    return (np.array(once, x.dtype), np.array(total, b.dtype)), scale


def _exact_sum(numbers):
    if len(numbers) == 1:
        return numbers[0]
    if not isinstance(numbers[0], complex):
        return math.fsum(numbers)
    return complex(math.fsum(n.real for n in numbers), math.fsum(n.imag for n in numbers))


def _infinite_terms(x, b):
    """The sums of the terms that are not finite, or 0; a finite x counts by its angle alone."""
    e = np.exp(np.where(np.isfinite(x.real), 1j * x.imag, x))
    terms = np.empty(x.shape, np.complex128)
    terms.real = _times(b.real, e.real) - _times(b.imag, e.imag)
    terms.imag = _times(b.real, e.imag) + _times(b.imag, e.real)
    terms[~np.isfinite(b) & (e == 0)] = np.nan
    total = terms.sum(axis=1)
    return total if np.result_type(x, b).kind == "c" else total.real


def _times(a, b):
    """a * b of parts of complex numbers, where 0 is no part at all: it takes no nan from inf."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _direction(infinite):
    """A number of the same angle, infinite parts replaced by 1; nan stays."""

    def part(value):
        return np.where(np.isinf(value), np.copysign(1.0, value), 0.0 * value)

    if infinite.dtype.kind != "c":
        return part(infinite)
    parts = np.empty_like(infinite)
    parts.real, parts.imag = part(infinite.real), part(infinite.imag)
    return parts
