"""A rank that fails in the middle of a vocabulary-parallel loss (`ranks.run`)."""

from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from xentropy import _kernels
from xentropy.torch.parallel import _exchange, _group, _linear, _linear_chunks, _shards, _vocabulary
from xentropy.torch.parallel import vocab_parallel_cross_entropy as of_logits
from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy as of_layer

READ, WRITE = (_kernels, "selected_log_probs"), (_kernels, "selected_log_probs_grad")
MASSES = _shards.Shard, "masses_of"
MEMORY = torch.Tensor, "new_empty"  # of an all-gather
DIVISOR = _shards, "divisor"
LOSS = _linear_chunks.ShardedLoss, "__init__"
PRODUCTS = _linear_chunks._SummedProducts


class Failing:
    """While it lasts, the n-th call of a function raises, for want of memory say."""

    def __init__(self, place, n, error):
        self._place, self._left, self._error = place, n, error
        self._real = getattr(*place)

    def __enter__(self):
        def call(*arguments, **options):
            self._left -= 1
            if self._left == 0:
                raise self._error("none is left")
            return self._real(*arguments, **options)

        setattr(*self._place, call)

    def __exit__(self, *_):
        setattr(*self._place, self._real)


def _logits(**options):
    x = torch.linspace(0, 1, 20).reshape(5, 4).requires_grad_()
    of_logits(x, torch.tensor([0, 5, 1, -100, 7]), **options).sum().backward()


def _layer(frozen=False, ignored=False, **options):
    """Four chunks of a row, of which the third is not next to the second."""
    hidden = torch.linspace(0, 1, 15).reshape(5, 3).requires_grad_(not frozen)
    layer = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    target = torch.tensor([-100] * 5 if ignored else [0, 5, -100, 1, 7])
    with saved_tensors_hooks(lambda saved: saved, lambda saved: Saved.unpack(saved)):
        of_layer(hidden, layer, target, logits_bytes=1, **options).sum().backward()


class Saved:
    """Of the forward pass."""

    @staticmethod
    def unpack(saved):
        return saved


class Case(NamedTuple):
    """The n-th call of `place` raises on the last rank. Do the others learn of it?"""

    place: Any
    n: int
    call: Any
    options: Any = {}  # noqa: RUF012
    reaches: bool = True
    error: Any = MemoryError


WEIGHT, NONE = {"weight": torch.ones(4)}, {"reduction": "none"}
CASES = {
    # from the entry to the second all-gather
    "options": Case((_vocabulary, "options_of"), 1, _logits),
    "tensors": Case((_vocabulary, "has_dtensors"), 1, _logits),
    "checks": Case((_vocabulary, "check_tensors"), 1, _logits),
    "header": Case((_exchange, "header"), 1, _logits),
    "length of the numbers": Case((_exchange, "numbers_of_rows"), 1, _logits),
    "memory of the headers": Case(MEMORY, 1, _logits),
    "logits": Case(READ, 1, _logits),
    "interrupted at the logits": Case(READ, 1, _logits, error=KeyboardInterrupt),
    "what is agreed upon": Case((_exchange, "shards_of"), 1, _logits),
    "numbers": Case((_exchange, "numbers"), 1, _logits),
    "memory of the numbers": Case(MEMORY, 2, _logits),
    # no collective is left
    "sums": Case((_shards, "whole_of"), 1, _logits, reaches=False),
    "gradient of logits": Case(WRITE, 1, _logits, reaches=False),
    # from the entry to the first chunk
    "options of a layer": Case((_linear, "options_of"), 1, _layer),
    "tensors of a layer": Case((_linear, "has_dtensors"), 1, _layer),
    "batch": Case((_linear, "_batch"), 1, _layer),
    "header of a batch": Case((_exchange, "header"), 1, _layer),
    "memory of headers of batches": Case(MEMORY, 1, _layer),
    "what is agreed upon for a layer": Case((_exchange, "shards_of"), 1, _layer),
    "what is agreed upon for class weights": Case((_exchange, "shards_of"), 1, _layer, WEIGHT),
    "plan": Case((_linear, "planned"), 1, _layer),
    "masses": Case(MASSES, 1, _layer, WEIGHT),
    "memory of the masses": Case(MEMORY, 2, _layer, WEIGHT),
    "divisor of class weights": Case(DIVISOR, 1, _layer, WEIGHT),
    "divisor": Case(DIVISOR, 1, _layer),
    "plan of backward": Case((_linear, "planned"), 2, _layer, NONE),
    "loss": Case(LOSS, 1, _layer),
    "loss, interrupted": Case(LOSS, 1, _layer, error=KeyboardInterrupt),
    "loss without rows": Case(LOSS, 1, _layer, {"ignored": True}),
    "products": Case((PRODUCTS, "__init__"), 1, _layer),
    # in the chunks
    "first chunk": Case(READ, 1, _layer),
    "last chunk": Case(READ, 4, _layer),
    "memory of the last chunk": Case(MEMORY, 5, _layer),
    "sums of the last chunk": Case((_shards, "whole_of"), 4, _layer),
    "sums of the last chunk, of the weight alone": Case(
        (_shards, "whole_of"), 4, _layer, {"frozen": True}, reaches=False
    ),
    "chunk without its gradient": Case(READ, 2, _layer, NONE),
    "first gradient": Case(WRITE, 1, _layer),
    "last gradient": Case(WRITE, 4, _layer),
    "last gradient, of the weight alone": Case(WRITE, 4, _layer, {"frozen": True}, reaches=False),
    "sum of a gradient": Case((PRODUCTS, "grad_input"), 3, _layer),
    "end": Case((PRODUCTS, "finish"), 1, _layer),
    # in backward, of the losses of rows
    "saved tensors": Case((Saved, "unpack"), 1, _layer, NONE),
    "upstream gradient": Case((_linear, "array"), 7, _layer, NONE),
    "batch again": Case((_linear, "_batch"), 2, _layer, NONE),
    "batch again, of the weight alone": Case(
        (_linear, "_batch"), 2, _layer, {"frozen": True, **NONE}, reaches=False
    ),
    "loss again": Case(LOSS, 2, _layer, NONE),
    "loss again, interrupted": Case(LOSS, 2, _layer, NONE, error=KeyboardInterrupt),
    "gradient of losses": Case(WRITE, 2, _layer, NONE),
    "sum of a gradient of losses": Case((PRODUCTS, "grad_input"), 4, _layer, NONE),
    "end of backward": Case((PRODUCTS, "finish"), 2, _layer, NONE),
}


def every_failure(rank, ranks):
    """What each rank raises, and after that."""
    found = {}
    for name, case in CASES.items():
        with Failing(case.place, case.n if rank == ranks - 1 else 0, case.error):
            found[name] = _error(case)
        found[name, "after"] = _error(case)
    return found


def two_failures(rank, ranks):
    """What each raises if one fails, and another is interrupted before it has learnt of that."""
    case = CASES["header"]
    place = case.place if rank else (_group.Collectives, "_check_failures")
    with Failing(place, 1, MemoryError if rank else KeyboardInterrupt):
        found = _error(case)
    return found, _error(case)


def _error(case):
    try:
        case.call(**case.options)
    except (Exception, KeyboardInterrupt) as error:
        return type(error), str(error)
    return None, ""
