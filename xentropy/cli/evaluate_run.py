"""The rows of files, a block at a time, through the evaluations."""

import argparse
import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import xentropy as xe
from xentropy._files import FileFormatError, Logits, Targets, open_logits, open_targets

from .demo_progress import Progress

# A block: large enough for all threads, and for what it costs beside its rows (some 0.5 ms); small
# enough to end soon after Ctrl-C on a slow disk, and for memory if it is a copy.
VIEW_BYTES = 64 << 20
COPY_BYTES = 16 << 20
BLOCK_ROWS = 1 << 16  # what is kept of a row meanwhile takes some 100 bytes
LOSS_BARS = 60


class Inputs(NamedTuple):
    """The files."""

    logits: Logits
    targets: Targets
    other: Logits | None
    groups: Targets | None
    bytes: Targets | None


class Losses(xe.Evaluation):
    """An evaluation that also counts how many rows have about which loss."""

    def __init__(self, top: tuple[int, ...], bins: int, classes: int) -> None:
        super().__init__(top, bins)
        # Twice the loss of a model that knows nothing; the last bar takes what is above.
        self.edges = np.linspace(0, 2 * math.log(max(classes, 2)), LOSS_BARS + 1)
        self.counts = np.zeros(LOSS_BARS, np.int64)

    def _count(self, batch: Any, rows: Any, classes: int) -> None:
        super()._count(batch, rows, classes)
        known = np.clip(rows.loss[~np.isnan(rows.loss)], 0, self.edges[-1])
        self.counts += np.histogram(known, self.edges)[0]


class Counted:
    """What has been counted of them."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace) -> None:
        how = options.top, options.bins
        classes = inputs.logits.n_classes
        self.evaluation: Any = Losses(*how, classes) if options.plot else xe.Evaluation(*how)
        self.paired: Any = xe.PairedEvaluation() if inputs.other is not None else None
        self.rows_read = 0
        self.complete = False


def open_inputs(options: argparse.Namespace) -> Inputs:
    """Open the files that are asked for; ValueError if they do not fit one another."""
    how = {"axis": options.axis, "dtype": options.dtype, "name": options.name}
    inside = options.target is None
    logits = open_logits(options.logits, **how, target_name=options.target_name if inside else None)
    if not inside:
        targets = open_targets(options.target, logits.row_shape, name=options.target_name)
    elif isinstance(logits.target_source, FileFormatError):
        raise ValueError(f"{logits.target_source}; a file of them can follow it as TARGET")
    else:
        targets = logits.target_source
    others = options.groups, options.bytes if isinstance(options.bytes, str) else None
    groups, size = (path and open_targets(path, logits.row_shape) for path in others)
    other = options.against and open_logits(options.against, **how)
    if other and (other.n_rows, other.n_classes) != (logits.n_rows, logits.n_classes):
        raise ValueError(
            f"{other.path} has {other.n_rows} rows of {other.n_classes} classes, "
            f"but {logits.path} {logits.n_rows} of {logits.n_classes}"
        )
    return Inputs(logits, targets, other or None, groups or None, size or None)


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that the first Ctrl-C makes not empty; the second one is a KeyboardInterrupt."""
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def count(inputs: Inputs, options: argparse.Namespace, progress: Progress) -> Counted:
    """Count the rows of the files, all of them or until Ctrl-C."""
    counted = Counted(inputs, options)
    logits = inputs.logits
    row_bytes = logits.n_classes * logits.dtype.itemsize
    most = COPY_BYTES if logits.copied or (inputs.other and inputs.other.copied) else VIEW_BYTES
    block = max(1, min(BLOCK_ROWS, most // row_bytes))
    more = {"bytes": 0} if isinstance(options.bytes, int) else {}
    begun = time.perf_counter()
    with interruptible() as asked:
        for start in range(0, logits.n_rows, block):
            if asked:
                return counted
            stop = min(start + block, logits.n_rows)
            count_block(counted, inputs, start, stop, more)
            counted.rows_read = stop
            seconds = time.perf_counter() - begun
            progress.show(stop / logits.n_rows, shown(stop, logits.n_rows, row_bytes, seconds))
    if isinstance(options.bytes, int):  # of all rows, and of no group
        count_block(counted, inputs, 0, 0, {"bytes": options.bytes})
    counted.complete = True
    return counted


def count_block(
    counted: Counted, inputs: Inputs, start: int, stop: int, more: dict[str, Any]
) -> None:
    """Count the rows [start, stop), with `more` arguments for the evaluation of one model."""
    rows, target = inputs.logits.rows(start, stop), inputs.targets.rows(start, stop)
    how: dict[str, Any] = {"log_probs": inputs.logits.is_log_probs}
    if inputs.groups:
        how["group"] = inputs.groups.rows(start, stop)
    if inputs.bytes:
        more = {"bytes": inputs.bytes.rows(start, stop)}
    other = inputs.other.rows(start, stop) if inputs.other else None
    if inputs.other and inputs.other.has_targets:
        same_targets(inputs, target, start, stop)
    try:
        counted.evaluation.update(rows, target, **how, **more)
    except (ValueError, IndexError) as error:
        of_bytes = inputs.bytes and str(error).startswith("bytes")
        path = inputs.bytes.path if of_bytes else inputs.targets.path  # type: ignore[union-attr]
        raise type(error)(f"{path}, from row {start}: {error}") from error
    if inputs.other is not None:
        base = inputs.other.is_log_probs
        counted.paired.update(rows, other, target, **how, base_log_probs=base)


def same_targets(inputs: Inputs, target: Any, start: int, stop: int) -> None:
    """Raise where both files have targets, and not the same ones: they are of two texts."""
    assert inputs.other is not None
    differ = inputs.other.targets(start, stop) != target
    if differ.any():
        at = start + int(differ.argmax())
        raise ValueError(
            f"{inputs.other.path} has another target than {inputs.targets.path} in row {at}"
        )


def shown(done: int, rows: int, row_bytes: int, seconds: float) -> str:
    """Share, speed and time left."""
    speed = done * row_bytes / max(seconds, 1e-9) / 1e9
    left = seconds * (rows - done) / done
    return f"{done / rows:4.0%} of {rows:,} rows, {speed:.2f} GB/s, {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes else f"{rest} s"
