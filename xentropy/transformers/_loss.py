"""Cross entropy of deferred logits: from hidden states and weight."""

import inspect
from typing import Any

import torch
from torch.nn import _reduction

from ..torch import cross_entropy, linear_cross_entropy
from ..torch._formula import torch_cross_entropy
from ..torch._routing import on_kernels
from ._deferred import DEFERRED, Deferred
from ._operations import BITS16

_signature = inspect.signature(torch_cross_entropy)


def _loss(func: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.nn.functional.cross_entropy; with options that torch does not have, NotImplemented."""
    try:
        call = _signature.bind(*args, **kwargs)
    except TypeError:
        return NotImplemented
    call.apply_defaults()
    given = call.arguments
    logits, target, weight = given["input"], given["target"], given["weight"]
    options = logits.record.scaling.options()
    if options is None or not _is_usual(logits, target, weight):
        return NotImplemented
    if given["size_average"] is not None or given["reduce"] is not None:
        legacy = given["size_average"], given["reduce"]
        given["reduction"] = _reduction.legacy_get_string(*legacy)
    for name in ("reduction", "ignore_index", "label_smoothing"):
        options[name] = given[name]
    return _linear(logits, target, weight, options)


DEFERRED[torch_cross_entropy] = DEFERRED[cross_entropy] = _loss


def _is_usual(logits: Deferred, target: Any, weight: Any) -> bool:
    """Rows and their labels. With anything else torch's function is asked, for its errors too."""
    tensors = target, *([] if weight is None else [weight])
    if not all(isinstance(t, torch.Tensor) and not isinstance(t, Deferred) for t in tensors):
        return False
    if not on_kernels(logits.record.rows, *tensors) or target.dtype is not torch.int64:
        return False
    if weight is not None and weight.requires_grad:
        return False
    return logits.dim() == 2 and target.shape == logits.shape[:1]


def _linear(logits: Deferred, target: Any, weight: Any, options: dict) -> Any:
    """In the types of the call: a loss in float32 if that is what the logits are.

    16-bit products under autocast have it; their conversion by `float` means the same.
    """
    record = logits.record
    record.product.check()
    narrow = record.rows.dtype in BITS16
    wide = narrow and (logits.dtype is torch.float32 or torch.is_autocast_enabled("cpu"))
    autocast = torch.autocast("cpu", dtype=record.rows.dtype if narrow else None, enabled=wide)
    with autocast, torch.set_grad_enabled(torch.is_grad_enabled() and logits.requires_grad):
        loss = linear_cross_entropy(
            record.rows,
            record.product.weight,
            target,
            linear_bias=record.bias,
            weight=weight,
            **options,
        )
    record.product.has_loss = True
    return loss
