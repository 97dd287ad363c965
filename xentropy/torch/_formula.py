"""The loss in torch's own operations: for other devices, transforms, derivatives of any order.

The formulas, of the loss and both its gradients, are in `xentropy.reference`.
"""

import math

import torch
from torch.nn import functional

from . import _numbers

# As it was before `patch`.
torch_cross_entropy = functional.cross_entropy
torch_linear_cross_entropy = getattr(functional, "linear_cross_entropy", None)  # since 2.13

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def only_torch(sample_weight, options):
    """Are all options that torch's own function does not have at their defaults?"""
    if sample_weight is not None or _numbers.tensors(options):
        return False
    off = options.axis == 1 and options.z_loss == 0 and options.logit_scale == 1
    return off and options.normalizer is options.base is options.softcap is None


def formula(tensors, options):
    """torch.nn.functional.cross_entropy, extended by the options that it does not have."""
    logits, target, weight, sample_weight = tensors
    own = {"ignore_index": options.ignore_index, "label_smoothing": options.label_smoothing}
    if only_torch(sample_weight, options):
        if _is_usual(logits, target):
            counted = _counted(logits, target, None, options.ignore_index)
            logits = _where_counted(counted, logits)
            logits = _without_void(logits, target, weight, options.label_smoothing)
        return torch_cross_entropy(logits, target, weight, reduction=options.reduction, **own)
    probable = target.is_floating_point()
    if logits.dim() > 1:
        logits = logits.movedim(options.axis, 1)
        target = target.movedim(options.axis, 1) if probable else target
    counted = _counted(logits, target, sample_weight, options.ignore_index)
    x = _where_counted(counted, logits) * _numbers.scalar(options.logit_scale)
    x = capped(x, options.softcap)
    x = _without_void(x, target, weight, options.label_smoothing)
    target = _where_counted(counted, target) if probable else target
    rows = torch_cross_entropy(x, target, weight, reduction="none", **own)
    dtype = rows.dtype
    rows = rows if options.base is None else rows / math.log(options.base)
    if options.z_loss:
        rows = rows + options.z_loss * torch.logsumexp(x, _class_axis(x)) ** 2
    rows = rows if sample_weight is None else rows * sample_weight
    rows = torch.where(counted, rows, 0)
    if options.reduction == "none":
        return rows.to(dtype)
    total = rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))
    if options.reduction == "mean":
        total = total / _divisor(target, weight, sample_weight, options, counted)
    return total.to(dtype)


def capped(x, softcap):
    """The scaled logits under the softcap; None is none."""
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def _is_usual(logits, target):
    """Are they on the CPU, and of types that torch supports? Other calls remain as they are."""
    if not (logits.is_cpu and target.is_cpu and is_dense(logits) and is_dense(target)):
        return False
    probable = target.dtype in FLOATS and target.shape == logits.shape
    labels = target.dtype in (torch.int64, torch.uint8)
    return logits.dtype in FLOATS and logits.dim() > 0 and (probable or labels)


def is_dense(tensor):
    return tensor.layout is torch.strided and not tensor.is_nested


def _class_axis(logits):
    return 1 if logits.dim() > 1 else 0


def _row_shape(logits):
    axis = _class_axis(logits)
    return logits.shape[:axis] + logits.shape[axis + 1 :]


def _counted(logits, target, sample_weight, ignore_index):
    """Whether each row is read; the class axis is torch's."""
    if target.is_floating_point():
        counted = logits.new_ones(_row_shape(logits), dtype=torch.bool)
    else:
        counted = target.to(torch.int64) != ignore_index
    if sample_weight is None:
        return counted
    if sample_weight.shape != _row_shape(logits):
        found, wanted = tuple(sample_weight.shape), tuple(_row_shape(logits))
        raise ValueError(f"sample_weight has shape {found}, not {wanted} (one per row)")
    return counted & (sample_weight != 0)


def _where_counted(counted, values):
    """The values of rows that count, 0 in the others: a nan there must not reach a gradient."""
    if counted.shape != _row_shape(values):  # torch refuses it itself
        return values
    return torch.where(counted.unsqueeze(_class_axis(values)), values, 0)


def _without_void(x, target, weight, label_smoothing):
    """Logits of -inf without target mass as a lowest number: 0 log 0 is 0, for torch nan."""
    axis = _class_axis(x)
    void = None
    if target.is_floating_point() and label_smoothing == 0:
        void = target == 0
    if weight is not None and weight.shape == x.shape[axis : axis + 1]:
        unweighted = (weight == 0).view(-1, *[1] * (x.dim() - axis - 1))
        void = unweighted if void is None else void | unweighted
    if void is None:
        return x
    return torch.where(void & x.isneginf(), torch.finfo(x.dtype).min / 2, x)


def _divisor(target, weight, sample_weight, options, counted):
    """The divisor of the mean: the summed weight of the rows that count."""
    if options.normalizer is not None:
        return _numbers.scalar(options.normalizer)
    each = counted.to(torch.float64 if counted.device.type == "cpu" else torch.float32)
    if weight is not None and not target.is_floating_point():
        each = each * weight[torch.where(counted, target.to(torch.int64), 0)]
    return (each if sample_weight is None else each * sample_weight).sum()
