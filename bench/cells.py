"""The grid: which shapes are measured, in which modes, and on what numbers."""

import math
from dataclasses import dataclass

import numpy as np

LINE = 64  # bytes; streamed stores want whole cache lines
DTYPES = ("float16", "bfloat16", "float32", "float64")
SPREAD = 3.0  # standard deviation of the logits: that of a language model in training

# What is timed. Peers have the first two; ours are compared in each.
MODES = {
    "loss": "loss",
    "fresh": "loss + gradient, fresh result",
    "out": "loss + gradient into a warm out=",
    "in place": "loss + gradient in place",
}


@dataclass(frozen=True)
class Cell:
    """One shape of logits: classes along axis 1, rows along all the others."""

    shape: tuple
    dtype: str = "float32"

    @classmethod
    def parse(cls, text):
        """Read '2048x50257' or '2048x50257:float16'."""
        shape, _, dtype = text.partition(":")
        try:
            cell = cls(tuple(int(length) for length in shape.split("x")), dtype or "float32")
            DTYPES.index(cell.dtype)
        except ValueError:
            raise ValueError(f"{text!r} is no cell; one is 1024x32000 or 64x1000:float16") from None
        if len(cell.shape) < 2 or min(cell.shape) < 1:
            raise ValueError(f"{text!r} has no rows or no classes")
        return cell

    @property
    def name(self):
        shape = "x".join(map(str, self.shape))
        return shape if self.dtype == "float32" else f"{shape}:{self.dtype}"

    @property
    def numpy_dtype(self):
        if self.dtype == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.dtype)

    @property
    def classes(self):
        return self.shape[1]

    @property
    def row_shape(self):
        return self.shape[:1] + self.shape[2:]

    @property
    def rows(self):
        return math.prod(self.row_shape)

    @property
    def elements(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.elements * self.numpy_dtype.itemsize


def _cells(*texts):
    return tuple(Cell.parse(text) for text in texts)


GRID = _cells(
    "1x10",
    "32x10",
    "256x1000",
    "65536x10",
    "1000000x10",
    "200000x100",
    "8192x1000",
    "1024x32000",
    "2048x50257",
    "8192x50257",
    "512x128256",
    "1x128256",
    "8x21x512x512",
    "2048x50257:float64",
    "2048x50257:float16",
    "2048x50257:bfloat16",
)
QUICK = _cells("1x10", "256x1000", "20000x10", "512x1000:float64")

# The cells of the README, which has a place for one table.
FEW = _cells(
    "32x10",
    "65536x10",
    "1000000x10",
    "8192x1000",
    "1024x32000",
    "2048x50257",
    "8x21x512x512",
    "2048x50257:bfloat16",
)

# How the cost grows: with the classes at 2,048 rows, with the rows at 1,000 classes.
BY_CLASSES = _cells(*(f"2048x{c}" for c in (2, 4, 10, 32, 100, 320, 1000, 3200, 10000, 32000)))
BY_ROWS = _cells(*(f"{n}x1000" for n in (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)))
BY_THREADS = _cells("200000x100", "8192x1000", "1024x32000")


def make_logits(cell, out=None, seed=0):
    """Fill `out` (new if None) with normal numbers, in pieces that need little memory."""
    out = np.empty(cell.shape, cell.numpy_dtype) if out is None else out
    rng = np.random.default_rng(seed)
    flat = out.reshape(-1)
    piece = 1 << 22
    for begin in range(0, flat.size, piece):
        some = flat[begin : begin + piece]
        some[:] = SPREAD * rng.standard_normal(some.size, np.float32)
    return out


def make_target(cell, seed=1):
    """Class indices, one a row."""
    return np.random.default_rng(seed).integers(cell.classes, size=cell.row_shape)


def aligned(shape, dtype):
    """An array that starts at a cache line."""
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(n_bytes + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + n_bytes].view(dtype).reshape(shape)
