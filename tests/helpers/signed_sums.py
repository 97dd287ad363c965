"""Sums of b e^x with signs and complex numbers: an exact oracle, rows for Hypothesis."""

import mpmath
import numpy as np
from hypothesis import strategies as st

from .support import eps

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


WEIGHTS = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda w: abs(w) > 1e-12)
ROWS = st.lists(st.tuples(st.floats(-50, 50), WEIGHTS), min_size=1, max_size=12)


def parts(values):
    """Complex numbers as pairs of real ones, for comparisons of bits."""
    values = np.atleast_1d(values)
    return np.stack([values.real, values.imag])
