"""The arguments of an update, checked: nothing is counted before all of them are right."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from .._kernels import label_error
from ._rows import Options

Array = np.ndarray[Any, np.dtype[Any]]


class Batch(NamedTuple):
    """The rows that count, in C order over the axes beside that of the classes."""

    logits: list[Array]  # classes along the last axis
    rows: Array  # numbers of the rows
    labels: Array
    weight: Array | None
    keys: list[Hashable]  # groups ...
    codes: Array | None  # ... and the place of each row's among them; None if there are no groups
    bytes: Array | None  # of each row, times its weight; or of all rows together
    byte_codes: Array | None  # the places of their groups
    options: Options


def checked(logits: dict[str, Any], call: dict[str, Any]) -> Batch:
    """The batch of matrices of logits, by name, and the other arguments of `update`."""
    (first, value), *others = logits.items()
    x = _check.logits(value, _check.OR_LEAVE_OUT)
    axis = _check.class_axis(call["axis"], x)
    arrays = [x]
    for name, value in others:
        arrays.append(_check.float_array(value, name))
        _check.same_shape(arrays[-1], x.shape, name, f"as {first}")
    row_shape = x.shape[:axis] + x.shape[axis + 1 :]
    labels, counts = _labels(call["target"], call["ignore_index"], x.shape, axis)
    weight = _weight(call["sample_weight"], row_shape, x.shape[axis])
    if weight is not None:
        counts &= weight != 0
    rows = np.flatnonzero(counts)
    group = _rows_of(call["group"], "group", row_shape, "iuUS", "integers or strings")
    keys, codes = ([], None) if group is None else _groups(group.reshape(-1)[rows])
    weight = None if weight is None else weight[rows]
    moved = [np.moveaxis(array, axis, -1) for array in arrays]
    return Batch(
        [array[None] if array.ndim == 1 else array for array in moved],
        rows,
        labels[rows],
        weight,
        keys,
        codes,
        *_bytes(call["bytes"], row_shape, rows, weight, keys, codes),
        _options(call),
    )


def _options(call: dict[str, Any]) -> Options:
    scale = _check.logit_scale(call["logit_scale"])
    softcap = _check.softcap(call["softcap"], scale)
    return Options(scale, softcap, _check.n_threads(call["n_threads"]))


def _labels(value: Any, ignore_index: Any, shape: Any, axis: int) -> tuple[Array, Array]:
    """Labels and which of them are not ignored, both flat; IndexError for one out of range."""
    target = _check.labels(value, shape, axis)
    counts = np.asarray(target != _check.integer(ignore_index, "ignore_index"))
    wrong = counts & ((target < 0) | (target >= shape[axis]))
    if wrong.any():
        raise label_error(target, int(np.argmax(wrong)), shape[axis])
    return target.reshape(-1).astype(np.int64), counts.reshape(-1)


def _place(name: str, at: tuple[Any, ...]) -> str:
    return f"{name}[{', '.join(str(i) for i in at)}]" if at else name


def _weight(value: Any, row_shape: Any, classes: int) -> Array | None:
    """Row weights, flat; a negative one has no standard error."""
    weight = _check.sample_weight(value, row_shape, classes)
    if weight is None:
        return None
    _none_negative(weight, "sample_weight")
    return weight.reshape(-1).astype(np.float64)


def _none_negative(array: Array, name: str) -> None:
    if (array < 0).any():
        at = np.unravel_index(int(np.argmax(array < 0)), array.shape)
        raise ValueError(f"{_place(name, at)} = {array[at]} is negative")


def _rows_of(value: Any, name: str, row_shape: Any, kinds: str, wanted: str) -> Array | None:
    """One value a row; a single one is that of all rows."""
    if value is None:
        return None
    array = _check.as_array(value, name)
    if array.dtype == object:
        array = _check.as_array(array.tolist(), name)  # of strings
    if array.dtype.kind not in kinds:
        raise _check.wrong_type(value, array, name, wanted)
    if array.ndim == 0:
        return np.broadcast_to(array, row_shape)
    _check.same_shape(array, row_shape, name, "one per row, or a single one for all")
    return array


def _groups(group: Array) -> tuple[list[Hashable], Array]:
    keys, codes = np.unique(group, return_inverse=True)
    return keys.tolist(), codes


def _bytes(
    value: Any, row_shape: Any, rows: Array, weight: Array | None, keys: Any, codes: Any
) -> tuple[Array | None, Array | None]:
    """Bytes as float64, one number a row that counts or their total, and the groups of these."""
    array = _rows_of(value, "bytes", row_shape, "iu", "integers")
    if array is None:
        return None, None
    one = np.ndim(value) == 0
    _none_negative(np.asarray(value) if one else array, "bytes")
    if one:
        if len(keys) > 1:
            raise ValueError(
                f"bytes = {value} is one number for rows of {len(keys)} groups; give one per row"
            )
        array, rows, weight, codes = np.reshape(value, 1), np.arange(1), None, np.zeros(1, np.intp)
    counted = array.reshape(-1)[rows].astype(np.float64)
    return (counted if weight is None else weight * counted), codes
