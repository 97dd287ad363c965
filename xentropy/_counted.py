"""Which rows of a batch count, and with what weight: what a mean divides by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._kernels import label_error

if TYPE_CHECKING:
    from ._linear._rows import Array, Rows


def counting_rows(
    target: Array, classes: int, ignore_index: int, sample_weight: Array | None = None
) -> Array:
    """Whether each row counts, flat; IndexError for a label out of range that does.

    `target` is one label a row, or one probability a logit.
    """
    if target.dtype.kind in "iu":
        counts = np.asarray(target != ignore_index)
        wrong = counts & ((target < 0) | (target >= classes))
        if wrong.any():
            raise label_error(target, int(np.argmax(wrong)), classes)
        counts = counts.reshape(-1)
    else:
        counts = np.ones(target.size // classes, bool)
    return counts if sample_weight is None else counts & (sample_weight.reshape(-1) != 0)


def row_weights(
    labels: Array | None, weight: Array | None, sample_weight: Array | None, rows: Rows
) -> Array | None:
    """weight[label] * sample_weight of these rows, float64; None if each of them is 1.

    `labels` (None: the targets are probabilities) and `sample_weight` are flat.
    """
    weights = None
    if labels is not None and weight is not None:
        weights = weight[labels[rows].astype(np.intp)].astype(np.float64)
    if sample_weight is not None:
        mine = sample_weight[rows].astype(np.float64)
        with np.errstate(all="ignore"):  # silent, as the kernels are
            weights = mine if weights is None else weights * mine
    return weights
