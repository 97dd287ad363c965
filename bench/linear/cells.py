"""What is measured: rows x features -> classes, the loss alone or with its gradients."""

from dataclasses import dataclass

import numpy as np

from ..cells import Cell
from ..worker import Shared

DTYPES = ("float32", "bfloat16")
SPREAD = 2.5  # standard deviation of the logits
IGNORED = -100

# What is timed, the most important first, and the matrix products in it.
MODES = {"gradients": 3, "half": 3, "forward": 1}


@dataclass(frozen=True)
class LinearCell:
    """The shape and dtype of a linear layer and its input."""

    rows: int
    features: int
    classes: int
    dtype: str = "float32"

    @classmethod
    def parse(cls, text):
        """Read '1024x768x50257' or '1024x768x50257:bfloat16'."""
        shape, _, dtype = text.partition(":")
        try:
            cell = cls(*(int(n) for n in shape.split("x")), dtype=dtype or "float32")
            DTYPES.index(cell.dtype)
        except (ValueError, TypeError):
            example = "1024x768x50257 or 64x32x1000:bfloat16"
            raise ValueError(f"{text!r} is no cell; one is {example}") from None
        if min(cell.rows, cell.features, cell.classes) < 1:
            raise ValueError(f"{text!r} has no rows, features or classes")
        return cell

    @property
    def name(self):
        shape = f"{self.rows}x{self.features}x{self.classes}"
        return shape if self.dtype == "float32" else f"{shape}:{self.dtype}"

    @property
    def input(self):
        return Cell((self.rows, self.features), self.dtype)

    @property
    def weight(self):
        return Cell((self.classes, self.features), self.dtype)

    @property
    def gradient_bytes(self):
        return self.input.nbytes + self.weight.nbytes

    @property
    def logits_bytes(self):
        return Cell((self.rows, self.classes), self.dtype).nbytes

    def operations(self, mode):
        """Floating-point operations of the matrix products."""
        return 2 * MODES[mode] * self.rows * self.features * self.classes


def _cells(*texts):
    return tuple(LinearCell.parse(text) for text in texts)


CELLS = _cells(
    "1024x768x50257",
    "1024x768x50257:bfloat16",
    "2048x2048x128256",
    "2048x2048x128256:bfloat16",
)
QUICK = _cells("64x24x2000", "64x24x2000:bfloat16")


def normal(deviation, seed):
    """What fills an array with normal numbers, in pieces that need little memory."""

    def fill(cell, out):
        rng, flat = np.random.default_rng(seed), out.reshape(-1)
        for begin in range(0, flat.size, 1 << 22):
            some = flat[begin : begin + (1 << 22)]
            some[:] = np.float32(deviation) * rng.standard_normal(some.size, np.float32)

    return fill


class Batch:
    """The arrays of a cell, in memory that workers can map; labels for each mode."""

    def __init__(self, cell):
        self.cell = cell
        self.input = Shared(cell.input, normal(1.0, 0), None)
        self.weight = Shared(cell.weight, normal(SPREAD * cell.features**-0.5, 1), None)
        rng = np.random.default_rng(2)
        labels = rng.integers(cell.classes, size=cell.rows)
        half = np.where(rng.permutation(cell.rows) < cell.rows // 2, IGNORED, labels)
        self.targets = {"forward": labels, "gradients": labels, "half": half}

    def close(self):
        self.input.close()
        self.weight.close()
