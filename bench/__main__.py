"""Measure xentropy and its peers.

python -m bench                     the grid and the curves; results/<machine>.json, .md, .png
python -m bench --quick             under a minute, to see that it works
python -m bench --cells 64x5000 2048x1000:bfloat16 --peers torch
python -m bench --pages             the same as the first, and the tables of README and docs
python -m bench --load FILE         the tables and pictures of an earlier run
"""

import argparse
import sys
import time
from pathlib import Path

from . import machine, report
from .cells import GRID, MODES, QUICK, Cell
from .peers import PEERS, US
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
    add("--output", type=Path, default=report.RESULTS, metavar="FOLDER")
    add("--load", type=Path, metavar="FILE", help="measure nothing, show these results")
    add("--pages", action="store_true", help="write the tables of README.md and docs")
    chosen = parser.parse_args(words)
    if chosen.pages and not chosen.load and (chosen.quick or chosen.cells or chosen.peers):
        parser.error("the pages show the whole grid: --pages goes with all cells and peers")
    return chosen


def _cell(text):
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def chosen_peers(chosen, console):
    """Ourselves first, then everybody who is wanted and installed."""
    wanted = chosen.peers or [p for p in PEERS if not chosen.quick or p not in SLOW_TO_START]
    absent = [name for name in wanted if not PEERS[name].installed]
    if absent:
        console.print(f"Not installed, so not compared: {', '.join(absent)}.", style="yellow")
    return [US] + [name for name in PEERS if name in wanted and name not in (US, *absent)]


def step_text(function, arguments):
    """What a step of the run is about."""
    shown = [
        a.name if isinstance(a, Cell) else str(a) for a in arguments if not isinstance(a, tuple)
    ]
    return " ".join([function.__name__.replace("_", " "), *shown])


def measure(chosen, console):
    """Run what was asked for, with progress and the time left; the Results."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    from xentropy import get_num_threads

    cells = chosen.cells or (QUICK if chosen.quick else GRID)
    whole = not (chosen.cells or chosen.quick)
    curves = chosen.curves
    if curves is None:
        curves = CURVES if whole else ("confidence",) if chosen.quick else ()
    rounds = chosen.rounds or (2 if chosen.quick else 5)
    budget = chosen.budget or (0.02 if chosen.quick else 0.2)
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

        names, threads = chosen_peers(chosen, console), chosen.threads or get_num_threads()
        run = Run(names, tuple(chosen.modes), threads, rounds, budget, advance)
        steps = run.steps(cells, curves)
        progress.update(task, total=sum(cost for *_, cost in steps))
        done = 0
        for function, these, cost in steps:
            if not console.is_terminal:  # a log: one line a step
                console.print(f"{time.strftime('%H:%M:%S')} {step_text(function, these)}")
            function(*these)
            done += cost  # also what a step found measured already
            progress.update(task, completed=done)
    return run.results


def main(words=None):
    """Measure or load, show, write."""
    chosen = arguments(words)
    try:
        import matplotlib  # noqa: F401 - found missing now, not after an hour
        import threadpoolctl  # noqa: F401
        from rich.console import Console
    except ImportError as error:
        raise SystemExit(f"{error}; the suite needs: pip install -e '.[bench]'") from None

    console = Console() if sys.stdout.isatty() else Console(width=160)
    whole = not (chosen.quick or chosen.cells or chosen.peers)
    results = Results.load(chosen.load) if chosen.load else measure(chosen, console)
    for line in machine.describe(results.header):
        console.print(line, highlight=False)
    for table in all_tables(results):
        table.print(console)
    stem = machine.slug(results.header) + ("" if whole or chosen.load else "-part")
    chosen.output.mkdir(parents=True, exist_ok=True)
    plots = draw(results, chosen.output, stem)
    path = chosen.output / f"{stem}.json"
    results.save(path)
    path.with_suffix(".md").write_text(report.report(results, plots), encoding="utf-8")
    console.print(
        f"Written: {', '.join(p.name for p in [path, path.with_suffix('.md'), *plots.values()])}"
    )
    if chosen.pages:
        source = path.resolve().relative_to(report.ROOT)
        changed = report.fill_pages(lambda text, page: report.filled(text, results, source, page))
        console.print(f"Written: {', '.join(changed)}")


if __name__ == "__main__":
    main()
