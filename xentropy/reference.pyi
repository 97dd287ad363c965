from typing import Any, Literal, SupportsIndex, Unpack, overload

from numpy.typing import ArrayLike

from ._types import (
    Axes,
    FloatArray,
    GradientFormula,
    Loss,
    NoReduction,
    Number,
    Numbers,
    Rows,
    ToOneNumber,
)

__all__: list[str]

@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: ToOneNumber = ...,
    **options: Unpack[GradientFormula],
) -> float: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: NoReduction,
    **options: Unpack[GradientFormula],
) -> Rows: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: str,
    **options: Unpack[GradientFormula],
) -> Loss: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: ToOneNumber = ...,
    **options: Unpack[GradientFormula],
) -> tuple[float, FloatArray]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: NoReduction,
    **options: Unpack[GradientFormula],
) -> tuple[Rows, FloatArray]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = ...,
    *,
    reduction: str,
    **options: Unpack[GradientFormula],
) -> tuple[Loss, FloatArray]: ...
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    **options: Unpack[GradientFormula],
) -> Loss: ...
def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    **options: Unpack[GradientFormula],
) -> tuple[Loss, tuple[FloatArray, FloatArray, FloatArray | None]]: ...
def cross_entropy_target_grad(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: Number | None = None,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    grad_output: ArrayLike | None = None,
) -> FloatArray: ...
def distillation_loss(
    logits: ArrayLike, teacher_logits: ArrayLike | None = None, **options: Any
) -> Loss: ...
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
    empty_mean: Number = ...,
    axis: SupportsIndex = 1,
    grad_output: ArrayLike | None = None,
) -> tuple[Loss, FloatArray]: ...
def softmax(x: ArrayLike, axis: Axes = None) -> FloatArray: ...
def log_softmax(x: ArrayLike, axis: Axes = None) -> FloatArray: ...
@overload
def logsumexp(
    x: ArrayLike,
    axis: Axes = None,
    b: ArrayLike | None = None,
    *,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
) -> Numbers: ...
@overload
def logsumexp(
    x: ArrayLike,
    axis: Axes = None,
    b: ArrayLike | None = None,
    *,
    keepdims: bool = False,
    return_sign: Literal[True],
) -> tuple[Numbers, Numbers]: ...
def entropy(logits: ArrayLike, *, axis: Axes = -1, base: Number | None = None) -> Rows: ...
@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: ToOneNumber = ...,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    target_logits: bool = False,
) -> float: ...
@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: NoReduction,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    target_logits: bool = False,
) -> Rows: ...
@overload
def kl_divergence(
    target: ArrayLike,
    logits: ArrayLike,
    *,
    reduction: str,
    axis: SupportsIndex = 1,
    base: Number | None = None,
    target_logits: bool = False,
) -> Loss: ...
def row_statistics(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
) -> dict[str, Any]: ...
def selected_log_probs(
    logits: ArrayLike,
    index: ArrayLike,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
) -> tuple[Rows, Rows, Rows]: ...
def selected_log_probs_grad(
    logits: ArrayLike,
    index: ArrayLike,
    grad_log_prob: ArrayLike,
    grad_entropy: ArrayLike = 0.0,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
) -> FloatArray: ...
def linear_selected_log_probs(
    input: ArrayLike,
    linear_weight: ArrayLike,
    index: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
) -> tuple[Rows, Rows, Rows]: ...
def linear_selected_log_probs_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    index: ArrayLike,
    grad_log_prob: ArrayLike,
    grad_entropy: ArrayLike = 0.0,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray | None]: ...
