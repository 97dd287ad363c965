"""Were the cores free? What other processes take of them while something is timed.

Whoever times a call beside a compiler times the compiler. So each visit (a while of calls, one
after the other) is watched, and repeated if other processes took more than a tenth of the cores. If
they do so again and again, nothing is concluded from it, and the tables say so in place of a
verdict.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .needed import require

try:
    import psutil
except ImportError:  # said when it is needed: see Watch
    psutil = None

SHARE = 0.1  # of the cores may go to others in a visit that counts
TICK = 0.01  # seconds; the system counts the time of a core in such steps
LEAST = 0.2  # seconds; in less the steps say nothing
TRIES = 3  # visits at most for one that was quiet
UNKNOWN = "?"  # in the place of a verdict
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are part of `user` already


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def busy_seconds(mine: list[int]) -> float:
    """Time that these cores have worked for anybody, another virtual machine included (steal)."""
    every = psutil.cpu_times(percpu=True)
    some = [every[core] for core in mine] if mine[-1] < len(every) else every
    return sum(sum(t) - sum(getattr(t, name, 0.0) for name in IDLE) for t in some)


def own_seconds() -> float:
    """Time of all threads of this process, and of its children, living or ended."""
    ended, living = os.times(), 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            t = child.cpu_times()
        except psutil.Error:  # has ended meanwhile
            continue
        living += t.user + t.system
    return time.process_time() + ended.children_user + ended.children_system + living


class Watch:
    """`with Watch() as watch: ...`, then `watch.others`: cores that other processes took."""

    def __init__(self) -> None:
        require("psutil")
        self.cores = cores()
        self.others = 0.0

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), busy_seconds(self.cores) - own_seconds()

    def __enter__(self) -> "Watch":
        self._begun = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        # Who is busy goes on for a while: a short visit is watched beyond its end.
        time.sleep(max(0.0, LEAST - (time.perf_counter() - self._begun[0])))
        seconds, taken = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        taken -= TICK * len(self.cores)  # what counting in steps may have added
        self.others = min(max(0.0, taken / seconds), float(len(self.cores)))


def is_quiet(others: float, of: int | None = None) -> bool:
    """Whether the times of a visit count, during which others took so many `of` all cores."""
    return others <= SHARE * (of or len(cores()))


@dataclass
class Visit:
    """What a visit found, and the cores that other processes took meanwhile."""

    found: Any
    others: float

    @property
    def quiet(self) -> bool:
        return is_quiet(self.others)


def watched(measure: Callable[[], Any]) -> Visit:
    """One visit."""
    with Watch() as watch:
        found = measure()
    return Visit(found, watch.others)


class Patience:
    """Seconds that are left for repeating visits: a busy machine does not keep us for ever."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def quietest(self, visit: Callable[[], Visit], tries: int = TRIES) -> Visit:
        """Make a visit, again while it is not quiet; the quietest of them."""
        best = visit()
        for _ in range(tries - 1):
            if best.quiet or self.left <= 0:
                break
            begun = time.monotonic()
            best = min(best, visit(), key=lambda each: each.others)
            self.left -= time.monotonic() - begun
        return best


def quietest(measure: Callable[[], Any], seconds: float = 60.0) -> Visit:
    """The quietest of up to TRIES visits; repetitions begin within `seconds`."""
    return Patience(seconds).quietest(lambda: watched(measure))


def no_conclusion(others: Iterable[float], of: int | None = None) -> str:
    """What other processes took, in plain words."""
    most, of = max(others), of or len(cores())
    return f"other processes took {most:.1f} of {of} cores during these visits: no conclusion"


def notes(visits: Iterable[Visit]) -> list[str]:
    """What is to be said below a table of visits: nothing if all were quiet."""
    visits = list(visits)
    loud = [each.others for each in visits if not each.quiet]
    if not loud:
        return []
    return [f"{UNKNOWN}: {no_conclusion(loud)} ({len(loud)} of {len(visits)})."]
