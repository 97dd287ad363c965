"""The worker's side: a process for each peer, which copies a batch, makes calls, and lets go."""

import gc
import time
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from .. import worker
from ..peers import Way
from ..stopwatch import peak_extra_bytes
from .cells import DTYPES, LinearCell, normal
from .ways import PEERS, Layer

TINY = LinearCell(3, 4, 5), LinearCell(6, 7, 8)  # what loads and compiles, does so here


@dataclass
class Visit:
    """What a worker is asked: calls in a mode on a batch, for some seconds, one at least."""

    cell: LinearCell
    paths: tuple  # of input and weight
    target: np.ndarray
    mode: str
    budget: float
    sample: tuple | None = None  # the first time: rows and classes of the gradients to be told


@dataclass
class Found:
    """What it says: seconds of each call; peak memory of the first, and its answer."""

    seconds: list = field(default_factory=list)
    memory: int | None = None  # bytes beyond what was there before the call
    answer: tuple | None = None


def numbers(array, where=slice(None)):
    """Some rows of an answer as a float64 array."""
    if hasattr(array, "detach"):
        array = array.detach().double().numpy()
    return np.asarray(array[where] if np.ndim(array) else array, np.float64)


class LinearAtWork:
    """A peer at work."""

    def __init__(self, name):
        self.peer = PEERS[name]
        for cell, dtype in product(TINY, DTYPES):
            cell = LinearCell(cell.rows, cell.features, cell.classes, dtype)
            arrays = [np.empty(each.shape, each.numpy_dtype) for each in (cell.input, cell.weight)]
            for array in arrays:
                normal(1.0, 0)(cell, array)
            for gradients in (True, False):
                layer = Layer(*arrays, np.arange(cell.rows) % cell.classes, gradients)
                self.peer.make(layer)()

    def visit(self, visit):
        cell = visit.cell
        parts = zip(visit.paths, (cell.input, cell.weight), strict=True)
        arrays = [worker.Shared.map(path, part).copy() for path, part in parts]
        step = self.peer.make(Layer(*arrays, visit.target, visit.mode != "forward"))
        found, begun = Found(), time.perf_counter()
        if visit.sample is not None and not self.peer.bare:
            self.first(step, visit.sample, found)
        while not found.seconds or time.perf_counter() - begun < visit.budget:
            start = time.perf_counter()
            step()
            found.seconds.append(time.perf_counter() - start)
        gc.collect()
        return found

    def first(self, step, sample, found):
        """A call whose memory is watched, and its answer: it is timed as the others are."""
        kept = []

        def call():
            start = time.perf_counter()
            kept.append(step())
            found.seconds.append(time.perf_counter() - start)

        found.memory = peak_extra_bytes(Way(call))
        if not kept:  # where the peak cannot be told, no call was made
            call()
        loss, *gradients = kept[0]
        parts = zip(gradients, sample, strict=False)
        found.answer = float(loss), *(numbers(each, where) for each, where in parts)


def serve(connection, name, threads):
    """Answer until None comes."""
    worker.limit_threads(threads)
    worker.answer_all(connection, lambda: LinearAtWork(name))
