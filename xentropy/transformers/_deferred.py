"""Deferred: logits as a tensor that has no memory until somebody reads it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ._notes import note
from ._record import SPENT, WRITTEN, Product, Record, version

# What is known without the logits: attributes, then methods.
ATTRIBUTES = """
    shape dtype device layout ndim requires_grad is_leaf itemsize nbytes
    is_cpu is_cuda is_meta is_mps is_xpu is_sparse is_sparse_csr is_quantized is_nested
"""
METHODS = """
    dim ndimension size numel nelement element_size __len__ stride storage_offset get_device
    is_contiguous is_floating_point is_complex is_signed is_inference
"""
QUERIES = {getattr(Tensor, name).__get__ for name in ATTRIBUTES.split()}
QUERIES |= {getattr(Tensor, name) for name in METHODS.split()}
# Set by autograd, where no error can be raised.
QUERIES.add(Tensor._backward_hooks.__set__)  # type: ignore[union-attr]
QUERIES |= {torch.numel, torch.is_floating_point, torch.is_complex, torch.is_inference}

# They wait for a gradient of the logits.
WAITING = {
    Tensor.retain_grad,
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
}

# Function: the same for deferred logits, which may answer NotImplemented. `_operations` and
# `_loss` fill it.
DEFERRED: dict[Any, Callable] = {}


class Deferred(Tensor):
    """Logits of an output layer, computed when somebody reads them.

    Functions in `DEFERRED` and `QUERIES` do without; all others get the real logits, a plain
    tensor in torch's own graph. What reaches the tensor below Python (a custom
    `autograd.Function`, a collective) gets their values, and its gradient passes on through
    `_Defer`.
    """

    record: Record

    @staticmethod
    def __new__(cls, record: Record) -> "Deferred":
        like = record.like
        answer = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            like.shape,
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=like.dtype,
            device=record.rows.device,
        )
        answer.record = record
        return answer

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func in QUERIES and isinstance(first, Deferred):
            if first.record.value is not None:  # written to, it may have another shape
                return func(first.record.value, *args[1:], **kwargs)
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in DEFERRED and isinstance(first, Deferred) and first.record.pending:
            first.check()
            answer = DEFERRED[func](func, *args, **kwargs)
            if answer is not NotImplemented:
                return answer
        if func in WAITING and isinstance(first, Deferred) and first.record.product.has_loss:
            raise RuntimeError(SPENT.format(_name(func)))
        return func(*_real(args, _name(func)), **_real(kwargs, _name(func)))

    def check(self) -> None:
        """Only custom functions reach behind this class, to `mark_dirty`."""
        with torch._C.DisableTorchFunctionSubclass():
            if version(self):
                raise RuntimeError(WRITTEN.format("a custom autograd.Function"))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name
        if func._schema.is_mutable:
            raise RuntimeError(WRITTEN.format(name))
        return func(*_real(args, name, values=True), **_real(kwargs or {}, name, values=True))


class _Defer(torch.autograd.Function):
    """The gradient of deferred logits, where `Deferred.__torch_function__` is not asked."""

    @staticmethod
    def forward(ctx: Any, record: Record, *operands: Tensor | None) -> Deferred:
        ctx.record, ctx.operands = record, operands
        return Deferred(record)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        ctx.record.product.check()
        wanted = ctx.needs_input_grad[1:]
        operands: list[Any] = [
            tensor if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.operands, wanted, strict=True)
        ]
        rows, weight, bias = operands
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            z = functional.linear(rows, weight, bias)
            logits = ctx.record.scaling.apply(z).to(grad.dtype)
        variables = [t for t, needed in zip(operands, wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(logits, variables, grad))
        return None, *(next(found) if needed else None for needed in wanted)


def deferred(record: Record) -> Deferred:
    """The logits of a record, as a tensor."""
    return _Defer.apply(record, record.rows, record.product.weight, record.bias)


def defer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Deferred:
    """functional.linear, for later."""
    like = torch.empty(*hidden.shape[:-1], len(weight), dtype=hidden.dtype, device="meta")
    return deferred(Record(Product(hidden, weight, bias), hidden, bias, like))


def _name(func: Any) -> str:
    name = getattr(func, "__name__", repr(func))
    return func.__self__.__name__ if name in ("__get__", "__set__") else name


def _real(given: Any, name: str, values: bool = False) -> Any:
    """Arguments, with logits in the place of deferred ones."""
    if isinstance(given, Deferred):
        given.check()
        if given.record.value is None:
            note(name)
        return given.record.values() if values else given.record.real()
    if isinstance(given, (tuple, list)):
        items = [_real(item, name, values) for item in given]
        return type(given)(*items) if hasattr(given, "_fields") else type(given)(items)
    if isinstance(given, dict):
        return {key: _real(item, name, values) for key, item in given.items()}
    if isinstance(given, slice):
        return slice(*(_real(x, name, values) for x in (given.start, given.stop, given.step)))
    return given
