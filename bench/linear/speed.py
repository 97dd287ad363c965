"""Tables of a run: one a cell, with a row for each peer."""

from dataclasses import replace

from xentropy import get_num_threads

from .. import quiet
from ..fronts.table import Table
from ..results import LEAST_BYTES
from ..tables import NONE, percent
from . import ways
from .cells import CELLS, QUICK
from .run import Run

SECONDS = 900.0  # no call begins later
WITHOUT = (ways.COMPILED,)  # left out by --quick: slow to start
AT_ONCE = {"rounds": 1, "budget": 0.0}
COLUMNS = [
    "gradients, s",
    "of products",
    "/ ours",
    "forward, s",
    "of products",
    "half, s",
    "peak MB",
    "forward",
    "loss error",
    "input",
    "weight",
]
NOTES = [
    "gradients: loss, and gradients of input and weight. forward: the loss alone. half: gradients, "
    "with half of the labels ignored.",
    "of products: the time of the matrix products alone, of all rows at once and into memory that "
    "is there, by the library that the call uses, over the time of the call. "
    f"/ ours: the time over that of {ways.TORCH}.",
    "peak: of the resident set (VmHWM) during a call with gradients, beyond inputs and gradients, "
    "in a process of the peer's own; forward: of the loss alone.",
    "Errors against float64 on the same inputs: of the loss, relative; of gradients, the length of "
    "the difference over that of the exact one, in 64 rows of the input and 256 of the weight. "
    "Torch's functions return the loss in the dtype of the input, and so does xentropy.torch.",
]


def share(run, cell, mode, name):
    """The time of the products alone over that of a call of ours, as text."""
    if name not in (ways.NUMPY, ways.TORCH):
        return NONE
    products, dtype = ways.ceiling(name, cell.dtype)
    key = replace(cell, dtype=dtype), mode, products
    if key not in run.records or (cell, mode, name) not in run.records:
        return NONE
    bare, call = run.records[key], run.records[cell, mode, name]
    if not (bare.quiet and call.quiet):
        return quiet.UNKNOWN
    return percent(100 * bare.seconds / call.seconds)


def megabytes(record, cell, gradients):
    """Peak memory beyond inputs and gradients; nothing where others' noise would be as large."""
    if record is None or record.memory is None or cell.logits_bytes < LEAST_BYTES:
        return NONE
    return round(max(0, record.memory - gradients) / 1e6)


def row(run, cell, name):
    """A peer in a cell."""
    found = {mode: run.records.get((cell, mode, name)) for mode in ("gradients", "forward", "half")}
    seconds = {mode: record and record.seconds for mode, record in found.items()}
    return [
        name,
        seconds["gradients"],
        share(run, cell, "gradients", name),
        run.ratio(cell, "gradients", name, ways.TORCH),
        seconds["forward"],
        share(run, cell, "forward", name),
        seconds["half"],
        megabytes(found["gradients"], cell, cell.gradient_bytes),
        megabytes(found["forward"], cell, 0),
        *((found["gradients"] and found["gradients"].errors) or [None] * 3),
    ]


def absent(run, cell):
    """Who is not in the table, and why."""
    by_reason = {}
    for (of, mode, name), reason in run.absent.items():
        if of == cell:
            by_reason.setdefault(f"{name}: {reason}", []).append(mode)
    return [f"Not measured ({', '.join(modes)}): {why}." for why, modes in by_reason.items()]


def table(run, cell):
    """The table of a cell; its name is what marks of pages say."""
    rows = [row(run, cell, name) for name in run.names]
    rows = [each for each in rows if any(value not in (None, NONE) for value in each[1:])]
    visits = [v for (of, *_), r in run.records.items() if of == cell for v in r.visits]
    name = f"linear_{cell.classes}" + f"_{cell.dtype}" * (cell.dtype != "float32")
    title = f"Linear cross entropy, {cell.name}"
    notes = [*absent(run, cell), *quiet.notes(visits)]
    return Table(name, title, [cell.name, *COLUMNS], rows, notes)


def tables(quick, cells=None, seconds=None):
    """One a cell; below the last one, what the columns mean."""
    cells = cells or (QUICK if quick else CELLS)
    names = [name for name in ways.installed() if not (quick and name in WITHOUT)]
    run = Run(cells, names, get_num_threads(), seconds or SECONDS, **(AT_ONCE if quick else {}))
    run.all()
    found = [each for cell in cells if (each := table(run, cell)).rows]
    for each in found[-1:]:
        each.notes[:0] = NOTES
    return found
