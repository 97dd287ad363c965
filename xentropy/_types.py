"""Types that several modules share, for checkers of types: nothing imports this at run time."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

Number: TypeAlias = float | np.floating[Any] | np.integer[Any]

# bfloat16, of which NumPy's stubs do not know, counts as one of these.
FloatArray: TypeAlias = NDArray[np.floating[Any]]
# One value a row. A single row has a scalar of NumPy, which has the interface of an array.
Rows: TypeAlias = FloatArray
Loss: TypeAlias = float | Rows
Numbers: TypeAlias = NDArray[Any]  # the same of real or complex numbers

Axes: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None
ToOneNumber: TypeAlias = Literal["mean", "sum"]
NoReduction: TypeAlias = Literal["none"]


class Divergence(TypedDict, total=False):
    """What `kl_divergence` shares with the cross entropy, but for the reduction."""

    axis: SupportsIndex
    base: Number | None
    n_threads: SupportsIndex | None
    target_logits: bool


class Terms(TypedDict, total=False):
    """What a loss is made of: options of every cross entropy, but for the reduction."""

    sample_weight: ArrayLike | None
    ignore_index: SupportsIndex
    normalizer: Number | None
    empty_mean: Number
    label_smoothing: Number
    z_loss: Number
    logit_scale: Number
    softcap: Number | None
    base: Number | None


class Formula(Terms, total=False):
    """Options of the reference's cross entropy, but for the reduction."""

    axis: SupportsIndex


class Options(Formula, total=False):
    """Options of `cross_entropy`, but for the reduction."""

    n_threads: SupportsIndex | None


class Upstream(TypedDict, total=False):
    """The upstream gradient."""

    grad_output: ArrayLike | None


class GradientFormula(Formula, Upstream, total=False):
    """Options of the reference's `cross_entropy_with_grad`, but for the reduction."""


class GradientOptions(Options, Upstream, total=False):
    """Options of `cross_entropy_with_grad`, but for the reduction."""

    out: NDArray[Any] | None


class LinearOptions(Terms, total=False):
    """Options of `linear_cross_entropy`, but for the reduction."""

    linear_bias: ArrayLike | None
    weight: ArrayLike | None
    logits_bytes: SupportsIndex | None
    n_threads: SupportsIndex | None


class LinearGradientOptions(LinearOptions, Upstream, total=False):
    """Options of `linear_cross_entropy_with_grad`, but for the reduction."""

    out: tuple[NDArray[Any] | None, ...] | Mapping[str, NDArray[Any] | None] | None
    wanted: Collection[str]


class Distillation(TypedDict, total=False):
    """Options of `distillation_loss`, but for the reduction."""

    teacher_log_probs: ArrayLike | None
    teacher_index: ArrayLike | None
    missing: str
    beta: Number
    temperature: Number
    sample_weight: ArrayLike | None
    normalizer: Number | None
    empty_mean: Number
    axis: SupportsIndex
    n_threads: SupportsIndex | None


class DistillationGradient(Distillation, Upstream, total=False):
    """Options of `distillation_loss_with_grad`, but for the reduction and `teacher_grad`."""

    out: NDArray[Any] | None
