"""The numbers of a row of logits from which everything else is computed.

From log-probabilities in float64, for some rows at a time: memory does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from .._linear._rows import flat, index_of
from .._softmax import log_softmax

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK_ELEMENTS = 1 << 18  # 2 MB for each of some ten arrays of float64


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
    parts = [
        _of_a_chunk(x, log_p, labels[part])
        for part, (x,) in _chunks(rows, logits)
        for log_p in [_log_probs(x, options)]
    ]
    return _joined(parts)


def paired_statistics(
    logits: Array, base_logits: Array, rows: Array, labels: Array, options: Options
) -> tuple[Statistics, Statistics, Array]:
    """Of logits and base logits, and KL(softmax(base_logits) || softmax(logits)) in nats."""
    parts, base_parts, divergences = [], [], [np.zeros(0)]
    for part, (x, base_x) in _chunks(rows, logits, base_logits):
        log_p, base_log_p = _log_probs(x, options), _log_probs(base_x, options)
        parts.append(_of_a_chunk(x, log_p, labels[part]))
        base_parts.append(_of_a_chunk(base_x, base_log_p, labels[part]))
        divergences.append(_divergence(base_log_p, log_p))
    return _joined(parts), _joined(base_parts), np.concatenate(divergences)


def _chunks(rows: Array, *arrays: Array) -> Iterator[tuple[slice, list[Array]]]:
    """Parts of `rows`, and the rows of the arrays as contiguous matrices."""
    merged = [flat(array) for array in arrays]
    at_a_time = max(1, CHUNK_ELEMENTS // arrays[0].shape[-1])
    for start in range(0, len(rows), at_a_time):
        part = slice(start, min(start + at_a_time, len(rows)))
        taken = rows[part]
        adjacent = taken[-1] - taken[0] == len(taken) - 1
        wanted = slice(int(taken[0]), int(taken[-1]) + 1) if adjacent else taken
        yield part, [_matrix(array[index_of(array, wanted)]) for array in merged]


def _matrix(x: Array) -> Array:
    """Rows as a contiguous matrix of float32 or float64 in native byte order."""
    return np.ascontiguousarray(x, np.float64 if x.dtype.itemsize == 8 else np.float32)


def _log_probs(x: Array, options: Options) -> Array:
    """Log-probabilities of the rows, in float64."""
    scaled = np.multiply(x, options.logit_scale, dtype=np.float64)
    if options.softcap is not None:
        scaled = options.softcap * np.tanh(scaled / options.softcap)
    return log_softmax(scaled, axis=-1, n_threads=options.n_threads)


def _of_a_chunk(x: Array, log_p: Array, labels: Array) -> Statistics:
    own = np.arange(len(labels))
    loss = 0.0 - log_p[own, labels]  # never -0
    p = np.exp(log_p)
    terms = np.where(p > 0, p * log_p, p)  # 0 for probability 0; nan stays
    argmax = np.argmax(x, axis=-1)
    mine = x[own, labels][:, None]
    before = np.arange(x.shape[-1]) < labels[:, None]
    rank = np.count_nonzero((x > mine) | ((x == mine) & before), axis=-1)
    rank[np.isnan(loss)] = x.shape[-1]  # behind all classes
    return Statistics(
        loss, 0.0 - terms.sum(axis=-1), argmax, log_p[own, argmax], rank, (p * p).sum(axis=-1)
    )


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
