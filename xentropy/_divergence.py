"""The Kullback-Leibler divergence of probabilities from a softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack, overload

import numpy as np

from . import _check
from ._api import checked_cross_entropy
from ._distillation._call import Call
from ._kernels import make_options
from ._softmax import reduced

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._types import Divergence, Loss, NoReduction, Number, Rows, ToOneNumber


@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[Divergence],
) -> float: ...
@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: NoReduction,
    **options: Unpack[Divergence],
) -> Rows: ...
@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: str,
    **options: Unpack[Divergence],
) -> Loss: ...
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: str = "mean",
    axis: SupportsIndex = 1,
    base: Number | None = None,
    n_threads: SupportsIndex | None = None,
    target_logits: bool = False,
) -> Loss:
    r"""Kullback-Leibler divergence of class probabilities from the softmax of logits.

    .. math:: \mathrm{KL}(t \Vert p) = \sum_c t_c (\log_b t_c - \log_b p_c)

    with p = softmax(logits), computed in float64 as cross entropy minus entropy: the difference of
    two almost equal numbers is exact to about 1e-15, and may be that much below 0. Its gradient in
    the logits is that of the cross entropy. With `target_logits` also t is the softmax of logits;
    the divergence is then that of `distillation_loss`: never negative, relatively exact near 0.

    Parameters
    ----------
    target : array_like of float16, bfloat16, float32 or float64
        Class probabilities, shape of the logits; or logits of t.
    logits, reduction, axis, base, n_threads
        As for `cross_entropy`; "mean" divides by the number of rows.
    target_logits : bool, default False
        `target` holds logits.

    Returns
    -------
    float or ndarray
        A float, or for reduction="none" one value a row, float32 (float64 for float64
        logits).

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`. A negative probability, which has no logarithm.

    Warns
    -----
    UserWarning
        The target masses of the first rows are off from 1 by more than a half, or the logits are
        probabilities: hardly meant, but the formula has a value.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> target, logits = np.array([[0.5, 0.25, 0.25]]), np.zeros((1, 3))
    >>> round(xe.kl_divergence(target, logits, base=2), 4)
    0.085
    >>> round(np.log2(3) - 1.5, 4)
    np.float64(0.085)
    >>> round(xe.kl_divergence(np.log(target), logits, base=2, target_logits=True), 4)
    0.085
    """
    from . import _suspicion

    t = _check.float_array(target, "target")
    x = _check.logits(logits)
    reduction = _check.reduction(reduction)
    if _check.flag(target_logits, "target_logits"):
        _check.same_shape(t, x.shape, "target", "logits, as `logits`")
        options = make_options(axis=axis, reduction=reduction, base=base, n_threads=n_threads)
        return Call(x, t, 0.0, True, None, options).compute(False)
    options = make_options(axis=axis, reduction="none", base=base, n_threads=n_threads)
    cross = checked_cross_entropy(False, x, t, None, None, options, float64=True)
    axes = _check.class_axis(axis, x)
    own = reduced("target_entropy", t, axes, False, base, math.nan, n_threads, float64=True)
    with np.errstate(all="ignore"):  # silent, as the kernels are
        rows = np.asarray(cross - own)
        if np.isnan(rows).any():
            _none_negative(t, x, axes)
        _suspicion.logits(x, axes)
        _suspicion.target_sums(t, axes)
        if reduction == "none":
            dtype = np.float64 if x.dtype.itemsize == 8 else np.float32
            rows = rows.astype(dtype)
            return rows if rows.ndim else rows[()]
        total = float(np.sum(rows))
    if reduction == "mean":
        return total / rows.size if rows.size else math.nan
    return total


def _none_negative(t: NDArray[np.floating[Any]], x: NDArray[np.floating[Any]], axis: int) -> None:
    """Raise for the first negative target mass; called if there is a nan among the results."""
    place = np.argwhere(t < 0)
    if len(place):
        from . import _suspicion

        hint = ""
        if _suspicion.are_probabilities(x, axis):
            hint = "; are target and logits swapped?"
        elif (t <= 0).all():
            hint = "; are these log-probabilities? give exp(target)"
        at = ", ".join(map(str, place[0]))
        value = t[tuple(place[0])]
        raise ValueError(f"target[{at}] = {value} is negative, no probability{hint}")
