"""Comparison of two models on the same targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np

from ._arguments import checked
from ._exact import exp, to_float
from ._moments import Moments
from ._results import PERCENTILES, PairedResult
from ._rows import Paired, paired_statistics
from ._stream import Stream, given

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._types import Number

NAMES = ("nats", "base_nats", "log_ratio", "kl", "delta_p", "delta_p_square", "same_top")
MOST_PARTS = 1024  # of the numbers that are kept, before they are put together


class PairedEvaluation(Stream):
    r"""Comparison of a model with a base: perplexities, KL divergence, changes of probability.

    For a quantised or pruned model, say, and the one that it was made from. The figures are those
    of llama.cpp's ``llama-perplexity --kl-divergence``; `update`, `merge`, `result`, copies and
    pickles are as for `Evaluation`, with the same bits for any split, order and tree of merges.

    Notes
    -----
    With the probabilities p of the model and b of the base, for each row with the label t:

    ======================  ======================================================================
    ln(perplexity / base)   mean of :math:`d = \ln b_t - \ln p_t`, the standard error of which is
                            that of the paired difference
    perplexity - base       its error is :math:`\sqrt{u^2 + v^2 - 2 \rho u v}` with the errors u
                            and v of both, and the correlation :math:`\rho` of the losses
    KL divergence           mean of :math:`\sum_c b_c (\ln b_c - \ln p_c)`, from terms that are not
                            negative, and exact where both are almost equal
    change of p             mean, root mean square and percentiles of :math:`p_t - b_t`
    same top class          share of rows whose largest logits are at the same class
    ======================  ======================================================================

    Standard errors are those of `Evaluation`; by group for means and perplexities. Percentiles
    interpolate linearly between the sorted values of all rows that count, whatever their weight.

    They need a number for each row: 8 bytes a token, two of float32 (for 10 million tokens, 80 MB,
    and twice that while a result is computed). While an update is computed, each of
    up to 8 threads takes 3 MB (or six rows in float64, if these are longer): all is computed in
    float64, because differences of almost equal models are small. All else is as for `Evaluation`.

    Where llama.cpp prints something else: it omits terms of the KL divergence whose base
    probability is below exp(-16), computes it in float32, and prints 0 for errors over less than
    12 rows.

    References
    ----------
    llama.cpp, tools/perplexity.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> base = np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
    >>> paired = xe.PairedEvaluation()
    >>> paired.update(base.round(1), base, [0, 0, 2])
    >>> result = paired.result()
    >>> round(result.ratio, 4), f"{result.kl:.2e}", result.same_top
    (0.9989, '5.87e-06', 1.0)
    """

    def __init__(self) -> None:
        super().__init__(Moments(NAMES, [name for name in NAMES if name != "delta_p_square"]))
        self._kl: list[Any] = []
        self._delta_p: list[Any] = []

    def update(
        self,
        logits: ArrayLike,
        base_logits: ArrayLike,
        target: ArrayLike,
        *,
        group: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        log_probs: bool = False,
        base_log_probs: bool = False,
        axis: SupportsIndex = 1,
        ignore_index: SupportsIndex = -100,
        logit_scale: Number = 1.0,
        softcap: Number | None = None,
        n_threads: SupportsIndex | None = None,
    ) -> None:
        """Count rows of both models.

        Parameters
        ----------
        logits, base_logits : array_like
            Logits, or log-probabilities, of the model and of the base, in the same shape.
        target, group, sample_weight, axis, ignore_index, logit_scale, softcap, n_threads
            As for `Evaluation.update`.
        log_probs, base_log_probs : bool, default False
            The logits of the model, or of the base, are log-probabilities, and counted as they
            are. As their exps do not quite add up to 1, the KL divergence is then computed by its
            definition, term by term.

        Raises
        ------
        TypeError, ValueError, IndexError
            As for `Evaluation.update`. Nothing has been counted then.
        """
        both = {"logits": logits, "base_logits": base_logits}
        batch = checked(both, {**locals(), "bytes": None})
        self._same_as_before(given(batch), "this update")
        with np.errstate(all="ignore"):  # silent, as the kernels are
            rows = batch.labels, batch.rows, batch.options, batch.log_probs
            values = _values(paired_statistics(batch.logits, *rows))
            self._take(batch, values)
        self._keep([values["kl"].astype(np.float32)], [values["delta_p"].astype(np.float32)])

    def _keep(self, kl: list[Any], delta_p: list[Any]) -> None:
        """Keep numbers for percentiles, in few arrays."""
        for parts, more in ((self._kl, kl), (self._delta_p, delta_p)):
            parts += more
            if len(parts) > MOST_PARTS:
                parts[:] = [np.concatenate(parts)]

    def _merge_rest(self, other: Self) -> None:
        self._keep(list(other._kl), list(other._delta_p))

    def result(self) -> PairedResult:
        """The figures of what has been counted so far; nan where nothing has."""
        mean = self._moments.mean
        nats, base_nats, log_ratio = mean("nats"), mean("base_nats"), mean("log_ratio")
        kl = percentiles(self._kl)
        return PairedResult(
            tokens=self._moments.rows,
            weight=to_float(self._moments.total("w")),
            groups=len(self._moments.groups) if self._given.get("group") else None,
            perplexity=exp(nats),
            base_perplexity=exp(base_nats),
            ratio=exp(log_ratio),
            log_ratio=log_ratio,
            difference=exp(nats) - exp(base_nats),
            correlation=self._correlation(),
            kl=mean("kl"),
            delta_p=mean("delta_p"),
            delta_p_rms=math.sqrt(mean("delta_p_square")),
            same_top=mean("same_top"),
            kl_percentiles={at: v for at, v in kl.items() if at not in {"75 %", "25 %"}},
            delta_p_percentiles=percentiles(self._delta_p),
            standard_errors=self._derived(by_group=False),
            group_errors=self._derived(by_group=True),
        )

    def _correlation(self) -> float:
        """From the variances of both losses and of their difference."""
        a, b, d = (self._moments.error(name) for name in ("nats", "base_nats", "log_ratio"))
        return (a * a + b * b - d * d) / (2 * a * b) if a * b else math.nan

    def _derived(self, *, by_group: bool) -> dict[str, float]:
        """Standard errors under the names of the fields."""
        errors = self._errors(self._moments.grouped if by_group else NAMES, by_group)
        if not errors:
            return {}
        u, v = exp(self._moments.mean("nats")), exp(self._moments.mean("base_nats"))
        a, b, d = errors.pop("nats"), errors.pop("base_nats"), errors["log_ratio"]
        errors["perplexity"], errors["base_perplexity"] = u * a, v * b
        errors["ratio"] = exp(self._moments.mean("log_ratio")) * d
        # The usual formula, without the cancellation of almost equal models.
        square = (u - v) * (u * a * a - v * b * b) + u * v * d * d
        errors["difference"] = math.sqrt(square) if square > 0 else square * 0
        if not by_group:
            rms = math.sqrt(self._moments.mean("delta_p_square"))
            errors["delta_p_rms"] = errors.pop("delta_p_square") / (2 * rms) if rms else math.nan
        return errors


def _values(rows: Paired) -> dict[str, Any]:
    """The quantities of each row. Differences of equal infinities are 0."""
    d = np.where(rows.loss == rows.base_loss, 0.0, rows.loss - rows.base_loss)
    small = np.exp(-rows.base_loss) * np.expm1(-d)
    delta_p = np.where(np.abs(d) < 1, small, np.exp(-rows.loss) - np.exp(-rows.base_loss))
    no_row_is_nan = ~np.isnan(d)
    return {
        "nats": rows.loss,
        "base_nats": rows.base_loss,
        "log_ratio": d,
        "kl": rows.divergence,
        "delta_p": delta_p,
        "delta_p_square": delta_p * delta_p,
        "same_top": rows.same_top & no_row_is_nan,
    }


def percentiles(parts: list[Any]) -> dict[str, float]:
    """Percentiles of all numbers in the arrays: linear between neighbours."""
    values = np.concatenate([np.zeros(0, np.float32), *parts]) + np.float32(0)  # -0 is 0
    if not len(values) or np.isnan(values).any():
        return dict.fromkeys(PERCENTILES, math.nan)
    values.sort()
    return {at: _interpolated(values, share) for at, share in PERCENTILES.items()}


def _interpolated(values: Any, share: float) -> float:
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    a, b = float(values[low]), float(values[min(low + 1, len(values) - 1)])
    rest = place - low
    return a if rest == 0 or a == b else (1 - rest) * a + rest * b
