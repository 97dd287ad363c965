"""The linear loss as operators of torch.library, for eager mode and compiled graphs alike.

The gradients of a mean and a sum are computed with the loss, and kept: computed in backward they
would take the product of the logits again. For reduction="none" the upstream gradient, one number
a row, is not known before backward, which therefore makes the logits a second time, by chunks.

float16 gradients are kept in float32: a loss scale must precede the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _kernels
from .._kernels import make_options
from .._linear import computed, loss_of
from .._linear._arguments import PARAMETERS, checked
from . import _operator
from ._arrays import arrays, bfloat16, loss_tensor, tensor
from ._autograd import graph_is_retained, times, times_in_graph
from ._eager import eager
from ._linear_products import kind_of
from ._routing import on_kernels

# Of gradients that are summed.
DTYPES = {
    torch.float16: np.float32,
    torch.bfloat16: bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
ARGUMENTS = (*PARAMETERS, "target", "weight", "sample_weight", "grad_output")


def _on_pages(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor on memory that the kernels keep; torch would touch new pages in every step."""
    return tensor(_kernels.empty(shape, DTYPES[like.dtype]))


def unwritten(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The same without memory, while torch traces."""
    return like.new_empty(shape, dtype=torch.float32 if like.dtype is torch.float16 else None)


def places_of(
    layer: tuple[Tensor | None, ...],
    wanted: str,
    empty: Callable[[tuple[int, ...], Tensor], Tensor] = _on_pages,
) -> list[Tensor]:
    """The gradients of input, weight and bias, uninitialised; of no size what is not wanted."""
    places = []
    for name, given in zip(PARAMETERS, layer, strict=True):
        like = layer[0] if given is None else given
        assert like is not None
        shape = like.shape if name in wanted.split() else (0,)
        places.append(empty(tuple(shape), like))
    return places


def _call(
    layer: tuple[Tensor | None, ...],
    others: tuple[Tensor | None, ...],
    wanted: str,
    upstream: Tensor | None,
    logits_bytes: int | None,
    names: str,
    numbers: Tensor | None,
    **options: Any,
) -> tuple[Any, list[Tensor]]:
    """The core's call on the memory of the tensors: (loss, the three gradients)."""
    if numbers is not None:
        options |= zip(names.split(), numbers.tolist(), strict=True)
    options = {"logits_bytes": logits_bytes, **_operator.NUMBERS, **options}
    places = places_of(layer, wanted)
    given = arrays((*layer, *others, upstream))
    arguments = checked(
        **dict(zip(ARGUMENTS, given, strict=True)),
        wanted=tuple(wanted.split()),
        **options,
    )
    loss = loss_of(arguments)
    pairs = zip(PARAMETERS, places, strict=True)
    asked = {name: place for name, place in pairs if name in arguments.wanted}
    gradients = dict(zip(asked, arrays(tuple(asked.values())), strict=True))
    assert layer[0] is not None
    return computed(arguments, loss, gradients, kind_of(layer[0])), places


@torch.library.custom_op("xentropy::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    n_threads: int | None,
    logits_bytes: int | None,
    names: str,
    numbers: Tensor | None,
    dtype: torch.dtype,
    wanted: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, of type `dtype`, and the gradients that are `wanted` and can be kept."""
    loss, kept = _call(
        (input, linear_weight, linear_bias),
        (target, weight, sample_weight),
        wanted if reduction != "none" else "",
        None,
        logits_bytes,
        names,
        numbers,
        ignore_index=ignore_index,
        reduction=reduction,
        n_threads=n_threads,
    )
    return loss_tensor(_as_result(loss), dtype).contiguous(), *kept


def _as_result(loss: Any) -> Any:
    """Numbers of single rows as arrays."""
    return np.asarray(loss) if isinstance(loss, np.generic) else loss


@linear_cross_entropy.register_fake
def _(input, linear_weight, linear_bias, target, weight, sample_weight, *others):  # type: ignore[no-untyped-def]
    _, reduction, *_, dtype, wanted = others
    loss = input.new_empty(input.shape[:-1] if reduction == "none" else (), dtype=dtype)
    layer = input, linear_weight, linear_bias
    return loss, *places_of(layer, wanted if reduction != "none" else "", unwritten)


@torch.library.custom_op("xentropy::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward(
    upstream: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    n_threads: int | None,
    logits_bytes: int | None,
    names: str,
    numbers: Tensor | None,
    wanted: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are `wanted`; `upstream` is the one in the loss."""
    _, gradients = _call(
        (input, linear_weight, linear_bias),
        (target, weight, sample_weight),
        wanted,
        upstream,
        logits_bytes,
        names,
        numbers,
        ignore_index=ignore_index,
        reduction=reduction,
        n_threads=n_threads,
    )
    of_input, of_weight, of_bias = gradients
    return of_input, of_weight, of_bias


@linear_cross_entropy_backward.register_fake
def _(upstream, input, linear_weight, linear_bias, *others):  # type: ignore[no-untyped-def]
    return tuple(places_of((input, linear_weight, linear_bias), others[-1], unwritten))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ignore_index, reduction, n_threads, logits_bytes, names, numbers, _, wanted = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, numbers, *kept)
    ctx.options = ignore_index, reduction, n_threads, logits_bytes, names
    ctx.wanted = wanted


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, numbers, of_input, of_weight, of_bias = ctx.saved_tensors
    unused = [None] * 11  # of the arguments that have no gradient
    if upstream is None:
        return None, None, None, *unused
    if torch.is_grad_enabled() and not is_compiling():  # create_graph
        found = _differentiable(ctx, tensors, numbers, upstream)
    elif ctx.options[1] == "none":
        found = eager_backward(upstream, *tensors, *ctx.options, numbers, ctx.wanted)
    else:
        kept = of_input, of_weight, of_bias
        found = tuple(_times(g, upstream, t) for g, t in zip(kept, tensors[:3], strict=True))
    named = zip(PARAMETERS, found, strict=True)
    return *(g if name in ctx.wanted.split() else None for name, g in named), *unused


def _times(kept: Tensor, upstream: Tensor, like: Tensor | None) -> Tensor:
    """A kept gradient times the upstream one; a retained graph keeps it as it is."""
    dtype = kept.dtype if like is None else like.dtype
    if not on_kernels(upstream):
        return times_in_graph(kept, upstream).to(dtype)
    return times(kept, upstream, not graph_is_retained()).to(dtype)


def _differentiable(
    ctx: Any, tensors: list[Tensor], numbers: Tensor | None, upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients by torch's operations on all logits, which are differentiable again."""
    from ._linear import by_logits

    ignore_index, reduction, n_threads, _, names = ctx.options
    options = dict(_operator.NUMBERS)
    if numbers is not None:
        options |= zip(names.split(), numbers.tolist(), strict=True)
    record = make_options(
        ignore_index=ignore_index, reduction=reduction, n_threads=n_threads, **options
    )
    # Views: one operand may be computed from another, whose gradient is not to hold that path.
    layer: Any = tuple(None if t is None else t.view_as(t) for t in tensors[:3])
    loss = by_logits(layer, tuple(tensors[3:]), record)  # type: ignore[arg-type]
    names_wanted = ctx.wanted.split()
    wanted = [t for name, t in zip(PARAMETERS, layer, strict=True) if name in names_wanted]
    found = iter(torch.autograd.grad(loss, wanted, upstream.to(loss.dtype), create_graph=True))
    return tuple(next(found) if name in names_wanted else None for name in PARAMETERS)


linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)
_operator.one_by_one(linear_cross_entropy_backward)
eager_linear_cross_entropy = eager(linear_cross_entropy, _setup_context, _backward)
eager_backward = eager(linear_cross_entropy_backward)
