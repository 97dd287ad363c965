"""What was measured, and what is said of it: speeds, ratios, percentages. No time is taken here."""

import itertools
import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import quiet
from .ceiling import OF_MODE
from .cells import Cell
from .peers import US

CEILING = "ceiling"
NOISY = 0.15  # a ceiling that moves by more within a run tells of a noisy machine
# Below it a call is arithmetic and overhead, and neither bandwidth nor memory mean much.
LEAST_BYTES = 4 << 20


@dataclass
class Measurement:
    """One mode of one peer on one cell. The ceiling is a peer, its kinds are modes."""

    cell: str
    threads: int
    peer: str
    mode: str
    seconds: list = field(default_factory=list)  # the median call of every visit
    spread: float = 0.0  # half the interquartile range of all calls, over their median
    memory: float | None = None  # peak extra bytes over those of the logits
    loss_ulp: float | None = None
    grad_ulp: float | None = None
    wrong: bool = False
    others: list = field(default_factory=list)  # cores that other processes took in every visit

    def quiet_visits(self, cores):
        """Which visits count; all of those that were not watched."""
        of = min(self.threads, cores)  # the cores that a worker may use
        return [quiet.is_quiet(o, of) for o in self.others or [0.0] * len(self.seconds)]

    def judged(self, cores):
        """Whether the time allows a conclusion: at least half of the visits were quiet."""
        return 2 * sum(self.quiet_visits(cores)) >= len(self.seconds)


def of_peers(mode):
    """The mode of peers that one of ours is compared with."""
    return "loss" if mode == "loss" else "fresh"


@dataclass
class Results:
    """A run of the suite."""

    header: dict
    grid: list = field(default_factory=list)  # names of the cells of the tables
    measurements: list = field(default_factory=list)
    absent: list = field(default_factory=list)  # (cell, peer, why)
    curves: dict = field(default_factory=dict)  # cells by what they vary
    confidence: dict = field(default_factory=dict)  # see confidence.py

    @classmethod
    def load(cls, path):
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        data["measurements"] = [Measurement(**each) for each in data["measurements"]]
        return cls(**data)

    def save(self, path):
        text = json.dumps(asdict(self), indent=1, allow_nan=True)
        # one measurement a line: a file that can be read, and compared by diff
        text = text.replace("\n   ", " ").replace("\n  }", " }").replace("\n  ]", " ]")
        Path(path).write_text(text + "\n", encoding="utf-8")

    # ---- looking up

    @property
    def threads(self):
        return self.header["threads"]

    def find(self, cell, peer, mode, threads=None):
        wanted = cell.name, peer, mode, threads or self.threads
        for m in self.measurements:
            if (m.cell, m.peer, m.mode, m.threads) == wanted and m.seconds:
                return m
        return None

    def why_absent(self, cell, peer):
        return next((why for c, p, why in self.absent if (c, p) == (cell.name, peer)), None)

    def cells(self):
        """The cells of the tables."""
        return [Cell.parse(name) for name in self.grid]

    def peers(self):
        """Everybody who was measured, ourselves first."""
        return list(dict.fromkeys(m.peer for m in self.measurements if m.peer != CEILING))

    # ---- arithmetic

    def visits(self, cell, peer, mode, threads=None):
        """Seconds of the visits that count: of those that were quiet, or else of all."""
        m = self.find(cell, peer, mode, threads)
        if m is None:
            return []
        quiet_ones = itertools.compress(m.seconds, m.quiet_visits(self.header["cores"]))
        return list(quiet_ones) or m.seconds

    def seconds(self, cell, peer, mode, threads=None):
        visits = self.visits(cell, peer, mode, threads)
        return statistics.median(visits) if visits else None

    def judged(self, cell, peer, mode, threads=None):
        """Whether its time, if there is one, allows a conclusion."""
        m = self.find(cell, peer, mode, threads)
        return m is None or m.judged(self.header["cores"])

    def speed(self, cell, peer, mode, threads=None):
        """1e9 elements (N * C) a second."""
        seconds = self.seconds(cell, peer, mode, threads)
        return cell.elements / seconds / 1e9 if seconds else None

    def best_peer(self, cell, mode):
        """(name, seconds) of the fastest peer, right or wrong, in the mode that peers have."""
        found = [(self.seconds(cell, p, of_peers(mode)), p) for p in self.peers() if p != US]
        found = [pair for pair in found if pair[0]]
        return min(found)[::-1] if found else None

    def disturbed(self, cell, mode):
        """Cores that others took where the comparison allows no conclusion; empty if it does."""
        compared = [(US, mode), *((p, of_peers(mode)) for p in self.peers() if p != US)]
        return [
            max(self.find(cell, *pair).others) for pair in compared if not self.judged(cell, *pair)
        ]

    def ratio(self, cell, mode):
        """How many times as fast as the best peer; None without one, or without a conclusion."""
        ours, best = self.seconds(cell, US, mode), self.best_peer(cell, mode)
        return best[1] / ours if ours and best and not self.disturbed(cell, mode) else None

    def even(self, cell, mode):
        """Whether the visits do not tell who is ahead: some of either are faster than some."""
        ours, best = self.visits(cell, US, mode), self.best_peer(cell, mode)
        theirs = self.visits(cell, best[0], of_peers(mode))
        return min(ours) <= max(theirs) and min(theirs) <= max(ours)

    def ceiling_disturbed(self, cell, mode):
        """Whether a share of the ceiling cannot be told for busy processes."""
        both = ((CEILING, OF_MODE[mode]), (US, mode))
        return cell.nbytes >= LEAST_BYTES and not all(self.judged(cell, *pair) for pair in both)

    def percent_of_ceiling(self, cell, mode, peer=US, threads=None):
        """Of the bandwidth that the mode's memory traffic had in the same run."""
        ceiling = self.seconds(cell, CEILING, OF_MODE[mode], threads)
        taken = self.seconds(cell, peer, mode, threads)
        if not ceiling or not taken or cell.nbytes < LEAST_BYTES:
            return None
        return 100 * ceiling / taken

    def geometric_mean(self, mode):
        """Of the ratios to the best peer over the cells; None without any."""
        ratios = [r for cell in self.cells() if (r := self.ratio(cell, mode))]
        return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None

    def compared(self, mode):
        """The cells where there is somebody to compare with, and those that were left out."""
        return [
            cell
            for cell in self.cells()
            if (self.find(cell, US, mode) and self.best_peer(cell, mode))
            or self.why_absent(cell, US)
        ]

    def lost(self, mode):
        """The judged cells where a peer is ahead."""
        cells = [cell for cell in self.cells() if (self.ratio(cell, mode) or math.inf) < 1]
        return [cell for cell in cells if not self.even(cell, mode)]

    def noisy(self, cell, threads=None):
        """The kinds of ceiling that moved by more than NOISY between visits, and how much."""
        moved = {}
        for kind in dict.fromkeys(OF_MODE.values()):
            m = self.find(cell, CEILING, kind, threads)
            if m and cell.nbytes >= LEAST_BYTES:
                move = (max(m.seconds) - min(m.seconds)) / statistics.median(m.seconds)
                if move > NOISY:
                    moved[kind] = move
        return moved
