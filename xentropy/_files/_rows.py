"""Rows of arrays in files: what the readers of all formats return."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._mapped import FileFormatError, Mapped

Array = NDArray[Any]
FLOATS = ("float16", "float32", "float64")


class Targets:
    """One integer a row, such as class indices or numbers of groups.

    Attributes
    ----------
    path : str
        The file.
    n_rows : int
        How many there are.
    """

    def __init__(self, path: str, shape: tuple[int, ...], read: Callable[[int, int], Array]):
        self.path = path
        self.shape = shape
        self.n_rows = math.prod(shape)
        self._read = read

    def rows(self, start: int, stop: int) -> Array:
        """Those of rows [start, stop): 1-D, integer, a view of the file where it can be."""
        check_range(start, stop, self.n_rows)
        return self._read(start, stop)


class Logits:
    """Logits, of one softmax a row.

    Attributes
    ----------
    path : str
        The file.
    n_rows, n_classes : int
    dtype : numpy.dtype
        Of what `rows` returns.
    row_shape : tuple of int
        Shape of the file's array without its class axis; rows are numbered in C order.
    is_log_probs : bool
        Whether they are log-probabilities, rounded: their exps then add up to about 1.
    copied : bool
        Whether `rows` returns copies, not views of the file.
    target_source : Targets or FileFormatError
        The targets in the same file, or why there are none.
    """

    is_log_probs = False
    copied = True

    def __init__(self, path: str, n_classes: int, row_shape: tuple[int, ...], dtype: Any) -> None:
        self.path = path
        self.n_classes = n_classes
        self.row_shape = row_shape
        self.n_rows = math.prod(row_shape)
        self.dtype = np.dtype(dtype)
        self.target_source: Targets | FileFormatError = FileFormatError(f"{path}: has no targets")

    @property
    def has_targets(self) -> bool:
        """Whether the file has targets for these rows."""
        return isinstance(self.target_source, Targets)

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop): (stop - start, n_classes), a view of the file where it can be."""
        check_range(start, stop, self.n_rows)
        return self._read(start, stop)

    def targets(self, start: int, stop: int) -> Array:
        """The targets of rows [start, stop) from the same file; FileFormatError without them."""
        if isinstance(self.target_source, FileFormatError):
            raise self.target_source
        return self.target_source.rows(start, stop)

    def _read(self, start: int, stop: int) -> Array:
        raise NotImplementedError


class ArrayLogits(Logits):
    """Logits in an array of a file, with the class axis last; `bits` are those of bfloat16."""

    def __init__(self, path: str, array: Array, bits: bool = False) -> None:
        self._array, self._widen = (array, False) if not bits else as_bfloat16(array)
        dtype = np.float32 if self._widen else self._array.dtype
        super().__init__(path, array.shape[-1], array.shape[:-1], dtype)
        self.copied = self._widen or not is_flat(self._array)

    def _read(self, start: int, stop: int) -> Array:
        part = rows_of(self._array, start, stop)
        return widened(part) if self._widen else part


def check_range(start: int, stop: int, n_rows: int) -> None:
    """Raise unless [start, stop) are rows."""
    if not 0 <= start <= stop <= n_rows:
        raise IndexError(f"rows [{start}, {stop}) are not in [0, {n_rows})")


def class_axis_last(mapped: Mapped, array: Array, axis: int) -> Array:
    """The view with the class axis last; in one dimension the default axis 1 means 0."""
    if array.ndim == 1 and axis == 1:
        axis = 0
    if not -array.ndim <= axis < array.ndim:
        raise mapped.error(f"axis = {axis} is out of range for the shape {array.shape}")
    last = np.moveaxis(array, axis, -1)
    return last[None] if array.ndim == 1 else last


def is_bits(mapped: Mapped, dtype: np.dtype[Any], wanted: str | None, what: str) -> bool:
    """Whether these are bits of bfloat16, as wanted; neither they nor floats: an error."""
    sixteen = dtype.kind in "uV" and dtype.itemsize == 2
    if wanted and not sixteen:
        raise mapped.error(f"{what} is {dtype}, not the uint16 that can hold bfloat16")
    if not sixteen and dtype.name not in FLOATS:
        raise mapped.error(f"{what} is {dtype}; logits are {', '.join(FLOATS)} or bfloat16")
    if sixteen and not wanted:
        raise mapped.error(f"{what} is {dtype}; are these bits of bfloat16 (dtype='bfloat16')?")
    return sixteen


def as_bfloat16(bits: Array) -> tuple[Array, bool]:
    """The view that the kernels take, by ml_dtypes' type; without it the bits, to be widened."""
    bits = bits.view(np.dtype(np.uint16).newbyteorder(bits.dtype.byteorder))
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return bits, True
    return (bits, True) if not bits.dtype.isnative else (bits.view(bfloat16), False)


def widened(bits: Array) -> Array:
    """The float32 numbers of which these uint16 are the upper halves: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_flat(array: Array) -> bool:
    """Are all axes but the last one step apart, in C order?"""
    axes = [(n, s) for n, s in zip(array.shape[:-1], array.strides[:-1], strict=True) if n > 1]
    return all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(axes))


def rows_of(array: Array, start: int, stop: int) -> Array:
    """Rows [start, stop), in C order of all axes but the last; a copy only where there is no view.

    No more than these rows is copied.
    """
    if is_flat(array):
        return array.reshape(-1, array.shape[-1])[start:stop]
    if start == stop:
        return np.empty((0, array.shape[-1]), array.dtype)
    inner = math.prod(array.shape[1:-1])
    parts = [
        rows_of(array[i], max(start - i * inner, 0), min(stop - i * inner, inner))
        for i in range(start // inner, -(-stop // inner))
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, dtype=array.dtype)


def integers_of(mapped: Mapped, array: Array, what: str) -> Targets:
    """Targets in an array of a file."""
    if array.dtype.kind not in "iu":
        raise mapped.error(f"{what} is {array.dtype}, not integers")
    if array.ndim == 0:
        raise mapped.error(f"{what} is a single number, not one a row")
    numbers = array[..., None]
    return Targets(mapped.path, array.shape, lambda i, j: rows_of(numbers, i, j)[:, 0])
