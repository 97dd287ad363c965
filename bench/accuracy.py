"""How far an answer is from the float64 reference, in units of the last place."""

import inspect
import math
import types
from dataclasses import dataclass

import numpy as np

from xentropy import reference

SAMPLE_ELEMENTS = 1 << 20  # of the gradient that are compared
CHUNK_ELEMENTS = 1 << 22  # that the reference works on at a time
WRONG = 0.01  # an answer further off than this share is wrong, whatever the type


def long_reference():
    """The reference with every float64 replaced by long double: the oracle for float64."""
    module = types.ModuleType("long_reference")
    exec(inspect.getsource(reference).replace("float64", "longdouble"), module.__dict__)
    return module


def wide(dtype):
    """A type in which differences of numbers of `dtype` round to nothing that counts."""
    return np.longdouble if np.dtype(dtype).itemsize > 4 else np.float64


def spacing(value, dtype):
    """The unit in the last place of |value| in `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.spacing(np.abs(value).astype(dtype)).astype(wide(dtype))


def ulps(actual, exact):
    """|actual - exact| in units of the last place of `exact` in actual's dtype.

    Equal infinities, and two nans, are 0 apart; one nan or one infinity is inf apart,
    unless `exact` rounds to that infinity.
    """
    actual = np.asarray(actual)
    a, e = (np.asarray(each).astype(wide(actual.dtype)) for each in (actual, exact))
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(a - e) / spacing(e, actual.dtype)
        same = (a == e) | (actual == e.astype(actual.dtype)) | (np.isnan(a) & np.isnan(e))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def arithmetic(dtype):
    """The type whose last place errors of the loss are counted in."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


@dataclass
class Exact:
    """The mean loss, and the gradient of the mean in some of the rows."""

    loss: float
    rows: np.ndarray
    gradient: np.ndarray


def rows_of(array, rows):
    """Rows by number, shape (len(rows), C), of an array with its classes along axis 1."""
    where = np.unravel_index(rows, array.shape[:1] + array.shape[2:])
    return array[(where[0], slice(None), *where[1:])]


def exact(cell, logits, target):
    """What the reference says, piece by piece: the whole batch in float64 may not fit."""
    piece = max(1, CHUNK_ELEMENTS * cell.shape[0] // cell.elements)
    losses = (
        reference.cross_entropy(logits[n : n + piece], target[n : n + piece], reduction="sum")
        for n in range(0, cell.shape[0], piece)
    )
    loss = math.fsum(losses) / cell.rows
    rows = np.linspace(0, cell.rows - 1, min(cell.rows, max(1, SAMPLE_ELEMENTS // cell.classes)))
    rows = np.unique(rows.astype(np.intp))
    oracle = long_reference() if cell.numpy_dtype == np.float64 else reference
    _, gradient = oracle.cross_entropy_with_grad(
        rows_of(logits, rows), target.reshape(-1)[rows], reduction="sum"
    )
    return Exact(loss, rows, gradient / cell.rows)


def compare(cell, truth, loss, gradient, rows):
    """Errors in ulp of an answer; `rows` is what its sums were divided by (1 for a sum).

    Returns a dict with loss_ulp, grad_ulp (None without gradient) and wrong.
    """
    scale = cell.rows / rows
    loss_exact = truth.loss * scale
    loss = float(loss)
    with np.errstate(invalid="ignore"):
        loss_ulp = abs(loss - loss_exact) / float(spacing(loss_exact, arithmetic(cell.numpy_dtype)))
    wrong = not abs(loss - loss_exact) <= WRONG * abs(loss_exact)
    if gradient is None:
        return {"loss_ulp": loss_ulp, "grad_ulp": None, "wrong": wrong}
    sample, gradient_exact = rows_of(gradient, truth.rows), truth.gradient * scale
    off = np.max(np.abs(sample.astype(np.longdouble) - gradient_exact))
    wrong = wrong or not off <= WRONG * np.max(np.abs(gradient_exact))
    grad_ulp = float(np.max(ulps(sample, gradient_exact)))
    return {"loss_ulp": loss_ulp, "grad_ulp": grad_ulp, "wrong": wrong}
