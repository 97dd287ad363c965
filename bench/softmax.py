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
from .needed import require
from .peers import Way
from .quiet import TRIES, UNKNOWN, Patience, Visit, notes, watched
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
        visit = watched(lambda: timings(Way(functions[name]), VISIT))  # noqa: B023 - called at once
        pipe.send(visit)


def measure(cell, threads, rounds):
    """Visit with the seconds by (library, function); a library that is not there is left out."""
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

    def visit(library, name):
        time.sleep(PAUSE)
        pipes[library].send(name)
        return pipes[library].recv()

    visits = {(library, name): [] for library in pipes for name in FUNCTIONS}
    patience = Patience(TRIES * rounds * len(visits) * PAUSE)
    for _ in range(rounds):
        for key, found in visits.items():
            found.append(patience.quietest(lambda key=key: visit(*key)))
    for pipe in pipes.values():
        pipe.send(None)
    return {key: of_all(found) for key, found in visits.items()}


def of_all(visits):
    """The median of the quiet ones, if they are half of the visits at least, or else of all."""
    some = [each for each in visits if each.quiet]
    some = some if 2 * len(some) >= len(visits) else visits
    seconds = statistics.median(second for each in some for second in each.found)
    return Visit(seconds, max(each.others for each in some))


def rows(cell, threads, rounds):
    """A row a function: speed, and how many times as fast as the others; and the visits."""
    taken = measure(cell, threads, rounds)
    for name in FUNCTIONS:
        ours = taken["xentropy", name]
        others = [taken.get((library, name)) for library in ("scipy", "torch")]
        speed = number(cell.elements / ours.found / 1e9)
        yield (
            [f"{cell.name} {name}", speed, *(times(ours, other) for other in others)],
            [each for each in (ours, *others) if each],
        )


def times(ours, other):
    """How many times as fast ours is, as text."""
    if other is None:
        return NONE
    return f"{other.found / ours.found:.1f}x" if ours.quiet and other.quiet else UNKNOWN


def main():
    require("psutil")
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
    visits = [visit for _, some in found for visit in some]
    rows_ = [row for row, _ in found]
    Table("softmax", ["", "1e9 elements/s", "scipy", "torch"], rows_, notes(visits)).show()


if __name__ == "__main__":
    main()
