"""The loss of distillation, with gradients in student and teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .. import _check
from .._distillation._call import TEACHERS, one_teacher, teacher_hint
from ._arrays import BITS16, FLOATS
from ._distillation_operator import NUMBERS, Options, by_torch, checked_numbers
from ._distillation_operator import eager_distillation_loss as operator
from ._operator import given_numbers
from ._refusals import in_torchs_words, no_tensor
from ._routing import PLAIN

TRACED = {*PLAIN, FakeTensor}

Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # teacher_index, sample_weight last


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    teacher_log_probs: Tensor | None = None,
    teacher_index: Tensor | None = None,
    missing: str = "tail",
    beta: float = 0.0,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_mean: float = math.nan,
    axis: int = 1,
    n_threads: int | None = None,
) -> Tensor:
    r"""Divergence of a student's softmax from a teacher's: the loss of distillation.

    `xentropy.distillation_loss` with gradients in the logits of both. The mean and the sum compute
    the student's gradient with the loss and keep it, one tensor of the size of the logits;
    reduction="none", 16-bit logits and the teacher's gradient take another pass in backward.

    Parameters
    ----------
    logits : Tensor of float16, bfloat16, float32 or float64
        The student's: shape (C,), (N, C), or any other with the classes along `axis`.
    teacher_logits, teacher_log_probs : Tensor
        One of them: the teacher's logits, which may require a gradient, or its log-probabilities,
        to which the temperature does not apply. Shape of `logits`.
    teacher_index : Tensor of integers, optional
        With it `teacher_log_probs` are those of k classes of each row: ``torch.topk`` of the
        teacher's log-softmax, say.
    missing : {"tail", "zero", "renormalize"}
        What the teacher has elsewhere, as in `xentropy.distillation_loss`.
    beta : float in [0, 1]
        0 is KL(teacher || student), 1 KL(student || teacher), between is a generalised
        Jensen-Shannon divergence, as in TRL's GKD.
    temperature : float
        Divides the logits of both. There is no factor temperature squared.
    sample_weight : Tensor, optional
        Weight of each row, or a mask of bools; rows of weight 0 are not read.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the summed weights.
    normalizer, empty_mean, axis, n_threads
        As in `xentropy.distillation_loss`.

    Returns
    -------
    Tensor
        Shape () for "mean" and "sum", for "none" one loss a row, in nats. The promoted dtype of
        both; float32 for 16-bit tensors under autocast.

    Raises
    ------
    TypeError, ValueError
        As `xentropy.distillation_loss` raises them.

    Notes
    -----
    torch.compile and torch.export keep the operators ``torch.ops.xentropy.distillation_loss`` and
    ``distillation_loss_backward``. A beta, temperature or normalizer that changes from step to step
    is compiled three times at most: as a constant, for any value, and once more at its default. A
    derivative of the gradient (create_graph), other devices, tensor subclasses and transforms of
    torch.func take torch's own operations.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import distillation_loss
    >>> student = torch.zeros(1, 2, requires_grad=True)
    >>> loss = distillation_loss(student, torch.tensor([[20.0, 0.0]]))
    >>> loss.backward()
    >>> f"{loss.item():.4f}", [f"{g:.4f}" for g in student.grad[0].tolist()]
    ('0.6931', ['-0.5000', '0.5000'])
    """
    teachers = dict(zip(TEACHERS, (teacher_logits, teacher_log_probs), strict=True))
    teacher, name = one_teacher(teachers)
    _check_tensors(logits, teacher, name, teacher_index, sample_weight)
    scaled = name == TEACHERS[0]
    given = axis, reduction, beta, temperature, scaled, missing, normalizer, n_threads
    options = _options(given, logits)
    if teacher_index is None:
        hint = teacher_hint(tuple(teacher.shape), tuple(logits.shape), options.axis, name)
        _check.same_shape(teacher, logits.shape, name, "as the logits", hint)
    loss = _routed((logits, teacher, teacher_index, sample_weight), options)
    if empty_mean != empty_mean:
        return loss
    _check.empty_mean(empty_mean, reduction)
    if normalizer is not None:
        return loss
    rows = logits.select(options.axis, 0)
    counted = torch.ones_like(rows) if sample_weight is None else sample_weight
    return torch.where((counted != 0).any(), loss, empty_mean)


def _check_tensors(
    logits: Tensor, teacher: Tensor, name: str, index: Tensor | None, weights: Tensor | None
) -> None:
    """Raise for what is no floating tensor, or no tensor."""
    for what, tensor in (("logits", logits), (name, teacher)):
        if not isinstance(tensor, Tensor):
            raise no_tensor(what, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{what} must be floating, not {tensor.dtype}")
    for what, other in (("teacher_index", index), ("sample_weight", weights)):
        if other is not None and not isinstance(other, Tensor):
            raise no_tensor(what, other)
    if logits.dim() == 0:
        raise ValueError("logits must have a class axis, but is a scalar")


def _options(given: tuple, logits: Tensor) -> Options:  # type: ignore[type-arg]
    """The options; numbers that may change in a compiled graph are checked there."""
    axis, reduction, beta, temperature, scaled, missing, normalizer, n_threads = given
    for what, number in zip(NUMBERS, (beta, temperature, normalizer), strict=True):
        if isinstance(number, Tensor):
            raise TypeError(f"{what} must be a number, not a tensor")
    dims = logits.dim()
    axis = 0 if axis == 1 and dims == 1 else _check.integer(axis, "axis")
    if not -dims <= axis < dims:
        raise ValueError(f"axis = {axis} is out of range for logits of shape {tuple(logits.shape)}")
    return Options(
        axis % dims,
        _check.reduction(reduction),
        beta,
        temperature,
        scaled,
        missing,
        normalizer,
        _check.n_threads(n_threads),
    )


def _routed(tensors: Tensors, options: Options) -> Tensor:
    """By the operator, or in torch's operations where that cannot be."""
    logits, teacher, _, _ = tensors
    dtype = torch.promote_types(logits.dtype, teacher.dtype)
    device = logits.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.promote_types(dtype, torch.float32)
    by_operator = _by_operator(tensors, options)
    numbers: dict[str, Any] = {"names": "", "numbers": None}
    if by_operator and is_compiling():
        numbers = given_numbers(options, NUMBERS)
        options = options._replace(**NUMBERS)
    else:
        options = checked_numbers(options)
    if not by_operator:
        return by_torch(*tensors, options).to(dtype)
    keeps = options.reduction != "none" and not (is_compiling() and logits.dtype in BITS16)
    keeps = keeps and logits.requires_grad and torch.is_grad_enabled()
    try:
        return operator(*tensors, *options, dtype, keeps, *numbers.values())[0]
    except (TypeError, ValueError) as error:
        raise type(error)(in_torchs_words(error)) from error


def _by_operator(tensors: Tensors, options: Options) -> bool:
    """Can the operator compute this call, with all gradients that are required?"""
    logits, teacher, _, weights = tensors
    kinds = TRACED if is_compiling() else PLAIN
    for tensor in (t for t in tensors if t is not None):
        if type(tensor) not in kinds or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if not is_compiling() and _get_tracing_state() is not None:
        return False
    derived = (weights,) if options.scaled else (weights, teacher)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in derived):
        return False
    return logits.dtype in FLOATS and teacher.dtype in FLOATS
