"""Loss and gradient of dask arrays."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .. import _check
from .._kernels import Options, make_options
from ._arguments import Call, arrange
from ._blocks import gradient_of_block, losses_of_block, sums_of_block, weights_of_block
from ._sums import Sums, tree

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike

    from .._types import Number


def cross_entropy(
    logits: da.Array,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    n_threads: SupportsIndex | None = 1,
) -> da.Array:
    r"""Softmax cross-entropy between logits and targets: `xentropy.cross_entropy`, lazily.

    Parameters
    ----------
    logits : dask.array.Array
        float16, bfloat16, float32 or float64, chunked by rows in any way. If the class axis is
        chunked, too, a `dask.array.PerformanceWarning` says what it costs to put rows together.
    target, weight, sample_weight : array_like or dask.array.Array
        As for `xentropy.cross_entropy`, in any chunks: they are cut as the logits are.
    ignore_index, reduction, normalizer, empty_mean, label_smoothing, z_loss, logit_scale, softcap
        As for `xentropy.cross_entropy`.
    axis, base
        As for `xentropy.cross_entropy`.
    n_threads : int, default 1
        Threads of each task. Dask runs as many tasks at a time as there are cores, so that more
        threads would contend for these. None is the default of `xentropy.cross_entropy`.

    Returns
    -------
    dask.array.Array
        For "none", one loss a row, in the chunks of the rows: the bits that
        `xentropy.cross_entropy` has for logits in C order.
        Else a float64 without dimensions, from exact sums over the rows' losses in float64 and
        over their weights: the nearest number to the sum, or to the quotient of both.
        `xentropy.cross_entropy` adds up in float64, which may differ in the last digits.

    Raises
    ------
    TypeError, ValueError
        At once, for what shapes, dtypes and options tell. As for `xentropy.cross_entropy`, and if
        the logits are no dask array, or chunks have unknown sizes.
    IndexError, ValueError
        When it is computed: a label out of range, a weight that is not finite. The place is that
        in the whole array.

    Notes
    -----
    Blocks that are not in C order are copied.

    The bits are those of the instruction set of each worker (`xentropy config` prints it). Where
    CPUs differ, XENTROPY_TIER in the environment of all workers makes them the same.

    Examples
    --------
    >>> import dask.array as da, numpy as np, xentropy.dask
    >>> logits = da.from_array(np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]), chunks=(1, 3))
    >>> loss = xentropy.dask.cross_entropy(logits, [0, 1])
    >>> round(float(loss.compute()), 6)
    0.31854
    """
    call = arrange(logits, axis, target, weight, sample_weight)
    options = _options(call, locals())
    if options["reduction"] == "none":
        return call.run(losses_of_block, call.row_axes, call.loss_dtype, options=options)
    given: dict[str, Any] = {"options": options, "classes": call.classes}
    boxes = call.run(sums_of_block, call.row_axes, object, boxed=True, **given)
    return _reduced(boxes, options, empty_mean)


def cross_entropy_with_grad(
    logits: da.Array,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    grad_output: ArrayLike | None = None,
    n_threads: SupportsIndex | None = 1,
) -> tuple[da.Array, da.Array]:
    r"""Softmax cross-entropy and its gradient in the logits: `xentropy.cross_entropy_with_grad`.

    Parameters
    ----------
    logits, target, weight, sample_weight
        As for `xentropy.dask.cross_entropy`.
    ignore_index, reduction, normalizer, empty_mean, label_smoothing, z_loss, logit_scale, softcap
        As for `xentropy.cross_entropy`.
    axis, base
        As for `xentropy.cross_entropy`.
    grad_output : float, array_like or dask.array.Array, optional
        Upstream gradient: a scalar, or for reduction="none" also one value a row.
    n_threads : int, default 1
        Threads of each task, as for `xentropy.dask.cross_entropy`.

    Returns
    -------
    loss : dask.array.Array
        As `xentropy.dask.cross_entropy` returns it, bit for bit.
    grad : dask.array.Array
        Shape, dtype and chunks of the logits: the bits that `xentropy.cross_entropy_with_grad` has
        for logits in C order. But where weights that are no integers make the divisor of a mean,
        it is here their exact sum, rounded once.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `xentropy.dask.cross_entropy`.

    Notes
    -----
    Loss and gradient that are computed together, by ``dask.compute(loss, grad)``, take one pass
    over the logits. The gradient of a mean is divided by the weight of all rows: labels and weights
    of all blocks are computed before the first gradient, unless there is a `normalizer`.

    Examples
    --------
    >>> import dask, dask.array as da, numpy as np, xentropy.dask
    >>> logits = da.from_array(np.array([[20.0, 0.0]], np.float32), chunks=(1, 2))
    >>> loss, grad = dask.compute(*xentropy.dask.cross_entropy_with_grad(logits, [0]))
    >>> f"{loss:.7e}", [f"{g:.2e}" for g in grad[0]]
    ('2.0611537e-09', ['-2.06e-09', '2.06e-09'])
    """
    call = arrange(logits, axis, target, weight, sample_weight)
    options = _options(call, locals())
    given: dict[str, Any] = {"options": options, "classes": call.classes}
    if options["reduction"] == "mean" and options["normalizer"] is None:
        call.add("divisor", _divisor(call, given), ())
    packed = call.run(gradient_of_block, call.all_axes, object, **given)
    grad = call.part(packed, 1, call.all_axes, call.dtype)
    if options["reduction"] == "none":
        return call.part(packed, 0, call.row_axes, call.loss_dtype), grad
    boxes = call.part(packed, 0, call.row_axes, object, boxed=True)
    return _reduced(boxes, options, empty_mean), grad


def _options(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The options, checked; the upstream gradient is added to the call."""
    checked = _check.options(make_options(**{n: given[n] for n in Options.NAMES}), call.axis)
    if given["empty_mean"] is not math.nan:
        _check.empty_mean(given["empty_mean"], checked.reduction)
    if given.get("grad_output") is not None:
        call.add_grad_output(given["grad_output"], checked.reduction)
    columns = math.prod(call.shape[call.axis + 1 :]) > 1
    return {name: getattr(checked, name) for name in Options.NAMES} | {"columns": columns}


def _divisor(call: Call, given: dict[str, Any]) -> Any:
    """The weight of all rows: of probabilities, no array of the size of the logits is read."""
    needed = {"target", "weight", "sample_weight"} if call.has_labels else {"sample_weight"}
    names = [name for name in call.names if name in needed]
    if not names:
        return np.asarray(float(math.prod(call.row_shape)))
    boxes = call.run(weights_of_block, call.row_axes, object, names=names, boxed=True, **given)
    return tree(boxes, Sums(), Sums.weight, np.float64)


def _reduced(boxes: Any, options: dict[str, Any], empty_mean: Number) -> Any:
    finish = partial(
        Sums.loss,
        reduction=options["reduction"],
        normalizer=options["normalizer"],
        empty_mean=float(empty_mean),
    )
    return tree(boxes, Sums(), finish, np.float64)
