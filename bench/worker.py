"""One process for each peer: runtimes disturb each other, and one that dies takes no other along.

The parent holds the inputs in shared memory. A *visit* copies them into memory of the worker's
own, times every mode and lets go of all, so that only one worker at a time has large arrays.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np

from . import accuracy, ceiling, quiet
from .cells import Cell, aligned, make_logits, make_target
from .peers import PEERS, Inputs
from .stopwatch import peak_extra_bytes, timings

CEILING = "ceiling"
SETTLE = 0.02  # seconds; the threads of the process before may spin that long
PATIENCE = 900.0  # seconds until a worker that says nothing is given up


class Shared:
    """The inputs of a cell in memory that other processes can map."""

    def __init__(self, cell, logits_of, target):
        self.cell, self.target = cell, target
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("logits")
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp()
        os.truncate(self._file, cell.nbytes)
        self.logits = self.map(self.path, cell, "r+")
        logits_of(cell, self.logits)

    @staticmethod
    def map(path, cell, mode="r"):
        raw = np.memmap(path, np.uint8, mode, shape=(cell.nbytes,))
        return raw.view(cell.numpy_dtype).reshape(cell.shape)

    def close(self):
        self.logits = None
        os.close(self._file)
        if not self.path.startswith("/proc/"):
            os.unlink(self.path)


@dataclass
class Visit:
    """What a worker is asked: time these modes of a cell."""

    cell: Cell
    path: str
    target: np.ndarray
    modes: tuple
    budget: float  # seconds of timing a mode
    exact: accuracy.Exact | None = None  # the answer, the first time: errors and memory too


@dataclass
class Timed:
    """What it says of one mode."""

    seconds: list
    memory: float | None = None  # peak extra bytes over those of the logits
    errors: dict = field(default_factory=dict)


@dataclass
class Question:
    """What a worker is asked: loss and gradient (None if it has none) of these logits."""

    logits: np.ndarray
    target: np.ndarray


def limit_threads(threads):
    """Before any library is loaded: what they all look at."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):  # XLA's pool has as many threads as it sees CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def own_inputs(visit):
    logits = aligned(visit.cell.shape, visit.cell.numpy_dtype)
    logits[...] = Shared.map(visit.path, visit.cell)
    return Inputs(visit.cell, logits, visit.target)


class PeerAtWork:
    """The worker's side of a peer."""

    def __init__(self, name, threads):
        self.peer = PEERS[name]
        self.prepare = self.peer.make(threads)

    def visit(self, visit):
        if visit.exact is not None:
            self.load_all(visit.cell)
        ways = self.prepare(own_inputs(visit))
        modes = [mode for mode in visit.modes if mode in self.peer.modes]
        return {mode: self.timed(visit, ways[mode]) for mode in modes}

    def load_all(self, cell):
        """A few tiny calls: what a library loads is no memory that its calls need."""
        tiny = Cell((2,) * len(cell.shape), cell.dtype)
        for way in self.prepare(Inputs(tiny, make_logits(tiny), make_target(tiny))).values():
            way.run()

    def timed(self, visit, way):
        result = Timed([])
        if visit.exact is not None:
            if self.peer.compiles:
                way.run()
            # Otherwise this is the first such call: no result of another is there to be reused.
            extra = peak_extra_bytes(way)
            result.memory = None if extra is None else extra / visit.cell.nbytes
            if way.before is not None:
                way.before()
            loss, gradient = self.peer.answer(way.run())
            divisor = visit.cell.rows if self.peer.divides else 1
            result.errors = accuracy.compare(visit.cell, visit.exact, loss, gradient, divisor)
        result.seconds = timings(way, visit.budget)
        return result

    def question(self, question):
        cell = Cell(question.logits.shape, str(question.logits.dtype))
        ways = self.prepare(Inputs(cell, question.logits, question.target))
        loss, gradient = self.peer.answer(ways[self.peer.modes[:2][-1]].run())
        return float(loss), None if gradient is None else np.array(gradient)


class CeilingAtWork:
    """The worker's side of the probe: no answers, only times, by kind."""

    def __init__(self, threads):
        self.prepare = ceiling.probes(threads)

    def visit(self, visit):
        ways = self.prepare(own_inputs(visit).logits)
        return {kind: Timed(timings(way, visit.budget)) for kind, way in ways.items()}


def serve(connection, name, threads):
    """Answer until None comes."""
    limit_threads(threads)

    def work():
        return CeilingAtWork(threads) if name == CEILING else PeerAtWork(name, threads)

    answer_all(connection, work)


def answer_all(connection, make):
    """Answer jobs by what `make` returns, by its `visit` or its `question`, until None comes."""
    with open(os.devnull, "w") as silence:
        os.dup2(silence.fileno(), 2)  # runtimes chatter; what goes wrong comes as an answer
    try:
        work = make()
        connection.send(None)
        while (job := connection.recv()) is not None:
            time.sleep(SETTLE)
            answer = work.question if isinstance(job, Question) else work.visit
            try:
                connection.send(quiet.watched(lambda: answer(job)))  # noqa: B023 - called at once
            except Exception as error:
                connection.send(error_text(error))
    except Exception as error:
        connection.send(error_text(error))


def error_text(error):
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


class WorkerError(RuntimeError):
    """The worker has failed or died."""


class Worker:
    """The parent's side: a process that serves one peer."""

    def __init__(self, name, threads, target=serve):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, name, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.started = False

    def ask(self, job, patience=PATIENCE):
        """A quiet.Visit with the answer to a Visit or Question."""
        if not self.started:
            self._receive(patience)
            self.started = True
        try:
            self.connection.send(job)
        except OSError:
            raise WorkerError(self._obituary()) from None
        return self._receive(patience)

    def _receive(self, patience):
        try:
            if not self.connection.poll(patience):
                self.process.kill()  # or it would answer the next question with this answer
                raise WorkerError(f"no answer in {patience:.0f} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._obituary()) from None
        if isinstance(answer, str):
            raise WorkerError(answer)
        return answer

    def _obituary(self):
        self.process.join(1)
        return f"its process ended with code {self.process.exitcode}"

    def close(self):
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
