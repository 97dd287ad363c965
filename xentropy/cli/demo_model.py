"""The model of the demonstration, trained by softmax cross-entropy, and its training.

The model reads Python source byte by byte and predicts the next byte: 256 classes. Its
logits are a sum of table rows, one row of each table, selected by the byte's contexts:

    logits_i = bias + sum_k table_k[context_ik]

so the gradient of a loss in each of these rows is the gradient in the logits. A step
(`ContextModel.step`) is: gather rows, `cross_entropy_with_grad`, scatter gradients.
"""

import time
from dataclasses import dataclass

import numpy as np

import xentropy as xe

from . import demo_data
from .demo_data import CLASSES, TABLES

BATCH = 4096
LEARNING_RATE = 1.2
FIRST_SQUARES = 0.5  # damps the first step of a row
NEGLIGIBLE = 0.03  # nats; a byte predicted this well has next to no gradient to scatter
LONG_RUN = 16


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
        rows = 1 << demo_data.TABLE_BITS
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


@dataclass
class Training:
    """What a training did."""

    steps: int
    seconds: float
    kernel_seconds: float

    @property
    def rows_per_second(self):
        return self.steps * BATCH / self.seconds

    @property
    def other_seconds(self):
        """Of a step, what is not the loss and its gradient."""
        return (self.seconds - self.kernel_seconds) / self.steps


def train(model, corpus, seed, deadline, reserve, progress, steps=None):
    """Train on random batches until `steps`, or until `deadline` less `reserve` steps' time."""
    rng = np.random.default_rng(seed)
    start, done, smooth = time.perf_counter(), 0, 0.0
    while True:
        bits = model.step(*corpus.batch(rng.integers(len(corpus), size=BATCH)))
        done, now = done + 1, time.perf_counter()
        smooth += (bits - smooth) / min(done, 50)
        needed = now + reserve * (now - start) / done
        text = f"{done * BATCH / 1e6:6.2f} million bytes  {smooth:.3f} bits per byte in training"
        if done == steps or (steps is None and needed > deadline):
            progress.done(text)
            return Training(done, now - start, model.kernel_seconds)
        progress.show(done / steps if steps else (now - start) / (deadline - start), text)


def evaluate(model, corpus):
    """Mean loss in bits per byte: log2 of 1 / probability of each byte."""
    total = 0.0
    for start in range(0, len(corpus), BATCH):
        context, labels = corpus.batch(slice(start, start + BATCH))
        total += xe.cross_entropy(model.logits(context), labels, reduction="sum", base=2)
    return total / len(corpus)
