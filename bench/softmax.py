"""softmax, log_softmax and logsumexp against SciPy and PyTorch.

    python -m bench.softmax [--cells 1024x32000 65536x100] [--threads N] [--rounds 5]

Last axis, float32, as each library does it best: ours and PyTorch's into a warm `out`, SciPy's
anew. A process a library, each on the same number of threads; in every round each is called for
a while, in turn, after a pause in which the threads of the library before go to sleep; medians. The
answers are compared before they are timed.
"""

import argparse
import multiprocessing
import statistics
import time

import numpy as np

from .cells import Cell, aligned, make_logits
from .peers import Way
from .stopwatch import timings
from .tables import NONE, Table, number

CELLS = ("1024x32000", "65536x100")
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
# Float32 answers: every library's own rounding stays far below.
AGREE = 1e-4
VISIT = 0.1  # seconds of calls in a row
PAUSE = 0.25  # seconds: idle threads of LLVM's OpenMP spin for 0.2


def of_xentropy(logits, threads):
    """Its functions by name."""
    import xentropy as xe

    xe.set_num_threads(threads)
    out = aligned(logits.shape, logits.dtype)
    return {
        "softmax": lambda: xe.softmax(logits, axis=-1, out=out),
        "log_softmax": lambda: xe.log_softmax(logits, axis=-1, out=out),
        "logsumexp": lambda: xe.logsumexp(logits, axis=-1),
    }


def of_scipy(logits, _threads):
    """Its functions by name; it has one thread."""
    from scipy import special

    return {
        "softmax": lambda: special.softmax(logits, axis=-1),
        "log_softmax": lambda: special.log_softmax(logits, axis=-1),
        "logsumexp": lambda: special.logsumexp(logits, axis=-1),
    }


def of_torch(logits, threads):
    """Its functions by name."""
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(logits)
    out, sums = torch.empty_like(x), torch.empty(len(x))
    return {
        "softmax": lambda: torch.softmax(x, -1, out=out),
        "log_softmax": lambda: torch.log_softmax(x, -1, out=out),
        "logsumexp": lambda: torch.logsumexp(x, -1, out=sums),
    }


LIBRARIES = {"xentropy": of_xentropy, "scipy": of_scipy, "torch": of_torch}


def serve(library, cell, threads, pipe):
    """Send a sum of each answer; then, asked by name, seconds of the calls of a function."""
    try:
        functions = LIBRARIES[library](make_logits(cell), threads)
    except ImportError:
        pipe.send(None)
        return
    pipe.send({name: float(np.asarray(f(), np.float64).sum()) for name, f in functions.items()})
    for name in iter(pipe.recv, None):
        pipe.send(timings(Way(functions[name]), VISIT))


def measure(cell, threads, rounds):
    """Seconds by (library, function); a library that is not installed is left out."""
    spawn = multiprocessing.get_context("spawn")
    pipes, sums = {}, {}
    for library in LIBRARIES:
        here, there = spawn.Pipe()
        spawn.Process(target=serve, args=(library, cell, threads, there), daemon=True).start()
        sums[library] = here.recv()
        if sums[library] is not None:
            pipes[library] = here
            for name, value in sums[library].items():
                assert np.isclose(value, sums["xentropy"][name], rtol=AGREE), (library, name)
    taken = {(library, name): [] for library in pipes for name in FUNCTIONS}
    for _ in range(rounds):
        for library, name in taken:
            time.sleep(PAUSE)
            pipes[library].send(name)
            taken[library, name] += pipes[library].recv()
    for pipe in pipes.values():
        pipe.send(None)
    return {key: statistics.median(times) for key, times in taken.items()}


def rows(cell, threads, rounds):
    """A row a function: speed, and how many times as fast as the others."""
    taken = measure(cell, threads, rounds)
    for name in FUNCTIONS:
        ours = taken["xentropy", name]
        ratios = [taken.get((library, name)) for library in ("scipy", "torch")]
        times = [NONE if other is None else f"{other / ours:.1f}x" for other in ratios]
        yield [f"{cell.name} {name}", number(cell.elements / ours / 1e9), *times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    found = [
        row
        for text in chosen.cells
        for row in rows(Cell.parse(text), chosen.threads, chosen.rounds)
    ]
    print(Table("softmax", ["", "1e9 elements/s", "scipy", "torch"], found).markdown())


if __name__ == "__main__":
    main()
