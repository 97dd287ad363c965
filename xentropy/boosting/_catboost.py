"""CatBoost's interface: an object with the methods that it calls.

It calls `calc_ders_multi` for one row at a time, in each iteration once for the structure of the
tree and once for each step of the leaves' values, and has no interface for many rows. A call
costs some 10 us and its Hessian as much again, where the built-in objective needs less than one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import _api
from .._kernels import make_options
from ._arguments import class_indices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SINGLE_OUTPUT = (
    "CatBoost takes the model for one of a single output: "
    "give it classes_count, or eval_metric='MultiClass'"
)


class CatBoostObjective:
    """The objective that ``multiclass_objective("catboost")`` returns; can be pickled."""

    no_jit = True  # CatBoost would compile the methods by numba, and warns if it cannot

    def __repr__(self) -> str:
        return "multiclass_objective('catboost')"

    def calc_ders_multi(
        self, approxes: NDArray[np.float64], target: float, weight: float
    ) -> tuple[list[float], Iterator[list[float]]]:
        r"""First and second derivatives of what CatBoost maximizes, :math:`v \ln p_t`.

        .. math:: g_c = v ([c = t] - p_c), \qquad h_{cd} = v \, p_c (p_d - [c = d])

        Parameters
        ----------
        approxes : ndarray of float64 (K,)
            The row's logits.
        target : float
            Its class t.
        weight : float
            Its weight v.

        Returns
        -------
        list of float, iterator of list of float
            g, and h by rows, which are computed when the first one is asked for: CatBoost
            asks for the leaves' values by Newton's method alone.
        """
        label = int(target)
        if label != target or label < 0:
            raise ValueError(f"target = {target} is not a class: an integer from 0 on")
        options = make_options(reduction="sum", n_threads=1)
        loss, g = _api.checked_cross_entropy(True, approxes, label, None, None, options)
        return (-weight * g).tolist(), _hessian(g, label, loss, weight)

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> NoReturn:
        """What CatBoost calls if it believes that the model has a single output: an error."""
        raise ValueError(SINGLE_OUTPUT)


def _hessian(g: NDArray[Any], label: int, loss: float, weight: float) -> Iterator[list[float]]:
    """The rows of the Hessian, one after the other, from the gradient p - [c = t].

    Each adds up to 0: its diagonal is minus the sum of the others, products without the
    cancellation of 1 - p.
    """
    p = np.abs(g)
    p[label] = np.exp(-loss)
    h = np.outer(weight * p, p)
    np.fill_diagonal(h, 0)
    np.fill_diagonal(h, -h.sum(axis=1))
    yield from h.tolist()


class CatBoostLogloss:
    """The metric that ``multiclass_logloss("catboost")`` returns; can be pickled."""

    no_jit = True

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = n_threads

    def __repr__(self) -> str:
        return "multiclass_logloss('catboost')"

    def is_max_optimal(self) -> bool:
        """Is a higher value better? No."""
        return False

    def evaluate(
        self, approxes: Sequence[NDArray[np.float64]], target: Any, weight: Any
    ) -> tuple[float, float]:
        """The weighted sum of the rows' losses, and that of their weights.

        Parameters
        ----------
        approxes : sequence of K ndarrays of float64 (N,)
            The logits of each class.
        target : ndarray (N,)
            Classes.
        weight : ndarray (N,) or None

        Returns
        -------
        (float, float)
        """
        logits = np.stack(approxes)
        if len(logits) < 2:
            raise ValueError(SINGLE_OUTPUT)
        labels = class_indices(target, *logits.shape)
        options = make_options(axis=0, reduction="sum", n_threads=self.n_threads)
        loss = _api.checked_cross_entropy(False, logits, labels, None, weight, options)
        return loss, float(len(labels) if weight is None else weight.sum(dtype=np.float64))

    def get_final_error(self, error: float, weight: float) -> float:
        """The mean, from sums of what `evaluate` has returned."""
        return error / weight if weight else math.nan
