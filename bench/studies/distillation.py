"""The loss of distillation with its gradient: time, memory and errors of several ways.

python -m bench.studies.distillation             ten minutes; to bench/results/fronts/<machine>.json
python -m bench.studies.distillation --quick     tiny cells, to see that it works; saved nowhere
python -m bench.studies.distillation --pages     the same as the first, and the tables of the docs
python -m bench.studies.distillation --cells 8192x1000 2048x50257:bfloat16

The peers are generalized_jsd_loss as TRL's GKD has it, in torch, with autograd, eager and compiled.
The teacher is the student and noise. The ways take turns; medians. Memory is that of one call
beyond student, teacher and, for `out=`, the gradient, in gradients. Errors are those of the first
rows against float64: of a loss relative to it, of a gradient relative to the largest entry of its
row; "close" is for a teacher that is 1e-3 from the student.
"""

import math
from types import SimpleNamespace

import numpy as np

import xentropy as xe

from ..cells import Cell, aligned, make_logits
from ..fronts import study
from ..fronts.table import Table
from ..quiet import notes
from ..stopwatch import peak_extra_bytes, seconds_in_turn

CELLS = ("2048x50257", "8192x1000", "200000x10", "2048x50257:bfloat16", "8192x1000:bfloat16")
QUICK = ("16x100", "16x100:bfloat16")
BETAS = 0.0, 0.5, 1.0
PEERS = "torch", "torch.compile"
CHECKED = 8  # rows whose errors are computed
OURS = "xentropy, out=", "xentropy", "xentropy.torch"
MEMORY = OURS[0], OURS[2], "torch"
JUDGED = OURS[2], "torch"


def jsd(student, teacher, beta):
    """The formula of TRL's generalized_jsd_loss, over the number of rows."""
    import torch
    from torch.nn import functional

    def kl(log_q, log_p):
        return functional.kl_div(log_q, log_p, reduction="none", log_target=True)

    s, t = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    if beta == 0:
        terms = kl(s, t)
    elif beta == 1:
        terms = kl(t, s)
    else:
        m = torch.logsumexp(torch.stack([s + math.log1p(-beta), t + math.log(beta)]), dim=0)
        terms = beta * kl(m, t) + (1 - beta) * kl(m, s)
    return terms.sum() / len(student)


def tensor_of(array):
    """A tensor on the memory of the array; of bfloat16 by its bits."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def with_autograd(loss, x, y, beta):
    """A call that returns the loss and the gradient, as float64 arrays where asked."""
    student = tensor_of(x).requires_grad_()
    teacher = tensor_of(y)

    def call():
        value = loss(student, teacher, beta)
        value.backward()
        grad, student.grad = student.grad, None
        return value, grad

    return call


def ways(x, y, beta, peers):
    """The calls by name."""
    import torch

    from xentropy.torch import distillation_loss

    out = aligned(x.shape, x.dtype)
    calls = {
        OURS[0]: lambda: xe.distillation_loss_with_grad(x, y, beta=beta, out=out),
        OURS[1]: lambda: xe.distillation_loss_with_grad(x, y, beta=beta),
        OURS[2]: with_autograd(lambda s, t, b: distillation_loss(s, t, beta=b), x, y, beta),
    }
    if "torch" in peers:
        calls["torch"] = with_autograd(jsd, x, y, beta)
    if "torch.compile" in peers:
        torch.compiler.reset()  # of many shapes it keeps the first
        compiled = torch.compile(jsd, dynamic=False)
        calls["torch.compile"] = with_autograd(compiled, x, y, beta)
    return calls


def arrays_of(result):
    """Loss and gradient in float64."""
    loss, grad = result
    if not isinstance(grad, np.ndarray):
        return loss.double().item(), grad.detach().double().numpy()
    return float(loss), grad.astype(np.float64)


def errors(x, y, beta, peers):
    """By way: how far its loss and gradient are off.

    The exact loss is xentropy's in float64, which the tests compare with 120 digits: near 0 the
    formula itself loses digits.
    """
    exact = arrays_of(with_autograd(jsd, x.astype("f8"), y.astype("f8"), beta)())
    exact = xe.distillation_loss(x.astype("f8"), y.astype("f8"), beta=beta), exact[1]
    largest = np.abs(exact[1]).max(axis=1, keepdims=True)
    found = {}
    for name, call in ways(x, y, beta, peers).items():
        loss, grad = arrays_of(call())
        off = float((np.abs(grad - exact[1]) / largest).max())
        found[name] = abs(loss - exact[0]) / exact[0], off
    return found


def extra_memory(call, nbytes):
    """That of a call, in so many bytes; None where it cannot be told."""
    extra = peak_extra_bytes(SimpleNamespace(before=None, run=call))
    return None if extra is None else extra / nbytes


def measured(cell, beta, peers, rounds):
    """A row of each table, and the visits that they come from."""
    x, noise = make_logits(cell), make_logits(cell, seed=2)
    y = (x.astype("f4") + noise.astype("f4") / 3).astype(x.dtype)
    few = slice(0, CHECKED)
    far = errors(x[few].copy(), y[few].copy(), beta, PEERS[:1])
    close = (x[few].astype("f4") + 1e-3 * noise[few].astype("f4")).astype(x.dtype)
    near = errors(x[few].copy(), close, beta, PEERS[:1])
    del noise
    calls = ways(x, y, beta, peers)
    turns = seconds_in_turn(calls, rounds)
    name = f"{cell.name}, beta {beta:g}"
    times = [1e3 * turns.found[way] if way in calls else None for way in (*OURS, *PEERS)]
    ratios = [turns.ratio(way, OURS[2]) if way in calls else None for way in PEERS]
    memory = [extra_memory(calls[way], x.nbytes) if way in calls else None for way in MEMORY]
    off = [far[way][1] for way in JUDGED] + [near[way][0] for way in JUDGED]
    return [name, *times, *ratios], [name, *memory, *off], turns


def both_tables(cells, quick=False):
    """Times; memory and errors."""
    import torch

    torch.set_num_threads(xe.get_num_threads())
    peers, rounds = (PEERS[:1], 2) if quick else (PEERS, 7)
    each = [measured(cell, beta, peers, rounds) for cell in cells for beta in BETAS]
    times, others, visits = map(list, zip(*each, strict=True))
    columns = ["cell", *OURS, *PEERS, *(f"{way} / {OURS[2]}" for way in PEERS)]
    title = "distillation, loss and gradient: milliseconds"
    first = Table("distillation", title, columns, times, notes(visits))
    columns = ["cell", *(f"memory, {way}" for way in MEMORY)]
    columns += [f"{what}, {way}" for what in ("gradient", "close loss") for way in JUDGED]
    title = "distillation: memory, and errors"
    return [first, Table("distillation_errors", title, columns, others, [])]


def tables(quick):
    """What `python -m bench.fronts` shows and saves."""
    return both_tables([Cell.parse(text) for text in (QUICK if quick else CELLS)], quick)


if __name__ == "__main__":
    study.main("distillation", __doc__, both_tables)
