"""Batches in chunks of dask."""

import dask.array as da
import numpy as np

from .evaluations import batch

ROWS, CLASSES = 60, 11
CHUNKS = [(60,), (1,) * 60, (7, 30, 0, 23), (59, 1)]


def cut(array, sizes, axis=0):
    """A dask array with these chunks along an axis."""
    chunks = [(n,) for n in array.shape]
    chunks[axis] = sizes
    return da.from_array(array, chunks=tuple(chunks))


def problem(dtype=np.float32, *, probabilities=False, seed=0):
    """Logits, target and weights of the rows of a batch and of classes."""
    given = batch(ROWS, CLASSES, seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    target = given["target"]
    if probabilities:
        target = rng.dirichlet(np.ones(CLASSES), ROWS).astype(dtype)
    weights = {"weight": rng.random(CLASSES), "sample_weight": given["sample_weight"]}
    return given["logits"], target, weights
