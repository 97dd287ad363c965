"""What a call is given by name: logits, target, weights, the upstream gradient."""

import numpy as np

from ._arrays import FLOATING, all_finite, as_array, is_float, number_array, same_shape, wrong_type
from ._options import integer

OR_LEAVE_OUT = " or use ignore_index/sample_weight"  # which only cross entropy has


def logits(value, instead=""):
    """Logits: floating, at least one dimension; `instead` as for `as_array`."""
    array = as_array(value, "logits", instead)
    hint = ""
    if array.dtype.kind in "iub":
        hint = " (integers are class indices: are logits and target swapped?"
        hint += " if not, give logits.astype(np.float32))"
    if not is_float(array.dtype):
        raise wrong_type(value, array, "logits", FLOATING, hint)
    if array.ndim == 0:
        raise ValueError("logits must have a class axis, but is a scalar")
    return array


def class_axis(axis, array, name="logits"):
    """The class axis as a number >= 0. In one dimension the default 1 means 0."""
    axis = integer(axis, "axis")
    if array.ndim == 1 and axis == 1:
        axis = 0
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis = {axis} is out of range for {name} of shape {array.shape}")
    axis %= array.ndim
    if array.shape[axis] == 0:
        raise ValueError(f"{name} of shape {array.shape} has no classes along axis {axis}")
    return axis


def target(value, logits_shape, row_shape, of_layer=False):
    """Class indices, one per row, or class probabilities, one per logit.

    `of_layer`: the logits are those of a linear layer, and their class axis is not the caller's.
    """
    array = as_array(value, "target", OR_LEAVE_OUT)
    if array.size == 0 and array.shape == row_shape and array.dtype == np.float64:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind in "iu":
        if array.shape != row_shape:
            from .. import _hints

            other = _hints.swapped_layer if of_layer else _hints.class_axis
            hint = _hints.one_hot(array, logits_shape) or other(logits_shape, array.shape)
            same_shape(array, row_shape, "target", f"class indices for logits {logits_shape}", hint)
        return array
    if not is_float(array.dtype):
        from .. import _hints

        wanted = f"integers (class indices) or {FLOATING} (class probabilities)"
        hint = _hints.one_hot(array, logits_shape) if array.dtype.kind == "b" else ""
        raise wrong_type(value, array, "target", wanted, hint)
    if array.shape != logits_shape:
        from .._hints import float_labels

        hint = float_labels(array, row_shape)
        same_shape(array, logits_shape, "target", "class probabilities, as the logits", hint)
    return array


def labels(value, logits_shape, axis):
    """Class indices, one per row."""
    row_shape = logits_shape[:axis] + logits_shape[axis + 1 :]
    array = target(value, logits_shape, row_shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"target must be integers (class indices), not {array.dtype}")
    return array


def index(value, logits_shape, axis):
    """Classes, one per row, or k along the class axis."""
    array = as_array(value, "index", " or use ignore_index")
    rows = logits_shape[:axis] + logits_shape[axis + 1 :]
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise wrong_type(value, array, "index", "integers (class indices)")
    if array.ndim != len(logits_shape):
        same_shape(array, rows, "index", f"one class per row of logits {logits_shape}")
        return array
    k = array.shape[axis]
    if k == 0:
        raise ValueError(f"index of shape {array.shape} selects no class along axis {axis}")
    wanted = (*rows[:axis], k, *rows[axis:])
    same_shape(array, wanted, "index", f"{k} classes per row of logits {logits_shape}")
    return array


def weight(value, classes, row_shape=()):
    """Class weights (C,), finite; None stays None."""
    if value is None:
        return None
    array = number_array(value, "weight")
    hint = "; one per row is sample_weight" if array.shape == row_shape != () else ""
    same_shape(array, (classes,), "weight", "one per class", hint)
    all_finite(array, "weight")
    return array


def sample_weight(value, row_shape, classes=None):
    """Row weights of the loss's shape, finite; None stays None."""
    if value is None:
        return None
    array = number_array(value, "sample_weight")
    one_weight_per_row(array, row_shape, classes)
    all_finite(array, "sample_weight")
    return array


def one_weight_per_row(array, row_shape, classes):
    """Raise if the weights of rows have another shape than the loss."""
    hint = "; one per class is weight" if array.shape == (classes,) else ""
    same_shape(array, row_shape, "sample_weight", "one per row", hint)


def grad_output(value, reduction, row_shape):
    """The upstream gradient: None, a float, or for "none" an array of one per row."""
    if value is None:
        return None
    array = number_array(value, "grad_output")
    if array.ndim == 0:
        return float(array)
    if reduction != "none":
        raise ValueError(
            f"grad_output has shape {array.shape}, but the loss is a scalar "
            f"with reduction={reduction!r}"
        )
    same_shape(array, row_shape, "grad_output", "as the loss, or a scalar")
    return array
