"""xentropy.torch against torch eager and torch.compile: forward + backward.

The ways take turns, a round each; medians. Memory is that of the first such call in a process of
its own, beyond the logits, in their size.
"""

import sys

import torch
import torch.nn.functional as F

import xentropy.torch

from ..cells import Cell, make_logits, make_target
from ..peers import Way
from ..quiet import notes
from ..stopwatch import peak_extra_bytes, said_by_fresh_process, seconds_in_turn
from .table import Table

CELLS = ("32x10", "8192x1000", "1024x32000", "2048x50257", "2048x50257:bfloat16")
QUICK = ("32x10", "256x1000")
WAYS = ("torch", "torch.compile", "xentropy.torch", "inplace=True")
US = "xentropy.torch"
IN_PLACE = "inplace=True"
LARGE = 1 << 20  # elements; in smaller cells memory is lost in the process, and time in the graph


class Logits(torch.autograd.Function):
    """Memory as the output of a layer, which `inplace` may write to; the gradient is dropped."""

    @staticmethod
    def forward(ctx, parameter, memory):
        return memory

    @staticmethod
    def backward(ctx, gradient):
        return None, None


def tensors(cell):
    """Logits and labels."""
    x = make_logits(cell)
    if cell.dtype == "bfloat16":
        x = torch.from_numpy(x.view("int16")).view(torch.bfloat16)
    else:
        x = torch.from_numpy(x)
    return x, torch.from_numpy(make_target(cell)).long()


def calls(cell, ways=WAYS):
    """A step of each way: the mean of the losses and its gradient, both released."""
    x, y = tensors(cell)
    leaf, parameter = x.clone().requires_grad_(), torch.zeros(1, requires_grad=True)

    def call(function):
        def step():
            function(leaf, y).backward()
            leaf.grad = None

        return step

    def in_place():
        logits = Logits.apply(parameter, x.detach())
        xentropy.torch.cross_entropy(logits, y, inplace=True).backward()

    functions = {
        "torch": lambda: call(F.cross_entropy),
        "torch.compile": lambda: call(torch.compile(lambda a, b: F.cross_entropy(a, b))),
        US: lambda: call(xentropy.torch.cross_entropy),
        IN_PLACE: lambda: in_place,
    }
    return {name: functions[name]() for name in ways}


def memory(way, name):
    """The peak of one call in bytes; what it loads and compiles is there before."""
    cell = Cell.parse(name)
    if way != "torch.compile":
        calls(Cell.parse("2x2:" + cell.dtype), [way])[way]()
    call = calls(cell, [way])[way]
    if way == "torch.compile":
        call()
    return peak_extra_bytes(Way(call))


def extra_memory(way, name):
    """The same from a fresh process, in the size of the logits; None where it cannot be told."""
    (said,) = said_by_fresh_process("bench.fronts.torch_front", way, name)
    return None if said is None else said / Cell.parse(name).nbytes


def rows(name, quick):
    """The row of times and the row of memory of a cell, and the Turns."""
    cell = Cell.parse(name)
    large = cell.elements >= LARGE
    ways = [way for way in WAYS if (way != IN_PLACE or large)]
    rounds = 3 if quick else 9 if large else 1000
    turns = seconds_in_turn(calls(cell, ways), rounds)
    milliseconds = [turns.found[way] * 1e3 if way in ways else None for way in WAYS]
    ratios = [turns.ratio(peer, US) for peer in WAYS[:2]]
    extra = [extra_memory(way, name) for way in WAYS] if large else None
    return [name, *milliseconds, *ratios], extra and [name, *extra], turns


def tables(quick):
    """Time in milliseconds with the ratios to ours; peak extra memory in the size of the logits."""
    found = [rows(name, quick) for name in (QUICK if quick else CELLS)]
    ratios = ["torch / ours", "torch.compile / ours"]
    times = Table(
        "torch",
        "xentropy.torch: loss and backward, milliseconds",
        ["cell", *WAYS, *ratios],
        [time for time, *_ in found],
        notes(turns for *_, turns in found),
    )
    extra = Table(
        "torch_memory",
        "xentropy.torch: peak extra memory of loss and backward, as a multiple of the logits",
        ["cell", *WAYS],
        [row for _, row, _ in found if row],
        [],
    )
    return [times, extra] if extra.rows else [times]


if __name__ == "__main__":
    print(memory(*sys.argv[1:]))
