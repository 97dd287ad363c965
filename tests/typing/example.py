"""What checkers of types are to find: the calls of a user, and the types of their results."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import xentropy as xe
from xentropy import reference
from xentropy.boosting import (
    CatBoostLogloss,
    CatBoostObjective,
    MulticlassLogloss,
    MulticlassObjective,
    multiclass_base_score,
    multiclass_init_score,
    multiclass_logloss,
    multiclass_objective,
)

Floats = NDArray[np.floating[Any]]

x = np.zeros((2, 3), np.float32)
labels = np.array([0, 2])

# A float or an array, by the reduction.
assert_type(xe.cross_entropy(x, labels), float)
assert_type(xe.cross_entropy([[0.0, 1.0]], [1], [1, 2], reduction="sum", base=2), float)
assert_type(xe.cross_entropy(x, labels, reduction="none", ignore_index=-1), Floats)
assert_type(xe.cross_entropy_with_grad(x, labels, out=x, grad_output=2), tuple[float, Floats])
assert_type(xe.cross_entropy_with_grad(x, labels, reduction="none"), tuple[Floats, Floats])
assert_type(xe.kl_divergence(xe.softmax(x, 1), x, axis=1), float)
assert_type(xe.kl_divergence(xe.softmax(x, 1), x, reduction="none"), Floats)
assert_type(xe.linear_cross_entropy(x, x, labels, linear_bias=[0, 1]), float)
assert_type(xe.linear_cross_entropy(x, x, labels, reduction="none"), Floats)
assert_type(xe.Evaluation(top=[1]).merge(xe.Evaluation()), xe.Evaluation)
assert_type(xe.Evaluation().result().perplexity, float)
assert_type(xe.PairedEvaluation().copy().result().kl_percentiles, dict[str, float])
loss, grads = xe.linear_cross_entropy_with_grad(x, x, labels, wanted=["input"], out={"input": x})
assert_type(loss, float)
assert_type(grads.linear_weight, np.ndarray[Any, np.dtype[Any]] | None)


def by_name(reduction: str) -> None:
    """A reduction that is not known here."""
    assert_type(xe.cross_entropy(x, labels, reduction=reduction), float | Floats)
    pair = xe.cross_entropy_with_grad(x, labels, reduction=reduction)
    assert_type(pair, tuple[float | Floats, Floats])
    assert_type(xe.kl_divergence(x, x, reduction=reduction), float | Floats)


assert_type(xe.softmax(x, axis=(0, 1), out=x), Floats)
assert_type(xe.log_softmax(x, n_threads=1), Floats)
assert_type(xe.entropy(x, axis=None), Floats)
assert_type(xe.logsumexp(x, 1, b=[1, 2, 3], keepdims=True), NDArray[Any])
assert_type(xe.logsumexp(x, return_sign=True), tuple[NDArray[Any], NDArray[Any]])
assert_type(xe.row_statistics(x, labels), xe.RowStatistics)
assert_type(xe.row_statistics(x).rank, NDArray[np.int64] | None)
selected = xe.selected_log_probs(x, labels)
assert_type(selected, xe.SelectedLogProbs)
saved = selected.lse, selected.log_prob, selected.entropy
assert_type(xe.selected_log_probs_grad(x, labels, *saved, [1, 2], out=x), Floats)
assert_type(xe.distillation_loss(x, x), float)
assert_type(xe.distillation_loss_with_grad(x, x, reduction="none"), tuple[float | Floats, Floats])
assert_type(xe.get_num_threads(), int)
assert_type(xe.__version__, str)

assert_type(reference.cross_entropy(x, labels), float)
assert_type(reference.cross_entropy_with_grad(x, labels, reduction="none"), tuple[Floats, Floats])
assert_type(reference.kl_divergence(x, x, reduction="none"), Floats)
assert_type(reference.cross_entropy_target_grad(x, x), Floats)

assert_type(multiclass_objective(), MulticlassObjective)
assert_type(multiclass_objective("catboost"), CatBoostObjective)
assert_type(multiclass_logloss("lightgbm", n_threads=2), MulticlassLogloss)
assert_type(multiclass_logloss("catboost"), CatBoostLogloss)
assert_type(multiclass_base_score(labels, 3), list[float])
assert_type(multiclass_init_score(labels, 3), NDArray[np.float64])

# What is wrong is found: an ignored error that is none is an error itself.
xe.cross_entropy(x, labels, smoothing=0.1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
xe.cross_entropy(x, labels, reduction=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
xe.cross_entropy(x, labels, axis=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
multiclass_objective("sklearn")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
