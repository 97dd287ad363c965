"""What the ranks send: a header, then the numbers of their rows (`Part`), in float64.

The first number of each message is nan if the rank has failed, and otherwise never.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np

from ..._kernels import Options, label_error
from ._group import Collectives
from ._shards import Part, Shard

# Of the header: the first class of the shard, how many it has, the sum of their weights, how many
# rows, checksums of what has to be the same on all ranks, and how many rows the rank can work on at
# a time.
FIRST, CLASSES, WEIGHT, ROWS, CHECKSUM, LAYER, AT_A_TIME, HEADER = range(8)

SAME = {
    CHECKSUM: "target, sample_weight, an option, or whether there is a weight,",
    LAYER: "the shape or dtype of hidden, or whether it requires a gradient,",
}


def has_masses(shard: Shard) -> bool:
    """Are target masses sent? Those of labels without weights follow from the labels."""
    return not shard.has_labels or shard.weight is not None


def header(shard: Shard, offset: int, at_a_time: int = 0, layer: Any = None) -> Any:
    """What has to be known of a rank, and what it may do at a time."""
    sizes = offset, shard.classes, shard.all_weight, shard.rows
    return np.array([*sizes, checksum(shard), _crc(layer), at_a_time], np.float64)


def numbers(shard: Shard, part: Part) -> Any:
    """0 and the numbers of all rows."""
    fields = [np.zeros(1), part.lse, part.target_loss]
    fields += [part.target_mass] if has_masses(shard) else []
    fields += [] if part.uniform_loss is None else [part.uniform_loss]
    return np.concatenate(fields)


def numbers_of_rows(shard: Shard, rows: int) -> int:
    """How many these are."""
    return 1 + _each(shard) * rows


def _each(shard: Shard) -> int:
    return 2 + has_masses(shard) + (shard.options.label_smoothing != 0)


def checksum(shard: Shard) -> int:
    """Of labels, sample weights and options."""
    given = shard.options
    terms = [getattr(given, n) for n in Options.NAMES if n != "n_threads"]
    found = _crc((shard.row_shape, terms, shard.has_labels, shard.weight is None))
    if shard.has_labels:
        labels = np.ascontiguousarray(shard.target, np.int64)
        found = zlib.crc32(labels.tobytes(), found)
    return found if shard.repeat is None else zlib.crc32(shard.repeat, found)


def _crc(value: Any) -> int:
    return zlib.crc32(repr(value).encode())


class Shards(NamedTuple):
    """What all ranks know of one another: arrays, one number for each."""

    first: Any
    sizes: Any
    weights: Any  # of all classes of a shard together

    @property
    def classes(self) -> int:
        """The number of all classes."""
        return int(self.sizes.sum())


def agreed(shard: Shard, ranks: Collectives, headers: Any) -> Shards:
    """The shards, once it is certain that they belong together, and labels that are classes."""
    with ranks.known_to_all(ValueError, IndexError):
        return shards_of(shard, headers)


def shards_of(shard: Shard, headers: Any) -> Shards:
    """The same. Every rank raises the same ValueError or IndexError."""
    rows = headers[:, ROWS].astype(np.int64)
    if (other := rows != rows[0]).any():
        rank = other.argmax()
        raise ValueError(
            f"rank {rank} has {rows[rank]} rows, and rank 0 {rows[0]}: "
            "all ranks must have the same rows"
        )
    for column, what in SAME.items():
        if (other := headers[:, column] != headers[0, column]).any():
            rank = other.argmax()
            raise ValueError(
                f"{what} of rank {rank} is not that of rank 0: all ranks must have the same"
            )
    first, sizes = (headers[:, k].astype(np.int64) for k in (FIRST, CLASSES))
    _check_range(first, sizes)
    shards = Shards(first, sizes, headers[:, WEIGHT])
    if shard.has_labels:
        _check_labels(shard, shards.classes)
    return shards


def parts(shard: Shard, shards: Shards, messages: Any) -> Part:
    """The `Part`s of all ranks: each field has one row for each rank."""
    fields = messages[:, 1:].reshape(len(messages), _each(shard), shard.rows).swapaxes(0, 1)
    lse, loss = fields[:2]
    mass = fields[2] if has_masses(shard) else _owned(shard, shards)
    uniform = fields[-1] if shard.options.label_smoothing else None
    return Part(lse, loss, mass, uniform, shards.weights, None, None, None)


def _check_range(first: Any, sizes: Any) -> None:
    """Raise unless the shards have each class once."""
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


def _check_labels(shard: Shard, classes: int) -> None:
    """Raise IndexError for a label that is no class on any rank."""
    labels = shard.target.reshape(-1)
    bad = shard.counted & ((labels < 0) | (labels >= classes))
    if bad.any():
        raise label_error(shard.target, int(bad.argmax()), classes)


def _owned(shard: Shard, shards: Shards) -> Any:
    """Which rank has the label of each row: (ranks, rows), 1.0 or 0.0."""
    labels = shard.labels_in(0, shards.classes)
    first = shards.first[:, None]
    own = (labels >= first) & (labels < first + shards.sizes[:, None])
    return own.astype(np.float64)
