"""Time and memory of one way, and times of several that take turns, in this process."""

import ctypes
import gc
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import quiet

SHORT = 1e-3  # seconds; faster calls are timed several at a time
WARM_UP_RUNS = 2  # the first one may compile


def seconds_of(way, loops):
    """Seconds per call of `loops` calls, each result released."""
    if way.before is not None:
        way.before()
    run = way.run
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - start) / loops


def timings(way, budget):
    """Seconds of call after call: at least two, and for `budget` seconds; a warm-up first."""
    for _ in range(WARM_UP_RUNS):
        once = seconds_of(way, 1)
        if once > budget:
            break
    loops = max(1, round(SHORT / max(once, 1e-7))) if once < SHORT / 2 else 1
    taken, spent = [], 0.0
    while len(taken) < 2 or spent < budget:
        taken.append(seconds_of(way, loops))
        spent += taken[-1] * loops
    return taken


@dataclass
class Turns(quiet.Visit):
    """Median seconds of functions that took turns, by name in `found`."""

    def ratio(self, name, other):
        """The time of one over that of another; UNKNOWN beside busy processes."""
        return self.found[name] / self.found[other] if self.quiet else quiet.UNKNOWN


def seconds_in_turn(functions, rounds):
    """The Turns of the functions; the first round warms up and does not count."""

    def visit():
        taken = {name: [] for name in functions}
        for _ in range(rounds + 1):
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                taken[name].append(time.perf_counter() - start)
        return {name: statistics.median(times[1:]) for name, times in taken.items()}

    best = quiet.quietest(visit)
    return Turns(best.found, best.others)


def said_by_fresh_process(module, *words):
    """The numbers in the last line that `python -m module words` prints; None for "None"."""
    command = [sys.executable, "-m", module, *map(str, words)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [None if word == "None" else int(word) for word in said.splitlines()[-1].split()]


def _status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_extra_bytes(way):
    """Bytes that the process grows by, at most, during one call; None where it cannot tell."""
    peak = before_and_peak_bytes(way)
    return peak and max(0, peak[1] - peak[0])


def before_and_peak_bytes(way):
    """Bytes of the process in memory before one call, and at most during it; None as above.

    What the call loads or compiles should be there; free memory of the process is given back to
    the system first.
    """
    if not sys.platform.startswith("linux"):
        return None
    if way.before is not None:
        way.before()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what there is now
        before = _status("VmRSS")
        result = way.run()
        peak = _status("VmHWM")
    except (AttributeError, OSError):
        return None
    del result
    return before, peak
