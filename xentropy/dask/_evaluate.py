"""An evaluation of dask arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import dask
import numpy as np

from .. import _check
from .._evaluation import Evaluation
from ._arguments import Call, arrange, known
from ._blocks import evaluation_of_block
from ._sums import tree

if TYPE_CHECKING:
    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import ArrayLike

    from .._types import Number


def evaluate(
    logits: da.Array,
    target: ArrayLike,
    *,
    group: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    bytes: ArrayLike | None = None,
    top: Sequence[SupportsIndex] = (1, 5),
    bins: SupportsIndex = 15,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    n_threads: SupportsIndex | None = 1,
) -> Delayed:
    """Perplexity, accuracy and calibration of all rows: one `xentropy.Evaluation`.

    Each block is counted by an evaluation of its own, and these are merged by a tree. Nothing
    else leaves a worker: some 1.3 kB, and 70 bytes for each group.

    Parameters
    ----------
    logits : dask.array.Array
        As for `xentropy.dask.cross_entropy`.
    target, group, sample_weight, bytes : array_like or dask.array.Array
        As for `xentropy.Evaluation.update`: one value a row. `group` and `bytes` may be single
        values, of all rows.
    top, bins
        As for `xentropy.Evaluation`.
    axis, ignore_index, logit_scale, softcap
        As for `xentropy.Evaluation.update`.
    n_threads : int, default 1
        Threads of each task, as for `xentropy.dask.cross_entropy`.

    Returns
    -------
    dask.delayed.Delayed
        Of the `xentropy.Evaluation`, which can be merged with others. All figures of its
        `result()` have the same bits for any chunks.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `xentropy.dask.cross_entropy`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, xentropy.dask
    >>> logits = da.from_array(np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]), chunks=(1, 3))
    >>> evaluation = xentropy.dask.evaluate(logits, [0, 2]).compute()
    >>> evaluation.result().bits, evaluation.result().accuracy
    (1.5, {1: 0.5, 5: 1.0})
    """
    call = arrange(logits, axis, target, sample_weight=sample_weight, labels_only=True)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "n_threads": n_threads,
    }
    single, empty = _by_row_or_single(call, {"group": group, "bytes": bytes})
    begin = Evaluation(top, bins)
    no_rows = np.empty((0, call.classes), call.dtype)
    begin.update(no_rows, [], axis=-1, **options, **single, **empty)  # checks all of them
    if "bytes" in single:
        single["bytes"] = 0  # they have been counted
    boxes = call.run(
        evaluation_of_block,
        call.row_axes,
        object,
        boxed=True,
        settings={"top": begin.top, "bins": begin.bins},
        options=options | single | {"axis": call.axis},
    )
    return dask.delayed(np.ndarray.item, pure=True)(tree(boxes, begin, _as_it_is, object))


def _by_row_or_single(call: Call, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Single values of all rows; for the arrays, which are added to the call, arrays of no rows."""
    single, empty = {}, {}
    for name, value in given.items():
        if value is None:
            continue
        value = known(value, name)
        if isinstance(value, np.ndarray) and not value.ndim:
            single[name] = value[()]
            continue
        _check.same_shape(value, call.row_shape, name, "one per row, or a single one for all")
        call.add(name, value, call.row_axes)
        empty[name] = np.empty(0, value.dtype)
    if "bytes" in single and "group" in empty:
        number = single["bytes"]
        raise ValueError(
            f"bytes = {number} is one number for rows of many groups; give one per row"
        )
    return single, empty


def _as_it_is(evaluation: Evaluation) -> Evaluation:
    return evaluation
