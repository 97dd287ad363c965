"""Checks of arguments: every error names the argument, its value and the position in it.

Only calls that the bindings return unused come here. Arguments of another type are converted;
everything is checked before the logits are read or a result is written. Labels alone are checked
by the kernels.
"""

import math
import numbers
import operator
from functools import cache

import numpy as np

from ._kernels import LARGEST_SCALE, LEAST_SCALE, MOST_THREADS, make_options

FLOATS = ("float16", "bfloat16", "float32", "float64")
FLOATING = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
REDUCTIONS = ("none", "sum", "mean")
OR_LEAVE_OUT = " or use ignore_index/sample_weight"  # which only cross entropy has


def taken(result):
    """The result of the bindings for checked arguments, which None would contradict."""
    if result is None:
        raise SystemError("xentropy: arguments that passed the checks were not taken")
    return result


def as_array(value, name, instead=""):
    """`value` as a base-class array; an array is not copied.

    `instead` ends the error for masked arrays: what else the call offers.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill it{instead}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors with a graph
        from ._hints import as_array as hint

        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} is not an array: {str(error).rstrip('.')}{hint(value, name)}"
        ) from error


@cache
def is_float(dtype):
    """Is it one of the four floating dtypes of the kernels, in either byte order?"""
    return dtype.name in FLOATS


def float_array(value, name, hint=""):
    """An array of one of the four floating dtypes; others are refused."""
    array = as_array(value, name)
    if not is_float(array.dtype):
        raise wrong_type(value, array, name, FLOATING, hint)
    return array


def wrong_type(value, array, name, wanted, hint=""):
    """The error for an argument of another type, with what to do about it."""
    from . import _hints

    hint = hint or _hints.number_it(value, array, name)
    return TypeError(f"{name} must be {wanted}, not {_hints.kind(value, array)}{hint}")


def number_array(value, name):
    """As `float_array`, but integers and bools become float64."""
    array = as_array(value, name)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    return float_array(array if is_float(array.dtype) else value, name)


def logits(value, instead=""):
    """Logits: floating, at least one dimension; `instead` as for `as_array`."""
    array = as_array(value, "logits", instead)
    hint = ""
    if array.dtype.kind in "iub":
        hint = " (integers are class indices: are logits and target swapped?"
        hint += " if not, give logits.astype(np.float32))"
    if not is_float(array.dtype):
        raise wrong_type(value, array, "logits", FLOATING, hint)
    if array.ndim == 0:
        raise ValueError("logits must have a class axis, but is a scalar")
    return array


def class_axis(axis, array, name="logits"):
    """The class axis as a number >= 0. In one dimension the default 1 means 0."""
    axis = integer(axis, "axis")
    if array.ndim == 1 and axis == 1:
        axis = 0
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis = {axis} is out of range for {name} of shape {array.shape}")
    axis %= array.ndim
    if array.shape[axis] == 0:
        raise ValueError(f"{name} of shape {array.shape} has no classes along axis {axis}")
    return axis


def target(value, logits_shape, row_shape, of_layer=False):
    """Class indices, one per row, or class probabilities, one per logit.

    `of_layer`: the logits are those of a linear layer, and their class axis is not the caller's.
    """
    array = as_array(value, "target", OR_LEAVE_OUT)
    if array.size == 0 and array.shape == row_shape and array.dtype == np.float64:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind in "iu":
        if array.shape != row_shape:
            from . import _hints

            other = _hints.swapped_layer if of_layer else _hints.class_axis
            hint = _hints.one_hot(array, logits_shape) or other(logits_shape, array.shape)
            same_shape(array, row_shape, "target", f"class indices for logits {logits_shape}", hint)
        return array
    if not is_float(array.dtype):
        from . import _hints

        wanted = f"integers (class indices) or {FLOATING} (class probabilities)"
        hint = _hints.one_hot(array, logits_shape) if array.dtype.kind == "b" else ""
        raise wrong_type(value, array, "target", wanted, hint)
    if array.shape != logits_shape:
        from ._hints import float_labels

        hint = float_labels(array, row_shape)
        same_shape(array, logits_shape, "target", "class probabilities, as the logits", hint)
    return array


def labels(value, logits_shape, axis):
    """Class indices, one per row."""
    row_shape = logits_shape[:axis] + logits_shape[axis + 1 :]
    array = target(value, logits_shape, row_shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"target must be integers (class indices), not {array.dtype}")
    return array


def index(value, logits_shape, axis):
    """Classes, one per row, or k along the class axis."""
    array = as_array(value, "index", " or use ignore_index")
    rows = logits_shape[:axis] + logits_shape[axis + 1 :]
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise wrong_type(value, array, "index", "integers (class indices)")
    if array.ndim != len(logits_shape):
        same_shape(array, rows, "index", f"one class per row of logits {logits_shape}")
        return array
    k = array.shape[axis]
    if k == 0:
        raise ValueError(f"index of shape {array.shape} selects no class along axis {axis}")
    wanted = (*rows[:axis], k, *rows[axis:])
    same_shape(array, wanted, "index", f"{k} classes per row of logits {logits_shape}")
    return array


def same_shape(array, shape, name, what, hint=""):
    """Raise if the array has another shape."""
    if array.shape != shape:
        if not hint:
            from ._hints import shape as take_away

            hint = take_away(tuple(array.shape), tuple(shape), name)
        raise ValueError(f"{name} has shape {array.shape}, not {shape} ({what}){hint}")


def weight(value, classes, row_shape=()):
    """Class weights (C,), finite; None stays None."""
    if value is None:
        return None
    array = number_array(value, "weight")
    hint = "; one per row is sample_weight" if array.shape == row_shape != () else ""
    same_shape(array, (classes,), "weight", "one per class", hint)
    all_finite(array, "weight")
    return array


def sample_weight(value, row_shape, classes=None):
    """Row weights of the loss's shape, finite; None stays None."""
    if value is None:
        return None
    array = number_array(value, "sample_weight")
    one_weight_per_row(array, row_shape, classes)
    all_finite(array, "sample_weight")
    return array


def one_weight_per_row(array, row_shape, classes):
    """Raise if the weights of rows have another shape than the loss."""
    hint = "; one per class is weight" if array.shape == (classes,) else ""
    same_shape(array, row_shape, "sample_weight", "one per row", hint)


def all_finite(array, name):
    """Raise at the first nan or infinity, in blocks: without a temporary of the array's size."""
    start = 0
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for block in np.nditer(array, flags=flags, order="C", buffersize=1 << 16):
        finite = np.isfinite(block)
        if not finite.all():
            place = np.unravel_index(start + int(np.argmin(finite)), array.shape)
            at = f"[{', '.join(str(i) for i in place)}]" if place else ""
            raise ValueError(f"{name}{at} = {array[place]} is not finite")
        start += block.size


def grad_output(value, reduction, row_shape):
    """The upstream gradient: None, a float, or for "none" an array of one per row."""
    if value is None:
        return None
    array = number_array(value, "grad_output")
    if array.ndim == 0:
        return float(array)
    if reduction != "none":
        raise ValueError(
            f"grad_output has shape {array.shape}, but the loss is a scalar "
            f"with reduction={reduction!r}"
        )
    same_shape(array, row_shape, "grad_output", "as the loss, or a scalar")
    return array


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


def out(value, like, name, inputs):
    """The array for a result: shape and dtype of `like`, no memory in common with `inputs`.

    `like` itself is allowed (in place): same memory, same strides.
    """
    writable(value, like.shape, (like.dtype.name,), f"as {name}")
    for other_name, other in inputs.items():
        if other is not None and shares_memory(value, other):
            raise ValueError(f"out overlaps {other_name}")
    if shares_memory(value, like) and not same_memory(value, like):
        raise ValueError(f"out overlaps {name} without being the same memory")


def writable(value, shape, dtypes, what, name="out"):
    """Raise unless it is an array of this shape and one of these dtypes that can be written."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array, not {type(value).__name__}")
    if value.dtype.name not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}, not {' or '.join(dtypes)} {what}")
    same_shape(value, shape, name, what)
    if not value.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if overlaps_itself(value):
        raise ValueError(f"{name} overlaps itself: strides {value.strides}, shape {value.shape}")


def same_memory(a, b):
    """Do both arrays have the same elements at the same addresses?"""
    return (
        a.ctypes.data == b.ctypes.data
        and a.strides == b.strides
        and a.shape == b.shape
        and a.dtype == b.dtype
    )


def shares_memory(a, b):
    """As np.shares_memory; True if that would take too long to decide."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10**5)
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array):
    """May two indices address the same byte? Conservative: True also for some strides without."""
    dims = sorted(
        (abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1
    )
    reach = array.itemsize
    for stride, n in dims:
        if stride < reach:
            return array.size > 0
        reach += stride * (n - 1)
    return False
