"""A rank that fails in the middle of a vocabulary-parallel loss (`ranks.run`)."""

import torch

from xentropy import _kernels
from xentropy.torch.parallel import _shards
from xentropy.torch.parallel import vocab_parallel_cross_entropy as of_logits
from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy as of_layer

READ, WRITE = (_kernels, "selected_log_probs"), (_kernels, "selected_log_probs_grad")
MASSES = _shards.Shard, "masses_of"


class Failing:
    """While it lasts, the n-th call of a function finds no memory."""

    def __init__(self, place, n):
        self._place, self._left = place, n
        self._real = getattr(*place)

    def __enter__(self):
        def call(*arguments, **options):
            self._left -= 1
            if self._left == 0:
                raise MemoryError("none is left")
            return self._real(*arguments, **options)

        setattr(*self._place, call)

    def __exit__(self, *_):
        setattr(*self._place, self._real)


def _logits(**options):
    x = torch.linspace(0, 1, 20).reshape(5, 4).requires_grad_()
    of_logits(x, torch.tensor([0, 5, 1, -100, 7]), **options).sum().backward()


def _layer(frozen=False, **options):
    """Four chunks of a row, of which the third is not next to the second."""
    hidden = torch.linspace(0, 1, 15).reshape(5, 3).requires_grad_(not frozen)
    layer = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    target = torch.tensor([0, 5, -100, 1, 7])
    of_layer(hidden, layer, target, logits_bytes=1, **options).sum().backward()


# Where the last rank fails; what it calls; do the others learn of it?
CASES = {
    "logits": (READ, 1, _logits, {}, True),
    "gradient of logits": (WRITE, 1, _logits, {}, False),  # no collective is left
    "divisor": (MASSES, 1, _layer, {"weight": torch.ones(4)}, True),
    "first chunk": (READ, 1, _layer, {}, True),
    "last chunk": (READ, 4, _layer, {}, True),
    "chunk without its gradient": (READ, 2, _layer, {"reduction": "none"}, True),
    "first gradient": (WRITE, 1, _layer, {}, True),
    "last gradient": (WRITE, 4, _layer, {}, True),
    "last gradient, of the weight alone": (WRITE, 4, _layer, {"frozen": True}, False),
    "gradient of losses": (WRITE, 2, _layer, {"reduction": "none"}, True),
}


def every_failure(rank, ranks):
    """What each rank raises, and after that."""
    found = {}
    for name, (place, n, call, options, _) in CASES.items():
        with Failing(place, n if rank == ranks - 1 else 0):
            found[name] = _error(call, options)
        found[name, "after"] = _error(call, options)
    return found


def _error(call, options):
    try:
        call(**options)
    except Exception as error:
        return type(error), str(error)
    return None, ""
