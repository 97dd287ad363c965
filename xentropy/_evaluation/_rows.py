"""The numbers of a row of logits from which everything else is computed."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _kernels
from .._config import get_num_threads
from .._linear._rows import flat, index_of
from .._logsumexp import logsumexp
from .._softmax import log_softmax
from .._statistics import RowStatistics

Array = np.ndarray[Any, np.dtype[Any]]

IGNORED = -1  # the label of a row that does not count
CHUNK_ELEMENTS = 1 << 16  # 0.5 MB of float64; a pair takes some six such arrays,
MOST_THREADS = 8  # each of these threads, so that 200,000 classes are 80 MB
TINY = 1e-300  # a probability whose product with a logarithm of another does not show
LARGEST_SUM = 2.0  # of what are called probabilities; rounding to bfloat16 adds some percent


class Options(NamedTuple):
    """What is done to the logits first, and on how many threads."""

    logit_scale: float
    softcap: float | None
    n_threads: int | None


class Statistics(NamedTuple):
    """One number a row, float64 but for the rank. Probabilities are those of softmax(logits)."""

    loss: Array  # -log probability of the target, in nats
    others: Array  # probability of all other classes
    entropy: Array  # in nats
    max_log_prob: Array
    rank: Array  # of the target among the logits, from 0; equal ones in the order of their classes
    sum_squares: Array  # of the probabilities


class Paired(NamedTuple):
    """One number a row of two models."""

    loss: Array
    base_loss: Array
    divergence: Array  # of the base from the model, in nats
    same_top: Array  # whether the first of the largest logits is at the same class


def statistics(
    name: str, logits: Array, labels: Array, rows: Array, options: Options, log_probs: bool
) -> Statistics:
    """Of the rows with these numbers, in C order over the leading axes; classes along the last.

    `labels` are those of all rows, IGNORED for all but these. The kernels read the logits where
    they are. `log_probs`: the logits are log-probabilities, and taken as they are.
    """
    made = _kernels.make_options(
        axis=logits.ndim - 1, ignore_index=IGNORED, reduction="none", **options._asdict()
    )
    target = labels.reshape(logits.shape[:-1])
    columns: Any = _kernels.row_statistics(logits, target, made, checked=True, float64=True)
    columns = [column.reshape(-1) for column in _check.taken(columns)]
    if len(rows) < len(labels):
        columns = [column[rows] for column in columns]
    found: Any = RowStatistics(*columns)
    rank = np.where(np.isnan(found.loss), logits.shape[-1], found.rank)  # behind all classes
    if log_probs:
        return _as_they_are(name, logits, labels[rows], rows, found._replace(rank=rank))
    others = -np.expm1(-found.loss)
    return Statistics(
        found.loss, others, found.entropy, found.max_log_prob, rank, found.sum_squares
    )


def _as_they_are(name: str, log_p: Array, labels: Array, rows: Array, found: Any) -> Statistics:
    """The statistics of probabilities that add up to exp(lse) and are not divided by it."""
    _check_sums(name, found.lse, rows)
    at = np.unravel_index(rows, log_p.shape[:-1])

    def taken(classes: Array) -> Any:
        numbers = log_p[(*at, classes)].astype(np.float64)
        return np.where(np.isnan(found.loss), math.nan, numbers)

    of_target, total = taken(labels), np.exp(found.lse)
    return Statistics(
        loss=-of_target,
        others=np.maximum(total - np.exp(of_target), 0),
        entropy=total * (found.entropy - found.lse),
        max_log_prob=taken(found.argmax),
        rank=found.rank,
        sum_squares=total * total * found.sum_squares,
    )


def _check_sums(name: str, lse: Any, rows: Array) -> None:
    """Raise for logits that are called log-probabilities."""
    wrong = np.isfinite(lse) & (lse > math.log(LARGEST_SUM))
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"{name} are no log-probabilities: those of row {rows[i]} are of probabilities "
            f"that add up to exp({lse[i]:.6g})"
        )


def paired_statistics(
    logits: dict[str, Array],
    labels: Array,
    rows: Array,
    options: Options,
    log_probs: tuple[bool, ...],
) -> Paired:
    """Of logits and base logits, by their names in errors; otherwise as `statistics`.

    In float64, for some rows at a time on each thread: memory does not grow with the batch.
    """
    at_a_time = max(1, CHUNK_ELEMENTS // next(iter(logits.values())).shape[-1])
    chunks = [rows[start : start + at_a_time] for start in range(0, len(rows), at_a_time)]
    threads = min(options.n_threads or get_num_threads(), MOST_THREADS, len(chunks))
    if threads > 1:
        options = options._replace(n_threads=1)
    flattened = {name: flat(array) for name, array in logits.items()}

    def of_chunk(some: Array) -> Paired:
        with np.errstate(all="ignore"):  # which is each thread's own
            return _pair(flattened, labels[some], some, options, log_probs)

    none = np.zeros(0)
    parts = [Paired(none, none, none, none.astype(bool))]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        parts += (pool.map if threads > 1 else map)(of_chunk, chunks)
    return Paired(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _pair(
    logits: dict[str, Array],
    labels: Array,
    rows: Array,
    options: Options,
    log_probs: tuple[bool, ...],
) -> Paired:
    """The same of these rows alone, in memory for them together."""
    (log_p, top), (base, base_top) = (
        _log_probs(name, _taken(array, rows), rows, options, as_they_are)
        for ((name, array), as_they_are) in zip(logits.items(), log_probs, strict=True)
    )
    at = np.arange(len(rows)), labels
    kl = _divergence(base, log_p, normalised=not any(log_probs))
    return Paired(-log_p[at], -base[at], kl, top == base_top)


def _taken(array: Array, rows: Array) -> Array:
    """The rows of what `flat` returned, as a contiguous matrix of float64."""
    adjacent = rows[-1] - rows[0] == len(rows) - 1
    wanted = slice(int(rows[0]), int(rows[-1]) + 1) if adjacent else rows
    return np.ascontiguousarray(array[index_of(array, wanted)], np.float64)


def _log_probs(
    name: str, x: Array, rows: Array, options: Options, as_they_are: bool
) -> tuple[Array, Array]:
    """Log-probabilities and the first of the most probable classes."""
    if as_they_are:
        lse = logsumexp(x, axis=-1, n_threads=options.n_threads)
        _check_sums(name, lse, rows)
        return np.where(np.isfinite(lse)[:, None], x, math.nan), x.argmax(axis=-1)
    scaled = x if options.logit_scale == 1 else x * options.logit_scale
    if options.softcap is not None:
        scaled = options.softcap * np.tanh(scaled / options.softcap)
    return log_softmax(scaled, axis=-1, n_threads=options.n_threads), scaled.argmax(axis=-1)


def _divergence(base_log_p: Array, log_p: Array, normalised: bool) -> Array:
    r"""KL(base || p) of rows as sum of b (d + exp(-d) - 1) with d = log b - log p.

    As probabilities add up to 1, that is the sum of b d. But all terms are positive, and exact
    where both are almost equal. If they do not quite add up to 1, it is the sum of b d.
    """
    b = np.exp(base_log_p)
    terms = base_log_p - log_p
    if normalised:
        terms += np.expm1(-terms)
    terms *= b
    if not b.min(initial=1) > TINY:  # 0 times infinity; what is left of b (exp(-d) - 1) is p
        terms = np.where(b <= TINY, np.exp(log_p) if normalised else 0.0, terms)
    return terms.sum(axis=-1)  # type: ignore[no-any-return]
