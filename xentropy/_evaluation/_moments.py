"""Means of quantities over rows with weights, and their standard errors, from exact sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ._arguments import Batch
from ._exact import Exact, ExactSums, Floats, exact_sum, products, to_float

Array = np.ndarray[Any, np.dtype[Any]]


class Moments:
    r"""Sums over rows of w, :math:`w^2`, and for each quantity x of wx, :math:`w \cdot wx`,
    :math:`(wx)^2`; over each group of w and of the wx that are named in `grouped`.

    w is the weight of a row. wx is rounded once where there are weights; nothing else is.
    """

    def __init__(self, names: Sequence[str], grouped: Sequence[str]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self.grouped: tuple[str, ...] = tuple(grouped)
        every = [column for name in names for column in _columns(name)]
        self.totals: ExactSums = ExactSums(["w", "ww", "bytes", *every])
        self.groups: ExactSums = ExactSums(["w", "bytes", *grouped])
        self.rows: int = 0

    def add(self, batch: Batch, values: Mapping[str, Array]) -> None:
        """Add the values of the quantities, an array of one a row for each, float64 or bool."""
        w = batch.weight
        ones = np.ones(len(batch.rows), bool) if w is None else w
        columns = {"w": [ones], "ww": [ones] if w is None else products(w, w)}
        for name, x in values.items():
            wx = x if w is None else w * x
            first, mixed, square = _columns(name)
            columns[first] = [wx]
            columns[mixed] = [wx] if w is None else products(wx, w)
            same = w is None and x.dtype == bool  # 0 and 1 are their own squares
            columns[square] = [wx] if same else products(wx, wx)
        self.totals.add([None], np.zeros(len(ones), np.intp), columns)
        if batch.codes is not None:
            by_group = {name: columns[name] for name in ("w", *self.grouped)}
            self.groups.add(batch.keys, batch.codes, by_group)
        self._add_bytes(batch)
        self.rows += len(ones)

    def _add_bytes(self, batch: Batch) -> None:
        if batch.bytes is None:
            return
        self.totals.add([None], np.zeros(len(batch.bytes), np.intp), {"bytes": [batch.bytes]})
        if batch.byte_codes is not None:
            self.groups.add(batch.keys, batch.byte_codes, {"bytes": [batch.bytes]})

    def merge(self, other: Moments) -> None:
        self.totals.merge(other.totals)
        self.groups.merge(other.groups)
        self.rows += other.rows

    def total(self, column: str) -> Exact:
        return self.totals.exact(None, column)

    def ratio(self, name: str, per: str = "w") -> Exact:
        """Sum of a quantity by the sum of the weights, or of the bytes; nan for 0 / 0."""
        return divided(self.total(name), self.total(per))

    def bytes_by_group(self) -> bool:
        """Are the bytes of every group known, and not only those of all?"""
        return self.groups.sum("bytes") == self.total("bytes")

    def mean(self, name: str) -> float:
        return to_float(self.ratio(name))

    def error(self, name: str) -> float:
        r"""The standard error of the mean m over n rows,
        :math:`\sqrt{n / (n - 1) \sum (wx - mw)^2} / \sum w`; nan for a single row.
        """
        if self.rows < 2:
            return math.nan
        m, w = self.ratio(name), self.total("w")
        _, mixed, square = (self.total(column) for column in _columns(name))
        spread = square - m * (2 * mixed - m * self.total("ww"))
        correction = Fraction(self.rows, self.rows - 1)
        variance = to_float(spread * correction / (w * w))
        return math.sqrt(variance) if variance > 0 else variance * 0

    def group_error(self, name: str, per: str = "w") -> float:
        r"""The standard error of the ratio r of sums over G groups,
        :math:`\sqrt{G / (G - 1) \sum_g (x_g - r w_g)^2} / \sum_g w_g`; nan for a single group.
        """
        groups = len(self.groups)
        if groups < 2:
            return math.nan
        sums, sizes = self.groups.floats(name), self.groups.floats(per)
        residuals: Floats = sums - to_float(self.ratio(name, per)) * sizes
        spread = to_float(exact_sum(residuals * residuals)) * (groups / (groups - 1))
        return math.sqrt(spread) / to_float(self.total(per))


def _columns(name: str) -> tuple[str, str, str]:
    return name, f"{name} w", f"{name} {name}"


def divided(a: Exact, b: Exact) -> Exact:
    """a / b, nan for b = 0."""
    return a / b if b else math.nan
