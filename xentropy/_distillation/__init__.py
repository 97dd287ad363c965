"""The loss of distillation: definition, parameters and errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, Unpack, overload

from ._call import distil

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._types import (
        Distillation,
        DistillationGradient,
        FloatArray,
        Loss,
        NoReduction,
        Number,
        Rows,
        ToOneNumber,
    )


@overload
def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[Distillation],
) -> float: ...
@overload
def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    reduction: NoReduction,
    **options: Unpack[Distillation],
) -> Rows: ...
@overload
def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    reduction: str,
    **options: Unpack[Distillation],
) -> Loss: ...
def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    teacher_log_probs: ArrayLike | None = None,
    teacher_index: ArrayLike | None = None,
    missing: str = "tail",
    beta: Number = 0.0,
    temperature: Number = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    axis: SupportsIndex = 1,
    n_threads: SupportsIndex | None = None,
) -> Loss:
    r"""Divergence of a student's softmax from a teacher's: the loss of distillation.

    For one row with the student :math:`S = \mathrm{softmax}(\text{logits} / \tau)`, the teacher
    :math:`T = \mathrm{softmax}(\text{teacher\_logits} / \tau)` and
    :math:`M = (1 - \beta) S + \beta T`:

    .. math:: \ell = \begin{cases}
              \mathrm{KL}(T \Vert S) = \sum_c T_c \ln (T_c / S_c) & \beta = 0 \\
              \mathrm{KL}(S \Vert T) = \sum_c S_c \ln (S_c / T_c) & \beta = 1 \\
              \beta \, \mathrm{KL}(T \Vert M) + (1 - \beta) \, \mathrm{KL}(S \Vert M)
              & \text{between} \end{cases}

    Every term of the sums is taken plus the difference of its two probabilities, which makes it
    non-negative: no loss is negative, and it has its digits also where student and teacher almost
    agree. There is no factor :math:`\tau^2`: multiply by it to keep the gradient's size the same
    for all temperatures, as Hinton et al. recommend.

    Parameters
    ----------
    logits : array_like of float16, bfloat16, float32 or float64
        The student's: shape (N, C), (N, C, d1, ...) or any other with the classes along `axis`;
        (C,) is a single row.
    teacher_logits : array_like of float16, bfloat16, float32 or float64
        The teacher's, shape of the logits.
    teacher_log_probs : array_like, optional
        In the place of `teacher_logits`: the teacher's log-probabilities, to which the temperature
        does not apply. What they add up to beside 1 counts as rounding: T is their softmax. With
        `teacher_index` those of k classes a row.
    teacher_index : array_like of integers, optional
        The classes that `teacher_log_probs` are of, in any order: the shape of both is that of the
        logits, with k in the place of the number of classes. Top-k logits of an inference server,
        say.
    missing : {"tail", "zero", "renormalize"}
        What T has outside of these classes. "tail": the rest of 1, which is compared with the
        student's rest as one more class. "zero": nothing, so T does not add up to 1, and the loss
        may be negative. "renormalize": nothing, and T is divided by its sum. Both make the loss of
        beta = 1 infinite.
    beta : float in [0, 1]
        :math:`\beta`, as in TRL's GKD: 0 covers all that the teacher does (forward KL), 1 seeks
        its modes (reverse KL), between is a generalised Jensen-Shannon divergence.
    temperature : float in [1e-30, 1e30]
        :math:`\tau`: divides the logits of both.
    sample_weight : array_like, optional
        Weight of each row, shape of the loss; rows of weight 0 are not read. A mask of bools will
        do.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the summed weights (N without).
    normalizer, empty_mean, axis, n_threads
        As for `cross_entropy`.

    Returns
    -------
    float or ndarray
        A float for "mean" and "sum"; for "none" one loss a row, float32 (float64 for float64
        logits), in nats.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; two teachers or none; teacher and student of different shapes; a
        class that a row has twice; probabilities of a "tail" that add up to more than 1.
    IndexError
        A class of `teacher_index` is out of range.

    Notes
    -----
    Computed in float32 (float64 if one of the arrays is float64), and added up in float64.

    -inf among the logits is probability 0. A class that the teacher has and the student excludes
    makes the loss inf for beta = 0; one that the student has and the teacher excludes, for
    beta = 1; the rest of a "tail" is such a class. A row with nan, +inf or nothing but -inf has
    loss nan. If that row is `teacher_log_probs` of some classes, all of T is in its "tail"; with
    "zero" T is nothing, and the loss 0 for beta = 0, inf for 1 and between
    :math:`-(1 - \beta) \ln (1 - \beta)`.

    References
    ----------
    Hinton et al., arXiv:1503.02531; generalised Jensen-Shannon: Agarwal et al., arXiv:2306.13649.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> student, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    >>> round(xe.distillation_loss(student, teacher), 4), round(0.25 * np.log(2), 4)
    (0.1733, np.float64(0.1733))
    >>> sparse = {"teacher_log_probs": np.log([[0.5]]), "teacher_index": [[1]]}
    >>> round(xe.distillation_loss(student, **sparse), 4), round(np.log(4 / 3) / 2, 4)
    (0.1438, np.float64(0.1438))
    >>> close = student + np.array([1e-6, 0.0, 0.0])
    >>> f"{xe.distillation_loss(student, close):.4e}"
    '1.2500e-13'
    """
    return distil(False, **locals())


@overload
def distillation_loss_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    teacher_grad: Literal[False] = False,
    reduction: str = "mean",
    **options: Unpack[DistillationGradient],
) -> tuple[Loss, FloatArray]: ...
@overload
def distillation_loss_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    teacher_grad: Literal[True],
    reduction: str = "mean",
    **options: Unpack[DistillationGradient],
) -> tuple[Loss, FloatArray, FloatArray]: ...
def distillation_loss_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike | None = None,
    *,
    teacher_log_probs: ArrayLike | None = None,
    teacher_index: ArrayLike | None = None,
    missing: str = "tail",
    beta: Number = 0.0,
    temperature: Number = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    axis: SupportsIndex = 1,
    n_threads: SupportsIndex | None = None,
    grad_output: ArrayLike | None = None,
    out: FloatArray | None = None,
    teacher_grad: bool = False,
) -> tuple[Any, ...]:
    r"""Loss and gradient in the logits of `distillation_loss`, in one call.

    With S, T and M as there, before weights and reduction:

    .. math:: \frac{\partial \ell}{\partial \text{logits}_c} = \frac1\tau \begin{cases}
              S_c - T_c & \beta = 0 \\
              S_c \, (\ln (S_c / T_c) - \ell) & \beta = 1 \\
              (1 - \beta) \, S_c \, (\ln (S_c / M_c) - \mathrm{KL}(S \Vert M)) & \text{between}
              \end{cases}

    Parameters
    ----------
    logits, teacher_logits, teacher_log_probs, teacher_index, missing, beta, temperature
        As for `distillation_loss`.
    sample_weight, reduction, normalizer, empty_mean, axis, n_threads
        As for `distillation_loss`.
    grad_output : float or array_like, optional
        Upstream gradient: a number, or one per row for reduction="none".
    out : ndarray, optional
        Array for the gradient, shape and dtype of the logits; ``out=logits`` works in place.
    teacher_grad : bool, default False
        Also return the gradient in `teacher_logits`: the loss is symmetric, and this the gradient
        of ``distillation_loss(teacher_logits, logits, beta=1 - beta)``. It takes as long again.

    Returns
    -------
    loss : float or ndarray
        As `distillation_loss` returns it.
    grad : ndarray
        Shape and dtype of the logits.
    teacher_gradient : ndarray
        Shape and dtype of `teacher_logits`; with `teacher_grad` only.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `distillation_loss`; `out` of another shape or dtype, or overlapping another
        argument.

    Notes
    -----
    An entry is off by at most 8 units in the last place of the largest entry of its row, however
    close student and teacher are; if all entries are smaller than that, by eps^2 (1 - max S), with
    the eps of the type. The gradients of a row add up to 0 to that precision. Where the
    loss is inf for beta = 1 they are nan; for beta = 0 they are what the formula says, and 0 in a
    "tail" that the student excludes.

    Memory holds the gradient, and two rows of scratch for each thread.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> student, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    >>> loss, grad = xe.distillation_loss_with_grad(student, teacher)
    >>> grad.round(4)
    array([[ 0.25, -0.25,  0.  ]])
    """
    return distil(True, **locals())
