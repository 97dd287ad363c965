"""Arguments of a call on dask arrays: checked as far as shapes and dtypes tell, and cut into blocks
of the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes

from .. import _check
from ._blocks import taken_part

Axes = tuple[int, ...]

TO_THE_CALLER = 5  # levels of the stack, from `whole_rows` to who called a public function


def arrange(
    logits: Any,
    axis: Any,
    target: Any,
    weight: Any = None,
    sample_weight: Any = None,
    *,
    labels_only: bool = False,
) -> Call:
    """The call with these arrays; None is left out."""
    call = Call(logits, axis)
    if target is not None:
        call.add_target(target, labels_only)
    if weight is not None:
        call.add_weight(weight)
    if sample_weight is not None:
        call.add_sample_weight(sample_weight)
    return call


class Call:
    """The arrays of a call, and how a function runs on the blocks that have the same rows."""

    def __init__(self, logits: Any, axis: Any) -> None:
        if not isinstance(logits, da.Array):
            kind = type(logits).__name__
            raise TypeError(f"logits must be a dask array, not {kind}; see dask.array.from_array")
        known(logits, "logits")
        _check.logits(_like(logits))
        self.axis: int = _check.class_axis(axis, logits)
        self.shape: tuple[int, ...] = logits.shape
        self.classes: int = logits.shape[self.axis]
        self.dtype = logits.dtype
        self.loss_dtype = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
        self.all_axes: Axes = tuple(range(logits.ndim))
        self.row_axes: Axes = self.all_axes[: self.axis] + self.all_axes[self.axis + 1 :]
        self.row_shape = tuple(logits.shape[k] for k in self.row_axes)
        self._arrays: dict[str, tuple[Any, Axes]] = {}
        logits = whole_rows(logits, self.axis, "logits")
        self._chunks = logits.chunks
        self.add("logits", logits, self.all_axes)

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def add(self, name: str, array: Any, axes: Axes) -> None:
        """An array along these axes of the logits, which is cut as they are."""
        chunks = tuple(self._chunks[k] for k in axes)
        cut = array.rechunk if isinstance(array, da.Array) else _from_numpy(array)
        self._arrays[name] = cut(chunks), axes

    def add_target(self, value: Any, labels_only: bool) -> None:
        """Class indices or class probabilities."""
        value = known(value, "target", _check.OR_LEAVE_OUT)
        target = _check.target(_like(value), self.shape, self.row_shape)
        self.has_labels: bool = target.dtype.kind in "iu"
        if labels_only:
            _check.labels(target, self.shape, self.axis)
        if value.dtype != target.dtype:
            value = value.astype(target.dtype)  # of no rows
        if not self.has_labels and isinstance(value, da.Array):
            value = whole_rows(value, self.axis, "target")
        self.add("target", value, self.row_axes if self.has_labels else self.all_axes)

    def add_weight(self, value: Any) -> None:
        """Class weights."""
        value = known(value, "weight")
        inspected = _like(value) if isinstance(value, da.Array) else value
        inspected = _check.weight(inspected, self.classes, self.row_shape)
        self.add("weight", value if isinstance(value, da.Array) else inspected, (self.axis,))

    def add_sample_weight(self, value: Any) -> None:
        """Weights of rows."""
        value = known(value, "sample_weight")
        _check.number_array(np.empty(0, value.dtype), "sample_weight")
        _check.one_weight_per_row(value, self.row_shape, self.classes)
        self.add("sample_weight", value, self.row_axes)

    def add_grad_output(self, value: Any, reduction: str) -> None:
        """The upstream gradient."""
        value = known(value, "grad_output")
        _check.number_array(np.empty(0, value.dtype), "grad_output")
        _check.grad_output(_like(value, np.float32), reduction, self.row_shape)
        self.add("grad_output", value, self.row_axes if value.ndim else ())

    def run(
        self,
        function: Callable[..., Any],
        axes: Axes,
        dtype: Any,
        *,
        names: Iterable[str] = (),
        boxed: bool = False,
        **options: Any,
    ) -> Any:
        """What the function returns of each block, as an array along these axes.

        It gets the arrays with these names (all without), and for each axis of the rows an array
        of one number: where the block begins. `boxed`: what it returns is one element.
        """
        names = tuple(names) or tuple(self._arrays)
        arrays = [self._arrays[name] for name in names]
        arrays += [(_starts(self._chunks[k]), (k,)) for k in self.row_axes]
        options |= {"names": names, "align_arrays": False, "meta": _meta(axes, dtype)}
        if boxed:
            options["adjust_chunks"] = dict.fromkeys(axes, 1)
        return da.blockwise(function, axes, *(x for pair in arrays for x in pair), **options)

    def part(self, packed: Any, number: int, axes: Axes, dtype: Any, *, boxed: bool = False) -> Any:
        """The part with this number of what `run` has returned, as an array along these axes."""
        options: dict[str, Any] = {"adjust_chunks": dict.fromkeys(axes, 1)} if boxed else {}
        options |= {"number": number, "align_arrays": False, "meta": _meta(axes, dtype)}
        of = self.all_axes if packed.ndim == len(self.all_axes) else self.row_axes
        return da.blockwise(taken_part, axes, packed, of, **options)


def known(value: Any, name: str, instead: str = "") -> Any:
    """A dask array whose chunks have known sizes, or an array of NumPy."""
    if not isinstance(value, da.Array):
        if dask.is_dask_collection(value):
            kind = type(value).__name__
            hint = f"; give {name}.to_dask_array(lengths=True)" if kind == "Series" else ""
            raise TypeError(f"{name} must be an array of dask or NumPy, not a {kind} of dask{hint}")
        return _check.as_array(value, name, instead)
    if np.isnan(value.shape).any():
        raise ValueError(f"{name} has chunks of unknown sizes; {name}.compute_chunk_sizes() counts")
    return value


def whole_rows(array: Any, axis: int, name: str) -> Any:
    """The array with its classes in one chunk; a warning if it had more."""
    if array.numblocks[axis] == 1:
        return array
    largest = int(np.prod([max(sizes) for sizes in array.chunks])) * array.dtype.itemsize
    chunks = dict.fromkeys(range(array.ndim), "auto") | {axis: -1}
    whole = array.rechunk(chunks, block_size_limit=largest)
    warnings.warn(
        f"{name} has {array.numblocks[axis]} chunks along its class axis {axis}: all of it, "
        f"{format_bytes(array.nbytes)}, is copied into {whole.npartitions} chunks of whole rows, "
        "and sent between workers where there are several; chunks of whole rows cost nothing",
        da.PerformanceWarning,
        stacklevel=TO_THE_CALLER,
    )
    return whole


def _like(array: Any, dtype: Any = None) -> Any:
    """An array of its shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype if dtype is None else dtype), array.shape)


def _meta(axes: Axes, dtype: Any) -> Any:
    return np.empty((0,) * len(axes), dtype)


def _from_numpy(array: Any) -> Callable[[Any], Any]:
    return lambda chunks: da.from_array(array, chunks=chunks)


def _starts(sizes: tuple[int, ...]) -> Any:
    """Where each chunk begins: an array with one number in each of as many chunks."""
    return da.from_array(np.cumsum([0, *sizes[:-1]]), chunks=1)
