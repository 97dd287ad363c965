"""Log-probabilities of selected classes with their entropy: time, memory, errors of a step.

    python -m bench.studies.log_probs [--cells 2048x50257 8192x1000:bfloat16] [--rounds 5]
                                      [--no-entropy] [--peers eager compile TRL]

Peers: torch's operations, the same compiled, and TRL's formulas (selective_log_softmax and
entropy_from_logits), all of torch. A step makes both numbers of each row and the gradient in the
logits from given upstream gradients. The ways take turns; medians. Memory is what the process
grows by during a step, in sizes of the logits; a gradient that was freed is used again. Errors are
those of 16 rows against float64: of log p relative, of gradients relative to the largest entry of
their row.
"""

import argparse
from types import SimpleNamespace

import numpy as np

from ..cells import Cell, make_logits, make_target
from ..needed import require
from ..quiet import notes
from ..stopwatch import peak_extra_bytes, seconds_in_turn
from ..tables import Table, number

CELLS = ("2048x50257", "8192x1000", "2048x50257:bfloat16", "8192x1000:bfloat16")
CHECKED = 16  # rows
OURS = "xentropy.torch"


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
    """The functions by name; the compiled one is made once for all cells."""
    import torch

    compiled = torch.compile(eager, dynamic=False)
    known = {"eager": eager, "compile": compiled, "TRL": trl}
    return {OURS: ours, **{name: known[name] for name in names}}


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


def table_of(text, chosen):
    cell = Cell.parse(text)
    logits, index = tensors_of(cell)
    entropy = not chosen.no_entropy
    found = ways(chosen.peers)
    steps = {name: step_of(way, logits, index, entropy) for name, way in found.items()}
    off = {name: errors(step, logits, index, entropy) for name, step in steps.items()}
    turns = seconds_in_turn(steps, chosen.rounds)
    rows = []
    for name, step in steps.items():
        grown = peak_extra_bytes(SimpleNamespace(before=None, run=step))
        memory = "" if grown is None else number(grown / cell.nbytes)
        ratio = number(turns.ratio(name, OURS))
        milliseconds = number(turns.found[name] * 1e3)
        rows.append([name, milliseconds, ratio, memory, *(f"{e:.1e}" for e in off[name])])
    columns = ["step", "ms", "times ours", "memory", "error of log p", "of the gradient"]
    return Table(f"log-probabilities, {cell.name}", columns, rows, notes([turns]))


def main():
    require("torch")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["eager", "compile", "TRL"])
    parser.add_argument("--no-entropy", action="store_true")
    chosen = parser.parse_args()
    for text in chosen.cells:
        table_of(text, chosen).show()


if __name__ == "__main__":
    main()
