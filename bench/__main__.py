"""Measure xentropy and its peers.

python -m bench                     the grid and the curves; results/<machine>.json, .md, .png
python -m bench --quick             a minute or two, to see that it works
python -m bench --cells 64x5000 2048x1000:bfloat16 --peers torch
python -m bench --pages             the same as the first, and the tables of README and docs
python -m bench --readme            the README's cells in 8 minutes at most, and its table
python -m bench --load FILE         the tables and pictures of an earlier run
"""

import argparse
import math
import shutil
import sys
import time
from pathlib import Path

from . import machine, report
from .cells import FEW, GRID, MODES, QUICK, Cell
from .needed import require
from .peers import PEERS, REFERENCE, US
from .plots import draw
from .results import Results
from .run import CURVES, Run
from .tables import all_tables

SLOW_TO_START = ("torch.compile",)  # left out by --quick


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few small cells, two rounds")
    add("--cells", nargs="+", type=_cell, metavar="NxC[:dtype]", help="these instead of the grid")
    add("--peers", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    add("--modes", nargs="+", choices=MODES, default=[*MODES], help="what to time")
    add("--curves", nargs="*", choices=CURVES, help="default: all with the grid, else none")
    add("--threads", type=int, metavar="N", help="of everybody; default: as xentropy")
    add("--rounds", type=int, help="visits to every peer (default 5)")
    add("--budget", type=float, help="seconds of timing a visit and mode (default 0.2)")
    add("--seconds", type=float, help="no visit begins after so many (quick: 60, readme: 450)")
    add("--output", type=Path, default=report.RESULTS, metavar="FOLDER")
    add("--load", type=Path, metavar="FILE", help="measure nothing, show these results")
    add("--pages", action="store_true", help="write the tables of README.md and docs")
    add("--readme", action="store_true", help="measure and write the README's table alone")
    chosen = parser.parse_args(words)
    if (chosen.pages or chosen.readme) and not chosen.load and part_of(chosen):
        parser.error("--pages shows the whole grid and --readme its own cells, with all peers")
    chosen.suffix = "-part" if part_of(chosen) else report.FEW if chosen.readme else ""
    return with_defaults(chosen)


def part_of(chosen):
    """Whether this is less than the grid, or than the README's cells, with all peers."""
    return bool(chosen.quick or chosen.cells or chosen.peers)


def with_defaults(chosen):
    """The same, with what was not said."""
    cells, rounds, budget, seconds = GRID, 5, 0.2, math.inf
    if chosen.quick:
        cells, rounds, budget, seconds = QUICK, 2, 0.05, 60.0
    elif chosen.readme:
        cells, seconds = FEW, 450.0
    curves = CURVES if cells is GRID and not chosen.cells else ()
    if chosen.quick and not chosen.cells:
        curves = ("confidence",)
    chosen.cells = chosen.cells or cells
    chosen.curves = curves if chosen.curves is None else chosen.curves
    chosen.rounds, chosen.budget = chosen.rounds or rounds, chosen.budget or budget
    chosen.seconds = chosen.seconds or seconds
    return chosen


def _cell(text):
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def chosen_peers(chosen, console):
    """Ourselves first, then everybody who is wanted and installed."""
    without = SLOW_TO_START * chosen.quick + (REFERENCE,) * chosen.readme
    wanted = chosen.peers or [name for name in PEERS if name not in without]
    absent = [name for name in wanted if not PEERS[name].installed]
    if absent:
        console.print(f"Not installed, so not compared: {', '.join(absent)}.", style="yellow")
    return [US] + [name for name in PEERS if name in wanted and name not in (US, *absent)]


def measure(chosen, console):
    """Run what was asked for, with progress and the time left; the Results."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    from xentropy import get_num_threads

    columns = [
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        Left(),
        TextColumn("{task.description}"),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting")

        def advance(cost, text):
            progress.update(task, advance=cost, description=text or None)

        def begins(text):
            if not console.is_terminal:  # a log: one line a step
                console.print(f"{time.strftime('%H:%M:%S')} {text}")

        names, threads = chosen_peers(chosen, console), chosen.threads or get_num_threads()
        how = chosen.rounds, chosen.budget, advance, chosen.seconds
        run = Run(names, tuple(chosen.modes), threads, *how)
        steps = run.steps(chosen.cells, chosen.curves)
        progress.update(task, total=sum(cost for *_, cost in steps))
        done = 0
        for cost in run.all(steps, begins):
            done += cost  # also what a step found measured already
            progress.update(task, completed=done)
    return run.results


def main(words=None):
    """Measure or load, show, write."""
    chosen = arguments(words)
    require("matplotlib", "ml_dtypes", "psutil", "rich", "threadpoolctl")
    from rich.console import Console

    width = shutil.get_terminal_size().columns  # of a terminal, COLUMNS, or 80
    console = Console(width=None if sys.stdout.isatty() else width)
    results = Results.load(chosen.load) if chosen.load else measure(chosen, console)
    for line in machine.describe(results.header):
        console.print(line, highlight=False)
    for table in all_tables(results):
        table.print(console)
    stem = chosen.load.stem if chosen.load else machine.slug(results.header) + chosen.suffix
    chosen.output.mkdir(parents=True, exist_ok=True)
    plots = draw(results, chosen.output, stem)
    path = chosen.output / f"{stem}.json"
    results.save(path)
    path.with_suffix(".md").write_text(report.report(results, plots), encoding="utf-8")
    console.print(
        f"Written: {', '.join(p.name for p in [path, path.with_suffix('.md'), *plots.values()])}"
    )
    if chosen.pages or chosen.readme:
        source = path.resolve().relative_to(report.ROOT).as_posix()
        pages = report.PAGES[:1] if chosen.readme else report.PAGES
        changed = report.fill_pages(
            lambda text, page: report.filled(text, results, source, page), pages
        )
        console.print(f"Written: {', '.join(changed) or 'no page: none has a mark for it'}")


if __name__ == "__main__":
    main()
