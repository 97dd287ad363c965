"""The command of a study whose tables are those of a front."""

import argparse
import shutil
import sys

from ..cells import Cell
from ..needed import require
from . import __main__ as fronts


def _cell(text):
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def arguments(front, text, words):
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.studies.{front}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny cells, few rounds; saved nowhere")
    add("--cells", nargs="+", type=_cell, metavar="NxC[:dtype]", help="these; saved nowhere")
    add("--pages", action="store_true", help="write the tables of the docs")
    chosen = parser.parse_args(words)
    if chosen.cells and (chosen.quick or chosen.pages):
        parser.error("--cells goes with no other choice")
    return chosen


def main(front, text, tables_of, words=None):
    """Measure, show; save and write what is measured in full. tables_of(cells): those of cells."""
    chosen = arguments(front, text, words)
    if not chosen.cells:
        flags = [f"--{name}" for name in ("quick", "pages") if getattr(chosen, name)]
        fronts.main(["--front", front, *flags])
        return
    require("psutil", "rich", "torch")
    from rich.console import Console

    width = None if sys.stdout.isatty() else shutil.get_terminal_size().columns
    for table in tables_of(chosen.cells):
        fronts.shown(table).print(Console(width=width))
