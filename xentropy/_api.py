"""Cross entropy: definition, parameters and errors.

A call goes to the bindings unchanged (`_public.pxi`). If an argument needs a conversion or is
wrong, they hand it over to `general_cross_entropy`: the arguments are checked, and the call is
repeated.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack, overload

import numpy as np

from . import _check, _kernels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._types import (
        FloatArray,
        GradientOptions,
        Loss,
        NoReduction,
        Number,
        Options,
        Rows,
        ToOneNumber,
    )


def _compiled(declared: Any) -> Any:
    """The bindings' function of this name, with the signature and the documentation."""
    return functools.update_wrapper(getattr(_kernels, declared.__name__), declared)


@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: NoReduction,
    **options: Unpack[Options],
) -> Rows: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: str,
    **options: Unpack[Options],
) -> Loss: ...
@_compiled
def cross_entropy(
    logits: ArrayLike,
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
    n_threads: SupportsIndex | None = None,
) -> Loss:
    r"""Softmax cross-entropy between logits and targets.

    For one row with scaled logits :math:`x = s \cdot \text{logits}` and target masses
    :math:`q_c = w_c ((1 - \epsilon) t_c + \epsilon / C)`:

    .. math:: \ell = v \, \Big(\sum_c q_c (\mathrm{lse}(x) - x_c) / \ln b
              + z \, \mathrm{lse}(x)^2 \Big)

    with t one-hot for class indices. Computed in float32 (float64 for float64 logits) and
    added up in float64. A confident row keeps its tail: float32 logits ``[20, 0]`` with
    target 0 cost 2.06e-9.

    Parameters
    ----------
    logits : array_like of float16, bfloat16, float32 or float64
        Shape (N, C), (N, C, d1, ...) or any other with the classes along `axis`; (C,) is a
        single row. Any strides, byte order and alignment. As for all arguments that are
        arrays, a subclass counts as the array that it is, and a masked array is refused.
    target : array_like
        Class indices: integers of any dtype, shape of the logits without the class axis,
        each in [0, C) or equal to `ignore_index`. Class probabilities: floating, shape of
        the logits; they need not add up to 1.
    weight : array_like (C,), optional
        Weight :math:`w_c` of each class; finite, may be negative.
    sample_weight : array_like, optional
        Weight v of each row, shape of the loss. Weight k counts as k equal rows; a row of
        weight 0 is not read.
    ignore_index : int, default -100
        Rows with this label cost 0 and are not read, whatever they hold.
    reduction : {"mean", "sum", "none"}
        "sum" is the joint negative log-likelihood of independent rows. "mean" divides it by
        the summed weights of the rows that count: weight[target] * sample_weight for class
        indices, sample_weight for probabilities (N without).
    normalizer : float, optional
        Divisor of the mean in place of its own, as accumulation over micro-batches needs.
    empty_mean : float, default nan
        The mean if no row counts, as torch has it; 0 keeps a batch that is masked altogether from
        making a training's loss nan (its gradient is 0 anyway). A `normalizer` divides it, too.
    label_smoothing : float in [0, 1]
        :math:`\epsilon`: that share of the target mass goes evenly to all classes.
    z_loss : float >= 0
        z: adds ``z_loss * lse**2`` to every row (in nats squared, whatever `base` is).
    logit_scale : float in [1e-30, 1e30]
        s: multiplies the logits first (1 / temperature).
    softcap : float in [1e-30, 1e30], optional
        c: the logits become :math:`x = c \tanh(s \cdot \text{logits} / c)`, in (-c, c), as Gemma 2
        has them (`final_logit_softcapping`). softcap / logit_scale has the same limits. Note that
        tanh makes -inf finite: a class that is masked by -inf costs as much as one at -c. With a
        softcap there is no way to mask classes but to leave them out.
    axis : int, default 1
        The class axis. For logits of one dimension the default means 0.
    base : float > 1, optional
        b: unit of the loss. None is e (nats); 2 gives bits.
    n_threads : int, optional
        At most so many threads for this call; without it see `set_num_threads`, which also says
        when fewer are used. The result has the same bits for any number.

    Returns
    -------
    float or ndarray
        A float for "mean" and "sum"; for "none" one loss a row, float32 (float64 for
        float64 logits). The mean over no row is `empty_mean`.

    Raises
    ------
    TypeError
        An argument has a type or dtype that is not supported, such as integer logits.
    ValueError
        A shape, an option or a weight is out of range, or there are no classes.
    IndexError
        A label is neither a class nor `ignore_index`.

    Notes
    -----
    -inf among the logits is probability 0: at the target the loss is inf. A row with nan,
    +inf or nothing but -inf has loss nan; other rows are not affected. A target mass of 0
    contributes 0 even where the log-probability is -inf. With a softcap, infinite logits count as
    those at the cap: no loss is infinite, and their gradient is 0.

    References
    ----------
    The loss is that of `torch.nn.functional.cross_entropy`; label smoothing follows
    Szegedy et al., arXiv:1512.00567, the z-loss PaLM, arXiv:2204.02311, and the softcap Gemma 2,
    arXiv:2408.00118.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
    >>> round(xe.cross_entropy(logits, [0, 1]), 6)
    0.31854
    """
    raise NotImplementedError


@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[GradientOptions],
) -> tuple[float, FloatArray]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: NoReduction,
    **options: Unpack[GradientOptions],
) -> tuple[Rows, FloatArray]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: str,
    **options: Unpack[GradientOptions],
) -> tuple[Loss, FloatArray]: ...
@_compiled
def cross_entropy_with_grad(
    logits: ArrayLike,
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
    out: NDArray[Any] | None = None,
    n_threads: SupportsIndex | None = None,
) -> tuple[Loss, FloatArray]:
    r"""Softmax cross-entropy and its gradient in the logits, in one pass over memory.

    All parameters but the two below, the semantics and the errors are those of
    `cross_entropy`. With :math:`p = \mathrm{softmax}(x)` and :math:`Q = \sum_c q_c` a row's
    gradient is

    .. math:: \frac{\partial \ell}{\partial \text{logits}_c} = v \, s \, \Big(
              (Q p_c - q_c) / \ln b + 2 z \, \mathrm{lse}(x) \, p_c \Big)

    (with a softcap c: times :math:`1 - (x_c / c)^2`, whose digits are kept where x is almost c)
    times the upstream gradient and, for "mean", divided by the divisor. Where p is almost 1 it is
    computed from 1 - p: float32 logits ``[20, 0]`` with target 0 get -2.06e-9 and 2.06e-9.

    Parameters
    ----------
    grad_output : float or array_like, optional
        Upstream gradient: a scalar, or for reduction="none" also one value a row.
    out : ndarray, optional
        Array for the gradient: shape and dtype of the logits, any strides. ``out=logits``
        works in place. Any other overlap with an input is an error.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it, bit for bit.
    grad : ndarray
        Shape and dtype of the logits, in native byte order; `out` if given.

    Notes
    -----
    The page faults of untouched memory cost more than the computation. Freed results of 128 KB
    and more are therefore kept for later ones of about their size: at most 24 MB of those below
    4 MB; on Linux also four below 32 MB and one above, of which the system may reclaim (MADV_FREE)
    all but the last below 32 MB, and 2 MB each. XENTROPY_KEEP_RESULT=0 in the environment switches
    that off.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> loss, grad = xe.cross_entropy_with_grad(np.array([[20.0, 0.0]], np.float32), [0])
    >>> f"{loss:.7e}", [f"{g:.2e}" for g in grad[0]]
    ('2.0611537e-09', ['-2.06e-09', '2.06e-09'])
    """
    raise NotImplementedError


def general_cross_entropy(call: tuple[Any, ...], empty_mean: Any) -> Any:
    """The result of any call; `call`: the arguments of `checked_cross_entropy`."""
    if empty_mean is math.nan:
        return checked_cross_entropy(*call)
    _, _, target, _, sample_weight, options, *_ = call
    empty_mean = _check.empty_mean(empty_mean, options.reduction)
    result = _kernels.compute_cross_entropy(*call)
    if result is None:
        result = checked_cross_entropy(*call)
    loss, *grad = result if isinstance(result, tuple) else (result,)
    if loss == loss or options.normalizer is not None:
        return result
    if _any_counts(target, sample_weight, options.ignore_index):
        return result
    return (empty_mean, *grad) if grad else empty_mean


def _any_counts(target: Any, repeat: Any, ignore_index: Any) -> bool:
    """Is there a row that is read?"""
    target = np.asarray(target)
    labels = target.dtype.kind in "iu"
    counted: Any = target != ignore_index if labels else np.asarray(target.size > 0)
    return bool(np.any(counted if repeat is None else counted & (np.asarray(repeat) != 0)))


def checked_cross_entropy(
    with_grad: bool,
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    options: _kernels.Options,
    grad_output: Any = None,
    out: Any = None,
    *,
    float64: bool = False,
    float64_losses: bool = False,
) -> Any:
    """The bindings' result for any arguments: converted where needed, or their error raised."""
    logits = _check.logits(logits, _check.OR_LEAVE_OUT)
    axis = _check.class_axis(options.axis, logits)
    shape = logits.shape
    row_shape = shape[:axis] + shape[axis + 1 :]
    target = _check.target(target, shape, row_shape)
    weight = _check.weight(weight, shape[axis], row_shape)
    sample_weight = _check.sample_weight(sample_weight, row_shape, shape[axis])
    options = _check.options(options, axis)
    grad_output = _check.grad_output(grad_output, options.reduction, row_shape)
    if out is not None:
        inputs = {"target": target, "weight": weight, "sample_weight": sample_weight}
        if isinstance(grad_output, np.ndarray):
            inputs["grad_output"] = grad_output
        _check.out(out, logits, "logits", inputs)
    arrays = logits, target, weight, sample_weight
    call = with_grad, *arrays, options, grad_output, out
    return _check.taken(
        _kernels.compute_cross_entropy(
            *call, checked=True, float64=float64, float64_losses=float64_losses
        )
    )
