"""Which calls the kernels compute: on plain CPU tensors, in eager mode, outside of transforms."""

import torch
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import _get_current_function_mode_stack, has_torch_function
from torch.utils._device import DeviceContext

PLAIN = {torch.Tensor, torch.nn.Parameter}  # not tensor subclasses


def on_kernels(*tensors):
    """Can the kernels compute on these tensors now, whatever their dtypes are?

    If not, torch's own operations must: they are what a graph records, a mode sees, a transform
    or a forward derivative knows, and what runs on other devices.
    """
    if is_compiling():
        return False
    if has_torch_function(tensors) and not only_default_device():
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
        # is_grads_batched wraps upstream gradients in tensors of type Tensor
        if tensor.is_nested or is_legacy_batchedtensor(tensor):
            return False
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return not _len_torch_dispatch_stack() and _get_tracing_state() is None


def only_default_device():
    """Is the mode of torch.set_default_device the only one? It concerns constructors alone."""
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


def direct_apply(function):
    """The `apply` of an autograd.Function for calls outside of transforms.

    Bypasses the Python wrappers of apply and backward, which are for transforms (torch's own
    operations compute under those) and for Functions of other kinds: 2 us less forward, 1 us
    backward.
    """
    if hasattr(function, "_backward_cls"):
        function._backward_cls.apply = function.backward
    return super(torch.autograd.Function, function).apply
