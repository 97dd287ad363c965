"""Log-probabilities of selected classes with their entropy: time, memory, errors of a step.

python -m bench.studies.log_probs             five minutes; into bench/results/fronts/<machine>.json
python -m bench.studies.log_probs --quick     tiny cells, to see that it works; saved nowhere
python -m bench.studies.log_probs --pages     the same as the first, and the tables of the docs
python -m bench.studies.log_probs --cells 8192x1000 2048x50257:bfloat16

Peers: torch's operations, the same compiled, and TRL's formulas (selective_log_softmax and
entropy_from_logits), all of torch. A step makes the numbers of each row and the gradient in the
logits from given upstream gradients. The ways take turns; medians. Memory is what the process
grows by during a step, in sizes of the logits; a gradient that was freed is used again. Errors are
those of 16 rows against float64: of log p relative, of gradients relative to the largest entry of
their row.
"""

from types import SimpleNamespace

import numpy as np

import xentropy as xe

from ..cells import Cell, make_logits, make_target
from ..fronts import study
from ..fronts.table import Table
from ..quiet import notes
from ..stopwatch import peak_extra_bytes, seconds_in_turn

CELLS = ("2048x50257", "8192x1000", "200000x10", "2048x50257:bfloat16", "8192x1000:bfloat16")
QUICK = ("16x100", "16x100:bfloat16")
CHECKED = 16  # rows
OURS = "xentropy.torch"
PEERS = "torch", "torch.compile", "TRL's formulas"
JUDGED = OURS, "torch"


def eager(logits, index, entropy):
    """As one writes it."""
    log_p = logits.log_softmax(-1)
    selected = log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return (selected, -(log_p.exp() * log_p).sum(-1)) if entropy else (selected,)


def trl(logits, index, entropy):
    """What TRL does: float32 by the log-sum-exp of each sequence, 16 bits by its log_softmax."""
    import torch

    sequences = [slice(r, r + 128) for r in range(0, len(logits), 128)]
    if logits.dtype == torch.float32:
        own = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        selected = own - torch.cat([logits[s].logsumexp(-1) for s in sequences])
    else:
        selected = torch.cat([eager(logits[s], index[s], False)[0] for s in sequences])
    if not entropy:
        return (selected,)
    return selected, torch.cat([eager(logits[s], index[s], True)[1] for s in sequences])


def ours(logits, index, entropy):
    from xentropy.torch import selected_log_probs

    found = selected_log_probs(logits, index, return_entropy=entropy)
    return found if entropy else (found,)


def ways(names):
    """The functions by name."""
    import torch

    found = {OURS: ours, PEERS[0]: eager, PEERS[2]: trl}
    if PEERS[1] in names:
        torch.compiler.reset()  # of many shapes it keeps the first
        found[PEERS[1]] = torch.compile(eager, dynamic=False)
    return {name: found[name] for name in (OURS, *names)}


def tensors_of(cell):
    import torch

    x = make_logits(cell)
    bits = torch.from_numpy(x.view(np.int16)) if cell.dtype == "bfloat16" else torch.from_numpy(x)
    logits = bits.view(torch.bfloat16) if cell.dtype == "bfloat16" else bits
    return logits.requires_grad_(), torch.from_numpy(make_target(cell))


def step_of(way, logits, index, entropy):
    """A function that makes the results and the gradient once."""
    import torch

    rows = np.random.default_rng(3).standard_normal((2, len(index))).astype(np.float32)
    upstream = [torch.from_numpy(row).to(logits.dtype) for row in rows[: 1 + entropy]]

    def step():
        found = way(logits, index, entropy)
        return found[0].detach(), torch.autograd.grad(found, logits, upstream)[0]

    return step


def errors(step, logits, index, entropy):
    """The largest errors of log p and of the gradient in the first rows."""
    import torch

    log_p, gradient = (value[:CHECKED].double() for value in step())
    few = logits.detach()[:CHECKED].double().requires_grad_(), index[:CHECKED]
    rows = np.random.default_rng(3).standard_normal((2, len(index))).astype(np.float32)
    exact = eager(*few, entropy)

    upstream = [torch.from_numpy(row[:CHECKED]).to(logits.dtype).double() for row in rows]
    of_logits = torch.autograd.grad(exact, few[0], upstream[: 1 + entropy])[0]
    largest = of_logits.abs().amax(-1, keepdim=True)
    return (
        float(((log_p - exact[0]) / exact[0]).detach().abs().max()),
        float(((gradient - of_logits) / largest).abs().max()),
    )


def measured(cell, entropy, peers, rounds):
    """A row of each table, and the visits that they come from."""
    logits, index = tensors_of(cell)
    steps = {way: step_of(f, logits, index, entropy) for way, f in ways(peers).items()}
    off = {way: errors(steps[way], logits, index, entropy) for way in JUDGED}
    turns = seconds_in_turn(steps, rounds)
    name = cell.name + (", entropy" if entropy else "")
    times = [1e3 * turns.found[way] if way in steps else None for way in (OURS, *PEERS)]
    ratios = [turns.ratio(way, OURS) if way in steps else None for way in PEERS]
    grown = [peak_extra_bytes(SimpleNamespace(before=None, run=steps[way])) for way in JUDGED]
    memory = [None if extra is None else extra / cell.nbytes for extra in grown]
    errors_of_both = [off[way][i] for i in range(2) for way in JUDGED]
    return [name, *times, *ratios], [name, *memory, *errors_of_both], turns


def both_tables(cells, quick=False):
    """Times; memory and errors."""
    import torch

    torch.set_num_threads(xe.get_num_threads())
    peers, rounds = (PEERS[::2], 2) if quick else (PEERS, 5)
    each = [measured(cell, entropy, peers, rounds) for cell in cells for entropy in (False, True)]
    times, others, visits = map(list, zip(*each, strict=True))
    columns = ["cell", OURS, *PEERS, *(f"{way} / {OURS}" for way in PEERS)]
    title = "log-probabilities and gradient: milliseconds"
    first = Table("log_probs", title, columns, times, notes(visits))
    columns = ["cell", *(f"{n}, {way}" for n in ("memory", "log p", "gradient") for way in JUDGED)]
    title = "log-probabilities: memory, and errors"
    return [first, Table("log_probs_errors", title, columns, others, [])]


def tables(quick):
    """What `python -m bench.fronts` shows and saves."""
    return both_tables([Cell.parse(text) for text in (QUICK if quick else CELLS)], quick)


if __name__ == "__main__":
    study.main("log_probs", __doc__, both_tables)
