"""What a fresh result costs: the time of a call without out= over that of one with it.

    python -m bench.fresh [--sizes 2097152 33554176] [--threads N] [--rounds 15]

Loss and gradient of float32 rows of 1024 classes, for results from 64 KB to 1 GB, in a process that
has loaded nothing else, and in one where torch and JAX, if they are installed, take a step of
the same size before each of the two. Page faults are those of one call without out=.
"""

import argparse
import multiprocessing
import resource
import statistics

import xentropy as xe

from .cells import Cell, aligned, make_logits, make_target
from .needed import require
from .peers import PEERS, Inputs, Way
from .quiet import UNKNOWN, notes, quietest
from .stopwatch import SHORT, seconds_of
from .tables import Table, number

CLASSES = 1024
SIZES = [*(4**k << 16 for k in range(8)), (32 << 20) - 4 * CLASSES]
PEERS_BESIDE = ("torch", "jax.jit + optax")
MOST_BESIDE = 64 << 20  # bytes of the others' logits: of larger ones they would need gigabytes


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def steps_beside(names, cell, threads):
    """A step of each peer on logits of the cell's size."""
    rows = min(cell.shape[0], MOST_BESIDE // (4 * CLASSES))
    cell = Cell((rows, CLASSES))
    inputs = Inputs(cell, make_logits(cell), make_target(cell))
    return [PEERS[name].make(threads)(inputs)["fresh"].run for name in names]


def measure(cell, names, threads, rounds):
    """A visit: seconds of a call with a fresh result and with out=, page faults of the first."""
    logits, target = make_logits(cell), make_target(cell)
    out = aligned(cell.shape, cell.numpy_dtype)
    steps = steps_beside(names, cell, threads)
    fresh = Way(lambda: xe.cross_entropy_with_grad(logits, target))
    given = Way(lambda: xe.cross_entropy_with_grad(logits, target, out=out))
    loops = max(1, round(SHORT / min(seconds_of(given, 1) for _ in range(3))))

    def alternate():
        taken, faults = {fresh: [], given: []}, []
        for turn in range(rounds + 1):
            for way in (fresh, given) if turn % 2 else (given, fresh):
                for step in steps:
                    step()
                before = page_faults()
                taken[way].append(seconds_of(way, loops))
                if way is fresh:
                    faults.append((page_faults() - before) / loops)
        medians = (statistics.median(times[1:]) for times in taken.values())
        return *medians, statistics.median(faults[1:])

    return quietest(alternate)


def print_table(names, sizes, threads, rounds):
    xe.set_num_threads(threads)
    rows, visits = [], []
    for n_bytes in sizes:
        cell = Cell((n_bytes // (4 * CLASSES), CLASSES))
        visits.append(measure(cell, names, threads, rounds))
        fresh, given, faults = visits[-1].found
        ratio = fresh / given if visits[-1].quiet else UNKNOWN
        row = fresh * 1e6, given * 1e6, ratio, faults
        rows.append([f"{n_bytes >> 10} KB", *map(number, row)])
    title = f"beside {' and '.join(names)}" if names else "alone"
    columns = [title, "fresh / us", "out= / us", "fresh / out=", "page faults"]
    Table(title, columns, rows, notes(visits)).show()


def main():
    require("psutil")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=sorted(SIZES), help="in bytes")
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    here = [name for name in PEERS_BESIDE if PEERS[name].installed]
    for names in ([], here) if here else ([],):
        arguments = names, chosen.sizes, chosen.threads, chosen.rounds
        process = multiprocessing.get_context("spawn").Process(target=print_table, args=arguments)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
