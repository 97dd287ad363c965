"""`xentropy evaluate` of a .npy file in the page cache, against a plain sum over the same file.

Both map the file anew in each round, so both meet its pages for the first time. Memory of its own
is what is not the file's: the largest anonymous memory of a fresh process during the call, beyond
what was there before.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import xentropy as xe
from xentropy.cli.evaluate import add_arguments
from xentropy.cli.evaluate_run import count, open_inputs

from .. import quiet
from ..ceiling import compiled
from ..cells import Cell, make_logits, make_target
from ..fronts.table import Table
from ..stopwatch import _status, said_by_fresh_process, seconds_in_turn

CELLS = ("4096x50257", "4096x50257:float16", "200000x1000")
QUICK = ("300x1000",)
TICK = 1e-3  # seconds between two looks at the memory


def evaluate(logits, target):
    """What the command does with these files, less its output."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args([str(logits), str(target)])
    return count(open_inputs(options), options, SimpleNamespace(show=lambda *_: None))


def read(path, probe):
    """The sum of the bytes as float32 numbers, on as many threads as the evaluation takes."""
    x = np.load(path, mmap_mode="r")
    return probe.ceiling_read(x.ctypes.data, x.nbytes // 4, xe.get_num_threads())


def own_memory(logits, target):
    """Bytes of anonymous memory that an evaluation adds, at most; None where it is not told."""
    if not sys.platform.startswith("linux"):
        return None
    with tempfile.TemporaryDirectory() as folder:  # what a first call loads
        evaluate(*write(Cell.parse("8x8"), folder))
    before, most, done = _status("RssAnon"), [0], threading.Event()

    def look():
        while not done.wait(TICK):
            most[0] = max(most[0], _status("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    evaluate(logits, target)
    done.set()
    thread.join()
    return max(0, most[0] - before)


def write(cell, folder):
    """The paths of logits and class indices of the cell, which are in the page cache now."""
    paths = Path(folder) / "logits.npy", Path(folder) / "target.npy"
    out = np.lib.format.open_memmap(paths[0], "w+", cell.numpy_dtype, cell.shape)
    make_logits(cell, out)
    np.save(paths[1], make_target(cell))
    return paths


def row(cell, rounds, probe):
    """Speeds, their ratio, memory; and the visit."""
    with tempfile.TemporaryDirectory() as folder:
        logits, target = write(cell, folder)
        ways = {
            "evaluate": lambda: evaluate(logits, target),
            "read": lambda: read(logits, probe),
        }
        turns = seconds_in_turn(ways, rounds)
        (own,) = said_by_fresh_process(__name__, logits, target)
    speeds = [cell.nbytes / turns.found[way] / 1e9 for way in ways]
    share = turns.ratio("read", "evaluate")
    return [cell.name, cell.nbytes / 1e6, *speeds, share, own and own / 1e6], turns


def table(quick):
    """Each file by its cell."""
    probe = compiled()
    cells = [Cell.parse(text) for text in (QUICK if quick else CELLS)]
    rows, visits = zip(*(row(cell, 2 if quick else 7, probe) for cell in cells), strict=True)
    columns = ["logits in a .npy file", "MB", "evaluate, GB/s", "plain sum, GB/s"]
    columns += ["share of the plain sum", "memory of its own, MB"]
    title = "xentropy evaluate, file in the page cache"
    return Table("evaluate", title, columns, [*rows], quiet.notes(visits))


if __name__ == "__main__":
    print(own_memory(*sys.argv[1:]))
