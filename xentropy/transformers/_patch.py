"""Makes output layers of models defer their logits, and takes it back."""

import threading
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..torch._routing import on_kernels
from . import _loss, _operations  # noqa: F401  they fill the table of deferred operations
from ._deferred import defer
from ._notes import note

_lock = threading.Lock()


def patch(model: nn.Module) -> "_Patched":
    """Let a model's loss be computed without its logits.

    For the models of transformers that compute a cross entropy of logits from a linear output
    layer: causal ones of every architecture first of all, masked and sequence-to-sequence ones
    likewise. Wrappers are looked through: peft, DistributedDataParallel, torch.compile.

    The output layer returns a tensor that keeps hidden states, weight and bias. It remains
    deferred under multiplication and division by Python's numbers, a soft cap (``tanh``),
    addition of a number for each class, conversion from 16 bits to float32, ``contiguous``, and
    indices and reshaping that leave rows whole. torch.nn.functional.cross_entropy and what calls
    it (the models' own loss functions, torch.nn.CrossEntropyLoss) then compute
    ``xentropy.torch.linear_cross_entropy``. Every other operation, ``outputs.logits`` in a metric
    or the Trainer's label smoothing, computes the logits first, once, to the bits of an unpatched
    model; `materialised` counts those.

    Losses and gradients differ from an unpatched model's by rounding.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a module that contains it.

    Returns
    -------
    context manager
        Its exit ends this patch; others of the same model go on. A patch holds for all threads.
        It goes with deep copies and pickles of the model, not with `state_dict` and
        `save_pretrained`.

    Raises
    ------
    TypeError
        `model` is not a torch.nn.Module.
    ValueError
        No part of it has output embeddings.
    RuntimeError
        Later, when logits are read whose weights have been changed since (by the optimizer's
        step), or when a hook or `retain_grad` waits for a gradient of logits whose loss did
        without them.

    Notes
    -----
    Logits are computed, as without the patch, where the output layer is not torch's own
    ``nn.Linear`` with a plain weight on the CPU (quantised ones, LoRA on the layer itself adds to
    them), in graphs of torch.compile and torch.export, in transforms of torch.func, and for the
    single positions of ``generate``. A layer that replaces the patched one
    (``resize_token_embeddings``) must be patched again. Sharded weights, which are gone after the
    forward pass, are not supported.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from xentropy.transformers import patch
    >>> config = LlamaConfig(
    ...     vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=1
    ... )
    >>> model, ids = LlamaForCausalLM(config), torch.arange(12).reshape(2, 6)
    >>> with patch(model):
    ...     outputs = model(input_ids=ids, labels=ids)
    ...     outputs.loss.backward()
    >>> outputs.logits.shape  # still not computed
    torch.Size([2, 6, 1000])
    """
    return _Patched(model).__enter__()


def unpatch(model: nn.Module) -> None:
    """End all patches of a model; it need not have any.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a module that contains it.

    Examples
    --------
    >>> from torch import nn
    >>> from xentropy.transformers import unpatch
    >>> unpatch(nn.Linear(2, 2))
    """
    with _lock:
        for module in model.modules():
            for value in list(vars(module).values()):  # under any name: others wrap `forward` too
                if isinstance(value, DeferringForward):
                    value.end()


class DeferringForward:
    """The `forward` of a patched output layer: an attribute of that layer, copied with it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.patches = 0

    def __call__(self, input: Tensor) -> Tensor:
        layer = self.layer
        if self.patches == 0 or torch.compiler.is_compiling() or not _can_defer(layer, input):
            return type(layer).forward(layer, input)
        if not torch.is_autocast_enabled("cpu"):
            return defer(input, layer.weight, layer.bias)
        dtype = torch.get_autocast_dtype("cpu")  # to which it converts for functional.linear
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return defer(input.to(dtype), layer.weight.to(dtype), bias)

    def release(self) -> None:
        if self.patches == 1:
            self.end()
        self.patches = max(0, self.patches - 1)

    def end(self) -> None:
        self.patches = 0
        if vars(self.layer).get("forward") is self:
            del self.layer.forward


def _can_defer(layer: nn.Linear, input: Any) -> bool:
    """Is this a product of plain tensors, and more than a step of `generate`?"""
    if type(layer).forward is not nn.Linear.forward:
        note(f"output layer {type(layer).__name__}")
        return False
    operands = [t for t in (input, layer.weight, layer.bias) if t is not None]
    if not all(isinstance(t, Tensor) for t in operands) or not on_kernels(*operands):
        return False
    if input.dim() < 2 or input.shape[-1] != layer.weight.shape[-1]:
        return False
    if input.shape[-2] == 1 and not torch.is_grad_enabled():
        return False
    types = {t.dtype for t in operands}
    alike = types <= {torch.float16, torch.bfloat16, torch.float32}
    return (
        alike if torch.is_autocast_enabled("cpu") else len(types) == 1 and input.is_floating_point()
    )


class _Patched:
    """One patch, ended by the exit of a with statement."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self._model = model
        self._forwards: list[DeferringForward] = []

    def __enter__(self) -> "_Patched":
        with _lock:
            if not self._forwards:
                self._forwards = [_deferring(layer) for layer in _output_layers(self._model)]
                for forward in self._forwards:
                    forward.patches += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            for forward in self._forwards:
                forward.release()
            self._forwards = []


def _deferring(layer: nn.Linear) -> DeferringForward:
    forward = vars(layer).get("forward")
    if not isinstance(forward, DeferringForward):
        forward = layer.forward = DeferringForward(layer)  # type: ignore[method-assign]
    return forward


def _output_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that compute logits, in all parts of a model."""
    found: dict[nn.Linear, None] = {}
    embeddings = list(filter(None, map(_output_embeddings, model.modules())))
    if not embeddings:
        raise ValueError(
            f"model = {type(model).__name__} has no output embeddings: neither it nor a part of it "
            "has a method get_output_embeddings that returns a module"
        )
    for module in embeddings:
        layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
        widest = max(((m.out_features, m.in_features) for m in layers), default=None)
        layers = [m for m in layers if (m.out_features, m.in_features) == widest and _is_free(m)]
        if not layers:
            note(f"output layer {type(module).__name__}")
        found.update(dict.fromkeys(layers))
    return list(found)


def _output_embeddings(module: nn.Module) -> nn.Module | None:
    if not hasattr(type(module), "get_output_embeddings"):
        return None
    try:
        found = module.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # of models without
        return None
    return found if isinstance(found, nn.Module) else None


def _is_free(layer: nn.Linear) -> bool:
    """Has nobody else put a `forward` on this very layer, as accelerate's hooks do?"""
    own = vars(layer).get("forward")
    return own is None or isinstance(own, DeferringForward)
