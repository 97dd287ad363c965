"""Batches of short rows, which the kernels take many at a time."""

import numpy as np

INF = np.inf


def group(classes):
    """Rows of a group: about 1024 elements, a multiple of 16."""
    return max(16, 1024 // classes // 16 * 16)


def wild(shape, dtype, seed=0):
    """Rows that share a group and nothing else: all sizes, infinities, nan, huge losses."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, shape)
    offsets = [0, 50, -50, 90, -90, 300, -300, 1000, -1000, 3e4, -3e4, 7e5, -7e5, 1e9, -1e30]
    x += rng.choice(offsets, shape[0])[:, None]
    x = x.astype(dtype)
    kind = rng.integers(0, 8, shape[0])
    column = rng.integers(0, shape[1], shape[0])
    for what, value in enumerate([INF, -INF, np.nan, 3e38, -200.0]):
        rows = np.flatnonzero(kind == what)
        x[rows, column[rows]] = value
    x[rng.integers(0, shape[0], 3)] = -INF
    return x
