"""Arguments of a distillation: checked, and passed to the kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _check, _kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEACHERS = "teacher_logits", "teacher_log_probs"


class Few(NamedTuple):
    """What a teacher gives of some classes of each row, rows in C order."""

    log_probs: NDArray[np.float64]  # (R, k + 1): the last is that of all other classes
    classes: NDArray[np.int64]  # (R, k)
    betas: NDArray[np.float64] | None = None  # (R, 2): beta of each row and its logarithm


class Call(NamedTuple):
    """What the kernels take."""

    logits: Any
    teacher: Any
    beta: float
    scaled: bool  # do logit_scale's factors concern the teacher, whose logits these are?
    weights: Any
    options: _kernels.Options
    upstream: Any = None
    out: Any = None

    def checked(self, *, sparse: bool = False) -> Call:
        """The same with arguments as the kernels take them, or the error of one.

        `sparse`: the teacher gives some classes only, and is checked elsewhere.
        """
        logits = _check.logits(self.logits, " or use sample_weight")
        axis = _check.class_axis(self.options.axis, logits)
        shape = logits.shape
        row_shape = without(shape, axis)
        name = TEACHERS[not self.scaled]
        teacher = self.teacher if sparse else _teacher(self.teacher, shape, axis, name)
        weights = _check.sample_weight(self.weights, row_shape, shape[axis])
        options = _check.options(self.options, axis)
        upstream = _check.grad_output(self.upstream, options.reduction, row_shape)
        if self.out is not None:
            inputs = {name: teacher, "sample_weight": weights}
            if isinstance(upstream, np.ndarray):
                inputs["grad_output"] = upstream
            _check.out(self.out, logits, "logits", inputs)
        return Call(logits, teacher, self.beta, self.scaled, weights, options, upstream, self.out)

    def swapped(self) -> Call:
        """The same divergence with student and teacher exchanged."""
        return self._replace(logits=self.teacher, teacher=self.logits, beta=1 - self.beta, out=None)

    def compute(self, with_grad: bool, few: Few | None = None) -> Any:
        """The loss, or with_grad (loss, gradient); `few` stands in the place of the teacher."""
        result = _kernels.distillation(with_grad, *self, few)
        if result is None:
            plain = self.checked(sparse=few is not None)
            result = _kernels.distillation(with_grad, *plain, few, checked=True)
        return _check.taken(result)

    def is_empty(self) -> bool:
        """Is there a mean, and does no row count in it?"""
        if self.options.reduction != "mean" or self.options.normalizer is not None:
            return False
        weights = np.size(self.logits) if self.weights is None else self.weights
        return not np.any(weights)


def distil(
    with_grad: bool,
    *,
    logits: Any,
    beta: Any,
    sample_weight: Any,
    empty_mean: Any,
    grad_output: Any = None,
    out: Any = None,
    teacher_grad: bool = False,
    teacher_index: Any = None,
    missing: Any = "tail",
    **others: Any,
) -> Any:
    """The loss, or with_grad a tuple of the loss and the gradients."""
    if empty_mean is not math.nan:
        empty_mean = _check.empty_mean(empty_mean, others["reduction"])
    beta = _check.real_between(beta, "beta", 0, 1)
    teacher, name = one_teacher(others)
    options = options_of(**others)
    scaled = name == TEACHERS[0]
    call = Call(logits, teacher, beta, scaled, sample_weight, options, grad_output, out)
    other: tuple[Any, ...] = ()
    if _check.flag(teacher_grad, "teacher_grad"):
        if not scaled:
            raise ValueError(f"teacher_grad goes with {TEACHERS[0]}, not with {name}")
        call = call.checked()
        other = (call.swapped().compute(True)[1],)  # first, because out may be the logits
    empty = empty_mean == empty_mean and call.is_empty()
    result = computed(with_grad, call, teacher_index, missing)
    loss, *grad = result if with_grad else (result,)
    loss = empty_mean if empty else loss
    return (loss, *grad, *other) if with_grad else loss


def computed(with_grad: bool, call: Call, teacher_index: Any, missing: Any) -> Any:
    """The loss, or with_grad (loss, gradient)."""
    if teacher_index is None:
        if missing != "tail":
            raise ValueError(f"missing = {missing!r} goes with teacher_index")
        return call.compute(with_grad)
    from . import _sparse

    if call.scaled:
        raise ValueError("teacher_index goes with teacher_log_probs, not with teacher_logits")
    return _sparse.computed(with_grad, call, teacher_index, missing)


def options_of(temperature: Any, **others: Any) -> _kernels.Options:
    """The record of the options; the temperature becomes the scale of the logits."""
    low, high = _kernels.LEAST_SCALE, _kernels.LARGEST_SCALE
    scale = 1 / _check.real_between(temperature, "temperature", low, high)
    return _kernels.make_options(logit_scale=min(max(scale, low), high), **others)


def one_teacher(others: dict[str, Any]) -> tuple[Any, str]:
    """The teacher, taken from the other arguments, and the name of its argument."""
    given = {name: value for name in TEACHERS if (value := others.pop(name)) is not None}
    if len(given) != 1:
        found = "both are given" if given else "none is given"
        raise TypeError(f"a teacher is either {' or '.join(TEACHERS)}; {found}")
    [(name, teacher)] = given.items()
    return teacher, name


def _teacher(value: Any, shape: tuple[int, ...], axis: int, name: str) -> Any:
    """An array of the teacher, in the shape of the student's logits."""
    array = _check.float_array(value, name)
    hint = teacher_hint(array.shape, shape, axis, name)
    _check.same_shape(array, shape, name, "as the logits", hint)
    return array


def teacher_hint(found: tuple[int, ...], shape: tuple[int, ...], axis: int, name: str) -> str:
    """How to slice logits of different numbers of classes, if only these differ."""
    if len(found) != len(shape) or without(found, axis) != without(shape, axis):
        return ""
    more, fewer = (name, "logits")[:: 1 if found[axis] > shape[axis] else -1]
    common = min(found[axis], shape[axis])
    index = ", ".join([":"] * axis + [f":{common}"] + [":"] * (len(shape) - axis - 1))
    return f"; if the {common} classes of {fewer} come first in {more}, give {more}[{index}]"


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of the rows."""
    return shape[:axis] + shape[axis + 1 :]
