"""Arrays of the types that the kernels have, of one shape, finite."""

from functools import cache

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
FLOATING = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"


def as_array(value, name, instead=""):
    """`value` as a base-class array; an array is not copied.

    `instead` ends the error for masked arrays: what else the call offers.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill it{instead}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors with a graph
        from .._hints import as_array as hint

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
    from .. import _hints

    hint = hint or _hints.number_it(value, array, name)
    return TypeError(f"{name} must be {wanted}, not {_hints.kind(value, array)}{hint}")


def number_array(value, name):
    """As `float_array`, but integers and bools become float64."""
    array = as_array(value, name)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    return float_array(array if is_float(array.dtype) else value, name)


def same_shape(array, shape, name, what, hint=""):
    """Raise if the array has another shape."""
    if array.shape != shape:
        if not hint:
            from .._hints import shape as take_away

            hint = take_away(tuple(array.shape), tuple(shape), name)
        raise ValueError(f"{name} has shape {array.shape}, not {shape} ({what}){hint}")


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
