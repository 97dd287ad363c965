"""Measure the loss of a linear layer, which makes no logits, against torch's.

python -m bench.linear                 15 minutes; into bench/results/fronts/<machine>.json
python -m bench.linear --finetune      a fine-tuning step with and without the patch, instead
python -m bench.linear --quick         tiny cells, to see that it works
python -m bench.linear --cells 512x256x32000 512x256x32000:bfloat16
python -m bench.linear --pages         the same as the first, and the tables of the docs
"""

import argparse
import shutil
import sys

from ..fronts import __main__ as fronts
from ..needed import require
from .cells import LinearCell


def _cell(text):
    try:
        return LinearCell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="python -m bench.linear",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--finetune", action="store_true", help="train a small language model")
    add("--quick", action="store_true", help="tiny cells; saved nowhere")
    add("--cells", nargs="+", type=_cell, metavar="NxHxV[:dtype]", help="these; saved nowhere")
    add("--seconds", type=float, help="of --cells: no call begins later")
    add("--pages", action="store_true", help="write the tables of the docs")
    chosen = parser.parse_args(words)
    if chosen.cells and (chosen.finetune or chosen.quick or chosen.pages):
        parser.error("--cells goes with no other choice but --seconds")
    return chosen


def main(words=None):
    """Measure, show; save and write what is measured in full."""
    chosen = arguments(words)
    if not chosen.cells:
        flags = [f"--{name}" for name in ("quick", "pages") if getattr(chosen, name)]
        fronts.main(["--front", "fine_tuning" if chosen.finetune else "linear", *flags])
        return
    require("psutil", "rich")
    from rich.console import Console

    from .speed import tables

    width = None if sys.stdout.isatty() else shutil.get_terminal_size().columns
    for table in tables(False, chosen.cells, chosen.seconds):
        fronts.shown(table).print(Console(width=width))


if __name__ == "__main__":
    main()
