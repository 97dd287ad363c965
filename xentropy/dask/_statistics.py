"""Statistics of rows of dask arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .. import _check
from .._kernels import make_options
from .._statistics import RowStatistics
from ._arguments import arrange
from ._blocks import statistics_of_block

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike

    from .._types import Number


def row_statistics(
    logits: da.Array,
    target: ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    n_threads: SupportsIndex | None = 1,
) -> RowStatistics:
    """Loss, entropy, confidence and ranks of all rows of logits: `xentropy.row_statistics`.

    Parameters
    ----------
    logits : dask.array.Array
        As for `xentropy.dask.cross_entropy`.
    target : array_like or dask.array.Array, optional
        Class indices, shape of the logits without the class axis.
    axis, ignore_index, logit_scale, softcap
        As for `xentropy.row_statistics`.
    n_threads : int, default 1
        Threads of each task, as for `xentropy.dask.cross_entropy`.

    Returns
    -------
    RowStatistics
        A named tuple of dask arrays, chunked as the rows of the logits: the bits that
        `xentropy.row_statistics` returns. Fields that are computed together, by
        ``dask.compute(*statistics)``, take one read of the logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `xentropy.dask.cross_entropy`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, xentropy.dask
    >>> logits = da.from_array(np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]), chunks=(1, 3))
    >>> statistics = xentropy.dask.row_statistics(logits, [0, 2])
    >>> statistics.rank.compute(), statistics.entropy.compute().round(4)
    (array([0, 2]), array([1.0397, 0.7356]))
    """
    call = arrange(logits, axis, target, labels_only=True)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "n_threads": n_threads,
    }
    checked = _check.options(make_options(**options, reduction="none"), call.axis)
    options = {name: getattr(checked, name) for name in (*options, "axis")}
    packed = call.run(statistics_of_block, call.row_axes, object, options=options)
    dtypes = dict.fromkeys(RowStatistics._fields, call.loss_dtype)
    dtypes |= {"argmax": np.dtype(np.int64), "rank": np.dtype(np.int64)}
    absent = () if target is not None else ("loss", "rank")
    fields: list[Any] = [
        None if name in absent else call.part(packed, number, call.row_axes, dtype)
        for number, (name, dtype) in enumerate(dtypes.items())
    ]
    return RowStatistics(*fields)
