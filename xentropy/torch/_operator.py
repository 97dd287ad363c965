"""The loss as operators of torch.library: for compiled graphs, and for dispatch modes.

The gradient is computed in backward here. When a graph is compiled nobody knows whether the
upstream gradient will be 1, and to scale a kept gradient would read and write it once more:
2 reads and 1 write in all, not 2 and 2; and nothing is kept. Eager mode does without them: a
call costs several times an autograd.Function (torch's issues 176592 and 139500).
"""

import torch
from torch import Tensor

from ._arrays import compute, loss_tensor


@torch.library.custom_op("xentropy::cross_entropy", mutates_args=())
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: float | None,
    label_smoothing: float,
    z_loss: float,
    logit_scale: float,
    base: float | None,
    n_threads: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """The loss, of type `dtype`."""
    options = axis, ignore_index, reduction, normalizer, label_smoothing, z_loss, logit_scale
    tensors = logits, target, weight, sample_weight
    return loss_tensor(compute(False, tensors, (*options, base, n_threads)), dtype).contiguous()


@cross_entropy.register_fake
def _(logits, target, weight, sample_weight, axis, ignore_index, reduction, *options):
    if reduction != "none":
        return logits.new_empty((), dtype=options[-1])
    rows = list(logits.shape)
    del rows[axis if len(rows) > 1 else 0]
    return logits.new_empty(rows, dtype=options[-1])


@torch.library.custom_op("xentropy::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    upstream: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: float | None,
    label_smoothing: float,
    z_loss: float,
    logit_scale: float,
    base: float | None,
    n_threads: int | None,
) -> Tensor:
    """The gradient in the logits; `upstream` is the one in the loss."""
    options = axis, ignore_index, reduction, normalizer, label_smoothing, z_loss, logit_scale
    gradient = torch.empty_like(logits)
    tensors = logits, target, weight, sample_weight
    compute(True, tensors, (*options, base, n_threads), upstream, gradient)
    return gradient


@cross_entropy_backward.register_fake
def _(upstream, logits, *others):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:-1]


def _backward(ctx, upstream):
    gradient = cross_entropy_backward(upstream, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * (4 + len(ctx.options))


cross_entropy.register_autograd(_backward, setup_context=_setup_context)
