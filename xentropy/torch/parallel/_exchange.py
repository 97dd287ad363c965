"""The one message of each rank: a header, then the numbers of its rows (`Part`), in float64."""

import zlib
from typing import Any

import numpy as np

from ..._kernels import Options, label_error
from ._shards import Part, Shard

# Of the header: the first class of the shard, how many it has, the sum of their weights, and a
# checksum of what has to be the same on all ranks. A message of nan: this rank has failed.
FIRST, CLASSES, WEIGHT, CHECKSUM, HEADER = range(5)


def has_masses(shard: Shard) -> bool:
    """Are target masses sent? Those of labels without weights follow from the labels."""
    return not shard.has_labels or shard.weight is not None


def columns(masses: bool, label_smoothing: Any) -> int:
    """How many numbers are sent of a row."""
    return 2 + bool(masses) + (label_smoothing != 0)


def message(shard: Shard, part: Part, offset: int) -> Any:
    """What this rank sends."""
    fields = [part.lse, part.target_loss]
    fields += [part.target_mass] if has_masses(shard) else []
    fields += [] if part.uniform_loss is None else [part.uniform_loss]
    header = np.zeros(HEADER)
    header[[FIRST, CLASSES]] = offset, shard.classes
    header[[WEIGHT, CHECKSUM]] = part.uniform_mass, checksum(shard)
    return np.concatenate([header, *fields])


def checksum(shard: Shard) -> int:
    """Of labels, sample weights and options."""
    given = shard.options
    terms = [getattr(given, n) for n in Options.NAMES if n != "n_threads"]
    found = zlib.crc32(repr((shard.row_shape, terms)).encode())
    if shard.has_labels:
        labels = np.ascontiguousarray(shard.target, np.int64)
        found = zlib.crc32(labels.tobytes(), found)
    return found if shard.repeat is None else zlib.crc32(shard.repeat, found)


def received(shard: Shard, messages: Any) -> tuple[Part, int]:
    """The `Part`s of all ranks, each field with one row for each rank, and how many classes.

    Every rank raises the same error, but for one that has failed before: its own.
    """
    header = messages[:, :HEADER]
    failed = np.isnan(header[:, CLASSES])
    if failed.any():
        raise RuntimeError(f"vocab_parallel_cross_entropy has failed on rank {failed.argmax()}")
    other = header[:, CHECKSUM] != header[0, CHECKSUM]
    if other.any():
        raise ValueError(
            f"target, sample_weight or an option of rank {other.argmax()} is not that of rank 0: "
            "all ranks must have the same rows"
        )
    first, sizes = (header[:, k].astype(np.int64) for k in (FIRST, CLASSES))
    classes = _whole(first, sizes)
    if shard.has_labels:
        _check_labels(shard, classes)
    each = columns(has_masses(shard), shard.options.label_smoothing)
    fields = messages[:, HEADER:].reshape(len(messages), each, shard.rows).swapaxes(0, 1)
    lse, loss = fields[:2]
    mass = fields[2] if has_masses(shard) else _owned(shard, first, sizes)
    uniform = fields[-1] if shard.options.label_smoothing else None
    return Part(lse, loss, mass, uniform, header[:, WEIGHT], None, None, None), classes


def _whole(first: Any, sizes: Any) -> int:
    """The number of all classes, if the shards have each of them once."""
    order = np.argsort(first, kind="stable")
    wanted = np.cumsum(sizes[order]) - sizes[order]
    wrong = np.flatnonzero(first[order] != wanted)
    if len(wrong):
        rank = order[wrong[0]]
        shards = ", ".join(f"[{a}, {a + n})" for a, n in zip(first, sizes, strict=True))
        raise ValueError(
            f"the shard of rank {rank} starts at class {first[rank]}, not {wanted[wrong[0]]}: the "
            f"ranks have {shards}; give each its offset if their sizes differ"
        )
    return int(sizes.sum())


def _check_labels(shard: Shard, classes: int) -> None:
    """Raise IndexError for a label that is no class on any rank."""
    labels = shard.target.reshape(-1)
    bad = shard.counted & ((labels < 0) | (labels >= classes))
    if bad.any():
        raise label_error(shard.target, int(bad.argmax()), classes)


def _owned(shard: Shard, first: Any, sizes: Any) -> Any:
    """Which rank has the label of each row: (ranks, rows), 1.0 or 0.0."""
    labels = shard.labels_in(0, int(sizes.sum()))
    own = (labels >= first[:, None]) & (labels < (first + sizes)[:, None])
    return own.astype(np.float64)
