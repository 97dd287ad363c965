"""Calls that torch refuses: its types of errors, with messages that name the argument."""

import numpy as np
import torch
from torch._C._functorch import is_legacy_batchedtensor
from torch.compiler import is_compiling

from .. import _check
from . import _numbers
from ._formula import FLOATS, formula, is_dense, only_torch


def by_torch(tensors, options, text=None):
    """The loss by torch's own function; its errors with a better message where there is one.

    `text` is the message of the kernels' checks, if they have refused the call.
    """
    for name, value in zip(("input", "target", "weight"), tensors, strict=False):
        if not isinstance(value, torch.Tensor) and (name != "weight" or value is not None):
            _check.reduction(options.reduction)  # which torch looks at first
            raise no_tensor(name, value)
    if tensors[3] is not None and not isinstance(tensors[3], torch.Tensor):
        raise no_tensor("sample_weight", tensors[3])
    if not only_torch(tensors[3], options):
        _check_ours(tensors[0], options)
    try:
        return formula(tensors, options)
    except Exception as error:
        theirs = str(error).partition("\n")[0]
        text = _what_is_wrong(tensors, options, theirs) or text
        if text is None:
            raise
        raise type(error)(f"{text} (torch: {theirs})") from error


def no_tensor(name, value):
    """The error for an argument that is no tensor."""
    kind = "None" if value is None else type(value).__name__
    hint = ""
    if isinstance(value, np.ndarray | list | tuple | int | float):
        hint = f"; torch.as_tensor({name}) makes one of it"
    elif isinstance(value, dict):
        hint = "; it has one number per class" if name == "weight" else ""
    elif isinstance(value, torch.nn.Module) and name == "linear_weight":
        hint = "; give the layer's weight"
    return TypeError(f"{name} must be a tensor, not {kind}{hint}")


def as_torch_has_it(error, tensors, options):
    """torch's result or error for a call that the kernels' checks have refused with `error`."""
    if any(isinstance(t, torch.Tensor) and is_legacy_batchedtensor(t) for t in tensors):
        return by_torch(tensors, options)  # called in a backward that is_grads_batched maps
    dense = all(tensor is None or is_dense(tensor) for tensor in tensors)
    if isinstance(error, IndexError | RuntimeError) and dense:
        raise error
    if not only_torch(tensors[3], options):
        raise error
    return by_torch(tensors, options, in_torchs_words(error).replace("logits", "input"))


def in_torchs_words(error):
    """The message of a check, with methods of tensors for those of arrays."""
    text = str(error).replace(".astype(np.float32)", ".float()")
    return text.replace(".astype(np.int64)", ".long()")


def _check_ours(logits, options):
    """The options that torch does not have, as the kernels check them."""
    _numbers.check(options, logits.device)
    if is_compiling():  # a check of a symbolic number compiles a graph for its value alone
        return
    _check.finite_factor(options.z_loss, "z_loss")
    _check.base(options.base)
    if not isinstance(options.normalizer, torch.Tensor):
        _check.normalizer(options.normalizer, options.reduction)
    scale = 1.0
    if not isinstance(options.logit_scale, torch.Tensor):
        scale = _check.logit_scale(options.logit_scale)
    _check.softcap(options.softcap, scale)


def _what_is_wrong(tensors, options, theirs):
    """The message if torch refuses the call for its types or devices, else None."""
    logits, target, weight, _ = tensors
    if "label_smoothing" in theirs:  # the one that torch speaks of, if there are two faults
        try:
            _check.real_between(options.label_smoothing, "label_smoothing", 0, 1)
        except (TypeError, ValueError) as error:
            return str(error)
    devices = {str(t.device) for t in (logits, target, weight) if t is not None}
    if len(devices) > 1:
        return f"input, target and weight are on different devices: {', '.join(sorted(devices))}"
    for name, value in zip(("input", "target", "weight"), tensors, strict=False):
        if value is not None and not is_dense(value):
            kind = "nested" if value.is_nested else value.layout
            return f"{name} must be a dense tensor, not {kind}"
    if logits.dtype not in FLOATS:
        swapped = not (logits.is_complex() or logits.is_floating_point() or logits.is_quantized)
        hint = " (integers are class indices: are input and target swapped? if not, give "
        hint = hint + "input.float())" if swapped else ""
        return f"input must be float16, bfloat16, float32 or float64, not {logits.dtype}{hint}"
    if target.dtype in FLOATS and target.shape == logits.shape:
        is_wrong = options.ignore_index >= 0
        return "ignore_index has no meaning for class probabilities" if is_wrong else None
    return _what_is_wrong_with_labels(logits, target, weight)


def _what_is_wrong_with_labels(logits, target, weight):
    if target.dtype is torch.uint8 and logits.dim() > 2:
        return f"target must be int64 for input of {logits.dim()} dimensions, not torch.uint8"
    if target.dtype not in (torch.int64, torch.uint8):
        kinds = f"float16 to float64 of shape {tuple(logits.shape)} (probabilities)"
        found = f"{target.dtype} of shape {tuple(target.shape)}"
        labels = target.shape == logits.shape[:1] + logits.shape[2:]
        hint = "; target.long() makes class indices of it" if labels else ""
        return f"target must be int64 (class indices), or {kinds}, not {found}{hint}"
    if weight is not None and weight.dtype != logits.dtype:
        return f"weight must be {logits.dtype} as input, not {weight.dtype}"
    return None
