"""The loss of distillation as operators of torch.library, in eager mode and in compiled graphs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _check
from .._distillation._call import Call, computed, options_of
from .._kernels import LARGEST_SCALE, LEAST_SCALE
from ._arrays import BITS16, SMALL_BYTES, array, arrays, loss_tensor, number, tensor
from ._autograd import graph_is_retained, times, times_in_graph
from ._eager import eager
from ._operator import one_by_one
from ._routing import on_kernels
from ._softmax_autograd import wide


class Options(NamedTuple):
    """The operators' arguments that are no tensors."""

    axis: int
    reduction: str
    beta: float
    temperature: float
    scaled: bool  # does the temperature concern the teacher, whose logits these are?
    missing: str
    normalizer: float | None
    n_threads: int | None


# The options that a compiled call gives as `numbers`: a graph for each value of a constant would be
# compiled otherwise, along a schedule of temperatures.
NUMBERS: dict[str, Any] = {"beta": 0.0, "temperature": 1.0, "normalizer": None}


def with_numbers(options: Options, names: str, numbers: Tensor | None) -> Options:
    """The options, of which those called `names` have the values in `numbers`."""
    if numbers is None:
        return options
    given = dict(zip(names.split(), numbers.tolist(), strict=True))
    return checked_numbers(options._replace(**given))


def checked_numbers(options: Options) -> Options:
    """The options, with numbers that are in range."""
    beta = _check.real_between(options.beta, "beta", 0, 1)
    temperature = options.temperature, "temperature", LEAST_SCALE, LARGEST_SCALE
    return options._replace(
        beta=beta,
        temperature=_check.real_between(*temperature),
        normalizer=_check.normalizer(options.normalizer, options.reduction),
    )


def _call(tensors: tuple[Tensor | None, ...], options: Options) -> Call:
    """The core's call on the memory of the tensors."""
    logits, teacher, weights = arrays((*tensors[:2], tensors[3]))
    record = options_of(
        options.temperature,
        axis=options.axis,
        reduction=options.reduction,
        normalizer=options.normalizer,
        n_threads=options.n_threads,
    )
    return Call(logits, teacher, options.beta, options.scaled, weights, record)


def _with_gradient(call: Call, index: Any, missing: str, like: Tensor) -> tuple[Any, Tensor]:
    """The loss, and the gradient as a tensor: a large one in memory that the kernels reuse."""
    if like.nbytes < SMALL_BYTES:
        place = torch.empty_like(like)
        return computed(True, call._replace(out=array(place)), index, missing)[0], place
    loss, gradient = computed(True, call, index, missing)
    return loss, tensor(gradient)


@torch.library.custom_op("xentropy::distillation_loss", mutates_args=())
def distillation_loss(
    logits: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    reduction: str,
    beta: float,
    temperature: float,
    scaled: bool,
    missing: str,
    normalizer: float | None,
    n_threads: int | None,
    dtype: torch.dtype,
    keeps: bool,
    names: str = "",
    numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, of type `dtype`, and the gradient in the logits if it `keeps` that."""
    options = Options(axis, reduction, beta, temperature, scaled, missing, normalizer, n_threads)
    options = with_numbers(options, names, numbers)
    call = _call((logits, teacher, index, sample_weight), options)
    place = logits.new_empty(0)
    if keeps:
        loss, place = _with_gradient(call, array(index), missing, logits)
    else:
        loss = computed(False, call, array(index), missing)
    loss = np.asarray(loss) if isinstance(loss, np.generic) else loss
    return loss_tensor(loss, dtype).contiguous(), place


@distillation_loss.register_fake
def _(logits, teacher, index, sample_weight, axis, reduction, *others):  # type: ignore[no-untyped-def]
    dtype, keeps = others[6:8]
    rows = list(logits.shape)
    del rows[axis]
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(logits) if keeps else logits.new_empty(0)


@torch.library.custom_op("xentropy::distillation_loss_backward", mutates_args=())
def distillation_loss_backward(
    upstream: Tensor,
    logits: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    reduction: str,
    beta: float,
    temperature: float,
    scaled: bool,
    missing: str,
    normalizer: float | None,
    n_threads: int | None,
    of_teacher: bool,
    names: str = "",
    numbers: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits, or that of the teacher."""
    options = Options(axis, reduction, beta, temperature, scaled, missing, normalizer, n_threads)
    options = with_numbers(options, names, numbers)
    call = _call((logits, teacher, index, sample_weight), options)
    call = call.swapped() if of_teacher else call
    given = array(upstream) if upstream.dim() else number(upstream)
    call = call._replace(upstream=given)
    return _with_gradient(call, array(index), missing, teacher if of_teacher else logits)[1]


@distillation_loss_backward.register_fake
def _(upstream, logits, teacher, *others):  # type: ignore[no-untyped-def]
    of_teacher = others[10]
    return torch.empty_like(teacher if of_teacher else logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    *arguments, _, ctx.keeps, ctx.names, numbers = inputs
    ctx.save_for_backward(*arguments[:4], numbers, output[1])
    ctx.options = Options(*arguments[4:])


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, numbers, kept = ctx.saved_tensors
    unused = [None] * (6 + len(ctx.options))  # of the arguments that have no gradient
    if upstream is None:
        return None, None, *unused
    wanted = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled() and not is_compiling():  # create_graph
        options = with_numbers(ctx.options, ctx.names, numbers)
        return *_differentiable(tensors, options, upstream, wanted), *unused
    of_logits = of_teacher = None
    if wanted[0] and ctx.keeps and not _rounds_twice(kept, upstream):
        of_logits = _times(kept, upstream)
    elif wanted[0]:
        of_logits = eager_backward(upstream, *tensors, *ctx.options, False, ctx.names, numbers)
    if wanted[1]:
        of_teacher = eager_backward(upstream, *tensors, *ctx.options, True, ctx.names, numbers)
    return of_logits, of_teacher, *unused


distillation_loss.register_autograd(_backward, setup_context=_setup_context)
one_by_one(distillation_loss_backward)
eager_distillation_loss = eager(distillation_loss, _setup_context, _backward)
eager_backward = eager(distillation_loss_backward)


def _rounds_twice(kept: Tensor, upstream: Tensor) -> bool:
    """Is the kept gradient one of 16 bits, and not what is wanted? It is computed anew then."""
    if kept.dtype not in BITS16:
        return False
    return not on_kernels(upstream) or number(upstream) != 1


def _times(kept: Tensor, upstream: Tensor) -> Tensor:
    """The kept gradient times the upstream one; a retained graph keeps it as it is."""
    if not on_kernels(upstream):
        return times_in_graph(kept, upstream)
    return times(kept, upstream, not graph_is_retained())


def _differentiable(
    tensors: list[Tensor], options: Options, upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients by torch's operations, which are differentiable again."""
    # Views: one may be computed from the other, whose gradient is not to hold that path.
    both = tensors[0].view_as(tensors[0]), tensors[1].view_as(tensors[1])
    loss = by_torch(*both, tensors[2], tensors[3], options)
    asked = [t for t, needed in zip(both, wanted, strict=True) if needed]
    found = iter(torch.autograd.grad(loss, asked, upstream.to(loss.dtype), create_graph=True))
    return tuple(next(found) if needed else None for needed in wanted)


def by_torch(
    logits: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss in torch's own operations; the formulas are in `xentropy.reference`."""
    axis, temperature = options.axis, options.temperature
    x, y = wide(logits), wide(teacher)
    weights = None if sample_weight is None else sample_weight.to(x.dtype)
    if sample_weight is not None:
        counted = (sample_weight != 0).unsqueeze(axis)
        x, y = torch.where(counted, x, 0), torch.where(counted, y, -100)  # finite losses
        index = None if index is None else _where_counted(counted, index, axis)
    log_s = torch.log_softmax(x / temperature, axis)
    if index is None:
        log_t = torch.log_softmax(y / temperature if options.scaled else y, axis)
    else:
        log_s, log_t = _few(log_s, y, index.long(), options)
    rows = _divergence(log_s, log_t, options.beta).sum(axis)
    rows = rows if weights is None else rows * weights
    if options.reduction == "none":
        return rows
    if options.reduction == "sum" or options.normalizer is not None:
        return rows.sum() / (options.normalizer or 1)
    return rows.sum() / (rows.numel() if weights is None else weights.sum())


def _where_counted(counted: Tensor, index: Tensor, axis: int) -> Tensor:
    """The classes of rows that count; any others, all different, in the rest."""
    some = torch.arange(index.shape[axis], device=index.device, dtype=index.dtype)
    return torch.where(counted, index, some.reshape(-1, *[1] * (index.dim() - axis - 1)))


def _few(log_s: Tensor, given: Tensor, index: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """log S and log T of the classes of a sparse teacher, and of all others as one class."""
    axis = options.axis
    tail = options.missing == "tail" and index.shape[axis] < log_s.shape[axis]
    if options.missing != "zero" and not tail:
        given = torch.log_softmax(given, axis)
    others = log_s.scatter(axis, index, -math.inf).logsumexp(axis, keepdim=True)
    rest = torch.full_like(others, -math.inf)
    if tail:
        rest = torch.log1p(-given.exp().sum(axis, keepdim=True).clamp(max=1))
    return torch.cat([log_s.gather(axis, index), others], axis), torch.cat([given, rest], axis)


def _divergence(log_s: Tensor, log_t: Tensor, beta: float) -> Tensor:
    """The terms of the loss."""
    if beta == 0:
        return _relative(log_t, log_s)
    if beta == 1:
        return _relative(log_s, log_t)
    absent = log_s.isneginf() & log_t.isneginf()
    s, t = log_s.masked_fill(absent, 0), log_t.masked_fill(absent, 0)
    log_m = torch.logaddexp(s + math.log1p(-beta), t + math.log(beta))
    terms = beta * _relative(log_t, log_m) + (1 - beta) * _relative(log_s, log_m)
    return terms.masked_fill(absent, 0)


def _relative(log_p: Tensor, log_q: Tensor) -> Tensor:
    """P log(P/Q), 0 where P is 0."""
    p = log_p.exp()
    absent = p == 0
    return p * (log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0))
