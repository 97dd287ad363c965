"""The loss as operators of torch.library: for compiled graphs, and for dispatch modes.

The gradient is computed in backward here. When a graph is compiled the upstream gradient is not
known, and to scale a kept gradient would read and write it once more: 2 reads and 1 write in all,
not 2 and 2; and nothing is kept. Eager mode does not use them: a call costs several times an
autograd.Function (torch's issues 176592 and 139500).
"""

from collections import namedtuple
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .._kernels import Options, make_options
from ._arrays import CPU, compute, loss_tensor

# What the options are when they are constants of a graph.
DEFAULTS = {
    "normalizer": None,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "logit_scale": 1.0,
    "base": None,
}

# The options that a call may give as `numbers`. softcap is no parameter of the operators, so that
# they keep the schema which saved programs have.
SOFTCAP = {"softcap": None}
NUMBERS = DEFAULTS | SOFTCAP

ARRAYS = Tensor, np.ndarray, np.generic  # NumPy's numbers are arrays to torch.compile

# The record while torch.compile traces, which it cannot through a class compiled by Cython.
TracedOptions = cast(Any, namedtuple("TracedOptions", Options.NAMES))  # type: ignore[misc]


def call(tensors, options, dtype):
    """The operator, whose schema is flat, on a call's tensors and options.

    A number that is not the default goes as an element of a tensor: it may be one, and Python's may
    change from step to step, which would compile a graph for each value of a constant.
    """
    return cross_entropy(
        *tensors,
        axis=options.axis,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        **DEFAULTS,
        n_threads=options.n_threads,
        dtype=dtype,
        **given_numbers(options, NUMBERS),
    )


def given_numbers(options, defaults):
    """The arguments `names` and `numbers` for those of these options that are not the default."""
    given = {name: getattr(options, name) for name in defaults}
    given = {n: value for n, value in given.items() if not _is_default(value, defaults[n])}
    numbers = torch.stack([*map(_as_tensor, given.values())]) if given else None
    return {"names": " ".join(given), "numbers": numbers}


def _is_default(value, default):
    return not isinstance(value, ARRAYS) and value == default


def _as_tensor(value):
    """A number, or a tensor of one, as a float64 tensor without dimensions."""
    if isinstance(value, ARRAYS):
        value = torch.as_tensor(value, dtype=torch.float64, device=CPU)
        return value.detach().reshape(())
    # Not torch.scalar_tensor, which makes a constant of a symbolic float.
    return torch.ones((), dtype=torch.float64, device=CPU) * value


def _options(names, numbers, **given):
    """The record of an operator's options; `numbers` have the values of those called `names`."""
    if numbers is not None:
        given |= zip(names.split(), numbers.tolist(), strict=True)
    return make_options(**given)


@torch.library.custom_op("xentropy::cross_entropy", mutates_args=())
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: float | None,
    label_smoothing: float,
    z_loss: float,
    logit_scale: float,
    base: float | None,
    n_threads: int | None,
    dtype: torch.dtype,
    names: str = "",
    numbers: Tensor | None = None,
) -> Tensor:
    """The loss, of type `dtype`. The options called `names` have the values in `numbers`."""
    options = _options(
        names,
        numbers,
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        base=base,
        n_threads=n_threads,
    )
    tensors = logits, target, weight, sample_weight
    return loss_tensor(compute(False, tensors, options), dtype).contiguous()


@cross_entropy.register_fake
def _(logits, target, weight, sample_weight, axis, ignore_index, reduction, *others):
    dtype = next(each for each in others if isinstance(each, torch.dtype))
    if reduction != "none":
        return logits.new_empty((), dtype=dtype)
    rows = list(logits.shape)
    del rows[axis if len(rows) > 1 else 0]
    return logits.new_empty(rows, dtype=dtype)


@torch.library.custom_op("xentropy::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    upstream: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: float | None,
    label_smoothing: float,
    z_loss: float,
    logit_scale: float,
    base: float | None,
    n_threads: int | None,
    names: str = "",
    numbers: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits; `upstream` is the one in the loss."""
    options = _options(
        names,
        numbers,
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        base=base,
        n_threads=n_threads,
    )
    gradient = torch.empty_like(logits)
    tensors = logits, target, weight, sample_weight
    compute(True, tensors, options, upstream, gradient)
    return gradient


@cross_entropy_backward.register_fake
def _(upstream, logits, *others):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    logits, target, weight, sample_weight, *options, _, names, numbers = inputs
    ctx.save_for_backward(logits, target, weight, sample_weight, numbers)
    ctx.options = *options, names


def _backward(ctx, upstream):
    *tensors, numbers = ctx.saved_tensors
    gradient = cross_entropy_backward(upstream, *tensors, *ctx.options, numbers)
    return gradient, *[None] * (5 + len(ctx.options))


cross_entropy.register_autograd(_backward, setup_context=_setup_context)


def one_by_one(operator):
    """The rule of vmap, since torch 2.5: a call for each element of the batch."""

    def rule(info, in_dims, *arguments):
        results = []
        for i in range(info.batch_size):
            pairs = zip(arguments, in_dims, strict=True)
            results.append(operator(*(a if d is None else a.select(d, i) for a, d in pairs)))
        if isinstance(results[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(results), 0

    if hasattr(operator, "register_vmap"):
        operator.register_vmap(rule)


one_by_one(cross_entropy)
one_by_one(cross_entropy_backward)


def backward(upstream, tensors, options):
    """The gradient in the logits where `upstream` is a batch under vmap: exact, each by itself."""
    flat = (getattr(options, name) for name in Options.NAMES if name != "softcap")
    return cross_entropy_backward(upstream, *tensors, *flat, **given_numbers(options, SOFTCAP))
