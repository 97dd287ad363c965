"""The same values in every memory layout NumPy can express, and memory with guards."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

FILLER = 0xAB  # as a float it is close to 0: read as a logit, it would count as a class


def embedded(a, index, shape):
    """A view with the values of `a`, cut by `index` from a larger buffer of filler."""
    buffer = np.full(int(np.prod(shape)) * a.itemsize, FILLER, np.uint8)
    view = buffer.view(a.dtype).reshape(shape)[index]
    view[...] = a
    return view


def every_second(a, axis=-1):
    shape, index = list(a.shape), [slice(None)] * a.ndim
    shape[axis], index[axis] = 2 * shape[axis], slice(None, None, 2)
    return embedded(a, tuple(index), shape)


def padded(a, axis=-1, pad=3):
    shape, index = list(a.shape), [slice(None)] * a.ndim
    shape[axis], index[axis] = shape[axis] + pad, slice(None, a.shape[axis])
    return embedded(a, tuple(index), shape)


def reversed_axis(a, axis=-1):
    return np.flip(np.flip(a, axis).copy(), axis)


def at_offset(a, elements=0, odd_bytes=0):
    """A C-ordered copy that starts `elements` items and `odd_bytes` after a 64-byte boundary."""
    start = elements * a.itemsize + odd_bytes
    buffer = np.full(a.nbytes + start + 128, FILLER, np.uint8)
    start += -buffer.ctypes.data % 64
    view = buffer[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def big_endian(a):
    if a.dtype.kind != "f":
        return a.copy()  # bfloat16 has no byte order in ml_dtypes
    return a.astype(a.dtype.newbyteorder(">"))


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def rotated(a):
    """Axes in the memory order (last, first, second, ...)."""
    return np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1)


LAYOUTS = {
    "C order": lambda a: a.copy("C"),
    "Fortran order": lambda a: a.copy("F"),
    "rotated axes": rotated,
    "every second of the last axis": every_second,
    "every second of the first axis": lambda a: every_second(a, 0),
    "every second of axis 1": lambda a: every_second(a, 1),
    "padded last axis": padded,
    "padded axis 1": lambda a: padded(a, 1),
    "last axis reversed": reversed_axis,
    "first axis reversed": lambda a: reversed_axis(a, 0),
    "Fortran order, every second": lambda a: every_second(a.T, -1).T,
    "Fortran order, reversed": lambda a: reversed_axis(a.T, -1).T,
    "off the vector boundary": lambda a: at_offset(a, 3),
    "unaligned": lambda a: at_offset(a, 0, 1),
    "big-endian": big_endian,
    "read-only": read_only,
}
WRITABLE = [name for name in LAYOUTS if name != "read-only"]


def surroundings(view):
    """A function that reads the bytes of the view's buffer that are not the view's own."""
    buffer = view
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    raw = np.frombuffer(buffer.data if buffer.dtype == np.uint8 else b"", np.uint8)
    if not raw.size:  # the view is a whole array
        return lambda: raw
    first = view.__array_interface__["data"][0] - raw.ctypes.data
    if view.flags.c_contiguous:
        return lambda: np.concatenate([raw[:first], raw[first + view.nbytes :]])
    offsets = np.full(view.shape, first)
    for axis, stride in enumerate(view.strides):
        steps = np.arange(view.shape[axis]) * stride
        offsets += np.expand_dims(steps, [a for a in range(view.ndim) if a != axis])
    outside = np.ones(raw.size, bool)
    outside[offsets.reshape(-1, 1) + np.arange(view.itemsize)] = False
    return lambda: raw[outside]


# ---- memory that ends at a page nobody may touch


PAGE = mmap.PAGESIZE


def forbid(address, nbytes):
    """Make whole pages unreadable and unwritable: a touch is a SIGSEGV."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    assert libc.mprotect(address, nbytes, 0) == 0, "mprotect failed"


def pages(nbytes):
    """Whole writable pages, as bytes, between two forbidden ones."""
    if sys.platform == "win32":
        pytest.skip("guard pages need mprotect")
    size = max(1, -(-nbytes // PAGE)) * PAGE
    whole = np.frombuffer(mmap.mmap(-1, size + 2 * PAGE), np.uint8)
    whole[:] = FILLER
    forbid(whole.ctypes.data, PAGE)
    forbid(whole.ctypes.data + PAGE + size, PAGE)
    return whole[PAGE : PAGE + size]


def guarded(a, side):
    """A copy of `a` flush against a forbidden page `before` or `after` it, and its slack.

    The slack is the rest of the pages: its bytes must stay FILLER.
    """
    memory = pages(a.nbytes)
    cut = len(memory) - a.nbytes if side == "after" else a.nbytes
    slack, data = memory[:cut], memory[cut:]
    if side == "before":
        slack, data = data, slack
    view = data.view(a.dtype).reshape(a.shape)
    view[...] = a
    return view, slack
