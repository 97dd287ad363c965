"""Results: frozen, printed as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PERCENTILES = {"maximum": 1.0, "99.9 %": 0.999, "99 %": 0.99, "95 %": 0.95, "90 %": 0.9}
PERCENTILES |= {"75 %": 0.75, "median": 0.5, "25 %": 0.25, "10 %": 0.1, "5 %": 0.05, "1 %": 0.01}
PERCENTILES |= {"0.1 %": 0.001, "minimum": 0.0}


class Result:
    """What the results share."""

    standard_errors: dict[str, float]
    group_errors: dict[str, float]
    groups: int | None

    def to_dict(self) -> dict[str, Any]:
        """The fields, as numbers, dictionaries and lists of these alone."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def _heading(self, title: str) -> str:
        by_group = "" if self.groups is None else f"± by {self.groups:,} groups"
        return f"{title:<28}{'':>14}{'± by token':>16}{by_group:>20}".rstrip()

    def _line(self, label: str, value: float, name: str = "", percent: bool = False) -> str:
        """A figure and its errors."""
        text = f"{label:<28}{_number(value, percent):>14}"
        if name:
            text += f"{_number(self.standard_errors[name], percent):>16}"
            if name in self.group_errors:
                text += f"{_number(self.group_errors[name], percent):>20}"
        return text


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:,.3f} %" if percent else f"{value:,.6f}"


@dataclass(frozen=True)
class Bin:
    """Rows whose largest probability is between `low` and `high`.

    Parameters
    ----------
    low, high : float
        The interval: without `high`, but for the last.
    weight : float
        Sum of the weights of its rows.
    confidence, accuracy : float or None
        Means of the largest probability and of top-1 accuracy; None where there are no rows.
    """

    low: float
    high: float
    weight: float
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class EvaluationResult(Result):
    """What `Evaluation` has counted. `str` of it is a table, `to_dict` a dictionary.

    Parameters
    ----------
    tokens : int
        Number of rows that count.
    weight : float
        Sum of their weights.
    groups : int or None
        Number of groups, if there are any.
    bytes : float or None
        Bytes, times weights, if they were given; else `bits_per_byte` is None, too.
    nats, bits, perplexity, bits_per_byte, entropy, brier, calibration_error : float
        As `Evaluation` defines them.
    accuracy : dict
        Top-k accuracy by k.
    standard_errors, group_errors : dict
        Standard errors by the names of the fields ("top_1" and so on for accuracies), over rows
        and over groups; the latter is empty without groups. There is none of `calibration_error`.
    reliability : tuple of Bin
        The bins of the calibration error, from 0 to 1.
    """

    tokens: int
    weight: float
    groups: int | None
    bytes: float | None
    nats: float
    bits: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: dict[int, float]
    entropy: float
    brier: float
    calibration_error: float
    standard_errors: dict[str, float]
    group_errors: dict[str, float]
    reliability: tuple[Bin, ...]

    def __str__(self) -> str:
        lines = [
            self._heading(f"{self.tokens:,} tokens"),
            self._line("nats a token", self.nats, "nats"),
            self._line("bits a token", self.bits, "bits"),
            self._line("perplexity", self.perplexity, "perplexity"),
        ]
        if self.bits_per_byte is not None:
            lines.append(self._line("bits a byte", self.bits_per_byte, "bits_per_byte"))
        lines += [
            self._line(f"top-{k} accuracy", share, f"top_{k}", percent=True)
            for k, share in self.accuracy.items()
        ]
        lines += [
            self._line("entropy (nats)", self.entropy, "entropy"),
            self._line("Brier score", self.brier, "brier"),
            self._line("expected calibration error", self.calibration_error),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PairedResult(Result):
    """What `PairedEvaluation` has counted. `str` of it is a table, `to_dict` a dictionary.

    Parameters
    ----------
    tokens, weight, groups
        As for `EvaluationResult`.
    perplexity, base_perplexity, ratio, log_ratio, difference : float
        Perplexities; the first divided by the second, the logarithm of that (which is the
        difference of the mean losses in nats), and their difference.
    correlation : float
        Of the losses of both models.
    kl : float
        Mean KL divergence of the model from the base, in nats.
    delta_p, delta_p_rms : float
        Mean and root of the mean square of the change of the target's probability.
    same_top : float
        Share of rows with the same most probable class.
    kl_percentiles, delta_p_percentiles : dict
        From "minimum" to "maximum".
    standard_errors, group_errors : dict
        Standard errors by the names of the fields, over rows and over groups. There are none of
        `correlation` and percentiles.
    """

    tokens: int
    weight: float
    groups: int | None
    perplexity: float
    base_perplexity: float
    ratio: float
    log_ratio: float
    difference: float
    correlation: float
    kl: float
    delta_p: float
    delta_p_rms: float
    same_top: float
    kl_percentiles: dict[str, float]
    delta_p_percentiles: dict[str, float]
    standard_errors: dict[str, float]
    group_errors: dict[str, float]

    def __str__(self) -> str:
        lines = [
            self._heading(f"{self.tokens:,} tokens"),
            self._line("perplexity", self.perplexity, "perplexity"),
            self._line("base perplexity", self.base_perplexity, "base_perplexity"),
            self._line("correlation of losses", self.correlation, percent=True),
            self._line("ln(perplexity / base)", self.log_ratio, "log_ratio"),
            self._line("perplexity / base", self.ratio, "ratio"),
            self._line("perplexity - base", self.difference, "difference"),
            "",
            self._line("KL divergence (nats), mean", self.kl, "kl"),
            *(self._line(f"  {at}", value) for at, value in self.kl_percentiles.items()),
            "",
            self._line("change of p, mean", self.delta_p, "delta_p", percent=True),
            *(
                self._line(f"  {at}", value, percent=True)
                for at, value in self.delta_p_percentiles.items()
            ),
            self._line("  root mean square", self.delta_p_rms, "delta_p_rms", percent=True),
            self._line("same top class", self.same_top, "same_top", percent=True),
        ]
        return "\n".join(lines)
