"""What blocks are reduced to: objects that merge in any order, each in an array of one element."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from .._evaluation._exact import Exact, ExactSums, to_float


class Sums:
    """How many rows count, the sum of their weights and that of their losses: exact."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = ExactSums(["weight", "loss"])

    def add(self, rows: int, weights: Any, losses: Any) -> None:
        """Add rows, of weight 1 if `weights` is None. `losses` may be None."""
        self.rows += rows
        self._add("weight", float(rows) if weights is None else weights)
        if losses is not None:
            self._add("loss", losses)

    def _add(self, column: str, values: Any) -> None:
        values = np.reshape(values, -1)
        self._sums.add([None], np.zeros(len(values), np.intp), {column: [values]})

    def merge(self, other: Sums) -> None:
        self.rows += other.rows
        self._sums.merge(other._sums)

    def weight(self) -> float:
        return to_float(self._sums.exact(None, "weight"))

    def loss(self, reduction: str, normalizer: float | None, empty_mean: float) -> float:
        """The sum, or the mean: a quotient of exact sums, rounded once."""
        total = self._sums.exact(None, "loss")
        if reduction == "sum":
            return to_float(total)
        if normalizer is not None:
            return to_float(_quotient(total, Fraction(normalizer)))
        if not self.rows:
            return empty_mean
        return to_float(_quotient(total, self._sums.exact(None, "weight")))


def _quotient(a: Exact, b: Exact) -> Exact:
    """a / b, exact where that is a number."""
    if isinstance(a, Fraction) and isinstance(b, Fraction) and b:
        return a / b
    with np.errstate(all="ignore"):
        return float(np.float64(to_float(a)) / np.float64(to_float(b)))


def boxed(value: Any, ndim: int) -> Any:
    """An array of this many dimensions with one element."""
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = value
    return box


def tree(boxes: Any, begin: Any, finish: Callable[[Any], Any], dtype: Any) -> Any:
    """An array without dimensions: `finish` of all that is in the boxes, merged with `begin`."""
    return da.reduction(
        boxes,
        chunk=_as_it_is,
        combine=_merged,
        aggregate=partial(_finished, begin=begin, finish=finish),
        dtype=dtype,
        meta=np.empty((), dtype),
    )


def _as_it_is(boxes: Any, axis: Any, keepdims: bool) -> Any:
    return boxes


def _merged(boxes: Any, axis: Any, keepdims: bool) -> Any:
    first, *others = np.ravel(boxes)
    return boxed(_with_all(first, others), np.ndim(boxes))


def _finished(boxes: Any, axis: Any, keepdims: bool, begin: Any, finish: Any) -> Any:
    return np.asarray(finish(_with_all(begin, np.ravel(boxes))))


def _with_all(begin: Any, others: Any) -> Any:
    """`begin` and all others merged, as a new object: another task may have these."""
    whole = copy.deepcopy(begin)
    for each in others:
        whole.merge(each)
    return whole
