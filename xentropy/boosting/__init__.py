r"""Softmax cross-entropy for gradient boosting: objectives, start scores, an evaluation metric.

`multiclass_objective` gives XGBoost, LightGBM and CatBoost the derivatives of each row's loss in
its logits (which they call margins, raw scores and approxes). What an objective cannot tell a
library are the scores it starts from: the built-in objectives of XGBoost and LightGBM start from
the classes' frequencies, and so does a custom one with `multiclass_base_score` and
`multiclass_init_score`. `multiclass_logloss` is the loss itself, to watch and to stop early by.

With p = softmax(logits), label t and row weight v:

.. math:: \ell = -v \ln p_t, \qquad
    \frac{\partial \ell}{\partial x_c} = v (p_c - [c = t]), \qquad
    \frac{\partial^2 \ell}{\partial x_c \partial x_d} = v \, p_c ([c = d] - p_d)

Nothing here imports one of the libraries.
"""

from ._catboost import CatBoostLogloss, CatBoostObjective
from ._metric import MulticlassLogloss, multiclass_logloss
from ._objective import MulticlassObjective, multiclass_objective
from ._start import multiclass_base_score, multiclass_init_score

__all__ = [
    "CatBoostLogloss",
    "CatBoostObjective",
    "MulticlassLogloss",
    "MulticlassObjective",
    "multiclass_base_score",
    "multiclass_init_score",
    "multiclass_logloss",
    "multiclass_objective",
]
