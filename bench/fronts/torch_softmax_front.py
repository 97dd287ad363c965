"""xentropy.torch's softmax family against torch's own operations: forward + backward.

The ways take turns, a round each; medians. The upstream gradient is given, and dense.
"""

import torch
import torch.nn.functional as F

import xentropy.torch

from ..cells import Cell
from ..quiet import notes
from ..stopwatch import seconds_in_turn
from .table import Table
from .torch_front import LARGE, tensors

CELLS = ("32x10", "8192x1000", "1024x32000", "1024x32000:bfloat16")
QUICK = ("32x10", "256x1000")


def torch_entropy(x):
    """As torch.distributions.Categorical has it."""
    log_p = torch.log_softmax(x, 1)
    return -(log_p.exp() * log_p).sum(1)


def functions(target):
    """{name: (torch's, ours)}, of logits."""
    ours = xentropy.torch
    return {
        "softmax": (lambda x: F.softmax(x, 1), lambda x: ours.softmax(x, 1)),
        "log_softmax": (lambda x: F.log_softmax(x, 1), lambda x: ours.log_softmax(x, 1)),
        "logsumexp": (lambda x: torch.logsumexp(x, 1), lambda x: ours.logsumexp(x, 1)),
        "entropy": (torch_entropy, ours.entropy),
        "kl_divergence": (
            lambda x: F.kl_div(F.log_softmax(x, 1), target, reduction="batchmean"),
            lambda x: ours.kl_divergence(target, x),
        ),
    }


def step(function, x):
    """One call and its backward."""
    leaf = x.clone().requires_grad_()
    upstream = torch.randn_like(function(x))

    def call():
        torch.autograd.grad(function(leaf), leaf, upstream)

    return call


def rows(name, quick):
    """A row of times for each function in a cell, and the Turns."""
    cell = Cell.parse(name)
    x = tensors(cell)[0]
    rounds = 3 if quick else 9 if cell.elements >= LARGE else 1000
    for function, ways in functions(torch.softmax(x, 1)).items():
        calls = {way: step(each, x) for way, each in zip(("torch", "ours"), ways, strict=True)}
        turns = seconds_in_turn(calls, rounds)
        times = (turns.found[way] * 1e3 for way in calls)
        yield [name, function, *times, turns.ratio("torch", "ours")], turns


def tables(quick):
    """Time in milliseconds with the ratio to ours."""
    found, turns = zip(
        *(row for name in (QUICK if quick else CELLS) for row in rows(name, quick)), strict=True
    )
    columns = ["cell", "function", "torch", "xentropy.torch", "torch / ours"]
    title = "xentropy.torch: the softmax family and its gradients, milliseconds"
    return [Table("torch_softmax", title, columns, [*found], notes(turns))]
