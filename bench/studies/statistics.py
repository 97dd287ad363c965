"""All numbers of a row in one read: row_statistics, and the evaluation of a file.

python -m bench.studies.statistics             ten minutes; into bench/results/fronts/<machine>.json
python -m bench.studies.statistics --quick     tiny cells, to see that it works; saved nowhere
python -m bench.studies.statistics --pages     the same as the first, and the tables of the docs
python -m bench.studies.statistics --cells 8192x1000 1x21x512x512:float16

Log-sum-exp, loss, entropy, argmax and its log-probability, rank and sum of squares, against the
loss alone and the calls of NumPy and torch that give the same. The ways take turns; medians.
"""

import numpy as np

import xentropy as xe

from ..cells import Cell, make_logits, make_target
from ..fronts import study
from ..fronts.table import Table
from ..quiet import notes
from ..stopwatch import seconds_in_turn
from . import evaluate_file

CELLS = (
    *("65536x10", "200000x100", "8192x1000", "1024x32000", "2048x50257", "512x128256"),
    *("1x128256", "8x21x512x512", "8192x1000:float64", "1024x32000:float64"),
    *("65536x10:bfloat16", "1024x32000:float16", "2048x50257:bfloat16"),
)
# The rows of the README's table.
FEW = ("200000x100", "8192x1000", "2048x50257", "512x128256", "2048x50257:bfloat16")
QUICK = ("256x10", "64x1000", "64x1000:bfloat16", "2x5x20x20")
LOSS, US, COMPILED = "the loss alone", "row_statistics", "torch.compile"
PEERS = ("numpy", "torch", COMPILED)
BLOCK = 1 << 20  # elements: temporaries of so many rows stay in the caches of NumPy and torch


def with_numpy(x, target):
    """The fields of RowStatistics; classes along axis 1, the arithmetic in float32 or float64."""
    x = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    y = np.expand_dims(target, 1)
    classes = np.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
    argmax, at_target = x.argmax(axis=1), np.take_along_axis(x, y, 1)
    away = x - x.max(axis=1, keepdims=True)
    e = np.exp(away)
    total = e.sum(axis=1)
    above = np.log(total)
    lse = x.max(axis=1) + above
    entropy = above - (e * away).sum(axis=1) / total
    rank = ((x > at_target) | ((x == at_target) & (classes < y))).sum(axis=1)
    loss = lse - at_target[:, 0]
    return lse, loss, entropy, argmax, -above, rank, (e * e).sum(axis=1) / (total * total)


def with_torch(x, target):
    """The same of tensors."""
    import torch

    x = x.float() if x.element_size() == 2 else x
    y = target.unsqueeze(1)
    classes = torch.arange(x.shape[1]).view(-1, *[1] * (x.dim() - 2))
    at_target, (peak, argmax) = x.gather(1, y), x.max(1)
    lse = x.logsumexp(1, keepdim=True)
    log_p = x - lse
    p = log_p.exp()
    rank = ((x > at_target) | ((x == at_target) & (classes < y))).sum(1)
    lse, entropy, squares = lse.squeeze(1), -(p * log_p).sum(1), (p * p).sum(1)
    return lse, lse - at_target.squeeze(1), entropy, argmax, peak - lse, rank, squares


def in_blocks(function, x, target, block=BLOCK):
    """A call of the function for some rows after the others; its results by block."""
    step = max(1, block // (x[:1].size if isinstance(x, np.ndarray) else x[:1].numel()))
    return [function(x[i : i + step], target[i : i + step]) for i in range(0, len(x), step)]


def tensor_of(x):
    """An array as a tensor."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def peers_of(x, target, names):
    """{name: call without arguments} of the other libraries."""
    found = {}
    if "numpy" in names:
        found["numpy"] = lambda: in_blocks(with_numpy, x, target)
    if "torch" in names or COMPILED in names:
        import torch

        torch.set_num_threads(xe.get_num_threads())
        tensors = tensor_of(x), torch.from_numpy(target)
        found["torch"] = lambda: in_blocks(with_torch, *tensors)
    if COMPILED in names:
        torch.compiler.reset()
        compiled = torch.compile(with_torch, dynamic=False)
        found[COMPILED] = lambda: compiled(*tensors)
    return {name: found[name] for name in names}


def row(cell, names, rounds):
    """The row of a cell, and the visits it comes from."""
    x, target = make_logits(cell), make_target(cell)
    ours = {
        LOSS: lambda: xe.cross_entropy(x, target, reduction="none"),
        US: lambda: xe.row_statistics(x, target),
    }
    pair = seconds_in_turn(ours, 4 * rounds)
    all_of_them = seconds_in_turn({US: ours[US], **peers_of(x, target, names)}, rounds)
    times = [all_of_them.found.get(name) for name in PEERS]
    best = min(names, key=all_of_them.found.get)
    milliseconds = [seconds and 1e3 * seconds for seconds in (pair.found[US], *times)]
    ratios = [pair.ratio(LOSS, US), all_of_them.ratio(best, US)]
    return [cell.name, *milliseconds, *ratios], (pair, all_of_them)


def statistics_table(cells, names, rounds):
    """The cells against the loss alone and the other libraries."""
    rows, visits = zip(*(row(cell, names, rounds) for cell in cells), strict=True)
    columns = ["cell", US, *PEERS, f"speed, {LOSS} = 1", f"best of the others / {US}"]
    title = "row_statistics: milliseconds"
    return Table("statistics", title, columns, [*rows], notes(sum(visits, ())))


def readme_table(whole):
    """Some rows of the whole table, without their shares of the loss's speed."""
    share = whole.columns.index(f"speed, {LOSS} = 1")
    columns, *rows = (
        [*cells[:share], *cells[share + 1 :]] for cells in (whole.columns, *whole.rows)
    )
    rows = [cells for cells in rows if cells[0] in FEW]
    return Table("statistics_few", whole.title, columns, rows, whole.notes)


def tables(quick):
    """What `python -m bench.fronts` shows and saves."""
    cells = [Cell.parse(text) for text in (QUICK if quick else CELLS)]
    whole = statistics_table(cells, PEERS[:-1] if quick else PEERS, 2 if quick else 5)
    return [whole, *([] if quick else [readme_table(whole)]), evaluate_file.table(quick)]


if __name__ == "__main__":
    study.main("statistics", __doc__, lambda cells: [statistics_table(cells, PEERS, 5)])
