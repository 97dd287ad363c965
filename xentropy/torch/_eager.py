"""Operators of torch.library without their dispatch, where nothing has to see it.

A call of an operator that Python defines takes some 60 us forward and again in backward, most of a
step with a small batch. Graphs, modes and transforms need it; plain tensors in eager mode do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._routing import direct_apply, on_kernels


def eager(
    operator: Any,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The operator, for positional arguments, called directly on plain tensors.

    `setup_context` and `backward` are those of ``operator.register_autograd``; without them it has
    no derivative.
    """
    compute = getattr(operator, "_init_fn", operator)  # the function that defines it
    record: Any = None
    if setup_context is not None and backward is not None:
        name = getattr(operator, "_name", compute.__name__)
        record = _recorded(name, compute, setup_context, backward)

    def call(*arguments: Any) -> Any:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if not on_kernels(*tensors):
            return operator(*arguments)
        recorded = record is not None and torch.is_grad_enabled()
        if recorded and any(tensor.requires_grad for tensor in tensors):
            return record(*arguments)
        return compute(*arguments)

    return call


def _recorded(
    name: str,
    compute: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """`compute` with autograd's record of the call."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    title = "Xentropy" + name.title().replace("_", "")
    return direct_apply(type(title, (torch.autograd.Function,), members))
