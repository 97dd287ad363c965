"""The loss in torch's own operations: for other devices, transforms, derivatives of any order.

The formulas, of the loss and both its gradients, are in `xentropy.reference`.
"""

import math

import torch
from torch.nn import functional

# As it was before `patch`.
torch_cross_entropy = functional.cross_entropy


def only_torch(sample_weight, options):
    """Are all options that torch's own function does not have at their defaults?"""
    off = options.axis == 1 and options.z_loss == 0 and options.logit_scale == 1
    return off and sample_weight is None and options.normalizer is None and options.base is None


def formula(tensors, options):
    """torch.nn.functional.cross_entropy, extended by the options that it does not have."""
    logits, target, weight, sample_weight = tensors
    own = {"ignore_index": options.ignore_index, "label_smoothing": options.label_smoothing}
    if only_torch(sample_weight, options):
        return torch_cross_entropy(logits, target, weight, reduction=options.reduction, **own)
    probable = target.is_floating_point()
    if logits.dim() > 1:
        logits = logits.movedim(options.axis, 1)
        target = target.movedim(options.axis, 1) if probable else target
    x = logits * options.logit_scale
    rows = torch_cross_entropy(x, target, weight, reduction="none", **own)
    rows = rows if options.base is None else rows / math.log(options.base)
    counted = target != options.ignore_index
    if probable:
        counted = torch.ones_like(rows, dtype=torch.bool)
    if options.z_loss:
        rows = rows + options.z_loss * torch.logsumexp(x, 1 if x.dim() > 1 else 0) ** 2
    if sample_weight is not None:
        counted = counted & (sample_weight != 0)
        rows = rows * sample_weight
    rows = torch.where(counted, rows, 0)
    if options.reduction == "none":
        return rows
    divisor = 1 if options.reduction == "sum" else _divisor(tensors, options, counted)
    return rows.sum() / divisor


def _divisor(tensors, options, counted):
    """The divisor of the mean: the summed weight of the rows that count."""
    _, target, weight, sample_weight = tensors
    if options.normalizer is not None:
        return options.normalizer
    each = counted.to(tensors[0].dtype)
    if weight is not None and not target.is_floating_point():
        each = each * weight[torch.where(counted, target, 0)]
    return (each if sample_weight is None else each * sample_weight).sum()
