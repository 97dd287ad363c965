"""The schedule: visits to every peer in turn, round after round, so that drift hits all alike."""

import math
import statistics
import time

from . import accuracy, confidence, machine, quiet
from .cells import BY_CLASSES, BY_ROWS, BY_THREADS, Cell, make_logits, make_target
from .peers import PEERS, US
from .results import CEILING, Measurement, Results
from .worker import PATIENCE, Shared, Visit, Worker, WorkerError

CURVES = ("classes", "rows", "threads", "confidence")
GRACE = 20.0  # seconds that a visit may go on after the limit of the run
MEMORY_TIMES = 8  # of its input is what a cell may need at once, with the greediest peer
# Rough seconds of a visit, for the time left: start and copy, then so much an element.
VISIT_SECONDS, VISIT_SECONDS_ELEMENT = 0.3, 1.2e-8
NO_TIME = "no time was left"
REPEATS = 0.5  # of the estimated time may be spent on repeating visits that were not quiet


def available_bytes():
    """Memory that is free to use; infinite where it cannot be told."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            kilobytes = next(line.split()[1] for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return float("inf")
    return int(kilobytes) * 1024


def visit_cost(cell):
    return VISIT_SECONDS + VISIT_SECONDS_ELEMENT * cell.elements


class Team:
    """The workers of some peers, and of the ceiling, on one number of threads."""

    def __init__(self, names, threads):
        self.threads = threads
        self.workers = {name: Worker(name, threads) for name in (CEILING, *names)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()


class Run:
    """One run of the suite: what it measures goes to `results`.

    `advance(cost, text)` is called after every visit with its estimated seconds. After `limit`
    seconds no visit begins, and cells that have none are listed as not measured.
    """

    def __init__(self, names, modes, threads, rounds, budget, advance, limit=math.inf):
        self.names, self.modes, self.threads = names, modes, threads
        self.rounds, self.budget, self.advance = rounds, budget, advance
        self.end = self.step_end = time.monotonic() + limit
        self.patience = quiet.Patience(REPEATS * min(limit, 3600.0))
        self.results = Results(machine.header(names, threads))

    # ---- what there is to do

    def steps(self, cells, curves):
        """(function, estimated seconds) of every step of the run."""
        visits = 1 + len(self.names)
        steps = [(self.grid_cell, (cell,), self.rounds * visits, [cell]) for cell in cells]
        by = {"classes": BY_CLASSES, "rows": BY_ROWS, "threads": BY_THREADS}
        for name, points in by.items():
            counts = [*fewer_threads(self.threads)] if name == "threads" else []
            for threads in [*counts, self.threads] if name in curves else []:
                steps.append((self.curve, (name, points, threads), 3 * visits, points))
        if "confidence" in curves:
            steps.append((self.confidence, (), 0, []))
        return [
            (function, arguments, sum(count * visit_cost(cell) for cell in points))
            for function, arguments, count, points in steps
        ]

    # ---- doing it

    def all(self, steps, begins):
        """Do the steps, each in its share of the time that is left; yields the cost of each."""
        for place, (function, arguments, cost) in enumerate(steps):
            ahead = sum(cost for *_, cost in steps[place:])
            left = self.end - time.monotonic()
            self.step_end = time.monotonic() + left * (cost / ahead if cost else 1)
            begins(step_text(function, arguments))
            function(*arguments)
            yield cost

    def grid_cell(self, cell):
        """All modes, in processes started for this cell: memory is measured in them."""
        self.results.grid.append(cell.name)
        with Team(self.takers(cell), self.threads) as team:
            self.measure(team, cell, self.modes, self.rounds, self.budget)

    def curve(self, name, points, threads):
        """Fewer rounds and only loss + gradient, in the same processes for all points."""
        self.results.curves[name] = [cell.name for cell in points]
        cells = [cell for cell in points if not self.measured(cell, threads)]
        with Team(self.names, threads) as team:
            for cell in cells:
                self.measure(team, cell, ("fresh", "out"), 3, self.budget / 4)

    def confidence(self):
        if time.monotonic() > self.end:
            self.results.absent.append(("error against confidence", "all", NO_TIME))
            return
        with Team(self.names, self.threads) as team:
            workers = {name: w for name, w in team.workers.items() if name != CEILING}
            self.results.confidence = confidence.ask(workers)

    def measured(self, cell, threads):
        return any((m.cell, m.threads) == (cell.name, threads) for m in self.results.measurements)

    def takers(self, cell):
        """The peers that take the cell; why the others do not is written down."""
        why = {name: PEERS[name].why_not(cell) for name in self.names}
        self.results.absent += [(cell.name, name, w) for name, w in why.items() if w]
        return [name for name, w in why.items() if not w]

    def measure(self, team, cell, modes, rounds, budget):
        if time.monotonic() > self.end:
            self.results.absent.append((cell.name, US, NO_TIME))
            return
        if MEMORY_TIMES * cell.nbytes > available_bytes():
            needed = MEMORY_TIMES * cell.nbytes / 2**30
            self.results.absent.append((cell.name, US, f"needs {needed:.1f} GiB of memory"))
            return
        shared = Shared(cell, make_logits, make_target(cell))
        try:
            truth = accuracy.exact(cell, shared.logits, shared.target)
            self.rounds_of(team, shared, modes, rounds, budget, truth)
        finally:
            shared.close()

    def ask(self, worker, visit):
        """The quietest of some visits."""
        left = self.end - time.monotonic()
        seconds = PATIENCE if math.isinf(left) else max(1.0, min(PATIENCE, left + GRACE))
        return self.patience.quietest(lambda: worker.ask(visit, seconds))

    def rounds_of(self, team, shared, modes, rounds, budget, truth):
        cell = shared.cell
        names = [n for n in team.workers if n == CEILING or not PEERS[n].why_not(cell)]
        times = {}
        for number in range(rounds):
            for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                if time.monotonic() > (self.step_end if number else self.end):
                    if not number:
                        self.results.absent.append((cell.name, name, NO_TIME))
                    continue
                visit = Visit(cell, shared.path, shared.target, modes, budget)
                visit.exact = None if number else truth
                self.advance(0, f"{cell.name}, {team.threads} threads, {name}")
                try:
                    answer = self.ask(team.workers[name], visit)
                except WorkerError as error:
                    self.results.absent.append((cell.name, name, str(error)))
                    names = [other for other in names if other != name]
                else:
                    for mode, timed in answer.found.items():
                        times.setdefault((name, mode), []).append((timed, answer.others))
                self.advance(visit_cost(cell), "")
        for (name, mode), visits in times.items():
            found = summary(cell, team.threads, name, mode, *zip(*visits, strict=True))
            self.results.measurements.append(found)


def step_text(function, arguments):
    """What a step of the run is about."""
    shown = [
        a.name if isinstance(a, Cell) else str(a) for a in arguments if not isinstance(a, tuple)
    ]
    return " ".join([function.__name__.replace("_", " "), *shown])


def fewer_threads(most):
    """1, 2, 4, ... below `most`."""
    return [2**i for i in range(most.bit_length()) if 2**i < most]


def summary(cell, threads, name, mode, visits, others):
    """The Measurement that visits add up to; the first of them brought errors and memory.

    `others` are the cores that other processes took in each of them.
    """
    calls = sorted(seconds for visit in visits for seconds in visit.seconds)
    quarter = len(calls) // 4
    spread = (calls[-1 - quarter] - calls[quarter]) / 2 / statistics.median(calls)
    return Measurement(
        cell.name,
        threads,
        name,
        mode,
        [statistics.median(visit.seconds) for visit in visits],
        spread,
        visits[0].memory,
        others=[round(each, 3) for each in others],
        **visits[0].errors,
    )
