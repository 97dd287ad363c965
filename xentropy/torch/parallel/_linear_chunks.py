"""Chunks of the vocabulary-parallel linear loss: losses, products, and their collectives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ..._linear import _driver
from ..._linear._arguments import Arguments
from ..._linear._loss import BatchLoss
from ..._linear._products import NumpyProducts
from ..._linear._rows import index_of
from .._arrays import tensor
from . import _exchange, _shards
from ._group import gathered


class Batch(NamedTuple):
    """What a rank needs for its chunks."""

    arguments: Arguments
    shard: _shards.Shard  # with logits that take no memory
    kind: type[NumpyProducts]
    first: int  # class of this rank
    group: dist.ProcessGroup | None


class Agreed(NamedTuple):
    """What the ranks have agreed upon."""

    shards: _exchange.Shards
    divisor: float
    at_a_time: int  # rows of a chunk


def run(loss: ShardedLoss, wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Fills in the loss; returns the wanted gradients by name."""
    batch, at_a_time = loss.batch, loss.agreed.at_a_time
    given = batch.arguments
    places = {name: np.zeros(getattr(given, name).shape, given.dtype) for name in wanted}
    layer = given.input, given.linear_weight, given.linear_bias
    one_chunk = loss.n_counted <= at_a_time
    with np.errstate(all="ignore"):
        multiplied = batch.kind(*layer, places, at_a_time, given.dtype, one_chunk=one_chunk)
        products = _SummedProducts(multiplied, places, batch.group)
        _driver.run(loss, products, at_a_time, wanted)
    return {name: tensor(place) for name, place in places.items()}


class ShardedLoss(BatchLoss):
    """The losses of a batch whose classes are spread over ranks: an all-gather for each chunk.

    With the `numbers` of an earlier one, the gradient takes no collective.
    """

    def __init__(
        self,
        batch: Batch,
        agreed: Agreed,
        numbers: list[tuple[_shards.Part, _shards.Whole]] | None = None,
        upstream: Any = None,
    ) -> None:
        a = batch.arguments
        self.batch, self.agreed = batch, agreed
        self.numbers: list[tuple[_shards.Part, _shards.Whole]] = []  # of each chunk
        self._known = None if numbers is None else iter(numbers)
        classes = agreed.shards.classes if batch.shard.has_labels else batch.shard.classes
        rows = a.target, classes, a.weight, a.sample_weight, upstream
        super().__init__(*rows, a.options, a.empty_mean)

    def _divisor(self, normalizer: float | None) -> float:
        return self.agreed.divisor

    def fill(self, logits: Any, rows: Any, *, with_grad: bool) -> None:
        target = self.target[rows if self.has_labels else index_of(self.target, rows)]
        repeat = None if self.sample_weight is None else self.sample_weight[rows]
        target = target if self.has_labels else target.reshape(logits.shape)
        shard = _shards.Shard(logits, target, self.weight, repeat, self._options)
        part, whole = self._gathered(shard) if self._known is None else next(self._known)
        self.losses[rows] = _shards.reduced(shard, whole, math.nan)
        if with_grad:
            each = self._upstream
            each = each[rows] if isinstance(each, np.ndarray) else each
            _shards.gradient(shard, part, whole, each, logits)
        else:
            self.numbers.append((part, whole))

    def _gathered(self, shard: _shards.Shard) -> tuple[_shards.Part, _shards.Whole]:
        shards, group = self.agreed.shards, self.batch.group
        part = _shards.part_of(shard, self.batch.first)
        every = gathered(_exchange.numbers(shard, part), group)
        parts = _exchange.parts(shard, shards, every)
        return part, _shards.whole_of(shard, parts, shards.classes, dist.get_rank(group))


class _SummedProducts:
    """Products of a layer; the gradient of the input is summed over ranks while others are made."""

    def __init__(self, products: NumpyProducts, places: dict[str, Any], group: Any) -> None:
        self.logits = products.logits
        self.grad_linear_weight = products.grad_linear_weight
        self.grad_linear_bias = products.grad_linear_bias
        self._products, self._places, self._group = products, places, group
        self._sums: list[Any] = []

    def grad_input(self, rows: Any, grad_logits: Any) -> None:
        self._products.grad_input(rows, grad_logits)
        whole = self._places["input"]
        if not isinstance(rows, slice):  # those between them are 0 on every rank
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        part = tensor(whole.reshape(-1, whole.shape[-1])[rows])
        self._sums.append((part, dist.all_reduce(part, group=self._group, async_op=True)))

    def finish(self) -> None:
        self._products.finish()
        for _, work in self._sums:
            work.wait()
