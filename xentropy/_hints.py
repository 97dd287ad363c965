"""What errors suggest: the ways from usual mistakes to the call that was meant.

Imported when there is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Shape = tuple[int, ...]
TWO_CLASSES = "two classes need two logits a row, such as 0 and x"


def kind(value: object, array: np.ndarray[Any, Any]) -> str:
    """What an argument of the wrong type is."""
    if value is None:
        return "None"
    if isinstance(value, dict | set):
        return f"a {type(value).__name__}"
    return str(array.dtype)


def number_it(value: object, array: np.ndarray[Any, Any], name: str) -> str:
    """How to make numbers of an argument that holds none."""
    if isinstance(value, dict) and name == "weight":
        return "; an array has them in the order of the classes: [weight[c] for c in range(C)]"
    if isinstance(value, dict):
        return "; an array has one number per row"
    if isinstance(value, str) and name == "weight":
        return "; sklearn.utils.class_weight.compute_class_weight computes such weights"
    if name == "target" and array.dtype.kind in "USO" and array.ndim and value is not None:
        return "; np.unique(target, return_inverse=True)[1] numbers classes"
    if name == "target" and array.dtype.kind == "b":
        return "; target.astype(np.int64) makes class indices of it"
    if array.dtype == object and array.ndim == 1 and any(isinstance(a, np.ndarray) for a in array):
        return f"; np.stack({name}) makes one array of many"
    if array.dtype.kind in "USO" and array.ndim:
        return f"; {name}.astype(np.float32) reads numbers that are stored as text or objects"
    if array.dtype.kind in "iu" and name == "target":  # of a divergence
        return "; for class indices it is cross_entropy, for one-hot rows target.astype(np.float32)"
    if array.dtype.kind in "iu":
        swapped = "are linear_weight and target swapped? if not, "
        return f"; {swapped if name == 'linear_weight' else ''}give {name}.astype(np.float32)"
    return ""


def as_array(value: object, name: str) -> str:
    """Why NumPy makes no array of it."""
    if type(value).__module__.partition(".")[0] == "torch":
        return "; xentropy.torch takes tensors, and has their gradients"
    if isinstance(value, list | tuple):
        return f"; are there parts of different lengths? {name} must be rectangular"
    return ""


def shape(found: Shape, wanted: Shape, name: str) -> str:
    """An index that takes an axis of length 1 away."""
    for i, n in enumerate(found):
        if n == 1 and found[:i] + found[i + 1 :] == wanted:
            return f"; give {name}[{', '.join([*[':'] * i, '0'])}]"
    return ""


def class_axis(logits_shape: Shape, rows: Shape) -> str:
    """The axis without which the logits have the labels' shape."""
    last = len(logits_shape) - 1
    for axis in (last, *range(last)):
        if last and logits_shape[:axis] + logits_shape[axis + 1 :] == rows:
            given = -1 if axis == last > 1 else axis
            return f"; axis={given} if the {logits_shape[axis]} classes are along that axis"
    return ""


def float_labels(target: np.ndarray[Any, Any], row_shape: Shape) -> str:
    """Labels that are stored as floating numbers."""
    index = shape(target.shape, row_shape, "target").removeprefix("; give ")
    if target.shape != row_shape and not index:
        return ""
    nan = np.argwhere(np.isnan(target))
    if len(nan):
        at = ", ".join(map(str, nan[0]))
        return f"; class indices must be integers: target[{at}] = nan has to become ignore_index"
    return f"; class indices must be integers: give {index or 'target'}.astype(np.int64)"


def swapped_layer(logits_shape: Shape, rows: Shape) -> str:
    """Labels of as many rows as the layer has classes."""
    return "; are input and linear_weight swapped?" if rows == logits_shape[-1:] else ""


def one_hot(target: np.ndarray[Any, Any], logits_shape: Shape) -> str:
    """Integers or bools in the shape of class probabilities."""
    if target.shape != logits_shape:
        return ""
    if target.ndim == 1 and np.count_nonzero(target) != 1:  # a score and a label for each row
        return f"; logits of shape {logits_shape} are a single row; {TWO_CLASSES}"
    return "; class probabilities must be floating: give target.astype(np.float32)"


def label(value: int | np.integer[Any], classes: int) -> str:
    """What a label out of range may be; `xla_check.h` has these texts too."""
    if value < 0:
        return f"; ignore_index={value} leaves out the rows with this label"
    if classes == 1:
        return f"; {TWO_CLASSES}"
    return "; they are counted from 0" if value == classes else ""
