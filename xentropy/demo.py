"""A language model of Python's standard library, trained by softmax cross-entropy.

The model reads Python source byte by byte and predicts the next byte: 256 classes. Its
logits are a sum of table rows, one row of each table, picked by a hash of what went
before (the last two bytes, the word so far, the line above, ...):

    logits_i = bias + sum_k table_k[context_ik]

so the gradient of a loss in each of these rows is the gradient in the logits. A step
(`ContextModel.step`) is: gather rows, `cross_entropy_with_grad`, scatter gradients.
"""

import bz2
import hashlib
import lzma
import os
import platform
import sys
import sysconfig
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import xentropy as xe
from xentropy import reference

CLASSES = 256
TABLES = 7
TABLE_BITS = 16  # a context fits uint16, which NumPy sorts by radix; 64 MiB a table
BATCH = 4096
LEARNING_RATE = 1.2
FIRST_SQUARES = 0.5  # damps the first step of a row
NEGLIGIBLE = 0.03  # nats; a byte predicted this well has next to no gradient to scatter
LONG_RUN = 16
HELD_OUT_BYTES = 512 * 1024
LEAST_BYTES = 100 * 1000
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class SourcesMissing(Exception):
    """The sources of the standard library are not on this machine."""


# --- contexts: what the model knows when it predicts a byte ---


def mix(hashed, value):
    """Hash the array `value` into the array `hashed` (uint64)."""
    hashed = (hashed + value + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return hashed ^ (hashed >> np.uint64(32))


def shifted(values, by):
    """The value `by` positions before each position, 0 before the start."""
    out = np.zeros_like(values)
    out[by:] = values[: max(len(values) - by, 0)]
    return out


def recall(text, hashed):
    """The byte found at the last earlier position with the same hash, 256 if there is none.

    Sorting hash and position as one number brings equal hashes together, in text order.
    """
    bits = np.uint64(len(text).bit_length())
    key = (hashed >> bits << bits) | np.arange(len(text), dtype=np.uint64)
    key.sort()
    position = (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.intp)
    again = np.flatnonzero(key[1:] >> bits == key[:-1] >> bits)
    out = np.full(len(text), CLASSES, np.uint64)
    out[position[again + 1]] = text[position[again]]
    return out


def words(text):
    """(hash of the word so far, the byte before that word).

    A word's hash is a sum with one term per letter: a difference of running totals.
    """
    in_word = np.zeros(256, bool)
    in_word[list(b"_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")] = True
    position = np.arange(len(text))
    start = shifted(np.maximum.accumulate(np.where(in_word[text], 0, position + 1)), 1)
    term = mix(mix(np.zeros_like(text), text), (position - start).astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(term)])
    return total[:-1] - total[start], np.concatenate([np.zeros(1, np.uint64), text])[start]


def lines(text):
    """(column, the byte above: in the line before, at the same column)."""
    position = np.arange(len(text))
    start = shifted(np.maximum.accumulate(np.where(text == ord("\n"), position + 1, 0)), 1)
    column = position - start
    above = start[np.maximum(start - 1, 0)] + column
    inside = above < start
    return np.minimum(column, 60).astype(np.uint64), np.where(
        inside, text[np.where(inside, above, 0)], np.uint64(ord("\n"))
    )


def contexts(data):
    """The contexts of each byte of one file, (len(data), TABLES) uint16, from bytes before it.

    Recalled bytes let fixed tables follow a file: a name seen once in it is expected again.
    """
    text = np.frombuffer(data, np.uint8).astype(np.uint64)
    last = [np.zeros_like(text)]  # last[n]: hash of the n bytes before
    for n in range(1, 8):
        last.append(mix(last[-1], shifted(text, n)))
    word, before_word = words(text)
    column, above = lines(text)
    known = (
        [last[2]],
        [last[3]],
        [last[5]],
        [before_word, word],
        [above, column, last[1]],
        [recall(text, last[4]), recall(text, last[7]), last[1]],
        [recall(text, mix(word, before_word)), recall(text, last[5])],
    )
    out = np.empty((len(text), TABLES), np.uint16)
    for table, parts in enumerate(known):
        hashed = np.zeros_like(text)
        for part in parts:
            hashed = mix(hashed, part)
        out[:, table] = mix(hashed, hashed) >> np.uint64(64 - TABLE_BITS)
    return out


# --- the corpus ---


def sources(root):
    """{relative path: bytes} of the Python sources below `root`, tests left out."""
    files = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(set(below) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".py" and (data := path.read_bytes()):
                files[path.relative_to(root).as_posix()] = data
    if sum(map(len, files.values())) < LEAST_BYTES or len(files) < 2:
        raise SourcesMissing(
            f"The demonstration learns from the Python sources of the standard library, and finds "
            f"{len(files)} of them in {root}. Run it with an interpreter that has them unpacked."
        )
    return files


def split(files, seed):
    """(files to train on, held-out files), drawn by a hash of the path and the seed."""
    room = min(HELD_OUT_BYTES, sum(map(len, files.values())) // 5)
    held_out = set()
    for name in sorted(files, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        if len(files[name]) <= room:
            held_out.add(name)
            room -= len(files[name])
    return (
        [data for name, data in files.items() if name not in held_out],
        [data for name, data in files.items() if name in held_out],
    )


class Corpus:
    """Files end to end, with the contexts of every byte; no context crosses a file's start."""

    def __init__(self, files):
        self.text = np.frombuffer(b"".join(files), np.uint8)
        self.contexts = np.empty((len(self.text), TABLES), np.uint16)
        start = 0
        for data in files:
            self.contexts[start : start + len(data)] = contexts(data)
            start += len(data)

    def __len__(self):
        return len(self.text)

    def batch(self, where):
        """(contexts (TABLES, rows), labels (rows,)) at the positions `where`."""
        return np.ascontiguousarray(self.contexts[where].T), self.text[where]


# --- the model ---


def sum_by_context(context, grad):
    """(the distinct contexts, the sum of the rows of `grad` that belong to each).

    With the contexts in order of falling count, those with more than r rows are the first
    ones: all their r-th rows are added at once. Long runs are summed one by one.
    """
    order = np.argsort(context, kind="stable")
    ordered = context[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    count = np.diff(first, append=len(order))
    falling = np.argsort(-count, kind="stable")
    first, count = first[falling], count[falling]
    total = grad[order[first]]
    long = np.searchsorted(-count, -LONG_RUN)
    for c in range(long):
        grad[order[first[c] : first[c] + count[c]]].sum(axis=0, out=total[c])
    for r in range(1, LONG_RUN):
        end = np.searchsorted(-count, -r)  # the contexts before `end` have more than r rows
        if end > long:
            total[long:end] += grad[order[first[long:end] + r]]
    return ordered[first], total


class ContextModel:
    """Logits as a sum of table rows, trained by Adagrad with one sum of squares a row.

    A row's n-th step is about LEARNING_RATE / sqrt(n) long: a new context is learned at
    once, a frequent one settles.
    """

    def __init__(self, text):
        rows = 1 << TABLE_BITS
        # Not np.zeros: it leaves the page faults, a second or so, to the first steps.
        self.tables = np.full((TABLES, rows, CLASSES), 0.0, np.float32)
        self.squares = np.full((TABLES, rows), FIRST_SQUARES, np.float32)
        self.bias = np.log(np.bincount(text, minlength=CLASSES) + 0.01).astype(np.float32)
        self.buffer = np.empty((3, BATCH, CLASSES), np.float32)
        self.kernel_seconds = 0.0

    def logits(self, context):
        """The logits (rows, CLASSES) for contexts (TABLES, rows); valid until the next call."""
        logits, row = self.buffer[:2, : context.shape[1]]
        logits[:] = self.bias
        for table, where in zip(self.tables, context, strict=True):
            # mode="clip" spares a copy of `out`; no uint16 is out of range.
            logits += np.take(table, where, axis=0, out=row, mode="clip")
        return logits

    def step(self, context, labels):
        """Learn one batch; returns its mean loss in bits per byte."""
        logits = self.logits(context)
        start = time.perf_counter()
        loss, grad = xe.cross_entropy_with_grad(
            logits, labels, reduction="none", out=self.buffer[2, : len(labels)]
        )
        self.kernel_seconds += time.perf_counter() - start
        keep = np.flatnonzero(loss > NEGLIGIBLE)
        if len(keep):
            grad = grad[keep]
            for table, where in enumerate(context):
                self.descend(table, *sum_by_context(where[keep], grad))
        return float(loss.mean() / np.log(2))

    def descend(self, table, where, grad):
        """One Adagrad step of the distinct rows `where` of a table."""
        squares = self.squares[table, where] + np.einsum("rc,rc->r", grad, grad)
        self.squares[table, where] = squares
        grad *= (LEARNING_RATE / np.sqrt(squares))[:, None]
        self.tables[table, where] -= grad


# --- training, evaluation ---


class Progress:
    """One line that changes on a terminal; elsewhere a plain line every five seconds."""

    def __init__(self, stream):
        self.stream, self.live = stream, stream.isatty()
        self.last = time.perf_counter()

    def show(self, line, now=False):
        """Show `line` if it is time, or `now`: the last line stays."""
        if now or time.perf_counter() - self.last > (0.2 if self.live else 5.0):
            self.last = time.perf_counter()
            end = "" if self.live and not now else "\n"
            print(f"\r{line:<78}" if self.live else line, end=end, file=self.stream, flush=True)


@dataclass
class Training:
    """What a training did."""

    steps: int
    seconds: float
    kernel_seconds: float

    @property
    def rows_per_second(self):
        return self.steps * BATCH / self.seconds


def train(model, corpus, seed, deadline, reserve, steps=None):
    """Train on random batches until `steps`, or until `deadline` less `reserve` steps' time."""
    rng = np.random.default_rng(seed)
    progress = Progress(sys.stdout)
    start, done, smooth = time.perf_counter(), 0, 0.0
    while True:
        bits = model.step(*corpus.batch(rng.integers(len(corpus), size=BATCH)))
        done, now = done + 1, time.perf_counter()
        smooth += (bits - smooth) / min(done, 50)
        late = now + reserve * (now - start) / done > deadline
        line = (
            f"  {now - start:5.1f} s  {done * BATCH / 1e6:6.2f} million bytes  "
            f"{smooth:.3f} bits per byte in training"
        )
        if done == steps or (steps is None and late):
            progress.show(line, now=True)
            return Training(done, now - start, model.kernel_seconds)
        progress.show(line)


def evaluate(model, corpus):
    """Mean loss in bits per byte: log2 of 1 / probability of the byte that came."""
    total = 0.0
    for start in range(0, len(corpus), BATCH):
        context, labels = corpus.batch(slice(start, start + BATCH))
        total += xe.cross_entropy(model.logits(context), labels, reduction="sum", base=2)
    return total / len(corpus)


def compressors(text):
    """Bits per byte that others need for the same bytes."""
    data, count = text.tobytes(), np.bincount(text)
    packed = {
        "lzma, preset 9 extreme": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "bz2, level 9": bz2.compress(data, 9),
        "zlib, level 9": zlib.compress(data, 9),
    }
    return {
        **{name: 8 * len(stream) / len(data) for name, stream in packed.items()},
        # softmax(log n) = n / sum(n): the entropy of the byte frequencies.
        "single bytes (entropy)": float(xe.entropy(np.log(count[count > 0]), base=2)),
    }


# --- the kernel against the reference ---


def best_time(function, repeats):
    """(shortest time in seconds, result)."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


@dataclass
class Comparison:
    """The kernel and the NumPy reference on one batch."""

    seconds: float
    reference_seconds: float
    loss_difference: float
    grad_difference: float


def compare_with_reference(logits, labels):
    """Time and largest differences of loss and gradient, row by row, on the same logits."""
    out = np.empty_like(logits)
    seconds, (loss, grad) = best_time(
        lambda: xe.cross_entropy_with_grad(logits, labels, reduction="none", out=out), 20
    )
    reference_seconds, (exact_loss, exact_grad) = best_time(
        lambda: reference.cross_entropy_with_grad(logits, labels, reduction="none"), 2
    )
    return Comparison(
        seconds,
        reference_seconds,
        float(np.abs(loss - exact_loss).max()),
        float(np.abs(grad - exact_grad).max()),
    )


# --- the demonstration ---


def introduce(root, training, held_out):
    """Say what is read and what is learned."""

    def amount(files):
        return f"{len(files)} files, {sum(map(len, files)) / 1e6:.2f} MB"

    print(
        f"xentropy {xe.__version__}: a language model of the standard library of Python "
        f"{platform.python_version()}\n"
        f"  sources   {within(root, sys.base_prefix)}, tests left out\n"
        f"  training  {amount(training)}\n"
        f"  held out  {amount(held_out)}\n"
        f"  model     {TABLES} tables, {1 << TABLE_BITS:,} contexts x {CLASSES} classes, float32\n"
        f"  a step    {BATCH:,} bytes at random, one call of cross_entropy_with_grad\n",
        flush=True,
    )


def report(bits, others, training, comparison):
    """Print the figures."""
    print("\nheld-out files             bits per byte")
    print(f"  {'this model':<24} {bits:8.3f}     perplexity {2**bits:.2f} per byte")
    for name, value in others.items():
        print(f"  {name:<24} {value:8.3f}")
    print(
        "  Not a race on equal terms: the model has learned from the other files, and its tables\n"
        "  are not counted; the compressors start cold on the held-out files, laid end to end.\n"
        "\nspeed\n"
        f"  training                 {training.rows_per_second:,.0f} rows/s\n"
        "  cross_entropy_with_grad  "
        f"{training.kernel_seconds / training.seconds:.1%} of the training time\n"
        f"  one batch of {BATCH} x {CLASSES}    {comparison.seconds * 1e3:.2f} ms, NumPy reference "
        f"{comparison.reference_seconds * 1e3:.1f} ms: "
        f"{comparison.reference_seconds / comparison.seconds:.0f} times\n"
        f"  largest difference       gradient {comparison.grad_difference:.1e}, "
        f"loss {comparison.loss_difference:.1e} (float32 against float64)"
    )


def within(path, folder):
    """The path from `folder` on, if it is in there."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def library():
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


def run(seconds, seed, steps=None):
    """Train, evaluate, compare and report in about `seconds`, or after exactly `steps` steps.

    Returns the held-out bits per byte. Raises `SourcesMissing`.
    """
    deadline = time.perf_counter() + seconds
    root = library()
    files = split(sources(root), seed)
    introduce(root, *files)
    corpus, held_out = map(Corpus, files)
    others = compressors(held_out.text)
    model = ContextModel(corpus.text)
    # To evaluate a batch takes less than half as long as to learn it.
    training = train(model, corpus, seed, deadline, len(held_out) / BATCH / 2, steps)
    bits = evaluate(model, held_out)
    context, labels = held_out.batch(slice(0, BATCH))
    report(bits, others, training, compare_with_reference(model.logits(context), labels))
    return bits
