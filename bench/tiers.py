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
from .needed import require
from .quiet import UNKNOWN, notes
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
            return xe.cross_entropy_with_grad(logits, target, out=out)

        return call

    return {tier: on(tier) for tier in _kernels.tiers()} | {COPY: probes(threads)(logits)[COPY].run}


def percent(share):
    return share if share == UNKNOWN else f"{share:.0%}"


def row(cell, threads, rounds):
    """Of a cell: 1e9 elements a second and share of the copy by tier, and the copy; the Turns."""
    turns = seconds_in_turn(calls(cell, threads), rounds)
    speeds = [
        f"{number(cell.elements / turns.found[tier] / 1e9)}, {percent(turns.ratio(COPY, tier))}"
        for tier in _kernels.tiers()
    ]
    return [cell.name, *speeds, number(cell.elements / turns.found[COPY] / 1e9)], turns


def main():
    require("psutil")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    xe.set_num_threads(chosen.threads)
    try:
        found = [row(Cell.parse(text), chosen.threads, chosen.rounds) for text in chosen.cells]
    except RuntimeError as error:  # no compiler for the probe
        raise SystemExit(str(error)) from None
    rows, turns = zip(*found, strict=True)
    header = ["1e9 elements/s, % of the copy", *_kernels.tiers(), COPY]
    Table("tiers", header, list(rows), notes(turns)).show()


if __name__ == "__main__":
    main()
