"""Checks of what the libraries and their users hand over: labels, weights, logits."""

import numpy as np

from .. import _check

ONE_SCORE = ": the library computes one score a row; set num_class, to 2 for two classes"


def batch(first, second, sample_weight):
    """Logits (N, K), labels as int64 (N,) and weights (N,) or None, in either order of arguments.

    The libraries' own interfaces call ``(logits, data)``, where data has `get_label` and
    `get_weight`; those in the style of scikit-learn ``(labels, logits[, weight])``.
    """
    if hasattr(second, "get_label"):
        logits, labels = first, second.get_label()
        sample_weight = second.get_weight()
    else:
        labels, logits = first, second
    logits = _check.logits(logits)
    if logits.ndim != 2 or logits.shape[1] < 2:
        hint = ONE_SCORE if logits.ndim == 1 or logits.shape[1:] == (1,) else ""
        raise ValueError(f"logits have shape {logits.shape}, not (rows, classes >= 2){hint}")
    labels = class_indices(labels, logits.shape[1], len(logits))
    if sample_weight is not None and np.size(sample_weight) == 0:
        sample_weight = None  # XGBoost's, if there are none
    return logits, labels, _check.sample_weight(sample_weight, labels.shape)


def class_indices(labels, classes, rows=None):
    """Labels as int64 (N,); the libraries keep them in float32."""
    labels = _check.as_array(labels, "labels")
    if labels.dtype.kind in "OSUMmc":
        raise TypeError(
            f"labels must be the integers from 0 to {classes - 1}, not {labels.dtype} "
            "(np.unique(labels, return_inverse=True) numbers them)"
        )
    labels = _check.number_array(labels, "labels")
    if rows is not None:
        _check.same_shape(labels, (rows,), "labels", "one per row of the logits")
    elif labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}, not (rows,)")
    with np.errstate(invalid="ignore"):
        indices = labels.astype(np.int64)  # whatever nan becomes, it is not equal to nan
    bad = np.flatnonzero((indices != labels) | (indices < 0) | (indices >= classes))
    if bad.size:
        label = labels[bad[0]]
        kind = IndexError if label == np.floor(label) else ValueError
        raise kind(f"labels[{bad[0]}] = {label} is not a class: an integer in [0, {classes})")
    return indices


def frequencies(labels, num_class, weight):
    """The weighted share of each class, float64 (K,)."""
    classes = _check.integer(num_class, "num_class")
    if classes < 2:
        raise ValueError(f"num_class = {classes} is less than 2")
    labels = class_indices(labels, classes)
    if not labels.size:
        raise ValueError("labels are empty: no class has a frequency")
    if weight is not None:
        weight = _row_weights(weight, labels.shape)
    sums = np.bincount(labels, weight, classes)
    return sums / sums.sum()


def _row_weights(weight, shape):
    """Weights (N,) as the libraries keep them, in float32; none negative, not all of them 0."""
    weight = _check.number_array(weight, "weight")
    _check.same_shape(weight, shape, "weight", "one per label")
    with np.errstate(over="ignore", under="ignore"):
        kept = weight.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(kept) | (weight < 0))
    if bad.size:
        at = bad[0]
        raise ValueError(f"weight[{at}] = {weight[at]} is not finite in float32, or negative")
    if not kept.any():
        raise ValueError("weight is 0 everywhere: no class has a frequency")
    return kept
