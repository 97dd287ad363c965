"""Chunks of the vocabulary-parallel linear loss: losses, products, and their collectives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..._linear import _driver
from ..._linear._arguments import Arguments
from ..._linear._loss import BatchLoss
from ..._linear._products import NumpyProducts
from ..._linear._rows import CountedRows, Rows, index_of, n_rows
from .._arrays import tensor
from . import _exchange, _shards
from ._group import Collectives, Step, Sum


class Batch(NamedTuple):
    """What a rank needs for its chunks."""

    arguments: Arguments
    shard: _shards.Shard  # with logits that take no memory
    kind: type[NumpyProducts]
    first: int  # class of this rank
    n_counted: int  # rows


class Agreed(NamedTuple):
    """What the ranks have agreed upon."""

    shards: _exchange.Shards
    divisor: float
    at_a_time: int  # rows of a chunk


def first_step(batch: Batch, at_a_time: int, *, sums: bool) -> list[Step]:
    """The first of those that are `planned`: all that a rank needs to know to fail before it."""
    rows = min(batch.n_counted, at_a_time)
    if not rows:
        return [1] if sums else []
    return [_exchange.numbers_of_rows(batch.shard, rows)]


def planned(batch: Batch, at_a_time: int, *, gathers: bool, sums: bool) -> list[Step]:
    """The collectives of the chunks.

    Of each an all-gather of `numbers`, and the sum of its rows of the gradient in the input; after
    the sums, an all-gather that tells whether a rank has failed.
    """
    given, steps = batch.arguments, list[Step]()
    for rows in CountedRows(batch.shard.counted).chunks(at_a_time):
        if gathers:
            steps.append(_exchange.numbers_of_rows(batch.shard, n_rows(rows)))
        if sums:
            steps.append(Sum((n_rows(_span(rows)), given.input.shape[-1]), given.dtype))
    return [*steps, 1] if sums else steps


def run(loss: ShardedLoss) -> dict[str, Tensor]:
    """Fills in the loss; returns the wanted gradients by name."""
    batch, at_a_time, wanted = loss.batch, loss.agreed.at_a_time, loss.wanted
    given = batch.arguments
    places = {name: np.zeros(getattr(given, name).shape, given.dtype) for name in wanted}
    layer = given.input, given.linear_weight, given.linear_bias
    one_chunk = loss.n_counted <= at_a_time
    with np.errstate(all="ignore"):
        multiplied = batch.kind(*layer, places, at_a_time, given.dtype, one_chunk=one_chunk)
        products = _SummedProducts(multiplied, places, loss.ranks)
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
        ranks: Collectives,
        wanted: tuple[str, ...],
        numbers: list[tuple[_shards.Part, _shards.Whole]] | None = None,
        upstream: Any = None,
    ) -> None:
        a = batch.arguments
        self.batch, self.agreed, self.ranks, self.wanted = batch, agreed, ranks, wanted
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
        shards = self.agreed.shards
        part = _shards.part_of(shard, self.batch.first)
        every = self.ranks.gathered(_exchange.numbers(shard, part))
        parts = _exchange.parts(shard, shards, every)
        return part, _shards.whole_of(shard, parts, shards.classes, self.ranks.rank)


class _SummedProducts:
    """Products of a layer; the gradient of the input is summed over ranks while others are made."""

    def __init__(self, products: NumpyProducts, places: dict[str, Any], ranks: Collectives) -> None:
        self.logits = products.logits
        self.grad_linear_weight = products.grad_linear_weight
        self.grad_linear_bias = products.grad_linear_bias
        self._products, self._places, self._ranks = products, places, ranks

    def grad_input(self, rows: Any, grad_logits: Any) -> None:
        self._products.grad_input(rows, grad_logits)
        whole = self._places["input"]
        self._ranks.sum(tensor(whole.reshape(-1, whole.shape[-1])[_span(rows)]))

    def finish(self) -> None:
        self._products.finish()
        if "input" in self._places:
            self._ranks.finish_sums()


def _span(rows: Rows) -> slice:
    """From the first to the last; those between that do not count are 0 on every rank."""
    return rows if isinstance(rows, slice) else slice(int(rows[0]), int(rows[-1]) + 1)
