"""Log-probabilities of a linear layer's output without its logits: the function and its operators.

The upstream gradients are not known before backward, which makes the logits a second time, by
chunks: four products in all, where three are made with all logits in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional

from .. import _check
from .._linear import _log_probs as core
from .._linear._arguments import PARAMETERS
from .._log_probs import numbers_of, upstream_of
from . import _operator
from ._arrays import arrays, tensor
from ._eager import eager
from ._linear_operator import places_of, unwritten
from ._linear_products import kind_of
from ._log_probs import INTEGERS, can_be_operators, result_dtype, scale_of, selected_log_probs
from ._refusals import in_torchs_words, no_tensor

Layer = tuple[Tensor, Tensor, Tensor | None]  # input, linear_weight, linear_bias


def linear_selected_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    index: Tensor,
    *,
    linear_bias: Tensor | None = None,
    return_entropy: bool = False,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    logits_bytes: int | None = None,
    n_threads: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""`selected_log_probs` of ``linear(input, linear_weight, linear_bias)``, without its logits.

    A step of GRPO, PPO or DPO at the memory of the hidden states: forward makes the logits some
    rows at a time, in one buffer, and backward does so again, to turn them into their gradient.
    Tokens whose label is `ignore_index`, such as those of a prompt, are in no product.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64
        Hidden states, shape (..., H).
    linear_weight : Tensor (C, H) of the same dtype
        The output layer.
    index : Tensor of integers
        Classes, shape (...), or (..., k) for k classes a row.
    linear_bias : Tensor (C,), optional
        Added to the logits.
    return_entropy, ignore_index, temperature, softcap, dtype, n_threads
        As in `selected_log_probs`.
    logits_bytes : int, optional
        Bytes of the buffer, as in `xentropy.linear_cross_entropy`.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        As `selected_log_probs` returns them; their dtype is that of `input` by default.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As `xentropy.linear_selected_log_probs`; torch's for tensors of several dtypes.

    Notes
    -----
    Of what requires no gradient (a frozen output layer) no product is computed. All logits are
    made, by torch, for other devices, tensor subclasses, transforms of torch.func, forward-mode
    derivatives, torch.jit, autocast and derivatives of the gradient (create_graph).

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import linear_selected_log_probs
    >>> hidden = torch.eye(3, 2, requires_grad=True)
    >>> layer = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> log_p = linear_selected_log_probs(hidden, layer, torch.tensor([0, 1, -100]))
    >>> log_p.sum().backward()
    >>> [f"{value:.4f}" for value in log_p.tolist()], hidden.grad.shape
    (['-1.0064', '-1.0064', '0.0000'], torch.Size([3, 2]))
    """
    layer = input, linear_weight, linear_bias
    for name, each in zip((*PARAMETERS, "index"), (*layer, index), strict=True):
        if not isinstance(each, Tensor) and (name != "linear_bias" or each is not None):
            raise no_tensor(name, each)
    if index.dtype not in INTEGERS:
        raise TypeError(f"index must be integers (class indices), not {index.dtype}")
    given = [each for each in layer if each is not None]
    by_chunks = can_be_operators(*given, index) and not torch.is_autocast_enabled("cpu")
    if not by_chunks or any(each.dtype != input.dtype for each in given):
        return selected_log_probs(
            functional.linear(*layer),
            index,
            return_entropy=return_entropy,
            ignore_index=ignore_index,
            temperature=temperature,
            softcap=softcap,
            dtype=dtype,
            n_threads=n_threads,
        )
    scale = scale_of(temperature)
    options = ignore_index, scale, _check.softcap(softcap, scale), logits_bytes, n_threads
    found = eager_operator(*layer, index, *options)[:2]
    log_prob, entropy = (value.to(result_dtype(input, dtype)) for value in found)
    return (log_prob, entropy) if return_entropy else log_prob


def _arguments(layer: Layer, index: Tensor, options: tuple[Any, ...], wanted: str = "") -> Any:
    """The core's arguments on the memory of the tensors."""
    ignore_index, logit_scale, softcap, logits_bytes, n_threads = options
    x, weight, bias, classes = arrays((*layer, index))
    try:
        return core.checked(
            x,
            weight,
            classes,
            bias,
            logits_bytes,
            wanted=tuple(wanted.split()),
            ignore_index=ignore_index,
            logit_scale=logit_scale,
            softcap=softcap,
            n_threads=n_threads,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(in_torchs_words(error)) from error


@torch.library.custom_op("xentropy::linear_selected_log_probs", mutates_args=())
def operator(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    index: Tensor,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
    logits_bytes: int | None,
    n_threads: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob, entropy and lse, in float64: what backward is computed from."""
    options = ignore_index, logit_scale, softcap, logits_bytes, n_threads
    a = _arguments((input, linear_weight, linear_bias), index, options)
    batch = core.BatchLogProbs(a.target, len(a.linear_weight), a.options)
    core.computed(a, batch, {}, kind_of(input))
    found = batch.log_prob.reshape(a.target.shape), batch.entropy, batch.lse
    rows = a.input.shape[:-1]
    log_prob, entropy, lse = (tensor(np.ascontiguousarray(each)) for each in found)
    return log_prob, entropy.reshape(rows), lse.reshape(rows)


@operator.register_fake
def _(input, linear_weight, linear_bias, index, *options):  # type: ignore[no-untyped-def]
    rows = [input.new_empty(input.shape[:-1], dtype=torch.float64) for _ in range(2)]
    return input.new_empty(index.shape, dtype=torch.float64), *rows


@torch.library.custom_op("xentropy::linear_selected_log_probs_backward", mutates_args=())
def operator_backward(
    on_log_prob: Tensor | None,
    on_entropy: Tensor | None,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    index: Tensor,
    log_prob: Tensor,
    entropy: Tensor,
    lse: Tensor,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
    logits_bytes: int | None,
    n_threads: int | None,
    wanted: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are `wanted`; the first two are those in log_prob and entropy."""
    layer = input, linear_weight, linear_bias
    options = ignore_index, logit_scale, softcap, logits_bytes, n_threads
    a = _arguments(layer, index, options, wanted)
    shapes = a.input.shape[:-1], a.target.shape
    *numbers, of_log_prob, of_entropy = arrays((lse, log_prob, entropy, on_log_prob, on_entropy))
    saved = numbers_of((numbers[0], numbers[1], numbers[2]), *shapes)
    of_log_prob = 0.0 if of_log_prob is None else of_log_prob
    upstream = upstream_of(of_log_prob, of_entropy, *shapes)
    batch = core.BatchLogProbs(a.target, len(a.linear_weight), a.options, saved, upstream)
    places = places_of(layer, wanted)
    named = zip(PARAMETERS, places, strict=True)
    asked = {name: place for name, place in named if name in a.wanted}
    grads = dict(zip(asked, arrays(tuple(asked.values())), strict=True))
    core.computed(a, batch, grads, kind_of(input))
    of_input, of_weight, of_bias = places
    return of_input, of_weight, of_bias


@operator_backward.register_fake
def _(on_log_prob, on_entropy, input, linear_weight, linear_bias, *others):  # type: ignore[no-untyped-def]
    return tuple(places_of((input, linear_weight, linear_bias), others[-1], unwritten))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *layer, index, ignore_index, logit_scale, softcap, logits_bytes, n_threads = inputs
    ctx.options = ignore_index, logit_scale, softcap, logits_bytes, n_threads
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*layer, index, *output)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    on_log_prob, on_entropy, _ = upstream
    *layer, index, log_prob, entropy, lse = ctx.saved_tensors
    unused = [None] * (1 + len(ctx.options))
    pairs = zip(PARAMETERS, ctx.needs_input_grad, strict=False)
    names = [name for name, needed in pairs if needed]
    if on_log_prob is None and on_entropy is None:
        return None, None, None, *unused
    if torch.is_grad_enabled() and not is_compiling():  # create_graph
        found = _differentiable(ctx, layer, index, (on_log_prob, on_entropy), names)
    else:
        tensors = on_log_prob, on_entropy, *layer, index, log_prob, entropy, lse
        found = eager_backward(*tensors, *ctx.options, " ".join(names))
    triples = zip(PARAMETERS, found, layer, strict=True)
    gradients = (g.to(t.dtype) if n in names and g is not None else None for n, g, t in triples)
    return *gradients, *unused


def _differentiable(
    ctx: Any,
    layer: list[Tensor],
    index: Tensor,
    upstream: tuple[Tensor | None, ...],
    names: list[str],
) -> list[Tensor | None]:
    """The gradients by torch's operations on all logits, which are differentiable again."""
    from ._log_probs import by_torch

    views = [None if each is None else each.view_as(each) for each in layer]
    ignore_index, logit_scale, softcap, *_ = ctx.options
    logits = functional.linear(*views)  # type: ignore[arg-type]
    values = by_torch(logits, index, -1, ignore_index, logit_scale, softcap)
    given = [(v, g.to(v.dtype)) for v, g in zip(values, upstream, strict=True) if g is not None]
    outputs, gradients = zip(*given, strict=True)
    wanted = [v for name, v in zip(PARAMETERS, views, strict=True) if name in names]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True))  # type: ignore[arg-type]
    return [next(found) if name in names else None for name in PARAMETERS]


operator.register_autograd(_backward, setup_context=_setup_context)
_operator.one_by_one(operator_backward)
eager_operator = eager(operator, _setup_context, _backward)
eager_backward = eager(operator_backward)
