"""A run: the peers take turns in every cell and mode, again and again until the time is up."""

import itertools
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

from .. import quiet
from ..worker import Shared, Worker, WorkerError
from . import truth, ways, work
from .cells import MODES, Batch

ROUNDS = 2
LONGEST = 60.0  # seconds of a call; peers that need more are left out
BUDGET = 0.5  # seconds of timing a visit
HALF = (ways.NUMPY, ways.TORCH)  # who is asked what ignored labels save


def size(step):
    """What orders the cells of steps."""
    return step[0].operations("forward")


@dataclass
class Record:
    """What is known of one peer in a mode of a cell."""

    visits: list = field(default_factory=list)  # quiet.Visit of Found
    errors: tuple | None = None

    @property
    def quiet(self):
        return all(visit.quiet for visit in self.counted)

    @property
    def counted(self):
        """The quiet visits, or all where there is none."""
        return [visit for visit in self.visits if visit.quiet] or self.visits

    @property
    def seconds(self):
        return statistics.median(s for visit in self.counted for s in visit.found.seconds)

    @property
    def memory(self):
        """Peak bytes beyond the inputs; None where it cannot be told."""
        return self.visits[0].found.memory


class Run:
    """Records by (cell, mode, peer), and why others are absent."""

    def __init__(self, cells, names, threads, seconds, rounds=ROUNDS, budget=BUDGET):
        self.cells, self.names, self.threads = cells, names, threads
        self.end, self.rounds, self.budget = time.monotonic() + seconds, rounds, budget
        self.records = defaultdict(Record)
        self.absent = {}
        self._workers, self._batches, self._truths = {}, {}, {}

    def all(self):
        """Make the visits: all rounds of small cells, then what matters most of the large ones."""
        modes = list(MODES)
        steps = [(cell, mode) for cell in self.cells for mode in modes]
        steps.sort(key=lambda step: (size(step), modes.index(step[1])))
        try:
            for _, group in itertools.groupby(steps, size):
                for number, (cell, mode) in itertools.product(range(self.rounds), list(group)):
                    if number == 0 or time.monotonic() < self.end:
                        self.turn(number, cell, mode)
        finally:
            self.close()

    def turn(self, number, cell, mode):
        """A visit to each peer."""
        text = f"round {number + 1}, {cell.name}, {mode}"
        print(time.strftime("%H:%M:%S"), text, flush=True)
        for name in self.asked(cell, mode):
            self.visit(cell, mode, name, first=number == 0)

    def asked(self, cell, mode):
        """The peers of a mode: no products in another dtype than the cell's, no chunks but some."""
        if mode == "half":
            return [name for name in self.names if name in HALF]
        ours = [name for name in (ways.NUMPY, ways.TORCH) if name in self.names]
        bare = {ways.ceiling(name, cell.dtype) for name in ours}
        return [
            name
            for name in self.names
            if ways.PEERS[name].chunk < cell.rows
            and (not ways.PEERS[name].bare or (name, cell.dtype) in bare)
        ]

    def visit(self, cell, mode, name, first):
        """One visit, or the reason why there is none."""
        key = cell, mode, name
        if not first and (key not in self.records or name == ways.DEFAULT):
            return
        if reason := self.why_not(*key):
            if first:
                self.absent[key] = reason
            return
        try:
            found = self.worker(name).ask(self.job(cell, mode, first), 3 * LONGEST)
        except WorkerError as error:
            self.absent[key] = str(error)
            self._workers.pop(name).close()
            return
        record = self.records[key]
        record.visits.append(found)
        if found.found.answer and mode == "gradients":
            record.errors = truth.errors(found.found.answer, self.truth(cell))

    def why_not(self, cell, mode, name):
        """Why no such call is made; None if it is."""
        seconds = self.estimate(cell, mode, name)
        if seconds > LONGEST:
            return f"some {seconds:.0f} s a call, to judge by a smaller cell"
        if time.monotonic() + seconds > self.end:
            return "the time was up"
        if ways.PEERS[name].chunk and (cell, mode, name) not in self.records:
            chunks = [ways.CHUNKED(n) for n in ways.CHUNKS]
            estimates = {n: self.estimate(cell, mode, n) for n in chunks if n in self.names}
            if estimates[name] > min(estimates.values()) > 0:
                return "chunks of another size were faster in a smaller cell"
        return None

    def estimate(self, cell, mode, name):
        """Seconds of a call: known, or from a smaller cell by the operations; 0 if unknown."""
        if (cell, mode, name) in self.records:
            return self.records[cell, mode, name].seconds
        known = [
            record.seconds * cell.operations(mode) / other.operations(mode)
            for (other, of_mode, peer), record in self.records.items()
            if (other.dtype, of_mode, peer) == (cell.dtype, mode, name)
        ]
        return known[-1] if known else 0.0

    def job(self, cell, mode, first):
        batch = self.batch(cell)
        target = batch.targets[mode]
        sample = truth.sample(cell, target) if first and mode != "half" else None
        paths = batch.input.path, batch.weight.path
        return work.Visit(cell, paths, target, mode, self.budget, sample)

    def batch(self, cell):
        if cell not in self._batches:
            self._batches[cell] = Batch(cell)
        return self._batches[cell]

    def truth(self, cell):
        if cell not in self._truths:
            batch = self.batch(cell)
            parts = (batch.input, cell.input), (batch.weight, cell.weight)
            arrays = [Shared.map(shared.path, part) for shared, part in parts]
            self._truths[cell] = truth.truth(cell, *arrays, batch.targets["gradients"])
        return self._truths[cell]

    def worker(self, name):
        if name not in self._workers:
            self._workers[name] = Worker(name, self.threads, target=work.serve)
        return self._workers[name]

    def close(self):
        for each in (*self._workers.values(), *self._batches.values()):
            each.close()

    def ratio(self, cell, mode, name, other):
        """The time of one over that of another; UNKNOWN beside busy processes, None without."""
        keys = (cell, mode, name), (cell, mode, other)
        if not all(key in self.records for key in keys):
            return None
        one, two = (self.records[key] for key in keys)
        return one.seconds / two.seconds if one.quiet and two.quiet else quiet.UNKNOWN
