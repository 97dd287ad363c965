"""Evaluation of one model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np

from .. import _check
from ._arguments import Batch, checked
from ._exact import ExactSums, exp, to_float
from ._moments import Moments, divided
from ._results import Bin, EvaluationResult
from ._rows import Statistics, statistics
from ._stream import Stream, given

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._types import Number


class Evaluation(Stream):
    r"""Perplexity, accuracy, calibration and their standard errors, from logits in parts.

    `update` counts rows, `merge` adds what another object has counted, and `result` computes the
    figures, at any time. All sums are exact: figures have the same bits for any split of the rows,
    any order, and any tree of merges (on CPUs of one kind: the numbers of a row may differ in
    their last bits between others). An object can be copied and pickled, so work goes to other
    threads, processes or machines with an object for each; threads must not share one.

    Parameters
    ----------
    top : sequence of int, default (1, 5)
        For which k to compute top-k accuracy.
    bins : int, default 15
        Number of bins of the calibration error.

    Notes
    -----
    A row has a weight w (1 by default), a label t and probabilities p = softmax(logits). W is the
    sum of the weights; a mean over rows is :math:`\sum w x / W`.

    ============================  ================================================================
    nats (bits) a token           mean of :math:`-\ln p_t` (divided by ln 2)
    perplexity                    exp(nats a token)
    bits a byte                   :math:`\sum w (-\ln p_t) / (\ln 2 \cdot \text{bytes})`
    top-k accuracy                share of rows with less than k classes before t, in the order of
                                  falling logits, equal ones in the order of classes
    entropy                       mean of :math:`-\sum_c p_c \ln p_c`
    Brier score                   mean of :math:`\sum_c (p_c - [c = t])^2`, between 0 and 2
    expected calibration error    :math:`\sum_b |A_b - P_b| / W` over bins of equal width of
                                  max p, each without its upper end but for the last, with A and P
                                  the weighted sums of top-1 accuracy and of max p
    ============================  ================================================================

    Bits a byte are those of lm-evaluation-harness. The standard error of a mean m over n rows is
    :math:`\sqrt{\frac{n}{n - 1} \sum (w x - w m)^2} / W`, which takes rows for independent. Tokens
    of one document are not: with groups, the sums over each of G groups take the place of rows,
    and G that of n (clustered, or sandwich, errors; Liang and Zeger 1986); for bits a byte they are
    those of the ratio of two sums if the bytes of each group are known. Errors of exp and of other
    units are derived to first order.

    Rows are those of `row_statistics`, computed in float32 (float64 for such logits): a figure has
    a relative error of some 1e-7 (1e-16), the calibration error an absolute one. So has the Brier
    score of a row; where :math:`q = 1 - p_t` is small, only :math:`C / (C - 1) q^2` to
    :math:`2 q^2` is known of it, the exact score for two classes.

    Logits are read where they are, a memory map without a copy, and rows that do not count are not
    read. Memory does not grow with the number of rows; each group takes some 400 bytes. While an
    update is computed, it takes some 250 bytes a row, so a file of many short rows goes in several
    updates.

    A row with nan, +inf or nothing but -inf makes all means nan but the accuracies: for those it
    is wrong.

    References
    ----------
    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78
    (1950). Guo et al., "On calibration of modern neural networks", arXiv:1706.04599. Liang and
    Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73 (1986).
    EleutherAI, lm-evaluation-harness: `bits_per_byte`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
    >>> evaluation = xe.Evaluation(top=(1, 2))
    >>> evaluation.update(logits[:2], [0, 0])
    >>> evaluation.update(logits[2:], [2])
    >>> result = evaluation.result()
    >>> result.tokens, round(result.bits, 4), round(result.perplexity, 4)
    (3, 1.3333, 2.5198)
    >>> {k: round(share, 4) for k, share in result.accuracy.items()}
    {1: 0.6667, 2: 1.0}
    """

    _settings = ("top", "bins")

    def __init__(self, top: Sequence[SupportsIndex] = (1, 5), bins: SupportsIndex = 15) -> None:
        self.top: tuple[int, ...] = _top(top)
        self.bins: int = _at_least_1(bins, "bins")
        names = ["nats", *(f"top_{k}" for k in self.top), "entropy", "brier"]
        super().__init__(Moments(names, names))
        self._bins = ExactSums(["w", "doubt", "wrong"])

    def update(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        group: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        bytes: ArrayLike | None = None,
        log_probs: bool = False,
        axis: SupportsIndex = 1,
        ignore_index: SupportsIndex = -100,
        logit_scale: Number = 1.0,
        softcap: Number | None = None,
        n_threads: SupportsIndex | None = None,
    ) -> None:
        """Count rows.

        Parameters
        ----------
        logits, axis, ignore_index, logit_scale, softcap, n_threads
            As for `cross_entropy`. Tensors of torch are taken as well, bfloat16 and those with a
            graph included; they are copied from other devices.
        target : array_like of int
            Class indices, shape of the logits without the class axis.
        group : int or str, or array_like of these, optional
            Which document, user or the like each row is from, in the shape of the target; a single
            one is that of all rows. Rows of a group may come in several updates. If one update has
            groups, all must.
        sample_weight : array_like, optional
            Weight of each row, shape of the target, not negative. A row of weight 0 does not count.
        bytes : int or array_like of int, optional
            UTF-8 bytes of the text: those of each row, which count with its weight, or one number
            for all of the update. If this has rows of several groups, the errors by group take the
            number of all bytes as known. If one update has bytes, all must.
        log_probs : bool, default False
            The logits are log-probabilities, and counted as they are: the loss is that of the
            target without its sign, whatever their exps add up to. By default, that they are
            rounded is corrected, as softmax divides by this sum.

        Raises
        ------
        TypeError, ValueError, IndexError
            As for `cross_entropy`; `log_probs` whose exps add up to more than 2. Nothing has been
            counted then.
        """
        batch = checked({"logits": logits}, locals())
        self._same_as_before(given(batch), "this update")
        ((name, x),) = batch.logits.items()
        (log_probs,) = batch.log_probs
        with np.errstate(all="ignore"):  # silent, as the kernels are
            rows = statistics(name, x, batch.labels, batch.rows, batch.options, log_probs)
            self._count(batch, rows, x.shape[-1])

    def _count(self, batch: Batch, rows: Statistics, classes: int) -> None:
        ranks = {f"top_{k}": rows.rank < k for k in self.top}
        values = {"nats": rows.loss, **ranks, "entropy": rows.entropy}
        self._take(batch, {**values, "brier": brier(rows, classes)})
        self._add_to_bins(rows, batch.weight)

    def _add_to_bins(self, rows: Statistics, weight: Any) -> None:
        """The number of each row's bin, and what it adds there."""
        doubt = -np.expm1(rows.max_log_prob)  # 1 - max p, with all digits where that is small
        confidence = np.where(np.isnan(doubt), 0.0, 1 - doubt)
        numbers = np.minimum((confidence * self.bins).astype(np.int64), self.bins - 1)
        values = {"w": np.ones(len(doubt), bool), "doubt": doubt, "wrong": rows.rank > 0}
        columns = {name: [x if weight is None else weight * x] for name, x in values.items()}
        self._bins.add(range(self.bins), numbers, columns)

    def _merge_rest(self, other: Self) -> None:
        self._bins.merge(other._bins)

    def result(self) -> EvaluationResult:
        """The figures of what has been counted so far; nan where nothing has."""
        moments = self._moments
        nats = moments.mean("nats")
        per_byte = math.nan
        if self._given.get("bytes"):
            per_byte = to_float(moments.ratio("nats", "bytes")) / math.log(2)
        return EvaluationResult(
            tokens=moments.rows,
            weight=to_float(moments.total("w")),
            groups=len(moments.groups) if self._given.get("group") else None,
            bytes=to_float(moments.total("bytes")) if self._given.get("bytes") else None,
            nats=nats,
            bits=nats / math.log(2),
            perplexity=exp(nats),
            bits_per_byte=per_byte if self._given.get("bytes") else None,
            accuracy={k: moments.mean(f"top_{k}") for k in self.top},
            entropy=moments.mean("entropy"),
            brier=moments.mean("brier"),
            calibration_error=self._calibration_error(),
            standard_errors=self._derived(nats, by_group=False),
            group_errors=self._derived(nats, by_group=True),
            reliability=tuple(self._bin(number) for number in range(self.bins)),
        )

    def _derived(self, nats: float, *, by_group: bool) -> dict[str, float]:
        """Standard errors under the names of the fields; "top_1" and so on for accuracies."""
        moments = self._moments
        errors = self._errors(moments.names, by_group)
        if not errors:
            return {}
        errors["bits"] = errors["nats"] / math.log(2)
        errors["perplexity"] = exp(nats) * errors["nats"]
        if self._given.get("bytes"):
            if by_group and moments.bytes_by_group():
                error = moments.group_error("nats", "bytes")
            else:
                a_byte = divided(moments.total("w"), moments.total("bytes"))
                error = errors["nats"] * to_float(a_byte)
            errors["bits_per_byte"] = error / math.log(2)
        return errors

    def _sums_of_bin(self, number: Hashable) -> Any:
        return (self._bins.exact(number, name) for name in ("w", "doubt", "wrong"))

    def _calibration_error(self) -> float:
        gaps = sum(
            abs(wrong - doubt) for _, doubt, wrong in map(self._sums_of_bin, range(self.bins))
        )
        return to_float(divided(gaps, self._moments.total("w")))

    def _bin(self, number: int) -> Bin:
        w, doubt, wrong = self._sums_of_bin(number)
        return Bin(
            low=number / self.bins,
            high=(number + 1) / self.bins,
            weight=to_float(w),
            confidence=to_float(divided(w - doubt, w)) if w else None,
            accuracy=to_float(divided(w - wrong, w)) if w else None,
        )


def brier(rows: Statistics, classes: int) -> Any:
    """(1 - p_t)^2 and the squares of the other probabilities.

    These lie between those of equal ones and of a single one. Where the target's is almost 1,
    nothing else is left of them: the sum of all squares has no digits there.
    """
    missed = np.expm1(-rows.loss)
    p = 1 + missed
    most = rows.others * rows.others
    squares = rows.sum_squares - p * p
    return missed * missed + np.clip(squares, most / max(classes - 1, 1), most)


def _top(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"top must be a sequence of integers, not {value!r}")
    return tuple(sorted({_at_least_1(k, f"top[{i}]") for i, k in enumerate(value)}))


def _at_least_1(value: Any, name: str) -> int:
    number = _check.integer(value, name)
    if number < 1:
        raise ValueError(f"{name} = {number} is less than 1")
    return number
