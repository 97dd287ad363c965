"""Rows of arrays (..., H), whatever their strides, dtype and byte order, without a whole copy.

`Rows` are numbers of rows in C order over the leading axes: a slice, or a sorted array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Array = np.ndarray[Any, np.dtype[Any]]
Rows = slice | np.ndarray[Any, np.dtype[np.int64]]

LARGEST_STRIDE = 2**31 - 1  # elements: BLAS takes 32-bit integers


def n_rows(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def runs(rows: Rows) -> Iterator[slice]:
    """The rows as runs of adjacent ones."""
    if isinstance(rows, slice):
        yield rows
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for part in np.split(rows, breaks):
        yield slice(int(part[0]), int(part[-1]) + 1)


def flat(array: Array) -> Array:
    """The array with its leading axes merged into one, where that takes no copy; or as it is."""
    lead = [(n, s) for n, s in zip(array.shape[:-1], array.strides, strict=False) if n != 1]
    merge = all(outer[1] == n * s for outer, (n, s) in pairwise(lead))
    if array.ndim == 2 or not (merge or array.size == 0):
        return array
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def index_of(array: Array, rows: Rows) -> Any:
    """What selects these rows from what `flat` returned."""
    if array.ndim == 2:
        return rows
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return np.unravel_index(numbers, array.shape[:-1])


def blas_reads(matrix: Array, dtype: DTypeLike) -> bool:
    """Is the matrix of this dtype, and can BLAS read it where it is?"""
    if matrix.ndim != 2 or matrix.dtype != dtype:  # another byte order is another dtype
        return False
    if not matrix.flags.aligned:
        return False
    (outer, n_outer), (inner, n_inner) = zip(matrix.strides, matrix.shape, strict=True)
    if inner != matrix.itemsize:
        (outer, n_outer), (inner, n_inner) = (inner, n_inner), (outer, n_outer)
    stride, rest = divmod(outer, matrix.itemsize)
    return inner == matrix.itemsize and rest == 0 and n_inner <= stride <= LARGEST_STRIDE


def blas_writes(matrix: Array, dtype: DTypeLike) -> bool:
    """Can a product be written to the matrix without a copy?"""
    return blas_reads(matrix, dtype) and matrix.strides[1] == matrix.itemsize


class CountedRows:
    """Which rows of a batch count, and those in chunks."""

    def __init__(self, counts: Array) -> None:
        self.rows = len(counts)
        self.counted = None if counts.all() else np.flatnonzero(counts)  # None: all do

    @property
    def n_counted(self) -> int:
        """How many rows count."""
        return self.rows if self.counted is None else len(self.counted)

    def chunks(self, at_a_time: int) -> Iterator[Rows]:
        """The rows that count, so many at a time; adjacent ones as slices."""
        for start in range(0, self.n_counted, at_a_time):
            stop = min(start + at_a_time, self.n_counted)
            if self.counted is None:
                yield slice(start, stop)
                continue
            rows = self.counted[start:stop]
            first, last = int(rows[0]), int(rows[-1])
            yield slice(first, last + 1) if last - first == stop - start - 1 else rows


class MatrixRows:
    """The rows of an array (..., H) as matrices that BLAS reads: in place, or converted copies."""

    def __init__(self, array: Array, dtype: DTypeLike, at_a_time: int) -> None:
        self.array = flat(array)
        self.in_place = blas_reads(self.array, dtype)
        self._dtype = dtype
        self._at_a_time = at_a_time
        self._copies: Array | None = None

    def take(self, rows: Rows) -> Array:
        """These rows, (n, H); valid until the next call. At most `at_a_time`, unless in place."""
        if self.in_place and isinstance(rows, slice):
            return self.array[rows]
        if self._copies is None:
            self._copies = np.empty((self._at_a_time, self.array.shape[-1]), self._dtype)
        copies = self._copies[: n_rows(rows)]
        np.copyto(copies, self.array[index_of(self.array, rows)])
        return copies
