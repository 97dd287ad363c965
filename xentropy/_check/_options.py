"""Numbers, names and flags."""

import math
import numbers
import operator

import numpy as np

from .._kernels import LARGEST_SCALE, LEAST_SCALE, MOST_THREADS, make_options

REDUCTIONS = ("none", "sum", "mean")


def real(value, name):
    """A real number as Python float."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    no_number = bool | np.bool | np.timedelta64  # NumPy calls the last one an integer
    if isinstance(value, no_number) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float") from None


def real_between(value, name, low, high):
    """A real number in [low, high]; nan is in no interval."""
    number = real(value, name)
    if not low <= number <= high:
        raise ValueError(f"{name} = {number} is not in [{low:g}, {high:g}]")
    return number


def finite_factor(value, name):
    """A finite number >= 0."""
    number = real(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} = {number} must be finite and not negative")
    return number


def normalizer(value, reduction):
    """The divisor that replaces the mean's own; None stays None."""
    if value is None:
        return None
    number = real(value, "normalizer")
    if reduction != "mean":
        raise ValueError(f"normalizer goes with reduction='mean', not {reduction!r}")
    if number == 0 or not math.isfinite(number):
        raise ValueError(f"normalizer = {number} must be finite and not 0")
    return number


def empty_mean(value, reduction):
    """The mean over no row."""
    number = real(value, "empty_mean")
    if reduction != "mean":
        raise ValueError(f"empty_mean goes with reduction='mean', not {reduction!r}")
    return number


def logit_scale(value):
    """The scale of the logits."""
    return real_between(value, "logit_scale", LEAST_SCALE, LARGEST_SCALE)


def softcap(value, logit_scale):
    """The cap of the scaled logits; None stays None. The kernels cap at softcap / logit_scale."""
    if value is None:
        return None
    number = real_between(value, "softcap", LEAST_SCALE, LARGEST_SCALE)
    real_between(number / logit_scale, "softcap / logit_scale", LEAST_SCALE, LARGEST_SCALE)
    return number


def base(value):
    """The base of the logarithm; None stays None."""
    if value is None:
        return None
    number = real(value, "base")
    if not 1 < number < math.inf:
        raise ValueError(f"base = {number} must be finite and greater than 1")
    return number


def reduction(value):
    """One of the three names."""
    if not isinstance(value, str) or value not in REDUCTIONS:
        names = ", ".join(map(repr, REDUCTIONS))  # quoted: None is not 'none'
        hint = "; 'mean' is over the rows" if value == "batchmean" else ""
        raise ValueError(f"reduction = {value!r} is not one of {names}{hint}")
    return str(value)


def integer(value, name):
    """An integer, but no bool."""
    if isinstance(value, bool | np.bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def flag(value, name):
    """True or False; also the ints 1 and 0, as NumPy accepts them."""
    if not isinstance(value, bool | np.bool) and not (type(value) is int and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def n_threads(value, name="n_threads"):
    """A number of threads; None stays None."""
    if value is None:
        return None
    number = integer(value, name)
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"{name} = {number} is not in [1, {MOST_THREADS}]")
    return number


def options(given, axis):
    """The options of a cross entropy as Python's own types; `axis` has been checked."""
    scale = logit_scale(given.logit_scale)
    return make_options(
        axis=axis,
        ignore_index=integer(given.ignore_index, "ignore_index"),
        reduction=reduction(given.reduction),
        normalizer=normalizer(given.normalizer, given.reduction),
        label_smoothing=real_between(given.label_smoothing, "label_smoothing", 0, 1),
        z_loss=finite_factor(given.z_loss, "z_loss"),
        logit_scale=scale,
        softcap=softcap(given.softcap, scale),
        base=base(given.base),
        n_threads=n_threads(given.n_threads),
    )
