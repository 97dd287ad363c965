"""Divergences of two softmaxes in 120 digits, row by row, from their definitions."""

import mpmath
import numpy as np

from .remember import remembered

BETAS = (0.0, 1.0, 0.5, 0.1, 0.999, 1e-4)


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
