"""Log-probabilities of selected classes, with the entropy: the function and its operators.

Forward is one read of the logits, backward one read and one write. Kept until then are the logits
and three numbers a row: log p as it is returned, the entropy and the log-sum-exp in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from .. import _check
from .._kernels import make_options
from .._log_probs import gradient, numbers
from . import _operator
from ._arrays import BITS16, FLOATS, arrays, tensor
from ._eager import eager
from ._formula import capped
from ._loss import TRACED, is_exporting
from ._refusals import in_torchs_words, no_tensor
from ._routing import PLAIN
from ._softmax_autograd import LEAST_LOG, wide

INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def selected_log_probs(
    logits: Tensor,
    index: Tensor,
    *,
    return_entropy: bool = False,
    dim: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    n_threads: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Log-probabilities of one or several classes a row, and the entropy, with their gradients.

    With x the logits over the temperature (capped), p = softmax(x) and a class y of `index`:

    .. math:: \ln p_y = x_y - \ln \sum_c e^{x_c}, \qquad H = -\sum_c p_c \ln p_c

    What ``torch.log_softmax(x, dim).gather(dim, index)`` computes, and TRL's
    ``selective_log_softmax`` and ``entropy_from_logits``, without an array of the size of the
    logits: forward reads them once; backward reads them once more and writes their gradient.

    Parameters
    ----------
    logits : Tensor
        float16, bfloat16, float32 or float64, any shape and strides.
    index : Tensor of integers
        Classes: in the shape of the logits without `dim`, or with k in its place for k classes a
        row.
    return_entropy : bool, default False
        Also return the entropy of every row.
    dim : int, default -1
        The class axis.
    ignore_index : int, default -100
        Classes of this number are left out: log-probability 0, no gradient. A row without any
        other is not read; its entropy is 0.
    temperature : float > 0, default 1.0
        Divides the logits.
    softcap : float > 0, optional
        Caps the logits over the temperature, as in `cross_entropy`.
    dtype : torch.dtype, optional
        Of the results. None: that of the logits, or float32 for 16-bit ones under autocast. Ratios
        of probabilities need float32: the log-probabilities are computed in it, or in float64.
    n_threads : int, optional
        At most so many threads for this call.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        log p of the classes, shape of `index`; with `return_entropy` also H, one a row, in nats.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentropy.selected_log_probs`.

    Notes
    -----
    Both are exact to a few units in the last place of float32 (float64) where a row is almost
    certain, and so are their gradients, in which 1 - p does not cancel; see
    `xentropy.selected_log_probs_grad`. Other devices, tensor subclasses, transforms of torch.func,
    forward-mode derivatives, torch.jit and derivatives of the gradient (create_graph) use torch's
    operations.

    References
    ----------
    ``trl.trainer.utils`` for the functions replaced.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import selected_log_probs
    >>> logits = torch.tensor([[20.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> log_p, entropy = selected_log_probs(logits, torch.tensor([0, 1]), return_entropy=True)
    >>> [f"{value:.3g}" for value in (*log_p.tolist(), *entropy.tolist())]
    ['-2.06e-09', '-0.693', '4.33e-08', '0.693']
    >>> log_p[0].backward()
    >>> [f"{value:.3g}" for value in logits.grad[0].tolist()]
    ['2.06e-09', '-2.06e-09']
    """
    if (has_torch_function((logits, index)) and not _plain(logits, index)) or not _are_tensors(
        logits, index
    ):
        arguments = {k: v for k, v in locals().items() if k not in ("logits", "index")}
        return _overridden(logits, index, arguments)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating, not {logits.dtype}")
    if index.dtype not in INTEGERS:
        raise TypeError(f"index must be integers (class indices), not {index.dtype}")
    scale = scale_of(temperature)
    options = dim, ignore_index, scale, _check.softcap(softcap, scale)
    wanted = result_dtype(logits, dtype)
    if can_be_operators(logits, index):
        exact = torch.float64 in (logits.dtype, wanted)
        kept = torch.float64 if exact else torch.float32
        found = eager_operator(logits, index, *options, n_threads, kept)[:2]
    else:
        found = by_torch(logits, index, *options)
    # Copies, so that a caller may write into them: backward needs what the operator returned.
    log_prob, *entropy = (value.to(wanted, copy=True) for value in found[: 1 + return_entropy])
    return (log_prob, *entropy) if return_entropy else log_prob


def _plain(*tensors: Any) -> bool:
    return all(type(each) in PLAIN for each in tensors)


def _are_tensors(*tensors: Any) -> bool:
    return all(isinstance(each, Tensor) for each in tensors)


def _overridden(logits: Any, index: Any, options: dict[str, Any]) -> Any:
    """The call as objects with `__torch_function__` answer it."""
    if not has_torch_function((logits, index)):
        for name, value in (("logits", logits), ("index", index)):
            if not isinstance(value, Tensor):
                raise no_tensor(name, value)
    return handle_torch_function(selected_log_probs, (logits, index), logits, index, **options)


def scale_of(temperature: Any) -> float:
    """The factor of the logits; a number out of range is called what the caller calls it."""
    number = _check.real(temperature, "temperature")
    return _check.logit_scale(1 / _check.real_between(number, "temperature", 1e-30, 1e30))


def result_dtype(logits: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    lifted = logits.dtype in BITS16 and torch.is_autocast_enabled("cpu")
    return torch.float32 if lifted else logits.dtype


def can_be_operators(*tensors: Tensor) -> bool:
    """Can an operator compute a call on these tensors, of which the first is floating?"""
    kinds = TRACED if is_compiling() else PLAIN
    for each in tensors:
        if type(each) not in kinds or not each.is_cpu or each.layout is not torch.strided:
            return False
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if (not is_compiling() and _get_tracing_state() is not None) or is_exporting():
        return False
    return tensors[0].dtype in FLOATS


def by_torch(
    logits: Tensor,
    index: Tensor,
    dim: int,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """log_prob and entropy in torch's operations."""
    x = capped(wide(logits).movedim(dim, -1) * logit_scale, softcap)
    several = index.dim() == logits.dim()
    labels = (index.movedim(dim, -1) if several else index.unsqueeze(-1)).long()
    counted = labels != ignore_index
    read = counted.any(-1)
    log_p = torch.where(read.unsqueeze(-1), x, 0).log_softmax(-1)
    own = torch.where(counted, log_p.gather(-1, torch.where(counted, labels, 0)), 0)
    bounded = log_p.clamp(min=LEAST_LOG)
    entropy = torch.where(read, 0 - (bounded.exp() * bounded).sum(-1), 0)
    return own.movedim(-1, dim) if several else own.squeeze(-1), entropy


def _record(axis: int, ignore_index: int, logit_scale: float, softcap: Any, n_threads: Any) -> Any:
    return make_options(
        axis=axis,
        ignore_index=ignore_index,
        reduction="none",
        logit_scale=logit_scale,
        softcap=softcap,
        n_threads=n_threads,
    )


@torch.library.custom_op("xentropy::selected_log_probs", mutates_args=())
def operator(
    logits: Tensor,
    index: Tensor,
    axis: int,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
    n_threads: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob, of type `dtype`, entropy and lse: what backward is computed from.

    The gradient of the entropy, -p (log p + H), takes H in float64: where all p are almost alike
    the sum cancels.
    """
    record = _record(axis, ignore_index, logit_scale, softcap, n_threads)
    try:
        x, classes = arrays((logits, index))
        found = numbers(x, classes, record)
    except (TypeError, ValueError) as error:
        raise type(error)(in_torchs_words(error)) from error
    log_prob, entropy, lse = (tensor(np.asarray(each)) for each in found)
    return log_prob.to(dtype), entropy, lse


@operator.register_fake
def _(logits, index, axis, *others):  # type: ignore[no-untyped-def]
    rows = list(logits.shape)
    del rows[axis]
    log_prob = index.new_empty(index.shape, dtype=others[-1])
    return log_prob, *(index.new_empty(rows, dtype=torch.float64) for _ in range(2))


@torch.library.custom_op("xentropy::selected_log_probs_backward", mutates_args=())
def operator_backward(
    on_log_prob: Tensor | None,
    on_entropy: Tensor | None,
    logits: Tensor,
    index: Tensor,
    log_prob: Tensor,
    entropy: Tensor,
    lse: Tensor,
    axis: int,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
    n_threads: int | None,
) -> Tensor:
    """The gradient in the logits; the first two are those in log_prob and entropy."""
    record = _record(axis, ignore_index, logit_scale, softcap, n_threads)
    given = on_log_prob, on_entropy, logits, index, lse, log_prob, entropy
    upstream, of_rows, x, classes, *kept = arrays(given)
    upstream = 0.0 if upstream is None else upstream
    found = gradient(x, classes, (kept[0], kept[1], kept[2]), upstream, of_rows, record)
    return tensor(np.asarray(found))


@operator_backward.register_fake
def _(on_log_prob, on_entropy, logits, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, index, *ctx.options, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, index, *output)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    on_log_prob, on_entropy, _ = upstream
    logits, index, *kept = ctx.saved_tensors
    unused = [None] * (2 + len(ctx.options))
    if on_log_prob is None and on_entropy is None:
        return None, *unused
    if torch.is_grad_enabled() and not is_compiling():  # create_graph
        return _differentiable(ctx, logits, index, (on_log_prob, on_entropy)), *unused
    found = eager_backward(on_log_prob, on_entropy, logits, index, *kept, *ctx.options)
    return found, *unused


def _differentiable(
    ctx: Any, logits: Tensor, index: Tensor, upstream: tuple[Tensor | None, ...]
) -> Tensor:
    """The gradient by torch's operations, which are differentiable again."""
    x = logits.view_as(logits)
    values = by_torch(x, index, *ctx.options[:4])
    pairs = [(v, g) for v, g in zip(values, upstream, strict=True) if g is not None]
    outputs, gradients = zip(*((v, g.to(v.dtype)) for v, g in pairs), strict=True)
    return torch.autograd.grad(outputs, x, gradients, create_graph=True)[0]


operator.register_autograd(_backward, setup_context=_setup_context)
_operator.one_by_one(operator_backward)
eager_operator = eager(operator, _setup_context, _backward)
eager_backward = eager(operator_backward)
