"""What each instruction-set tier reaches: elements a second, and the share of the copy.

    python -m bench.tiers [--cells 2048x50257 ...] [--threads N] [--rounds 15]

Loss and gradient into a warm out=, and the prefetched copy of as many bytes (the ceiling). Every
call is made once a round, in turn; medians.
"""

import argparse

import xentropy as xe
from xentropy import _kernels

from .ceiling import probes
from .cells import Cell, aligned, make_logits, make_target
from .stopwatch import seconds_in_turn
from .tables import Table, number

CELLS = ("256x1000", "8192x1000", "1024x32000", "2048x50257", "2048x50257:float64")
COPY = "copy"


def calls(cell, threads):
    """The call on every tier of this machine by the tier's name, and the copy."""
    logits, target = make_logits(cell), make_target(cell)
    out = aligned(cell.shape, cell.numpy_dtype)

    def on(tier):
        def call():
            _kernels.use_tier(tier)
            return xe.cross_entropy_with_grad(logits, target, out=out, n_threads=threads)

        return call

    return {tier: on(tier) for tier in _kernels.tiers()} | {COPY: probes(threads)(logits)[COPY].run}


def row(cell, threads, rounds):
    """Of a cell: 1e9 elements a second and % of the copy by tier, and the copy."""
    taken = seconds_in_turn(calls(cell, threads), rounds)
    copy = taken.pop(COPY)
    speeds = [f"{number(cell.elements / s / 1e9)}, {copy / s:.0%}" for s in taken.values()]
    return [cell.name, *speeds, number(cell.elements / copy / 1e9)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    rows = [row(Cell.parse(text), chosen.threads, chosen.rounds) for text in chosen.cells]
    header = ["1e9 elements/s, % of the copy", *_kernels.tiers(), COPY]
    print(Table("tiers", header, rows).markdown())


if __name__ == "__main__":
    main()
