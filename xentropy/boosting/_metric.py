"""The loss as an evaluation metric."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, overload

from .. import _api, _check
from .._kernels import make_options
from ._arguments import batch
from ._catboost import CatBoostLogloss

KINDS = ("xgboost", "lightgbm", "catboost")


@overload
def multiclass_logloss(
    kind: Literal["xgboost", "lightgbm"], *, n_threads: SupportsIndex | None = None
) -> MulticlassLogloss: ...
@overload
def multiclass_logloss(
    kind: Literal["catboost"], *, n_threads: SupportsIndex | None = None
) -> CatBoostLogloss: ...
def multiclass_logloss(
    kind: str, *, n_threads: SupportsIndex | None = None
) -> MulticlassLogloss | CatBoostLogloss:
    r"""A metric for evaluation and early stopping: the weighted mean of the loss, in nats.

    .. math:: \frac{\sum_i v_i (\mathrm{lse}(x_i) - x_{i t_i})}{\sum_i v_i}

    computed in float64 from the logits x that a *custom* objective has for predictions. (To a
    built-in objective, XGBoost and LightGBM hand over probabilities: it has metrics of its own.)

    Parameters
    ----------
    kind : {"xgboost", "lightgbm", "catboost"}
        The library that calls it.
    n_threads : int, optional
        At most so many threads for the kernel; without it see `set_num_threads`.

    Returns
    -------
    MulticlassLogloss or CatBoostLogloss
        * "xgboost": `custom_metric` of `xgboost.train`, `eval_metric` of `XGBClassifier`;
        * "lightgbm": `feval` of `lightgbm.train`, `eval_metric` of `LGBMClassifier.fit`, whose
          own `multi_logloss` takes the logits of a custom objective for probabilities:
          ``metric="None"`` keeps it from being evaluated, and stopped by, besides;
        * "catboost": `eval_metric`, together with `classes_count`: without it CatBoost takes
          a model with an objective and a metric of one's own for one of a single output.

    Raises
    ------
    ValueError
        Another kind.

    Examples
    --------
    >>> import numpy as np
    >>> from xentropy.boosting import multiclass_logloss
    >>> metric = multiclass_logloss("lightgbm")
    >>> metric(np.array([0.0]), np.array([[20.0, 0.0]]))
    ('multiclass_logloss', 2.061153620314381e-09, False)
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not one of {', '.join(KINDS)}")
    threads = _check.n_threads(n_threads)
    return CatBoostLogloss(threads) if kind == "catboost" else MulticlassLogloss(kind, threads)


class MulticlassLogloss:
    """The metric that `multiclass_logloss` returns for XGBoost and LightGBM; can be pickled."""

    __name__ = "multiclass_logloss"  # what XGBClassifier calls it

    def __init__(self, kind: str, n_threads: int | None) -> None:
        self.kind = kind
        self.n_threads = n_threads

    def __repr__(self) -> str:
        return f"multiclass_logloss({self.kind!r})"

    def __call__(
        self, first: Any, second: Any, sample_weight: Any = None
    ) -> float | tuple[str, float] | tuple[str, float, bool]:
        """Called as an objective is, see `MulticlassObjective`.

        Returns
        -------
        tuple or float
            (name, loss, False) for LightGBM: a higher loss is not better. (name, loss) for
            XGBoost, and the loss alone for XGBClassifier. The mean over weights that are
            all 0 is nan.

        Raises
        ------
        ValueError
            Logits that are not (N, K) with K > 1; labels that are not integers, one a row.
        IndexError
            A label that is not in [0, K).
        """
        logits, labels, weight = batch(first, second, sample_weight)
        options = make_options(n_threads=self.n_threads)
        loss = _api.checked_cross_entropy(
            False, logits, labels, None, weight, options, float64=True
        )
        if self.kind == "lightgbm":
            return self.__name__, loss, False
        return (self.__name__, loss) if hasattr(second, "get_label") else loss
