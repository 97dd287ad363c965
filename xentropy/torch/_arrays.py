"""Tensors as arrays and back, without a copy, and one call of the kernels on them."""

import numpy as np
import torch

from .. import _kernels
from .._api import checked_cross_entropy
from ._routing import PLAIN

# torch does not export bfloat16 to NumPy, nor does NumPy import it by DLPack: such a tensor is
# passed as 16-bit integers and viewed as bfloat16 here. Without ml_dtypes NumPy has no such dtype,
# and torch's own function computes the loss.
try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

CPU = torch.device("cpu")
BFLOAT16 = torch.bfloat16
BITS16 = {torch.float16, BFLOAT16}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
if bfloat16 is None:
    FLOATS.remove(torch.bfloat16)


# Tensors of one number, to make others like them: the fastest way to a tensor.
LIKE: dict[torch.dtype, torch.Tensor] = {}

SMALL_BYTES = _kernels.SMALL_BYTES  # gradients smaller than this are allocated by torch


def arrays(tensors):
    """Arrays on the memory of CPU tensors; None stays None."""
    found = TENSORS.arrays(tensors)
    return tuple(map(array, tensors)) if found is None else found


def array(tensor):
    """The same for one tensor, by torch's own conversion."""
    if tensor is None:
        return None
    if tensor.dtype is BFLOAT16:
        if bfloat16 is None:
            raise TypeError("bfloat16 tensors need ml_dtypes: pip install ml_dtypes")
        return tensor.detach().resolve_neg().view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy(force=True)


def tensor(values):
    """A tensor on the memory of an array."""
    if values.dtype.kind == "V":  # bfloat16
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


# The fast way to the memory of tensors, since torch 2.10 (_exchange.pxi).
TENSORS = _kernels.Tensors(
    PLAIN,
    getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
    None if bfloat16 is None else np.dtype(bfloat16),
    torch.empty_like,
    tensor,
)


def loss_tensor(loss, dtype):
    """A loss of the kernels, a number or an array, as a tensor of this dtype."""
    if isinstance(loss, np.ndarray):
        return torch.from_numpy(loss).to(dtype)
    like = LIKE.get(dtype)
    if like is not None:
        result = torch.empty_like(like)
        if TENSORS.put(result, loss):
            return result
    # On the CPU, whatever the default device is; by float64, as too large a number is inf then.
    result = torch.scalar_tensor(loss, dtype=torch.float64, device=CPU).to(dtype)
    if dtype not in BITS16:
        LIKE[dtype] = torch.empty_like(result)
    return result


def number(tensor):
    """The number in a tensor of one."""
    value = TENSORS.number(tensor)
    return tensor.item() if value is None else value


def is_one(tensor):
    """Is a tensor of one number, which takes no time to read, 1?"""
    return TENSORS.number(tensor) == 1


def compute(with_grad, tensors, options, upstream=None, out=None, *, trusted=False):
    """Loss, or with_grad (loss, gradient), of tensors: one call of the kernels.

    `tensors`: logits, target, weight, sample_weight. `options`: `Options`. `upstream`: the
    gradient in the loss, a tensor of its shape. The loss is a number or an array; the gradient
    is a tensor, `out` if given. `trusted`: the arguments are valid, and meant.
    """
    if upstream is not None:
        upstream = array(upstream) if upstream.dim() else number(upstream)
    result = TENSORS.cross_entropy(with_grad, tensors, options, upstream, out, trusted)
    if result is not None:
        return result
    x, target, weight, sample_weight, place = arrays((*tensors, out))
    call = with_grad, x, target, weight, sample_weight, options, upstream, place
    result = _kernels.compute_cross_entropy(*call, checked=trusted)
    if result is None:
        result = checked_cross_entropy(*call)
    if not with_grad:
        return result
    loss, gradient = result
    return loss, tensor(gradient) if out is None else out


def as_tensors(with_grad, tensors, options, dtype):
    """The same with the loss as a tensor of this dtype: forward's results."""
    result = TENSORS.one_loss(with_grad, tensors, options, LIKE.get(dtype))
    if result is not None:
        return result
    result = compute(with_grad, tensors, options)
    if not with_grad:
        return loss_tensor(result, dtype)
    loss, gradient = result
    return loss_tensor(loss, dtype), gradient
