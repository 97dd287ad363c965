"""Where a result may be written, and what the bindings return."""

import numpy as np

from ._arrays import same_shape


def taken(result):
    """The result of the bindings for checked arguments, which None would contradict."""
    if result is None:
        raise SystemError("xentropy: arguments that passed the checks were not taken")
    return result


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
