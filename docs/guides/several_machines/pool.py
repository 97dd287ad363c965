"""Evaluate logits in files by two processes."""

from functools import reduce
from multiprocessing import get_context

import numpy as np

import xentropy as xe

STEP = 500  # rows at a time


def count(start):
    """What the rows from `start` on add to the figures."""
    rows = slice(start, start + STEP)
    logits = np.load("logits.npy", mmap_mode="r")[rows]
    target = np.load("target.npy", mmap_mode="r")[rows]
    part = xe.Evaluation()
    part.update(logits, target, n_threads=1)  # a process for each core
    return part


if __name__ == "__main__":
    starts = range(0, len(np.load("target.npy", mmap_mode="r")), STEP)
    with get_context("spawn").Pool(2) as pool:
        whole = reduce(xe.Evaluation.merge, pool.imap_unordered(count, starts))
    print(whole.result())
