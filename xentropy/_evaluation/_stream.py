"""What both evaluations share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

from ._arguments import Batch
from ._moments import Moments


class Stream:
    """Sums of rows, what every update has to give, merging and copies."""

    _settings: tuple[str, ...] = ()

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._given: dict[str, bool] = {}  # group, bytes: given in every update, or in none

    def _same_as_before(self, found: dict[str, bool], whose: str) -> None:
        for name, now in found.items():
            if self._given.get(name, now) != now:
                has, had = ("has", "had not") if now else ("has no", "had")
                raise ValueError(f"{whose} {has} {name}, and what was counted before {had}")

    def _take(self, batch: Batch, values: dict[str, Any]) -> None:
        self._moments.add(batch, values)
        self._given.update(given(batch))

    def merge(self, other: Self) -> Self:
        """Add what `other` has counted; `other` stays as it is. Returns this object.

        Raises
        ------
        TypeError, ValueError
            `other` is of another class or has other settings, or one of both alone has groups, or
            bytes.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be of type {type(self).__name__}, not {other!r}")
        for name in self._settings:
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"other has {name} = {its}, and this one {mine}")
        self._same_as_before(other._given, "other")
        self._moments.merge(other._moments)
        self._merge_rest(other)
        self._given.update(other._given)
        return self

    def _merge_rest(self, other: Self) -> None:
        raise NotImplementedError

    def copy(self) -> Self:
        """An evaluation that has counted the same, and from now on counts for itself."""
        return copy.deepcopy(self)

    __copy__ = copy

    def _errors(self, names: Sequence[str], by_group: bool) -> dict[str, float]:
        if by_group and not self._given.get("group"):
            return {}
        error = self._moments.group_error if by_group else self._moments.error
        return {name: error(name) for name in names}


def given(batch: Batch) -> dict[str, bool]:
    return {"group": batch.codes is not None, "bytes": batch.bytes is not None}
