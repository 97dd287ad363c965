"""The loss of distillation with its gradient: time, memory and errors of several ways.

    python -m bench.studies.distillation [--cells 2048x50257 8192x1000 ...] [--betas 0 0.5 1]
                                         [--threads N] [--rounds 7] [--peers torch torch.compile]

The peers are generalized_jsd_loss as TRL's GKD has it, in torch, with autograd, eager and compiled.
The teacher is the student and noise. Memory is that of one call beyond student, teacher and, for
`out=`, the gradient, in gradients. Errors are those of the first rows against float64: of a loss
relative to it, of a gradient relative to the largest entry of its row; "close" is for a teacher
that is 1e-3 from the student.
"""

import argparse
import math
from types import SimpleNamespace

import numpy as np

import xentropy as xe

from ..cells import Cell, aligned, make_logits
from ..needed import require
from ..quiet import notes
from ..stopwatch import peak_extra_bytes, seconds_in_turn
from ..tables import Table, number

CELLS = tuple(
    f"{shape}:{dtype}" for dtype in ("float32", "bfloat16") for shape in ("2048x50257", "8192x1000")
)
PEERS = "torch", "torch.compile"
CHECKED = 8  # rows whose errors are computed
OURS = "xentropy, out=", "xentropy", "xentropy.torch"


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
        calls["torch.compile"] = with_autograd(torch.compile(jsd), x, y, beta)
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


def measure(cell, beta, chosen):
    """The lines of a cell."""
    x, noise = make_logits(cell), make_logits(cell, seed=2)
    y = (x.astype("f4") + noise.astype("f4") / 3).astype(x.dtype)
    del noise
    few = slice(0, CHECKED)
    far = errors(x[few].copy(), y[few].copy(), beta, chosen.peers)
    close = (x[few].astype("f4") + 1e-3 * make_logits(cell)[few][::-1].astype("f4")).astype(x.dtype)
    near = errors(x[few].copy(), close, beta, chosen.peers)
    calls = ways(x, y, beta, chosen.peers)
    turns = seconds_in_turn(calls, chosen.rounds)
    rows = []
    for name, call in calls.items():
        extra = peak_extra_bytes(SimpleNamespace(before=None, run=call))
        rows.append(
            [
                f"{cell.name}, beta {beta:g}: {name}",
                number(turns.found[name] * 1e3),
                number(turns.ratio(name, OURS[2])),
                number(extra and extra / x.nbytes),
                *(number(each, 2) for each in (*far[name], *near[name])),
            ]
        )
    return rows, turns


def main():
    require("psutil", "torch")
    import torch

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--betas", nargs="+", type=float, default=[0, 0.5, 1])
    parser.add_argument("--threads", type=int, default=xe.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    chosen = parser.parse_args()
    xe.set_num_threads(chosen.threads)
    torch.set_num_threads(chosen.threads)
    rows, visits = [], []
    for text in chosen.cells:
        for beta in chosen.betas:
            found, turns = measure(Cell.parse(text), beta, chosen)
            rows += found
            visits.append(turns)
    columns = "ms", "/ xentropy.torch", "memory", "loss", "gradient", "close loss", "close gradient"
    Table("distillation", ["way", *columns], rows, notes(visits)).show()


if __name__ == "__main__":
    main()
