"""How speed grows with the cores, beside what memory allows and what PERFORMANCE.md predicts.

python -m bench.cores                 1, 2, 4, ... threads up to the cores of this machine
python -m bench.cores --threads 1 16  these numbers (1 is what the prediction starts from)
python -m bench.cores --quick         small cells, to see that it works
python -m bench.cores --load FILE     the table of an earlier run

Loss alone, and loss with gradient into a warm out=, beside plain loops that move as many bytes (the
read and the copy) on as many threads. Predicted are n times the speed of one thread, but no more
than that ceiling. The workers of n threads keep to the first n CPUs: where Linux counts the second
thread of each core after all first ones, these are cores.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from . import machine, quiet
from .ceiling import OF_MODE
from .cells import Cell
from .needed import require
from .peers import US
from .report import RESULTS
from .results import CEILING, Results
from .run import Run, Team, fewer_threads
from .tables import Table, noise_notes, number, percent

CELLS = (
    "65536x10",
    "1000000x10",
    "200000x100",
    "8192x1000",
    "2048x50257",
    "8192x50257",
    "1x128256",
    "8x21x512x512",
    "2048x50257:float64",
    "2048x50257:bfloat16",
)
QUICK = ("20000x10", "2000x1000")
MODES = ("loss", "out")


def arguments(words=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.cores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    most = len(quiet.cores())
    add("--threads", type=int, nargs="+", default=[*fewer_threads(most), most], metavar="N")
    add("--cells", nargs="+", metavar="NxC[:dtype]")
    add("--rounds", type=int, help="visits to each cell (default 3)")
    add("--budget", type=float, help="seconds of timing a visit and mode (default 0.2)")
    add("--quick", action="store_true", help="small cells, one round; saved only with --save")
    add("--save", type=Path, metavar="FILE", help="default: bench/results/cores/<machine>.json")
    add("--load", type=Path, metavar="FILE", help="measure nothing, show these results")
    chosen = parser.parse_args(words)
    cells, rounds, budget = (QUICK, 1, 0.02) if chosen.quick else (CELLS, 3, 0.2)
    chosen.cells = [Cell.parse(text) for text in chosen.cells or cells]
    chosen.rounds, chosen.budget = chosen.rounds or rounds, chosen.budget or budget
    return chosen


def measure(chosen, say):
    """The Results: each number of threads in processes of its own."""
    run = Run([US], MODES, max(chosen.threads), chosen.rounds, chosen.budget, lambda *_: None)
    run.results.grid = [cell.name for cell in chosen.cells]
    for threads in sorted(set(chosen.threads)):
        with Team(run.names, threads) as team:
            for cell in chosen.cells:
                say(f"{time.strftime('%H:%M:%S')} {cell.name}, {threads} threads")
                run.measure(team, cell, MODES, run.rounds, run.budget)
    return run.results


def predicted(results, cell, mode, threads):
    """1e9 elements a second: of so many threads like the first, within the ceiling."""
    one = results.speed(cell, US, mode, 1)
    share = results.percent_of_ceiling(cell, mode, threads=threads)  # None: it fits into caches
    if one is None or share is None:
        return one and threads * one
    return min(threads * one, results.speed(cell, CEILING, OF_MODE[mode], threads))


def row(results, cell, threads):
    """Of each mode the speed, over that of one thread, the prediction, and the ceiling's share."""
    shown = [cell.name, str(threads)]
    for mode in MODES:
        speed, one = (results.speed(cell, US, mode, n) for n in (threads, 1))
        quiet_all = all(
            results.judged(cell, *pair, threads) for pair in ((US, mode), (CEILING, OF_MODE[mode]))
        )
        share = results.percent_of_ceiling(cell, mode, threads=threads)
        shown += [
            number(speed) if quiet_all else f"{number(speed)} {quiet.UNKNOWN}",
            number(one and speed / one, 2),
            number(predicted(results, cell, mode, threads)),
            percent(share),
        ]
    return shown


def table(results):
    """One line a cell and number of threads."""
    columns = ["1e9 elements/s", "threads"]
    for mode, name in zip(MODES, ("loss", "gradient"), strict=True):
        columns += [name, "x one", "predicted", f"% of {OF_MODE[mode]}"]
    counts = sorted({m.threads for m in results.measurements})
    cells = results.cells()
    rows = [
        row(results, cell, n)
        for cell in cells
        for n in counts
        if all(results.find(cell, US, mode, n) for mode in MODES)
    ]
    notes = [f"{name}: {why}." for name, _, why in results.absent]
    if any(quiet.UNKNOWN in text for line in rows for text in line):
        notes.append(f"{quiet.UNKNOWN}: other processes took some of the cores.")
    return Table("Cores", columns, rows, list(dict.fromkeys(notes + noise_notes(results))))


def main(words=None):
    """Measure or load, show, save."""
    chosen = arguments(words)
    require("ml_dtypes", "psutil", "rich")
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else shutil.get_terminal_size().columns)
    if chosen.load:
        results = Results.load(chosen.load)
    else:
        results = measure(chosen, lambda text: console.print(text, highlight=False))
    for line in machine.describe(results.header):
        console.print(line, highlight=False)
    table(results).print(console)
    path = chosen.save
    if path is None and not (chosen.quick or chosen.load):
        path = RESULTS / "cores" / f"{machine.slug(results.header)}.json"
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        results.save(path)
        console.print(f"Written: {path.name}")


if __name__ == "__main__":
    main()
