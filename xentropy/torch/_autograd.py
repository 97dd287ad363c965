"""The loss in eager mode: the gradient is computed with it, and kept for backward.

What a step costs in passes over memory the size of the logits, reads + writes:

* mean and sum: 1 + 1 forward, none backward if the upstream gradient is 1, else 1 + 1.
* "none": 1 forward, 1 + 1 backward. Its upstream gradient has one number per row and is rarely all
  ones, so a gradient computed early would have to be read and written once more.
"""

import math

import torch
from torch import is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import (
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)
from torch.autograd.graph import increment_version

from .._softmax import log_softmax
from . import _operator
from ._arrays import BITS16, array, as_tensors, compute, is_one, loss_tensor, number
from ._formula import capped, formula
from ._routing import direct_apply

try:  # torch has no public function for it (its issue 65536)
    graph_is_retained = torch._C._autograd._get_current_graph_task_keep_graph
except AttributeError:  # the safe answer: a kept gradient is then never returned itself

    def graph_is_retained():
        return True


def check_in_place(logits, derived_target):
    """Raise if the gradient must not overwrite the logits."""
    base = logits._base if logits._is_view() else logits
    if base.is_leaf and base.requires_grad:
        raise RuntimeError(
            "inplace=True would overwrite input, a leaf that requires a gradient: "
            "inplace is for the result of an operation, such as a model's output"
        )
    if logits.is_neg() or 0 in logits.stride():
        raise RuntimeError("inplace=True needs each logit at a place of its own; .clone() them")
    if derived_target is not None:
        raise RuntimeError("inplace=True would overwrite logits that the gradient in target needs")


class CrossEntropy(torch.autograd.Function):
    """apply(logits, target or None, call): the target where it needs a gradient.

    call = (tensors, options, dtype of the loss, inplace). Arguments without a gradient are passed
    as one, because each costs time, in backward too.
    """

    @staticmethod
    def forward(ctx, logits, derived, call):
        tensors, options, dtype, inplace = call
        ctx.options, ctx.inplace = options, inplace
        saved, kept = logits, None
        if options.reduction == "none" or not (derived is None or logits.requires_grad):
            loss = as_tensors(False, tensors, options, dtype)
        elif inplace:
            saved, kept = None, logits.detach()
            loss, _ = compute(True, tensors, options, None, kept)
            increment_version(logits)  # backward raises if another operation has saved them
            loss = loss_tensor(loss, dtype)
        else:
            loss, kept = as_tensors(True, tensors, options, dtype)
        _, target, weight, sample_weight = tensors
        if weight is None and sample_weight is None:
            ctx.save_for_backward(saved, target, kept)
        else:
            ctx.save_for_backward(saved, target, kept, weight, sample_weight)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        saved = ctx.saved_tensors
        kept = saved[2]
        if (  # asked first, because most steps end here
            kept is not None
            and is_one(upstream)
            and not (is_grad_enabled() or graph_is_retained() or ctx.needs_input_grad[1])
        ):
            return kept, None, None
        tensors = saved[0], saved[1], *(saved[3:] or (None, None))
        if is_legacy_batchedtensor(upstream) or _are_functorch_transforms_active():
            return *_transformed(ctx, tensors, kept, upstream), None
        return *_both(ctx, tensors, kept, upstream), None


apply = direct_apply(CrossEntropy)


def _both(ctx, tensors, kept, upstream):
    """The gradients in logits and target."""
    if is_grad_enabled():  # create_graph: they need a graph of their own
        return _differentiable(ctx, tensors, upstream)
    for_logits, for_target, _ = ctx.needs_input_grad
    of_logits = of_target = None
    if for_logits:
        given = kept is not None and not graph_is_retained()
        of_logits = _of_logits(ctx, tensors, kept, given, upstream)
    if for_target:
        of_target = _of_target(tensors, ctx.options, upstream)
    return of_logits, of_target


def times(kept, upstream, given):
    """The kept gradient times the upstream one, in its memory if that is `given` up.

    0, the gradient of rows that do not count, stays 0 whatever the upstream gradient is.
    """
    factor = number(upstream)
    if given and factor == 1:
        return kept
    if abs(factor) <= torch.finfo(kept.dtype).max:  # else it may be inf in the products
        return kept.mul_(upstream) if given else kept * upstream
    return (kept * upstream).masked_fill_(kept == 0, 0)


def times_in_graph(kept, upstream):
    """The same of tensors that have no memory: where torch compiles, or a transform follows."""
    return torch.where(kept == 0, kept, kept * upstream.to(kept.dtype))


def _of_logits(ctx, tensors, kept, given, upstream):
    """The gradient in the logits, made of the kept one if that is `given` up.

    A retained graph keeps it: the caller may modify what is returned, and call backward again. In
    16 bits, unless the upstream gradient is 1, it is computed from the logits again: loss scaling,
    which saves small float16 gradients from underflow, must precede the rounding.
    """
    logits = tensors[0]  # None if overwritten
    if logits is None or (given and (logits.dtype not in BITS16 or number(upstream) == 1)):
        return times(kept, upstream, given)
    if ctx.inplace and not graph_is_retained():
        kept = logits.detach()
        compute(True, tensors, ctx.options, upstream, kept)
        increment_version(logits)
        return kept
    return compute(True, tensors, ctx.options, upstream, kept if given else None)[1]


def _of_target(tensors, options, upstream, times=torch.Tensor.mul_):
    """The gradient in class probabilities, `xentropy.reference.cross_entropy_target_grad`."""
    logits, target, weight, sample_weight = tensors
    axis = options.axis if logits.dim() > 1 else 0
    x = logits.detach().float() if logits.dtype in BITS16 else logits.detach()
    x = capped(x if options.logit_scale == 1 else x * options.logit_scale, options.softcap)
    if is_functorch_wrapped_tensor(x):  # forward mode, where no tensor has memory of its own
        gradient = x.log_softmax(axis)
    else:
        gradient = torch.from_numpy(log_softmax(array(x), axis=axis))
    factor = (options.label_smoothing - 1) / math.log(options.base or math.e)
    if factor == 0:  # 0 log 0 = 0
        gradient.masked_fill_(gradient.isneginf(), 0)
    if weight is not None:
        by_class = gradient.movedim(axis, -1)
        if not weight.all():
            by_class.masked_fill_(by_class.isneginf() & (weight == 0), 0)
        by_class.mul_(weight)
    if options.reduction == "mean":
        rows = target.numel() // target.size(axis)
        if sample_weight is not None:
            rows = sample_weight.sum(dtype=torch.float64).item()
        factor = factor / (options.normalizer or rows or 1)  # without rows the gradient is empty
    factor = factor * upstream.to(x.dtype)
    factor = factor if sample_weight is None else factor * sample_weight.to(x.dtype)
    gradient = times(gradient, factor.unsqueeze(axis) if factor.dim() else factor)
    if sample_weight is not None:
        gradient = gradient.masked_fill((sample_weight == 0).unsqueeze(axis), 0)
    return gradient.to(target.dtype)


def _is_batched(upstream):
    """Is it a batch of gradients to vmap, of torch.func or of autograd's own kind?"""
    return is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream)


def _transformed(ctx, tensors, kept, upstream):
    """Both gradients where a transform follows the upstream gradient through backward.

    A batch of them (vmap) has each gradient computed by itself, with one rounding. Other
    transforms see a product. The kept gradient is left as it is.
    """
    if is_grad_enabled():
        return _differentiable(ctx, tensors, upstream)
    logits = tensors[0]
    for_logits, for_target, _ = ctx.needs_input_grad
    of_logits = of_target = None
    if for_logits and logits is not None and _is_batched(upstream):
        of_logits = _operator.backward(upstream, tensors, ctx.options)
    elif for_logits:
        unit = kept
        if kept is None:
            unit = _operator.backward(torch.ones_like(upstream), tensors, ctx.options)
        axis = ctx.options.axis if unit.dim() > 1 else 0
        of_logits = unit * (upstream.unsqueeze(axis) if upstream.dim() else upstream).to(unit.dtype)
    if for_target:
        of_target = _of_target(tensors, ctx.options, upstream, torch.mul)
    return of_logits, of_target


def _differentiable(ctx, tensors, upstream):
    """Both gradients by torch's operations, which are differentiable again."""
    if tensors[0] is None:
        raise RuntimeError(
            "inplace=True has overwritten the logits, which a derivative of the gradient "
            "(create_graph=True) needs"
        )
    # Views: the target may be computed from the logits, whose gradient is not to hold that path.
    tensors = *(t.view_as(t) for t in tensors[:2]), *tensors[2:]
    wanted = [t for t, needed in zip(tensors, ctx.needs_input_grad, strict=False) if needed]
    loss = formula(tensors, ctx.options)
    found = iter(torch.autograd.grad(loss, wanted, upstream.to(loss.dtype), create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:2])
