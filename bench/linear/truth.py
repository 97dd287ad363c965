"""Loss and gradients in float64, and how far an answer is from them.

All logits would be 2 GB in the largest cell, so they are made for some rows at a time, by tiles of
the classes. Gradients are compared in some rows of the input and some classes of the weight, of
which half are labels.
"""

import math
from dataclasses import dataclass

import numpy as np

from xentropy import reference

ROWS, CLASSES = 64, 256  # that gradients are compared in
CHUNK_ELEMENTS = 1 << 25  # of the logits, at a time: 270 MB
TILE_ELEMENTS = 1 << 23  # of the weight


@dataclass
class Truth:
    """The mean loss; its gradient in some rows of the input and of the weight, by number."""

    loss: float
    rows: np.ndarray
    input: np.ndarray
    classes: np.ndarray
    weight: np.ndarray


def evenly(count, most):
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def sample(cell, target):
    """The rows and classes that are compared."""
    labels = target[evenly(cell.rows, CLASSES // 2)]
    return evenly(cell.rows, ROWS), np.union1d(evenly(cell.classes, CLASSES // 2), labels)


def tiles(weight):
    """(classes, their weights in float64), one after the other."""
    step = max(1, TILE_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        yield part, weight[part].astype(np.float64)


def truth(cell, input, weight, target):
    """The Truth of arrays of any type."""
    rows, classes = sample(cell, target)
    of_weight, kept = np.zeros((len(classes), cell.features)), np.empty((len(rows), cell.classes))
    step, losses = max(1, CHUNK_ELEMENTS // cell.classes), []
    for start in range(0, cell.rows, step):
        chunk = slice(start, min(start + step, cell.rows))
        x = input[chunk].astype(np.float64)
        logits = np.empty((len(x), cell.classes))
        for part, w in tiles(weight):
            logits[:, part] = x @ w.T
        loss, slope = reference.cross_entropy_with_grad(logits, target[chunk], reduction="sum")
        losses.append(loss)
        of_weight += slope[:, classes].T @ x
        inside = (rows >= chunk.start) & (rows < chunk.stop)
        kept[inside] = slope[rows[inside] - start]
    of_input = sum(kept[:, part] @ w for part, w in tiles(weight))
    n = cell.rows
    return Truth(math.fsum(losses) / n, rows, of_input / n, classes, of_weight / n)


def apart(answer, exact):
    """The length of the difference over that of the exact answer."""
    difference = np.linalg.norm(np.asarray(answer, np.float64) - exact)
    return float(difference / np.linalg.norm(exact))


def errors(answer, exact):
    """Relative errors of (loss, some rows of each gradient)."""
    loss, of_input, of_weight = answer
    return (
        abs(float(loss) - exact.loss) / exact.loss,
        apart(of_input, exact.input),
        apart(of_weight, exact.weight),
    )
