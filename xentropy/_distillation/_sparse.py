"""Distillation from a teacher that gives the log-probabilities of some classes of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _kernels
from ._call import Call, Few, without

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = "tail", "zero", "renormalize"
SPARE = 0.01  # by which rounded probabilities may exceed 1 in all
LEAST_SHARE = 1e-290  # of P in a mixture: the kernel takes beta = 0 as KL(P || S)


def computed(with_grad: bool, call: Call, index: Any, missing: Any) -> Any:
    """The loss, or with_grad (loss, gradient)."""
    if not isinstance(missing, str) or missing not in MISSING:
        raise ValueError(f"missing = {missing!r} is not one of {', '.join(map(repr, MISSING))}")
    call, few = _checked(call, index, missing)
    if missing != "zero":
        return call.compute(with_grad, few)
    return _unnormalized(with_grad, call, few)


def _checked(call: Call, index: Any, missing: str) -> tuple[Call, Few]:
    """The arguments as the kernels take them, or the error of one."""
    log_probs = _check.float_array(call.teacher, "teacher_log_probs")
    classes = _check.as_array(index, "teacher_index")
    if classes.dtype.kind not in "iu":
        raise _check.wrong_type(index, classes, "teacher_index", "integers (classes)")
    call = call.checked(sparse=True)
    shape, axis = call.logits.shape, call.options.axis
    k = log_probs.shape[axis] if log_probs.ndim == len(shape) else 1
    wanted = (*shape[:axis], min(max(k, 1), shape[axis]), *shape[axis + 1 :])
    _check.same_shape(log_probs, wanted, "teacher_log_probs", "some classes a row")
    _check.same_shape(classes, wanted, "teacher_index", "one for each log-probability")
    counted = np.ones(without(shape, axis), bool) if call.weights is None else call.weights != 0
    counted = counted.reshape(-1, 1)
    classes = np.moveaxis(classes, axis, -1).reshape(-1, k)
    classes = np.where(counted, classes, np.arange(k).astype(classes.dtype))
    _check_classes(classes, shape, axis)
    given = np.ascontiguousarray(np.moveaxis(log_probs, axis, -1), np.float64).reshape(-1, k)
    given = np.where(counted, given, 0.0)
    rest = np.full((len(given), 1), -np.inf)
    if missing == "tail" and k < shape[axis]:
        rest = _rest(given, counted, without(shape, axis))
    both = np.concatenate([given, rest], axis=1)
    return call, Few(np.ascontiguousarray(both), np.ascontiguousarray(classes, np.int64))


def _check_classes(classes: NDArray[Any], shape: tuple[int, ...], axis: int) -> None:
    """Raise for a class out of range, or one that a row has twice."""
    rows = without(shape, axis)
    wrong = np.argwhere((classes < 0) | (classes >= shape[axis]))
    if len(wrong):
        row, at = wrong[0]
        place = [*map(int, np.unravel_index(row, rows))] if rows else []
        place.insert(axis, int(at))
        raise IndexError(
            f"teacher_index[{', '.join(map(str, place))}] = {classes[row, at]} is out of range for "
            f"{shape[axis]} classes"
        )
    ordered = np.sort(classes, axis=1)
    twice = np.argwhere(ordered[:, 1:] == ordered[:, :-1])
    if len(twice):
        row, at = twice[0]
        raise ValueError(
            f"teacher_index has class {ordered[row, at]} twice in row {_row(row, rows)}"
        )


def _rest(
    given: NDArray[np.float64], counted: NDArray[np.bool], rows: tuple[int, ...]
) -> NDArray[np.float64]:
    """log(1 - the probabilities of each row). More than 1 in all: an error, but for rounding."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = np.exp(given).sum(axis=1, keepdims=True)
        wrong = np.flatnonzero(counted & (total > 1 + SPARE))
        if len(wrong):
            raise ValueError(
                f"teacher_log_probs: the probabilities of row {_row(wrong[0], rows)} add up to "
                f"{total[wrong[0], 0]:.4g}; are these logits? log_softmax makes log-probabilities"
            )
        return np.log1p(-np.minimum(total, 1.0))


def _row(number: Any, rows: tuple[int, ...]) -> str:
    return ", ".join(str(int(i)) for i in np.unravel_index(number, rows or (1,)))


def _unnormalized(with_grad: bool, call: Call, few: Few) -> Any:
    """The loss where nothing takes the place of the other classes: the teacher has Z < 1 in all.

    With T = Z P, and for 0 < beta < 1 the mixture M = w N, w = 1 - beta + beta Z, in which P has
    the share b = beta Z / w, the losses J_b of P are those of T but for factors and constants::

        beta = 0    Z (J_0 + log Z)
        beta = 1    J_1 - log Z
        between     w J_b + beta Z log Z - w log w

    Without any mass (Z = 0) a row has the constant alone, which for beta = 1 is inf.
    """
    beta = call.beta
    z, log_z = _masses(few.log_probs)
    none = np.isneginf(log_z)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = 1 - beta + beta * z
        z_log_z = np.where(z > 0, z * log_z, 0.0)
        shares = np.full_like(z, beta)
        if beta == 0:  # a Z that underflows is not 0, and times inf is inf
            factor, constant = np.maximum(z, np.finfo(z.dtype).tiny), z_log_z
        elif beta == 1:
            factor, constant = np.ones_like(z), -log_z
        else:
            factor, constant = w, beta * z_log_z - w * np.log(w)
            shares = np.maximum(beta * z / w, LEAST_SHARE)
        shares[none] = LEAST_SHARE  # of any P
        given = np.where(none[:, None], 0.0, few.log_probs)
        few = Few(given, few.classes, np.stack([shares, np.log(shares)], axis=1))
    return _combined(with_grad, call, few, factor, constant)


def _masses(log_probs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum of the probabilities of each row, which may underflow, and its logarithm."""
    with np.errstate(divide="ignore", invalid="ignore"):
        top = log_probs.max(axis=1)
        top = np.where(np.isneginf(top), 0.0, top)
        log_z = top + np.log(np.exp(log_probs - top[:, None]).sum(axis=1))
    return np.exp(log_z), log_z


def _combined(
    with_grad: bool, call: Call, few: Few, factor: NDArray[Any], constant: NDArray[Any]
) -> Any:
    """factor * J + constant of every row, weighted and reduced."""
    options, axis = call.options, call.options.axis
    shape = without(call.logits.shape, axis)
    weights = np.ones(len(factor)) if call.weights is None else call.weights.reshape(-1)
    divisor = 1.0
    if options.reduction == "mean":
        divisor = weights.sum() if options.normalizer is None else options.normalizer
    upstream = 1.0 if call.upstream is None else np.asarray(call.upstream, np.float64)
    upstream = np.broadcast_to(upstream, shape).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        upstream = np.where(np.isposinf(constant), np.nan, upstream * weights * factor / divisor)
        upstream = np.where(weights != 0, upstream, 0.0)
    named = {name: getattr(options, name) for name in ("axis", "logit_scale", "n_threads")}
    plain = call._replace(
        options=_kernels.make_options(reduction="none", **named),
        upstream=upstream.reshape(shape) if shape else float(upstream[0]),
        weights=(weights != 0).astype(np.float64).reshape(shape),
    )
    found = plain.compute(with_grad, few)
    losses, grad = found if with_grad else (found, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.asarray(losses, np.float64).reshape(-1) * factor + constant
        each = np.where(weights != 0, weights * each, 0.0)
        if options.reduction == "none":
            dtype = np.float64 if call.logits.dtype.itemsize == 8 else np.float32
            loss: Any = each.astype(dtype).reshape(shape)[()]
        else:
            loss = float(np.float64(each.sum()) / divisor)
    return (loss, grad) if with_grad else loss
