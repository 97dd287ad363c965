"""How long calls take while another process keeps one core busy: p50, p99 and the longest.

    python -m bench.contention [--seconds 3]

A call that waits for a thread without a core takes as long as the system lets it wait, some
milliseconds. One row of the table per size, number of threads and neighbour.
"""

import argparse
import multiprocessing
import os
import time

import numpy as np

import xentropy as xe

from .needed import require
from .quiet import UNKNOWN, cores, notes, quietest

SHAPES = {"small": (256, 1000), "middle": (8192, 1000)}


def occupy(core):
    """Keep one core busy until the parent ends this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        pass


def times(shape, seconds):
    """Durations of calls of loss + gradient, back to back, in milliseconds."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    target = np.arange(shape[0]) % shape[1]
    out = np.empty_like(x)
    found = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        xe.cross_entropy_with_grad(x, target, out=out)
        found.append(time.perf_counter() - start)
    return np.array(found) * 1e3


def table(neighbour, seconds):
    """Print the rows of one state of the machine; returns their visits."""
    most, visits = len(cores()), []
    for name, shape in SHAPES.items():
        serial = None
        for n_threads in (1, most):
            xe.set_num_threads(n_threads)
            visit = quietest(lambda shape=shape: times(shape, seconds), 3 * seconds)
            visits.append(visit)
            p50, p99 = np.percentile(visit.found, [50, 99])
            serial = serial or p50
            ratio = f"{p99 / serial:.1f}" if visit.quiet else UNKNOWN
            print(
                f"{name:<7}{'x'.join(map(str, shape)):<10}{n_threads:>7}{neighbour:>10}"
                f"{p50:>9.3f}{p99:>9.3f}{visit.found.max():>9.3f}{ratio:>11}{len(visit.found):>7}",
                flush=True,
            )
    return visits


def main():
    require("psutil")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="of each row (default 3)")
    seconds = parser.parse_args().seconds
    print("size   shape    threads neighbour   p50/ms   p99/ms   max/ms p99/serial  calls")
    visits = table("none", seconds)
    core = max(cores())
    busy = multiprocessing.get_context("spawn").Process(target=occupy, args=(core,), daemon=True)
    busy.start()
    time.sleep(1)
    try:
        visits += table("one core", seconds)  # the neighbour is a child: not one of the others
    finally:
        busy.terminate()
        busy.join()
    for note in notes(visits):
        print(note)


if __name__ == "__main__":
    main()
