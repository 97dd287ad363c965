"""What autograd may ask for across ranks: the first derivative, in the shard or the layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._kernels import Options
from .. import _numbers
from ._group import Collectives

Backward = Callable[[Any, Any, Tensor], tuple[Tensor | None, ...]]


def check_derived(names: Any, tensors: tuple[Any, ...], options: Options) -> None:
    """Raise for what requires a gradient that it does not get."""
    given = dict(zip(names, tensors, strict=True))
    given |= {name: getattr(options, name) for name in _numbers.NAMES}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name} requires a gradient, and has none here; give {name}.detach()")


def first_derivative(name: str, instead: str) -> Callable[[Backward], Any]:
    """Decorates a backward(ctx, saved tensors, upstream): who derives its gradients gets an error.

    `ctx.later` are the group and the collectives of backward, in which `ctx.ranks` takes part.

    `once_differentiable` of torch takes them for constants if the upstream gradient is one. Saved
    tensors are unpacked once, as torch.utils.checkpoint wants it.
    """
    text = (
        f"{name} has no derivative of its gradient (create_graph=True) across ranks; "
        f"xentropy.torch.{instead} has one: gather the shards for it"
    )

    def decorate(backward: Backward) -> Any:
        @functools.wraps(backward)
        def once(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            with Collectives(*ctx.later) as ctx.ranks:
                saved = ctx.saved_tensors
                sources = upstream, *(t for t in saved if t is not None)
                with torch.no_grad():
                    found = backward(ctx, saved, upstream)
            if not torch.is_grad_enabled():
                return found
            given = [gradient for gradient in found if gradient is not None]
            last = iter(_Last.apply(text, len(sources), *sources, *given))
            return tuple(None if gradient is None else next(last) for gradient in found)

        return once

    return decorate


class _Last(torch.autograd.Function):
    """apply(text, n, *sources, *gradients): the gradients, which depend on n sources."""

    @staticmethod
    def forward(ctx: Any, text: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.text = text
        return tensors[n:]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.text)
