"""Calls that are recorded: overrides by `__torch_function__`, torch.jit, torch.onnx.

torch.compile and torch.export record the operators of `_operator`. What cannot keep those gets
torch's own operations: they stand alone in a file that is loaded without xentropy.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.compiler import is_compiling
from torch.nn import functional
from torch.overrides import handle_torch_function

from . import _operator  # noqa: F401  the operator is registered
from ._arrays import BITS16
from ._formula import capped, torch_cross_entropy
from ._recorded import elementary, recorded_cross_entropy
from ._routing import PLAIN, only_default_device

# Options that torch's functions do not have.
OURS = {
    *("sample_weight", "normalizer", "empty_mean", "z_loss", "logit_scale", "softcap", "axis"),
    *("base", "n_threads", "inplace", "logits_bytes"),
}


class Overrides(NamedTuple):
    """What `overridden` needs to know of a function that torch has too."""

    name: str  # in torch.nn.functional
    own: Callable[..., Tensor] | None  # torch's, as it was before `patch`; None before torch 2.13
    positional: tuple[str, ...]
    tensors: tuple[str, ...]


CROSS_ENTROPY = Overrides(
    "cross_entropy",
    torch_cross_entropy,
    ("input", "target"),
    ("input", "target", "weight", "sample_weight"),
)


def overridden(function, call, about=CROSS_ENTROPY):
    """The call as objects or modes with `__torch_function__` answer it.

    NotImplemented if there are none: torch's default device is such a mode, but concerns only
    functions that make tensors. torch.compile sees to overrides itself.

    Overrides are often tables of functions. They are asked with `function`, and if they do not
    know it with torch's own, of which they know more often; in the reverse order while `function`
    stands in torch's place. An option that torch does not have is for `function` alone.
    """
    if is_compiling():
        return NotImplemented
    tensors = tuple(call[name] for name in about.tensors)
    plain = all(t is None or type(t) in PLAIN for t in tensors)
    if plain and only_default_device():
        return NotImplemented
    defaults = function.__kwdefaults__
    arguments = {k: v for k, v in call.items() if not _is_default(v, defaults.get(k, call))}
    functions = [function]
    if about.own is not None and not arguments.keys() & OURS:
        functions.insert(getattr(functional, about.name) is not function, about.own)
    positional = [arguments.pop(name) for name in about.positional]
    return _first_answer(functions, tensors, positional, arguments)


def _is_default(value, default):
    """Without a comparison that a recorded value would record too."""
    return value is default or (isinstance(value, (int, float)) and value == default)


def _first_answer(functions, tensors, positional, arguments):
    """The answer to the first function that is implemented, else the error about the first."""
    refused = None
    for function in functions:
        try:
            return handle_torch_function(function, tensors, *positional, **arguments)
        except TypeError as error:
            if not str(error).startswith("no implementation found"):
                raise
            refused = refused or error
    raise refused


@register_decomposition(torch.ops.xentropy.cross_entropy.default)
def decomposed(*args, **kwargs):
    """The operator in those of torch, for an exporter that knows no others: ONNX's.

    An option is a number, or an element of the operator's tensor `numbers`.
    """
    parameters = torch.ops.xentropy.cross_entropy.default._schema.arguments
    call = dict(zip((p.name for p in parameters), args, strict=False), **kwargs)
    dtype = call["dtype"]
    if call.get("numbers") is not None:
        call |= zip(call["names"].split(), call["numbers"].to(dtype).unbind(), strict=True)
    tensors = tuple(call[name] for name in ("logits", *CROSS_ENTROPY.tensors[1:]))
    tensors = tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors)
    tensors = capped(tensors[0] * call["logit_scale"], call.get("softcap")), *tensors[1:]
    base = call["base"]
    nats = base.log() if isinstance(base, torch.Tensor) else base and math.log(base)
    numbers = _unless_zero(call["label_smoothing"]), _unless_zero(call["z_loss"]), nats
    names = "axis", "ignore_index", "reduction", "normalizer"
    return elementary(tensors, numbers, *(call[name] for name in names))


def _unless_zero(number):
    return number if isinstance(number, torch.Tensor) or number else None


def traced(tensors, options, for_onnx):
    """The loss in torch's operations, while a graph records what is called."""
    logits, target, weight, sample_weight = tensors
    if logits.dtype in BITS16 and torch.is_autocast_enabled("cpu"):
        logits = logits.float()
    names = "normalizer", "z_loss", "logit_scale", "softcap", "axis", "base"
    return recorded_cross_entropy(
        logits,
        target,
        weight,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        label_smoothing=options.label_smoothing,
        sample_weight=sample_weight,
        **{name: getattr(options, name) for name in names},
        for_onnx=for_onnx,
    )


def unrecorded(function, *arguments):
    """A call that torch.jit.trace does not see."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return function(*arguments)
    finally:
        torch._C._set_tracing_state(state)
