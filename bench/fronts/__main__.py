"""Measure the fronts against the frameworks that they stand in for.

python -m bench.fronts                       all of them; bench/results/fronts/<machine>.json
python -m bench.fronts --quick               small cells and few rounds, to see that it works
python -m bench.fronts --front torch         one of them, the others stay as they were saved
python -m bench.fronts --pages               the same as the first, and the tables of the docs
python -m bench.fronts --load FILE --pages   the tables of an earlier run
"""

import argparse
import importlib
import importlib.metadata
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from .. import machine, report
from ..needed import require
from ..tables import NONE, number
from ..tables import Table as TextTable
from .table import Table

MARK = re.compile(r"(<!-- fronts: (\w+) from (\S+) -->\n).*?(<!-- fronts: end -->)", re.DOTALL)

# Name: module of this package (or beside it), the distributions that it compares with.
FRONTS = {
    "torch": ("torch_front", ("torch",)),
    "torch_softmax": ("torch_softmax_front", ("torch",)),
    "language_model": ("language_model", ("torch",)),
    "jax": ("jax_front", ("jax", "jaxlib", "optax")),
    "boosting": ("boosting_front", ("xgboost", "lightgbm", "scikit-learn")),
    "linear": (".linear.speed", ("torch",)),
    "fine_tuning": (".linear.fine_tuning", ("torch", "transformers")),
    "statistics": (".studies.statistics", ("torch",)),
    "distillation": (".studies.distillation", ("torch",)),
    "log_probs": (".studies.log_probs", ("torch",)),
}
OTHER_NAMES = {"xgboost": ("xgboost", "xgboost-cpu")}


def versions(packages):
    """The installed version of each distribution; None for what is absent."""
    found = {}
    for package in packages:
        found[package] = None
        for name in OTHER_NAMES.get(package, (package,)):
            try:
                found[package] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def why_not(front):
    """Why a front cannot be measured here; None if it can."""
    packages = FRONTS[front][1]
    absent = [name for name, version in versions(packages).items() if version is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None


def measure(front, quick):
    """What is saved of a front: the machine, the versions, its tables."""
    from xentropy import get_num_threads

    module, packages = FRONTS[front]
    header = machine.header([], get_num_threads())
    header["versions"] |= versions(("xentropy-cpu", *packages))
    found = importlib.import_module(f".{module}", __package__).tables(quick)
    return {"header": header, "tables": [asdict(table) for table in found]}


def text(value):
    """A cell of a table."""
    if value is None:
        return NONE
    return number(value) if isinstance(value, float) else str(value)


def shown(table):
    """The table as text, to be printed or written as Markdown."""
    rows = [[text(value) for value in row] for row in table.rows]
    return TextTable(table.title, table.columns, rows, table.notes)


def named_tables(results):
    """{name of a table: (table, header of its run)} of all fronts."""
    return {
        table["name"]: (Table(**table), run["header"])
        for run in results.values()
        for table in run["tables"]
    }


def part(results, name):
    """The text between one pair of marks: a table, and on what it was measured."""
    table, header = named_tables(results)[name]
    machine_lines = "\n".join(f"> {line}  " for line in machine.describe(header)).rstrip()
    return f"{shown(table).markdown()}\n\n{machine_lines}"


def filled(text, results, path):
    """The text of a page with the tables between its marks; those that are not there stay."""
    known = named_tables(results)

    def fill(match):
        if match[2] not in known:
            return match[0]
        return f"<!-- fronts: {match[2]} from {path} -->\n\n{part(results, match[2])}\n\n{match[4]}"

    return MARK.sub(fill, text)


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="python -m bench.fronts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small cells, few rounds; saved only with --save")
    add("--front", nargs="+", choices=FRONTS, default=[*FRONTS], help="these alone")
    add("--save", type=Path, metavar="FILE", help="default: bench/results/fronts/<machine>.json")
    add("--load", type=Path, metavar="FILE", help="measure nothing, show these results")
    add("--pages", action="store_true", help="write the tables of README.md and docs")
    chosen = parser.parse_args(words)
    if chosen.pages and chosen.quick:
        parser.error("the pages show what was measured in full: --pages goes without --quick")
    return chosen


def measured(chosen, console):
    """The results of what was asked for, and the file that they are saved in, if any."""
    path = chosen.save
    if path is None and not chosen.quick:
        from xentropy import get_num_threads

        slug = machine.slug(machine.header([], get_num_threads()))
        path = report.RESULTS / "fronts" / f"{slug}.json"
        path.parent.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path and path.exists() else {}
    for front in chosen.front:
        if reason := why_not(front):
            console.print(f"{front}: not measured, {reason}.", style="yellow")
            continue
        console.print(f"{front}: measuring")
        results[front] = measure(front, chosen.quick)
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            console.print(f"Written: {path.name}")
    return results, path


def main(words=None):
    """Measure or load, show, write."""
    chosen = arguments(words)
    require("psutil", "rich")
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else shutil.get_terminal_size().columns)
    if chosen.load:
        results, path = json.loads(chosen.load.read_text()), chosen.load
    else:
        results, path = measured(chosen, console)
    for front, run in results.items():
        if front in chosen.front:
            for line in machine.describe(run["header"]):
                console.print(line, highlight=False)
            for table in run["tables"]:
                shown(Table(**table)).print(console)
    if chosen.pages:
        source = path.resolve().relative_to(report.ROOT)
        changed = report.fill_pages(lambda text, page: filled(text, results, source))
        console.print(f"Written: {', '.join(changed)}")


if __name__ == "__main__":
    main()
