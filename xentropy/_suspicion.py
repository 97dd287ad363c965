"""Warnings of arguments that are allowed, but hardly meant.

They look at the first rows: a call that mistakes one argument for another does so in all of them.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np

FEW = 16  # rows that are looked at, ...
MOST = 1 << 18  # ... of so many numbers in all: the copy of them is 2 MB
BEGINNING = 64  # numbers that rule out most calls without that copy
FAR_FROM_1 = 1 / 64  # no rounding moves the sum of a row so far
ACCIDENT = 1e-6  # a chance that is no reason to warn
HERE = os.path.dirname(__file__) + os.sep


def logits(x: np.ndarray[Any, Any], axis: int) -> None:
    """Warn if the logits are probabilities, of which softmax would be taken once more.

    It cannot be an error: logits may happen to be such numbers, however rarely. `cross_entropy`
    does not warn: it promises not to read rows that do not count.
    """
    if are_probabilities(x, axis):
        warn(
            "logits are probabilities: numbers in [0, 1] that add up to 1 in each row; give what "
            "the softmax was applied to, or their logarithms"
        )


def target_sums(t: np.ndarray[Any, Any], axis: int) -> None:
    """Warn if the target masses do not nearly add up to 1: by a half, in each of the first rows.

    It cannot be an error: the divergence has a meaning for any masses. Rows of zeros are no reason.
    """
    rows = first_rows(t, axis)
    sums = rows.sum(axis=-1)
    if rows.shape[0] and (np.abs(sums - 1) > 0.5).all() and sums.any():
        remedy = "divide by the sums" if (rows >= 0).all() else "are target and logits swapped?"
        warn(f"target masses add up to {sums[0]:.3g}, not to 1, in the first row; {remedy}")


def first_rows(array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Some rows as float64, the classes along the last axis; none if they are too long."""
    moved = np.moveaxis(array, axis, -1)
    if moved.ndim == 1:
        moved = moved[None]
    rows = min(FEW, MOST // max(moved.shape[-1], 1))
    index = (0,) * (moved.ndim - 2)
    return moved[index][:rows].astype(np.float64) if moved.size else np.empty((0, 1))


def are_probabilities(x: np.ndarray[Any, Any], axis: int) -> bool:
    """Is each of the first rows a distribution, and not by accident?

    Two or more numbers below 1 that have nothing to do with one another add up to 1 +- d with a
    chance of 2 d at most, n such rows with (2 d)^n. So a single row must add up to 1 almost
    exactly, and the more rows there are, the more they may be rounded. d is no smaller than the
    type rounds. Rows that distinguish no classes, or some from the rest (zeros, equal numbers, a
    single 1), are no evidence.
    """
    beginning = first_rows(x[(slice(BEGINNING),) * x.ndim], axis)
    if not ((beginning >= 0) & (beginning <= 1)).all():
        return False
    rows = first_rows(x, axis)
    if not ((rows >= 0) & (rows <= 1)).all():
        return False
    least = np.where(rows > 0, rows, 1).min(axis=-1)
    evidence = int((rows.max(axis=-1) > least).sum())
    rounding = 2.0**-8 if x.dtype.itemsize == 2 else 2.0**-24
    off = float(np.abs(rows.sum(axis=-1) - 1).max(initial=rounding))
    return evidence > 0 and off < FAR_FROM_1 and (2 * off) ** evidence < ACCIDENT


def warn(text: str) -> None:
    """A UserWarning about the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
