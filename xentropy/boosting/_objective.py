r"""The objectives: gradient and Hessian for XGBoost and LightGBM, for all rows at once.

Both libraries want the first and the diagonal of the second derivative, and each scales the
latter in its own way (see `multiclass_objective`).

What is exact. The kernel gives :math:`|g_t| = 1 - p_t` and :math:`|g_c| = p_c` elsewhere, to a few
units in the last place however small they are, so that :math:`h_c = |g_c| (1 - |g_c|)` at every
class. The second factor cancels where :math:`|g_c|` is almost 1, in rows that are classified
wrongly. There the Hessian is computed from the small factor: :math:`p_t = e^{-\text{loss}}` at the
target, and the sum of all other probabilities at a class that has most of the mass. Errors of
gradients are at most 4 units in the last place of float32, those of Hessians 8 + 4 loss (it is the
exponential of a rounded loss); both half a unit if the logits are float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np

from .. import _check, _kernels
from .._kernels import make_options
from ._arguments import batch
from ._catboost import CatBoostObjective

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("xgboost", "lightgbm", "exact")
LEAST_HESSIAN = np.float32(1e-16)  # XGBoost's
# Gradient, Hessian and what they are computed from stay in L2 while a chunk of rows is worked on.
CHUNK_BYTES = 1 << 18


@overload
def multiclass_objective(
    kind: Literal["xgboost", "lightgbm", "exact"] = "exact",
    *,
    n_threads: SupportsIndex | None = None,
) -> MulticlassObjective: ...
@overload
def multiclass_objective(
    kind: Literal["catboost"], *, n_threads: SupportsIndex | None = None
) -> CatBoostObjective: ...
def multiclass_objective(
    kind: str = "exact", *, n_threads: SupportsIndex | None = None
) -> MulticlassObjective | CatBoostObjective:
    """An objective for XGBoost, LightGBM or CatBoost: softmax cross-entropy of integer labels.

    Parameters
    ----------
    kind : {"xgboost", "lightgbm", "exact", "catboost"}
        Whose Hessian, with p the probability of a class, v the weight of the row, K the number
        of classes:

        * "xgboost": ``max(2 v p (1 - p), 1e-16)``, as `multi:softprob` has it up to XGBoost 3.2
          (dmlc/xgboost, src/objective/multiclass_obj.cu; #12537 makes ``|gradient|`` of it);
        * "lightgbm": ``K / (K - 1) v p (1 - p)``, Friedman's factor (Ann. Stat. 29, 2001), as
          `multiclass` has it since LightGBM 3 (src/objective/multiclass_objective.hpp, #3256);
        * "exact": ``v p (1 - p)``, the diagonal of the second derivative;
        * "catboost": all of it, ``v p_c ([c = d] - p_d)``, as `MultiClass` has it
          (catboost/private/libs/algo_helpers/error_functions.h).
    n_threads : int, optional
        At most so many threads for the kernel; without it see `set_num_threads`. CatBoost's rows
        come one by one.

    Returns
    -------
    MulticlassObjective or CatBoostObjective
        To be given as `obj` to `xgboost.train`, as `objective` to `XGBClassifier` and
        `LGBMClassifier`, in `params["objective"]` to `lightgbm.train`, as `loss_function` to
        `CatBoostClassifier`.

    Raises
    ------
    ValueError
        Another kind.

    Notes
    -----
    What an objective cannot tell the libraries, for the models of their own objectives:

    * XGBoost (`num_class` is wanted): the start, ``base_score=multiclass_base_score(...)``.
      With ``params["objective"] = "multi:softprob"`` beside `obj`, as `XGBClassifier` has it,
      a model predicts probabilities and evaluates `mlogloss`, as without it.
    * LightGBM (`num_class` is wanted): the start, `multiclass_init_score`, unless
      ``boost_from_average=False``. A model predicts logits without that start, and so do
      `predict` and `predict_proba` of `LGBMClassifier`, for any custom objective. With
      ``logits = model.predict(x, raw_score=True) + scores``, ``softmax(logits, axis=1)`` are the
      probabilities and ``model.classes_[logits.argmax(axis=1)]`` the classes; scikit-learn's
      model selection needs a `scoring` that computes them. For two classes give
      `LGBMClassifier` ``num_class=2, metric="None"``. To stop early by `multiclass_logloss`.
    * CatBoost: `learning_rate` and ``bootstrap_type="Bayesian"``, which it sets by the name of
      the loss, and ``eval_metric="MultiClass"``. It predicts probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> from xentropy.boosting import multiclass_objective
    >>> objective = multiclass_objective("exact")
    >>> grad, hess = objective(np.array([0.0]), np.array([[20.0, 0.0]], np.float32))
    >>> [f"{g:.2e}" for g in grad[0]], [f"{h:.2e}" for h in hess[0]]
    (['-2.06e-09', '2.06e-09'], ['2.06e-09', '2.06e-09'])
    """
    if kind == "catboost":
        _check.n_threads(n_threads)
        return CatBoostObjective()
    return MulticlassObjective(kind, n_threads=n_threads)


class MulticlassObjective:
    """The objective that `multiclass_objective` returns; can be pickled and copied."""

    def __init__(self, kind: str = "exact", *, n_threads: SupportsIndex | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind = {kind!r} is not one of {', '.join(KINDS)}, catboost")
        self.kind = kind
        self.n_threads: int | None = _check.n_threads(n_threads)

    def __repr__(self) -> str:
        return f"multiclass_objective({self.kind!r})"

    def __call__(
        self, first: Any, second: Any, sample_weight: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Gradient and Hessian, float32 (N, K), in the memory order of the logits.

        Called by the libraries' own interfaces as ``(logits, data)``, where data has `get_label`
        and `get_weight`, in the style of scikit-learn as ``(labels, logits[, weight])``. Logits
        are float32 (N, K) in C order from XGBoost, float64 (N, K) in Fortran order from
        LightGBM. Both store gradients and Hessians in float32, and LightGBM flattens them
        by ``ravel(order="F")``, so that results of this type and order are not copied.

        Raises
        ------
        ValueError
            Logits that are not (N, K) with K > 1; labels that are not integers, one a row.
        IndexError
            A label that is not in [0, K).
        """
        logits, labels, weight = batch(first, second, sample_weight)
        if weight is not None:  # so that products are rounded once
            weight = weight.astype(np.result_type(logits, np.float32), copy=False)
        grad = np.empty_like(logits, np.float32)
        hess = np.empty_like(grad)
        self._fill(grad, hess, logits, labels, weight)
        return grad, hess

    def _fill(self, grad, hess, logits, labels, weight):
        """Fill in gradient and Hessian, by chunks of rows whose gradients fit into the cache."""
        count, classes = logits.shape
        rows = max(1, CHUNK_BYTES // (classes * logits.itemsize))
        options = make_options(reduction="none", n_threads=self.n_threads)
        scratch = np.empty_like(logits[:rows])  # in the order of the logits
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            target = labels[part]
            place = scratch[: len(target)]
            losses, g = _kernels.compute_cross_entropy(
                True, logits[part], target, None, None, options, None, place, checked=True
            )
            v = 1.0 if weight is None else weight[part, None]
            np.multiply(g, v, out=grad[part], casting="same_kind")
            h = _diagonal(g, losses, target)
            np.multiply(h, self._factor(classes) * v, out=hess[part], casting="same_kind")
        if self.kind == "xgboost":
            np.maximum(hess, LEAST_HESSIAN, out=hess)

    def _factor(self, classes):
        """The factor of v p (1 - p) in the library's Hessian."""
        return {"xgboost": 2.0, "lightgbm": classes / (classes - 1), "exact": 1.0}[self.kind]


def _diagonal(g, losses, target):
    """p (1 - p) from the gradient p - [c = t], which is overwritten."""
    # 1. At the target the smaller of 1 - p and p: it is exact, and has the same product.
    at = np.arange(len(target)), target
    g[at] = np.minimum(-g[at], np.exp(-losses))
    # 2. Where that or p is at most a half, 1 minus it is exact to half a unit in the last place.
    h = 1 - g
    h *= g
    # 3. At another class with more than half of the mass, 1 - p is the sum of all other
    # probabilities. (The target has less than half, so that its entry of g is p.)
    rows, most = _places(g > 0.5)
    tail = g[rows]
    tail[np.arange(len(rows)), most] = 0
    h[rows, most] = g[rows, most] * tail.sum(axis=1, dtype=np.float64)
    return h


def _places(mask):
    """np.nonzero of a contiguous array of two dimensions; five times faster in one."""
    if mask.flags.c_contiguous:
        return np.divmod(np.flatnonzero(mask), mask.shape[1])
    columns, rows = np.divmod(np.flatnonzero(mask.T), mask.shape[0])
    return rows, columns
