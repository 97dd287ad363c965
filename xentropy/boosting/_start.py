"""The scores that the built-in objectives start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from ._arguments import frequencies

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

XGBOOST_ADDS = 1e-6  # to every frequency, so that it has a logarithm
LIGHTGBM_LEAST = float(np.float32(1e-15))  # frequency


def multiclass_base_score(
    labels: ArrayLike, num_class: SupportsIndex, weight: ArrayLike | None = None
) -> list[float]:
    r"""XGBoost's own start of `multi:softprob`, for ``params["base_score"]``.

    With the weighted frequency :math:`f_c` of each class:

    .. math:: s_c = \ln(f_c + 10^{-6}) - \frac{1}{K} \sum_d \ln(f_d + 10^{-6})

    Parameters
    ----------
    labels : array_like (N,)
        Classes of the rows that are trained on: integers in [0, num_class), which may be
        stored as floating numbers. Classes without a row are allowed.
    num_class : int
        K, the number of classes, at least 2.
    weight : array_like (N,), optional
        Row weights of the training, finite, not negative, not all 0. Taken as float32, as the
        library does.

    Returns
    -------
    list of float
        K numbers, rounded to float32. The margins of a model include them.

    Raises
    ------
    TypeError
        Labels that are no numbers, `num_class` that is no integer.
    ValueError
        A label that is not an integer, no rows, a wrong shape, weights as they must not be.
    IndexError
        A label that is not in [0, num_class).

    Notes
    -----
    This is the start of XGBoost 3.2 and later (dmlc/xgboost, src/objective/multiclass_obj.cu,
    InitEstimation); a custom objective starts from 0.5 for every class. XGBoost up to 3.0
    starts both from 0.5 and takes only one number, so that there is nothing to give;
    XGBoost 3.1 starts from :math:`f_c` itself.

    In `xgboost.cv` the built-in objective starts each fold from the classes of its training
    rows. So does a `fpreproc` that is called with ``(train, test, params)`` and returns ``train,
    test, {**params, "base_score": multiclass_base_score(train.get_label(), K)}``.

    XGBoost adds up the weights in float32, here it is float64: with two million weighted rows
    its own scores were off by 7e-6.

    Examples
    --------
    >>> from xentropy.boosting import multiclass_base_score
    >>> [round(score, 4) for score in multiclass_base_score([0, 0, 0, 1], num_class=2)]
    [0.5493, -0.5493]
    """
    scores = np.log(frequencies(labels, num_class, weight) + XGBOOST_ADDS)
    return (scores - scores.mean()).astype(np.float32).tolist()


def multiclass_init_score(
    labels: ArrayLike, num_class: SupportsIndex, weight: ArrayLike | None = None
) -> NDArray[np.float64]:
    r"""LightGBM's own start of `multiclass` (`boost_from_average`), one number a class.

    With the weighted frequency :math:`f_c` of each class:

    .. math:: s_c = \ln \max(f_c, 10^{-15})

    LightGBM wants them for each row: ``np.tile(scores, (N, 1))`` as `init_score` of the
    `Dataset` or of `LGBMClassifier.fit`, and of each set that is evaluated (`eval_init_score`).
    A prediction does not include them: ``booster.predict(x, raw_score=True) + scores`` are the
    logits.

    Parameters
    ----------
    labels : array_like (N,)
        Classes of the rows that are trained on: integers in [0, num_class), which may be
        stored as floating numbers. Classes without a row are allowed.
    num_class : int
        K, the number of classes, at least 2.
    weight : array_like (N,), optional
        Row weights of the training, finite, not negative, not all 0; class weights, if there
        are any, are factors of them. Taken as float32, as the library does.

    Returns
    -------
    ndarray (K,), float64

    Raises
    ------
    TypeError
        Labels that are no numbers, `num_class` that is no integer.
    ValueError
        A label that is not an integer, no rows, a wrong shape, weights as they must not be.
    IndexError
        A label that is not in [0, num_class).

    Notes
    -----
    The start of LightGBM 3 and 4 (src/objective/multiclass_objective.hpp, BoostFromScore).
    `LGBMClassifier` numbers its classes in the order of ``np.unique(y)``.

    In `lightgbm.cv` the built-in objective starts each fold from the classes of its training
    rows. So does a `fpreproc` that is called with ``(train, test, params)``, computes the scores
    of ``train.construct().get_label()``, calls `set_init_score` of both, constructed, with one
    row of them for each of `num_data()`, and returns its three arguments.

    Away from the defaults a model with a custom objective may still be another one: LightGBM
    then draws other features for `feature_fraction`, and under ``boosting="dart"`` its own
    start is part of the first trees and dropped with them.

    Examples
    --------
    >>> from xentropy.boosting import multiclass_init_score
    >>> multiclass_init_score([0, 0, 0, 1], num_class=2).round(4).tolist()
    [-0.2877, -1.3863]
    """
    return np.log(np.maximum(frequencies(labels, num_class, weight), LIGHTGBM_LEAST))
