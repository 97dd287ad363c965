"""The loss in torch's own operations: for other devices, transforms, derivatives of any order."""

import math

import torch
from torch.nn import functional

# As it was before `patch`.
torch_cross_entropy = functional.cross_entropy


def only_torch(sample_weight, options):
    """Is nothing asked for that torch's own function does not have?"""
    axis, _, _, normalizer, _, z_loss, logit_scale, base, _ = options
    off = axis == 1 and z_loss == 0 and logit_scale == 1
    return off and sample_weight is None and normalizer is None and base is None


def formula(tensors, options):
    """torch.nn.functional.cross_entropy, with our options on top of it."""
    logits, target, weight, sample_weight = tensors
    axis, ignore_index, reduction, _, label_smoothing, z_loss, logit_scale, base, _ = options
    own = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if only_torch(sample_weight, options):
        return torch_cross_entropy(logits, target, weight, reduction=reduction, **own)
    probable = target.is_floating_point()
    if logits.dim() > 1:
        logits = logits.movedim(axis, 1)
        target = target.movedim(axis, 1) if probable else target
    x = logits * logit_scale
    rows = torch_cross_entropy(x, target, weight, reduction="none", **own)
    rows = rows if base is None else rows / math.log(base)
    counted = torch.ones_like(rows, dtype=torch.bool) if probable else target != ignore_index
    if z_loss:
        rows = rows + z_loss * torch.logsumexp(x, 1 if x.dim() > 1 else 0) ** 2
    if sample_weight is not None:
        counted = counted & (sample_weight != 0)
        rows = rows * sample_weight
    rows = torch.where(counted, rows, 0)
    if reduction == "none":
        return rows
    divisor = 1 if reduction == "sum" else _divisor(tensors, options, counted)
    return rows.sum() / divisor


def _divisor(tensors, options, counted):
    """What the mean divides by: the summed weight of the rows that count."""
    _, target, weight, sample_weight = tensors
    normalizer = options[3]
    if normalizer is not None:
        return normalizer
    each = counted.to(tensors[0].dtype)
    if weight is not None and not target.is_floating_point():
        each = each * weight[torch.where(counted, target, 0)]
    return (each if sample_weight is None else each * sample_weight).sum()
