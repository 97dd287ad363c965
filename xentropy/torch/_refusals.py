"""Calls that torch refuses: its types of errors, with messages that name the argument."""

import torch

from ._formula import formula, only_torch


def by_torch(tensors, options, text=None):
    """The loss by torch's own function; its errors with a better message where there is one.

    `text` is the message of the kernels' checks, if they have refused the call.
    """
    for name, value in zip(("input", "target", "weight"), tensors, strict=False):
        if not isinstance(value, torch.Tensor) and (name != "weight" or value is not None):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    try:
        return formula(tensors, options)
    except Exception as error:
        text = _what_is_wrong(tensors, options) or text
        if text is None:
            raise
        raise type(error)(text) from error


def as_torch_has_it(error, tensors, options):
    """torch's result or error for a call that the kernels' checks have refused with `error`."""
    if isinstance(error, IndexError) or not only_torch(tensors[3], options):
        raise error
    return by_torch(tensors, options, str(error).replace("logits", "input"))


def _what_is_wrong(tensors, options):
    """The message if torch refuses the call for its types or devices, else None."""
    logits, target, weight, _ = tensors
    devices = {str(t.device) for t in (logits, target, weight) if t is not None}
    if len(devices) > 1:
        return f"input, target and weight are on different devices: {', '.join(sorted(devices))}"
    if not logits.is_floating_point():
        hint = " (integers are class indices: are input and target swapped?)"
        return f"input must be floating, not {logits.dtype}{hint}"
    if target.is_floating_point() and target.shape == logits.shape:
        if options.ignore_index >= 0:
            return "ignore_index has no meaning for class probabilities"
        return None
    if target.dtype not in (torch.int64, torch.uint8):
        kinds = f"int64 (class indices), or floating of shape {tuple(logits.shape)} (probabilities)"
        return f"target must be {kinds}, not {target.dtype} of shape {tuple(target.shape)}"
    if weight is not None and weight.dtype != logits.dtype:
        return f"weight must be {logits.dtype} as input, not {weight.dtype}"
    return None
