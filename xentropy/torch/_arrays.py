"""Tensors as arrays and back, without a copy, and one call of the kernels on them."""

import numpy as np
import torch

from .. import _api, _kernels

# torch hands out no bfloat16 array, and NumPy takes none through DLPack: such a tensor goes as
# 16-bit integers, which are seen as bfloat16 here. Without ml_dtypes NumPy has no name for it,
# and such logits go to torch's own function.
try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

BFLOAT16 = torch.bfloat16
BITS16 = {torch.float16, BFLOAT16}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
if bfloat16 is None:
    FLOATS.remove(torch.bfloat16)


def array(tensor):
    """The elements of a tensor on the CPU where they lie; None stays None."""
    if tensor is None:
        return None
    if tensor.dtype is BFLOAT16:
        if bfloat16 is None:
            raise TypeError("bfloat16 tensors need ml_dtypes: pip install ml_dtypes")
        return tensor.detach().view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy(force=True)


def tensor(values):
    """The tensor of an array's memory."""
    if values.dtype.kind == "V":  # bfloat16
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def loss_tensor(loss, dtype):
    """A loss of the kernels, a number or one a row, as torch returns it."""
    if isinstance(loss, np.ndarray):
        return torch.from_numpy(loss).to(dtype)
    return torch.scalar_tensor(loss, dtype=dtype)


def compute(with_grad, tensors, options, upstream=None, out=None):
    """Loss, or with_grad (loss, gradient), as arrays: a call of xentropy's NumPy functions.

    `tensors`: logits, target, weight, sample_weight. `options`: the others, in the order of
    `xentropy.cross_entropy`. `upstream`: the gradient in the loss, a tensor of its shape.
    """
    logits, target, weight, sample_weight = tensors
    arguments = array(logits), array(target), weight, sample_weight, *options
    if weight is not None or sample_weight is not None:
        arguments = *arguments[:2], array(weight), array(sample_weight), *options
    if upstream is not None:
        upstream = array(upstream) if upstream.dim() else upstream.item()
    if out is not None:
        out = array(out)
    result = _kernels.cross_entropy(with_grad, arguments, upstream, out)
    return _api._checked(with_grad, arguments, upstream, out) if result is None else result
