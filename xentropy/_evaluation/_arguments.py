"""The arguments of an update, checked: nothing is counted before all of them are right."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from .._counted import counting_rows
from ._rows import IGNORED, Options

Array = np.ndarray[Any, np.dtype[Any]]


class Batch(NamedTuple):
    """The rows that count, in C order over the axes beside that of the classes."""

    logits: dict[str, Array]  # by the names of the arguments; classes along the last axis
    rows: Array  # numbers of the rows
    labels: Array  # of all rows, IGNORED for those that do not count
    weight: Array | None
    keys: list[Hashable]  # groups ...
    codes: Array | None  # ... and the place of each row's among them; None if there are no groups
    bytes: Array | None  # of each row, times its weight; or of all rows together
    byte_codes: Array | None  # the places of their groups
    options: Options
    log_probs: tuple[bool, ...]  # for each of the logits, whether they are taken as they are


def checked(logits: dict[str, Any], call: dict[str, Any]) -> Batch:
    """The batch of matrices of logits, by name, and the other arguments of `update`."""
    call = {name: array_of(value) for name, value in call.items()}
    (first, value), *others = ((name, array_of(value)) for name, value in logits.items())
    x = _check.logits(value, _check.OR_LEAVE_OUT)
    axis = _check.class_axis(call["axis"], x)
    arrays = {first: x}
    for name, value in others:
        arrays[name] = _check.float_array(value, name)
        _check.same_shape(arrays[name], x.shape, name, f"as {first}")
    row_shape = x.shape[:axis] + x.shape[axis + 1 :]
    labels, counts = _labels(call["target"], call["ignore_index"], x.shape, axis)
    weight = _weight(call["sample_weight"], row_shape, x.shape[axis])
    if weight is not None:
        counts &= weight != 0
    rows = np.flatnonzero(counts)
    group = _rows_of(call["group"], "group", row_shape, "iuUS", "integers or strings")
    keys, codes = ([], None) if group is None else _groups(group.reshape(-1)[rows])
    weight = None if weight is None else weight[rows]
    moved = {name: np.moveaxis(array, axis, -1) for name, array in arrays.items()}
    options = _options(call)
    return Batch(
        {name: array[None] if array.ndim == 1 else array for name, array in moved.items()},
        rows,
        np.where(counts, labels, IGNORED),
        weight,
        keys,
        codes,
        *_bytes(call["bytes"], row_shape, rows, weight, keys, codes),
        options,
        _log_probs(call, options),
    )


def array_of(value: Any) -> Any:
    """A tensor of torch, on any device and with a graph or not, as an array; all else unchanged."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    if value.dtype is not torch.bfloat16:
        return value.numpy(force=True)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return value.float().numpy(force=True)  # a copy
    return value.detach().cpu().resolve_neg().view(torch.int16).numpy().view(bfloat16)


def _options(call: dict[str, Any]) -> Options:
    scale = _check.logit_scale(call["logit_scale"])
    softcap = _check.softcap(call["softcap"], scale)
    return Options(scale, softcap, _check.n_threads(call["n_threads"]))


def _log_probs(call: dict[str, Any], options: Options) -> tuple[bool, ...]:
    """Which matrices are log-probabilities; ValueError if something would be done to them."""
    names = [name for name in ("log_probs", "base_log_probs") if name in call]
    for name in names:
        if type(call[name]) is not bool:
            raise TypeError(f"{name} must be True or False, not {call[name]!r}")
        if call[name] and (options.logit_scale != 1 or options.softcap is not None):
            raise ValueError(
                f"{name} = True: log-probabilities are taken as they are, "
                "without logit_scale and softcap"
            )
    return tuple(call[name] for name in names)


def _labels(value: Any, ignore_index: Any, shape: Any, axis: int) -> tuple[Array, Array]:
    """Labels and which of them are not ignored, both flat; IndexError for one out of range."""
    target = _check.labels(value, shape, axis)
    ignored = _check.integer(ignore_index, "ignore_index")
    return target.reshape(-1).astype(np.int64), counting_rows(target, shape[axis], ignored)


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
        array = _check.as_array(array.tolist() if array.size else array.astype(str), name)
    if array.dtype.kind not in kinds:
        raise _check.wrong_type(value, array, name, wanted)
    if array.ndim == 0:
        return np.broadcast_to(array, row_shape)
    _check.same_shape(array, row_shape, name, "one per row, or a single one for all")
    return array


def _groups(group: Array) -> tuple[list[Hashable], Array]:
    """The groups, and the place of each row's. Only one row of each run of a group is sorted."""
    starts = np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1])[: len(group)]
    keys, codes = np.unique(group[starts], return_inverse=True)
    return keys.tolist(), np.repeat(codes, np.diff(starts, append=len(group)))


def _bytes(
    value: Any, row_shape: Any, rows: Array, weight: Array | None, keys: Any, codes: Any
) -> tuple[Array | None, Array | None]:
    """Bytes as float64, one number a row that counts or their total, and the groups of these.

    A total is that of a group only if the rows are of one alone.
    """
    array = _rows_of(value, "bytes", row_shape, "iu", "integers")
    if array is None:
        return None, None
    one = np.ndim(value) == 0
    _none_negative(np.asarray(value) if one else array, "bytes")
    if one:
        total = np.reshape(value, 1).astype(np.float64)
        return total, np.zeros(1, np.intp) if len(keys) == 1 else None
    counted = array.reshape(-1)[rows].astype(np.float64)
    return (counted if weight is None else weight * counted), codes
