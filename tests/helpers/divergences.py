"""Divergences of two softmaxes in 120 digits, row by row, and what may be off in ours."""

import mpmath
import numpy as np

from bench.accuracy import spacing

from .remember import remembered
from .support import assert_within, bits16, eps, make_logits

BETAS = (0.0, 1.0, 0.5, 0.1, 0.999, 1e-4)

# Of the loss, relative: see the terms in common/divergence.h, whose exps, quotients and logarithms
# cancel by up to a factor of 7 where |d| is just above 1.
LOSS = {"float32": 1e-6, "float64": 1e-14}
ULPS = 8  # of a gradient, in units of the last place of its row's largest entry


def _softmax(row, temperature):
    exps = [mpmath.exp(mpmath.mpf(float(v)) / temperature) for v in row]
    total = mpmath.fsum(exps)
    return [e / total for e in exps]


def _log_ratio(p, q):
    if p == 0:
        return mpmath.mpf(0)
    return mpmath.log(p / q) if q else mpmath.inf


def exact_row(x, y, beta, temperature=1.0):
    """Loss and gradient in x of one row of logits x and y, as arrays of long double."""
    with mpmath.workdps(120):
        tau, b = mpmath.mpf(float(temperature)), mpmath.mpf(float(beta))
        s, t = _softmax(x, tau), _softmax(y, tau)
        m = [(1 - b) * p + b * q for p, q in zip(s, t, strict=True)]
        if beta == 0:
            loss = mpmath.fsum(q * _log_ratio(q, p) for p, q in zip(s, t, strict=True))
            grad = [p - q for p, q in zip(s, t, strict=True)]
        elif beta == 1:
            logs = [_log_ratio(p, q) for p, q in zip(s, t, strict=True)]
            loss = mpmath.fsum(p * log for p, log in zip(s, logs, strict=True))
            grad = [p * (log - loss) for p, log in zip(s, logs, strict=True)]
        else:
            of_s = [_log_ratio(p, q) for p, q in zip(s, m, strict=True)]
            of_t = [_log_ratio(p, q) for p, q in zip(t, m, strict=True)]
            own = mpmath.fsum(p * log for p, log in zip(s, of_s, strict=True))
            loss = (1 - b) * own + b * mpmath.fsum(q * v for q, v in zip(t, of_t, strict=True))
            grad = [(1 - b) * p * (log - own) for p, log in zip(s, of_s, strict=True)]
        return _long(loss), np.array([_long(g / tau) for g in grad])


def _long(number):
    """As long double, in whose range 0 stands for what is too small."""
    return np.longdouble(0 if abs(number) < mpmath.mpf(10) ** -4000 else mpmath.nstr(number, 25))


@remembered
def exact(x, y, beta, temperature=1.0):
    """The same of rows."""
    found = [exact_row(a, b, beta, temperature) for a, b in zip(x, y, strict=True)]
    return np.array([loss for loss, _ in found]), np.array([grad for _, grad in found])


def assert_gradient(grad, wanted, dtype, ulps=ULPS, noise=0.0):
    """Off by so many ulps of the row's largest entry; 16-bit entries are rounded once more."""
    largest = np.abs(wanted).max(axis=-1, keepdims=True)
    allowed = ulps * eps(dtype) * largest + np.finfo(np.float32).tiny + noise
    if bits16(dtype):
        allowed = allowed + 0.51 * spacing(wanted, dtype)
    assert_within(grad, wanted, allowed, "gradient")


def assert_loss(loss, wanted, dtype, noise=0.0):
    kind = "float64" if np.dtype(dtype) == np.float64 else "float32"
    # A KL below the square of the smallest number is 0.
    assert_within(loss, wanted, LOSS[kind] * np.abs(wanted) + np.finfo(kind).tiny + noise, "loss")


def pair(shape, dtype, spread=3.0):
    return make_logits(shape, dtype, spread=spread), make_logits(
        shape, dtype, seed=1, spread=spread
    )
