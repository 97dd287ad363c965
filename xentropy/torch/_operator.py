"""The loss as operators of torch.library: for compiled graphs, and for dispatch modes.

The gradient is computed in backward here. When a graph is compiled the upstream gradient is not
known, and to scale a kept gradient would read and write it once more: 2 reads and 1 write in all,
not 2 and 2; and nothing is kept. Eager mode does not use them: a call costs several times an
autograd.Function (torch's issues 176592 and 139500).
"""

from collections import namedtuple

import torch
from torch import Tensor

from .._kernels import Options, make_options
from ._arrays import compute, loss_tensor

# The record while torch.compile traces, which it cannot through a class compiled by Cython.
TracedOptions = namedtuple("TracedOptions", Options.NAMES)  # type: ignore[misc]


def call(tensors, options, dtype):
    """The operator, whose schema is flat, on a call's tensors and options."""
    return cross_entropy(
        *tensors,
        axis=options.axis,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        normalizer=options.normalizer,
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
        logit_scale=options.logit_scale,
        base=options.base,
        n_threads=options.n_threads,
        dtype=dtype,
    )


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
    options = make_options(
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        base=base,
        n_threads=n_threads,
    )
    tensors = logits, target, weight, sample_weight
    return loss_tensor(compute(False, tensors, options), dtype).contiguous()


@cross_entropy.register_fake
def _(logits, target, weight, sample_weight, axis, ignore_index, reduction, *others):
    *_, dtype = others
    if reduction != "none":
        return logits.new_empty((), dtype=dtype)
    rows = list(logits.shape)
    del rows[axis if len(rows) > 1 else 0]
    return logits.new_empty(rows, dtype=dtype)


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
    options = make_options(
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        base=base,
        n_threads=n_threads,
    )
    gradient = torch.empty_like(logits)
    tensors = logits, target, weight, sample_weight
    compute(True, tensors, options, upstream, gradient)
    return gradient


@cross_entropy_backward.register_fake
def _(upstream, logits, *others):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    logits, target, weight, sample_weight, *options, _ = inputs
    ctx.save_for_backward(logits, target, weight, sample_weight)
    ctx.options = options


def _backward(ctx, upstream):
    gradient = cross_entropy_backward(upstream, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * (4 + len(ctx.options))


cross_entropy.register_autograd(_backward, setup_context=_setup_context)
