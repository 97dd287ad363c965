"""What each option costs: the time of a call with it over that of the plain one.

    python -m bench.options [--cells 1000000x10 2048x50257] [--threads N] [--rounds 15]

Loss and gradient into a warm out=. Every call is made once a round, in turn; medians.
"""

import argparse

import numpy as np

import xentropy as xe

from .cells import Cell, aligned, make_logits, make_target
from .needed import require
from .quiet import notes
from .stopwatch import seconds_in_turn
from .tables import Table, number

CELLS = ("1000000x10", "2048x50257")


def calls(cell):
    """The calls by the name of their option; the first is the plain one."""
    logits, target = make_logits(cell), make_target(cell)
    out = aligned(cell.shape, cell.numpy_dtype)
    rng = np.random.default_rng(2)
    per_class = rng.uniform(0.5, 2, cell.classes)
    per_row = rng.uniform(0.5, 2, cell.row_shape)
    some_ignored = np.where(rng.uniform(size=cell.row_shape) < 0.02, -100, target)
    options = {
        "plain": {},
        "weight": {"weight": per_class},
        "sample_weight": {"sample_weight": per_row},
        "ignore_index (2 % of the rows)": {"target": some_ignored},
        "label_smoothing": {"label_smoothing": 0.1},
        "z_loss": {"z_loss": 1e-4},
        "logit_scale": {"logit_scale": 0.7},
        "softcap": {"softcap": 30},
        "base": {"base": 2},
        "reduction none": {"reduction": "none"},
        "grad_output": {"reduction": "none", "grad_output": per_row},
        "weight and label_smoothing": {"weight": per_class, "label_smoothing": 0.1},
        "class probabilities": {"target": xe.softmax(logits, axis=1)},
    }

    def call(target=target, **chosen):
        return xe.cross_entropy_with_grad(logits, target, out=out, **chosen)

    return {name: (lambda these=these: call(**these)) for name, these in options.items()}


def main():
    require("psutil")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    xe.set_num_threads(chosen.threads)
    turns = {}
    for text in chosen.cells:
        turns[text] = seconds_in_turn(calls(Cell.parse(text)), chosen.rounds)
    rows = [
        [name, *(number(each.ratio(name, "plain")) for each in turns.values())]
        for name in next(iter(turns.values())).found
    ]
    Table("options", ["times the plain call", *turns], rows, notes(turns.values())).show()


if __name__ == "__main__":
    main()
