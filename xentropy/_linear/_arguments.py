"""Checks of the linear calls' arguments: every error names the argument, its value, the remedy."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _kernels
from .._kernels import Options
from ._plan import LOGITS_BYTES
from ._rows import Array

PARAMETERS = ("input", "linear_weight", "linear_bias")


class LinearGradients(NamedTuple):
    """Gradients of a linear cross entropy; None for what was not wanted."""

    input: Array | None = None
    linear_weight: Array | None = None
    linear_bias: Array | None = None


class Arguments(NamedTuple):
    """The arguments of a call, checked and converted."""

    input: Array
    linear_weight: Array
    linear_bias: Array | None
    target: Array
    weight: Array | None
    sample_weight: Array | None
    grad_output: float | Array | None
    options: Options
    empty_mean: float
    logits_bytes: int
    out: Any  # as given
    wanted: tuple[str, ...]

    @classmethod
    def of(
        cls,
        layer: tuple[Array, Array, Array | None],
        index: Array,
        options: Options,
        logits_bytes: Any,
        out: Any,
        wanted: Any,
    ) -> "Arguments":
        """Those of selected log-probabilities, which have no weights: `index` is the target."""
        names = _wanted(wanted, layer[2] is not None)
        room = _logits_bytes(logits_bytes)
        return cls(*layer, index, None, None, None, options, math.nan, room, out, names)

    @property
    def dtype(self) -> np.dtype:
        """The products' dtype."""
        wide = 8 in (self.input.dtype.itemsize, self.linear_weight.dtype.itemsize)
        return np.dtype(np.float64 if wide else np.float32)


def checked(
    *,
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any,
    weight: Any,
    sample_weight: Any,
    logits_bytes: Any,
    empty_mean: Any = math.nan,
    grad_output: Any = None,
    out: Any = None,
    wanted: Any = (),
    **options: Any,
) -> Arguments:
    """The arguments of a call, or the error for the first that is wrong; but labels and `out`."""
    input, linear_weight, linear_bias = checked_layer(input, linear_weight, linear_bias)
    classes, row_shape = len(linear_weight), input.shape[:-1]
    checked_options = _check.options(_kernels.make_options(**options), -1)
    return Arguments(
        input,
        linear_weight,
        linear_bias,
        _check.target(target, (*row_shape, classes), row_shape, of_layer=True),
        _check.weight(weight, classes),
        _check.sample_weight(sample_weight, row_shape),
        _check.grad_output(grad_output, checked_options.reduction, row_shape),
        checked_options,
        _empty_mean(empty_mean, checked_options.reduction),
        _logits_bytes(logits_bytes),
        out,
        _wanted(wanted, linear_bias is not None),
    )


def checked_layer(
    input: Any, linear_weight: Any, linear_bias: Any
) -> tuple[Array, Array, Array | None]:
    """The arrays of the linear layer and its input."""
    input = _check.float_array(input, "input")
    linear_weight = _layer_weight(linear_weight, input)
    if linear_bias is not None:
        linear_bias = _check.float_array(linear_bias, "linear_bias")
        _check.same_shape(linear_bias, (len(linear_weight),), "linear_bias", "one per class")
    return input, linear_weight, linear_bias


def _layer_weight(value: Any, input: Array) -> Array:
    """The weight of the linear layer, (classes, features of the input)."""
    if input.ndim == 0:
        raise ValueError("input must have an axis of features, but is a scalar")
    array = _check.float_array(value, "linear_weight")
    if array.ndim != 2:
        raise ValueError(f"linear_weight has shape {array.shape}, not (classes, features)")
    if array.shape[1] != input.shape[-1]:
        hint = " (is it transposed?)" if len(array) == input.shape[-1] else ""
        raise ValueError(
            f"linear_weight has shape {array.shape}, not (classes, {input.shape[-1]}), "
            f"for input of shape {input.shape}{hint}"
        )
    if len(array) == 0:
        raise ValueError(f"linear_weight of shape {array.shape} has no classes")
    return array


def _logits_bytes(value: Any) -> int:
    if value is None:
        return LOGITS_BYTES
    number = _check.integer(value, "logits_bytes")
    if number < 1:
        raise ValueError(f"logits_bytes = {number} must be positive")
    return number


def _empty_mean(value: Any, reduction: str) -> float:
    return math.nan if value is math.nan else float(_check.empty_mean(value, reduction))


def _wanted(wanted: Any, has_bias: bool) -> tuple[str, ...]:
    """The wanted gradients, in the order of `PARAMETERS`; none of a bias that is not there."""
    if isinstance(wanted, str) or not isinstance(wanted, Collection):
        raise TypeError(f"wanted must be a collection of names, such as ('input',), not {wanted!r}")
    for name in wanted:
        if name not in PARAMETERS:
            raise ValueError(f"wanted holds {name!r}, which is not one of {', '.join(PARAMETERS)}")
    names = PARAMETERS if has_bias else PARAMETERS[:2]
    return tuple(name for name in names if name in wanted)


def gradients(arguments: Arguments) -> dict[str, Array]:
    """The arrays of the wanted gradients: those of `out`, checked, or fresh ones."""
    given, wanted = _given(arguments.out), arguments.wanted
    for name in given:
        if name not in wanted:
            hint = "" if getattr(arguments, name) is not None else "; there is no such argument"
            raise ValueError(f"out has {name}, but wanted are {', '.join(wanted) or 'none'}{hint}")
    for name, array in given.items():
        _check_gradient(f"out.{name}", array, getattr(arguments, name), f"as {name}")
        for other in (*PARAMETERS, "target", "weight", "sample_weight", "grad_output"):
            value = getattr(arguments, other)
            if isinstance(value, np.ndarray) and _check.shares_memory(array, value):
                raise ValueError(f"out.{name} overlaps {other}")
    names = tuple(given)
    for k, name in enumerate(names):
        for other in names[:k]:
            if _check.shares_memory(given[name], given[other]):
                raise ValueError(f"out.{name} overlaps out.{other}")
    likes = {name: getattr(arguments, name) for name in wanted}
    return {
        name: given[name] if name in given else _kernels.empty(like.shape, like.dtype)
        for name, like in likes.items()
    }


def _given(out: Any) -> dict[str, Any]:
    """The arrays of `out` by name."""
    if out is None:
        return {}
    if isinstance(out, Mapping):
        pairs = list(out.items())
        for name, _ in pairs:
            if name not in PARAMETERS:
                raise ValueError(f"out has {name!r}, which is not one of {', '.join(PARAMETERS)}")
    elif isinstance(out, tuple):
        if len(out) != len(PARAMETERS):
            raise ValueError(f"out is a tuple of {len(out)}, not of one for each of {PARAMETERS}")
        pairs = list(zip(PARAMETERS, out, strict=True))
    else:
        raise TypeError(
            f"out must be a tuple of arrays for {', '.join(PARAMETERS)}, or a mapping from these "
            f"names, not {type(out).__name__}"
        )
    return {name: array for name, array in pairs if array is not None}


def _check_gradient(name: str, array: Any, like: Array, what: str) -> None:
    """Raise unless the array can hold the gradient: in float32 too where `like` has 16 bits."""
    dtypes = {like.dtype.name: None} | ({"float32": None} if like.dtype.itemsize == 2 else {})
    _check.writable(array, like.shape, tuple(dtypes), what, name)
