"""Operations on deferred logits whose results are deferred too.

Each is called with the function that it stands for and that function's arguments, the first of
which is deferred; NotImplemented has the logits computed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch._routing import PLAIN
from ._deferred import DEFERRED, Deferred, deferred
from ._record import Record
from ._scaling import Scaling

BITS16 = torch.float16, torch.bfloat16


def _handles(*names: str) -> Callable:
    """For these functions, as methods and in torch."""

    def add(handler: Callable) -> Callable:
        for place in (Tensor, torch):
            DEFERRED.update({getattr(place, n): handler for n in names if hasattr(place, n)})
        return handler

    return add


def _stepped(x: Deferred, step: Callable, like: Tensor, **changes: Any) -> Deferred:
    """The logits after one more step, which `changes` describes to the loss."""
    shared = like.untyped_storage()._cdata == x.record.like.untyped_storage()._cdata
    changes |= {"source": x.record, "step": step, "view": shared, "like": like, "value": None}
    changes |= {"grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled()}
    return deferred(dataclasses.replace(x.record, **changes))


@_handles("__getitem__")
def _indexed(func: Any, x: Deferred, index: Any) -> Any:
    """Whole rows: the same index into the hidden states."""
    items = index if isinstance(index, tuple) else (index,)
    if not _is_of_rows(items, x.dim()):
        return NotImplemented
    rows = x.record.rows[items]
    if any(isinstance(item, Tensor) for item in items):  # a copy; a mask's count is not in `like`
        like = x.record.like.new_empty(*rows.shape[:-1], x.shape[-1])
    else:
        like = x.record.like[items]
    return _stepped(x, lambda real: real[items], like, rows=rows)


def _is_of_rows(items: tuple, dimensions: int) -> bool:
    """Does such an index leave the last axis whole?"""
    taken, ellipsis = 0, None
    for place, item in enumerate(items):
        if type(item) in PLAIN and item.dtype in (torch.bool, torch.int64):
            taken += item.dim() if item.dtype is torch.bool else 1
        elif item is Ellipsis and ellipsis is None:
            ellipsis = place
        elif type(item) in (int, slice):
            taken += 1
        elif item is not None:
            return False
    named_last = taken == dimensions or (ellipsis is not None and ellipsis < len(items) - 1)
    return (taken < dimensions and not named_last) or items[-1] == slice(None)


@_handles("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze")
def _reshaped(func: Any, x: Deferred, *args: Any, **kwargs: Any) -> Any:
    """As long as the last axis remains: rows then keep their order."""
    old = x.record
    like = func(old.like, *args, **kwargs)
    if like.dtype != x.dtype or like.dim() == 0 or like.shape[-1] != x.shape[-1]:
        return NotImplemented
    rows = old.rows.reshape(*like.shape[:-1], old.rows.shape[-1])
    return _stepped(x, lambda real: func(real, *args, **kwargs), like, rows=rows)


@_handles("contiguous")
def _contiguous(func: Any, x: Deferred, **kwargs: Any) -> Any:
    if kwargs:
        return NotImplemented
    return x if x.is_contiguous() else _stepped(x, func, x.record.like.contiguous())


@_handles("float", "double", "half", "bfloat16")
def _named_type(func: Any, x: Deferred, **kwargs: Any) -> Any:
    name = func.__name__
    return NotImplemented if kwargs else _converted(x, getattr(torch, name))


@_handles("to")
def _to(func: Any, x: Deferred, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    elsewhere = device is not None and device.type != "cpu"
    if copy or elsewhere or memory_format is not None:
        return NotImplemented
    return _converted(x, dtype or x.dtype)


@_handles("type")
def _type(func: Any, x: Deferred, dtype: Any = None, **kwargs: Any) -> Any:
    return _converted(x, dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def _converted(x: Deferred, dtype: torch.dtype) -> Any:
    """Without a loss of digits only, which would be the model's intention."""
    if dtype == x.dtype:
        return x
    if not (x.dtype in BITS16 and dtype is torch.float32):
        return NotImplemented
    return _stepped(x, lambda real: real.to(dtype), x.record.like.to(dtype))


@_handles("mul", "multiply", "__mul__", "__rmul__")
def _times(func: Any, x: Any, number: Any, **kwargs: Any) -> Any:
    return _scaled(func, x, number, kwargs, Scaling.times)


@_handles("div", "divide", "true_divide", "__truediv__")
def _over(func: Any, x: Any, number: Any, **kwargs: Any) -> Any:
    return _scaled(func, x, number, kwargs, Scaling.over)


def _scaled(func: Any, x: Deferred, number: Any, kwargs: dict, scaled: Callable) -> Any:
    """By a number of Python; a tensor may require a gradient."""
    if kwargs or not isinstance(number, (int, float)) or isinstance(number, bool) or number == 0:
        return NotImplemented
    scaling = scaled(x.record.scaling, float(number))
    like = torch.empty_like(x.record.like)
    return _stepped(x, lambda real: func(real, number), like, scaling=scaling)


@_handles("tanh")
def _tanh(func: Any, x: Deferred, **kwargs: Any) -> Any:
    scaling = x.record.scaling
    if kwargs or scaling.cap is not None:
        return NotImplemented
    return _stepped(x, func, torch.empty_like(x.record.like), scaling=scaling.tanh())


@_handles("add", "__add__", "__radd__")
def _plus(func: Any, x: Deferred, other: Any, **kwargs: Any) -> Any:
    """A number for each class is one more bias (BART's final_logits_bias)."""
    record: Record = x.record
    if kwargs or type(other) not in PLAIN or record.scaling != Scaling():
        return NotImplemented
    classes = record.like.shape[-1]
    plain = other.dtype == x.dtype == record.rows.dtype and other.dim() <= x.dim()
    if not plain or other.dim() == 0 or other.shape[-1] != classes or other.numel() != classes:
        return NotImplemented
    bias = other.reshape(-1)
    bias = bias if record.bias is None else record.bias + bias
    like = torch.empty_like(record.like)
    return _stepped(x, functools.partial(_plus_real, func, other), like, bias=bias)


def _plus_real(func: Any, other: Tensor, real: Tensor) -> Tensor:
    return func(real, other)
