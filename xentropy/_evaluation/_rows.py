"""The numbers of a row of logits from which everything else is computed.

In float64, for some rows at a time: memory does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from .._linear._rows import flat, index_of
from .._softmax import log_softmax
from .._statistics import row_statistics

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK_ELEMENTS = 1 << 18  # 2 MB of float64; the divergence takes some ten such arrays


class Options(NamedTuple):
    """What is done to the logits first, and on how many threads."""

    logit_scale: float
    softcap: float | None
    n_threads: SupportsIndex | None


class Statistics(NamedTuple):
    """One number a row. Probabilities are those of softmax(logits)."""

    loss: Array  # -log probability of the target, in nats
    entropy: Array  # in nats
    argmax: Array  # the first of the largest logits
    max_log_prob: Array
    rank: Array  # of the target among the logits, from 0; equal ones in the order of their classes
    sum_squares: Array  # of the probabilities


def statistics(logits: Array, rows: Array, labels: Array, options: Options) -> Statistics:
    """Of the rows with these numbers, in C order over the leading axes; classes along the last."""
    parts = [_of_a_chunk(x, labels[part], options) for part, (x,) in _chunks(rows, logits)]
    return _joined(parts)


def paired_statistics(
    logits: Array, base_logits: Array, rows: Array, labels: Array, options: Options
) -> tuple[Statistics, Statistics, Array]:
    """Of logits and base logits, and KL(softmax(base_logits) || softmax(logits)) in nats."""
    parts, base_parts, divergences = [], [], [np.zeros(0)]
    for part, (x, base_x) in _chunks(rows, logits, base_logits):
        parts.append(_of_a_chunk(x, labels[part], options))
        base_parts.append(_of_a_chunk(base_x, labels[part], options))
        divergences.append(_divergence(_log_probs(base_x, options), _log_probs(x, options)))
    return _joined(parts), _joined(base_parts), np.concatenate(divergences)


def _chunks(rows: Array, *arrays: Array) -> Iterator[tuple[slice, list[Array]]]:
    """Parts of `rows`, and the rows of the arrays as contiguous matrices of float64."""
    merged = [flat(array) for array in arrays]
    at_a_time = max(1, CHUNK_ELEMENTS // arrays[0].shape[-1])
    for start in range(0, len(rows), at_a_time):
        part = slice(start, min(start + at_a_time, len(rows)))
        taken = rows[part]
        adjacent = taken[-1] - taken[0] == len(taken) - 1
        wanted = slice(int(taken[0]), int(taken[-1]) + 1) if adjacent else taken
        yield (
            part,
            [np.ascontiguousarray(array[index_of(array, wanted)], np.float64) for array in merged],
        )


def _of_a_chunk(x: Array, labels: Array, options: Options) -> Statistics:
    found = row_statistics(x, labels, axis=-1, **options._asdict())
    assert found.loss is not None
    assert found.rank is not None
    rank = np.where(np.isnan(found.loss), x.shape[-1], found.rank)  # behind all classes
    return Statistics(
        found.loss, found.entropy, found.argmax, found.max_log_prob, rank, found.sum_squares
    )


def _log_probs(x: Array, options: Options) -> Array:
    scaled = x * options.logit_scale
    if options.softcap is not None:
        scaled = options.softcap * np.tanh(scaled / options.softcap)
    return log_softmax(scaled, axis=-1, n_threads=options.n_threads)


def _divergence(base_log_p: Array, log_p: Array) -> Array:
    r"""KL(base || p) of rows as sum of b (d + exp(-d) - 1) with d = log b - log p.

    As probabilities add up to 1, that is the sum of b d. But all terms are positive, and exact
    where both are almost equal.
    """
    b, p = np.exp(base_log_p), np.exp(log_p)
    d = base_log_p - log_p
    terms = np.where(np.abs(d) < 1, b * (d + np.expm1(-d)), b * d + (p - b))
    return np.where(b == 0, p, terms).sum(axis=-1)


def _joined(parts: list[Statistics]) -> Statistics:
    empty = np.zeros(0)
    columns = zip(*parts, strict=True) if parts else [(empty,)] * len(Statistics._fields)
    return Statistics(*(np.concatenate(column) for column in columns))
