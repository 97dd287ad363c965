"""The one message of each rank: a header, then the numbers of its rows (`Part`), in float64."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from ..._kernels import Options, label_error
from ._shards import Part, Shard

# Of the header: the first class of the shard, how many it has, the sum of their weights, a checksum
# of what has to be the same on all ranks, and how many rows the rank can work on at a time. A
# message of nan: this rank has failed.
FIRST, CLASSES, WEIGHT, CHECKSUM, AT_A_TIME, HEADER = range(6)


def has_masses(shard: Shard) -> bool:
    """Are target masses sent? Those of labels without weights follow from the labels."""
    return not shard.has_labels or shard.weight is not None


def columns(masses: bool, label_smoothing: Any) -> int:
    """How many numbers are sent of a row."""
    return 2 + bool(masses) + (label_smoothing != 0)


def message(shard: Shard, part: Part, offset: int) -> Any:
    """What this rank sends."""
    return np.concatenate([header(shard, offset), numbers(shard, part)])


def header(shard: Shard, offset: int, at_a_time: int = 0) -> Any:
    """What has to be known of a rank, and what it may do at a time."""
    return np.array([offset, shard.classes, shard.all_weight, checksum(shard), at_a_time])


def numbers(shard: Shard, part: Part) -> Any:
    """The numbers of all rows."""
    fields = [part.lse, part.target_loss]
    fields += [part.target_mass] if has_masses(shard) else []
    fields += [] if part.uniform_loss is None else [part.uniform_loss]
    return np.concatenate(fields)


def checksum(shard: Shard) -> int:
    """Of labels, sample weights and options."""
    given = shard.options
    terms = [getattr(given, n) for n in Options.NAMES if n != "n_threads"]
    found = zlib.crc32(repr((shard.row_shape, terms)).encode())
    if shard.has_labels:
        labels = np.ascontiguousarray(shard.target, np.int64)
        found = zlib.crc32(labels.tobytes(), found)
    return found if shard.repeat is None else zlib.crc32(shard.repeat, found)


class Shards(NamedTuple):
    """What all ranks know of one another: arrays, one number for each."""

    first: Any
    sizes: Any
    weights: Any  # of all classes of a shard together

    @property
    def classes(self) -> int:
        """The number of all classes."""
        return int(self.sizes.sum())


def received(shard: Shard, messages: Any) -> tuple[Part, int]:
    """The `Part`s of all ranks, and how many classes there are."""
    shards = agreed(shard, messages[:, :HEADER])
    return parts(shard, shards, messages[:, HEADER:]), shards.classes


def agreed(shard: Shard, headers: Any) -> Shards:
    """The shards, once it is certain that they belong together, and labels that are classes.

    Every rank raises the same error, but for one that has failed before: its own.
    """
    failed = np.isnan(headers[:, CLASSES])
    if failed.any():
        raise RuntimeError(f"the loss has failed on rank {failed.argmax()} of the group")
    other = headers[:, CHECKSUM] != headers[0, CHECKSUM]
    if other.any():
        raise ValueError(
            f"target, sample_weight or an option of rank {other.argmax()} is not that of rank 0: "
            "all ranks must have the same rows"
        )
    first, sizes = (headers[:, k].astype(np.int64) for k in (FIRST, CLASSES))
    _check_range(first, sizes)
    shards = Shards(first, sizes, headers[:, WEIGHT])
    if shard.has_labels:
        _check_labels(shard, shards.classes)
    return shards


def parts(shard: Shard, shards: Shards, messages: Any) -> Part:
    """The `Part`s of all ranks: each field has one row for each rank."""
    each = columns(has_masses(shard), shard.options.label_smoothing)
    fields = messages.reshape(len(messages), each, shard.rows).swapaxes(0, 1)
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
