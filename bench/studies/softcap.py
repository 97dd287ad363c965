"""What a softcap costs: the processor time of a call with it over that of the plain call.

    python -m bench.studies.softcap [--cells 4096x1000 128x50257:float16] [--softcap 30]
                                    [--rounds 30]

One thread. Both calls are made in turn; the ratio is that of the medians of their processor time.
Elements below 0.33 softcap are capped by a shorter formula: --softcap 3 shows the other one.
"""

import argparse
import statistics
import time

import numpy as np

import xentropy as xe

from ..cells import MODES, Cell, aligned, make_logits, make_target
from ..tables import Table, number

SHAPES = (
    *("65536x10", "20000x100", "256x1000", "4096x1000", "128x50257", "64x128256", "1x128256"),
    "1x21x512x512",
)
OTHER_TYPES = [
    f"{shape}:{dtype}"
    for dtype in ("float64", "float16", "bfloat16")
    for shape in ("4096x1000", "64x50257")
]
CELLS = (*SHAPES, *OTHER_TYPES)
LEAST = 2e-3  # seconds of processor time in one measurement: short calls are repeated


def calls_of(cell):
    """By mode: what is done before a call, and the call, which takes further options."""
    logits, target = make_logits(cell), make_target(cell)
    out, own = (aligned(cell.shape, cell.numpy_dtype) for _ in range(2))

    def with_grad(x, out):
        return lambda **options: xe.cross_entropy_with_grad(x, target, out=out, **options)

    return {
        "loss": (lambda: None, lambda **options: xe.cross_entropy(logits, target, **options)),
        "out": (lambda: None, with_grad(logits, out)),
        "in place": (lambda: np.copyto(own, logits), with_grad(own, own)),
    }


def processor_seconds(before, call, loops, **options):
    taken = 0.0
    for _ in range(loops):
        before()
        start = time.process_time()
        call(**options)
        taken += time.process_time() - start
    return taken / loops


def ratio(before, call, softcap, rounds):
    """The median time of call(softcap=softcap) over that of call()."""
    ways = ({}, {"softcap": softcap})
    loops = 1 + int(LEAST / max(processor_seconds(before, call, 2, **way) for way in ways))
    taken = [[processor_seconds(before, call, loops, **way) for way in ways] for _ in range(rounds)]
    plain, capped = (statistics.median(times) for times in zip(*taken, strict=True))
    return capped / plain


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--softcap", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    xe.set_num_threads(1)
    rows = []
    for text in chosen.cells:
        calls = calls_of(Cell.parse(text))
        ratios = [ratio(*call, chosen.softcap, chosen.rounds) for call in calls.values()]
        rows.append([text, *map(number, ratios)])
    Table("softcap", ["times the plain call", *(MODES[mode] for mode in calls)], rows).show()


if __name__ == "__main__":
    main()
