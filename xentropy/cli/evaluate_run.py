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

# A block: large enough for all threads, small enough to end soon after Ctrl-C on a slow disk.
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 1 << 16  # what is kept of a row meanwhile takes some 100 bytes
LOSS_BARS = 60


class Inputs(NamedTuple):
    """The files."""

    logits: Logits
    targets: Targets
    other: Logits | None
    groups: Targets | None


class Counted:
    """What has been counted of them."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace) -> None:
        self.evaluation: Any = xe.Evaluation(top=options.top, bins=options.bins)
        self.paired: Any = xe.PairedEvaluation() if inputs.other is not None else None
        self.rows_read = 0
        self.complete = False
        # Twice the loss of a model that knows nothing; the last bar takes what is above.
        top = 2 * math.log(max(inputs.logits.n_classes, 2))
        self.loss_edges = np.linspace(0, top, LOSS_BARS + 1)
        self.loss_counts = np.zeros(LOSS_BARS, np.int64)


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
    groups = options.groups and open_targets(options.groups, logits.row_shape)
    other = options.against and open_logits(options.against, **how)
    if other and (other.n_rows, other.n_classes) != (logits.n_rows, logits.n_classes):
        raise ValueError(
            f"{other.path} has {other.n_rows} rows of {other.n_classes} classes, "
            f"but {logits.path} {logits.n_rows} of {logits.n_classes}"
        )
    return Inputs(logits, targets, other or None, groups or None)


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
    block = max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))
    begun = time.perf_counter()
    with interruptible() as asked:
        for start in range(0, logits.n_rows, block):
            if asked:
                return counted
            stop = min(start + block, logits.n_rows)
            count_block(counted, inputs, options, start, stop)
            counted.rows_read = stop
            seconds = time.perf_counter() - begun
            progress.show(stop / logits.n_rows, shown(stop, logits.n_rows, row_bytes, seconds))
    counted.complete = True
    return counted


def count_block(
    counted: Counted, inputs: Inputs, options: argparse.Namespace, start: int, stop: int
) -> None:
    """Count the rows [start, stop)."""
    rows, target = inputs.logits.rows(start, stop), inputs.targets.rows(start, stop)
    more = {"group": inputs.groups.rows(start, stop)} if inputs.groups else {}
    other = inputs.other.rows(start, stop) if inputs.other else None
    if inputs.other and inputs.other.has_targets:
        same_targets(inputs, target, start, stop)
    # The bytes of all rows, counted once.
    size = {} if options.bytes is None else {"bytes": options.bytes if start == 0 else 0}
    try:
        counted.evaluation.update(rows, target, **more, **size)
    except (ValueError, IndexError) as error:
        raise type(error)(f"{inputs.targets.path}, from row {start}: {error}") from error
    if other is not None:
        counted.paired.update(rows, other, target, **more)
    if options.plot:
        loss = np.asarray(xe.cross_entropy(rows, target, reduction="none"))[target != -100]
        known = np.clip(loss[~np.isnan(loss)], 0, counted.loss_edges[-1])
        counted.loss_counts += np.histogram(known, counted.loss_edges)[0]


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
