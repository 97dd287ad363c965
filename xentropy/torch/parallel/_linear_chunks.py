"""Chunks of the vocabulary-parallel linear loss: losses, products, and their collectives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ..._linear import _driver
from ..._linear._arguments import Arguments
from ..._linear._loss import BatchLoss
from ..._linear._products import NumpyProducts
from ..._linear._rows import Rows, index_of, n_rows
from .._arrays import tensor
from . import _exchange, _shards
from ._group import check_failures, gathered, gathering, send_failure


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


def run(loss: ShardedLoss) -> dict[str, Tensor]:
    """Fills in the loss; returns the wanted gradients by name. Errors reach all ranks."""
    try:
        return _run(loss)
    except Exception:
        loss.collectives.fail()
        raise


def _run(loss: ShardedLoss) -> dict[str, Tensor]:
    batch, at_a_time, wanted = loss.batch, loss.agreed.at_a_time, loss.wanted
    given = batch.arguments
    places = {name: np.zeros(getattr(given, name).shape, given.dtype) for name in wanted}
    layer = given.input, given.linear_weight, given.linear_bias
    one_chunk = loss.n_counted <= at_a_time
    with np.errstate(all="ignore"):
        multiplied = batch.kind(*layer, places, at_a_time, given.dtype, one_chunk=one_chunk)
        products = _SummedProducts(multiplied, places, loss.collectives)
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
        wanted: tuple[str, ...],
        numbers: list[tuple[_shards.Part, _shards.Whole]] | None = None,
        upstream: Any = None,
    ) -> None:
        a = batch.arguments
        self.batch, self.agreed, self.wanted = batch, agreed, wanted
        self.numbers: list[tuple[_shards.Part, _shards.Whole]] = []  # of each chunk
        self._known = None if numbers is None else iter(numbers)
        classes = agreed.shards.classes if batch.shard.has_labels else batch.shard.classes
        rows = a.target, classes, a.weight, a.sample_weight, upstream
        super().__init__(*rows, a.options, a.empty_mean)
        self.collectives = _Collectives(self, gathers=numbers is None, sums="input" in wanted)

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
        every = self.collectives.gathered(_exchange.numbers(shard, part))
        parts = _exchange.parts(shard, shards, every)
        return part, _shards.whole_of(shard, parts, shards.classes, dist.get_rank(group))


class _Collectives:
    """The collectives of a run, in the order in which every rank takes part in them.

    Of each chunk an all-gather of `numbers`, and the sum of its rows of the gradient in the input;
    after the sums, an all-gather that tells whether a rank has failed.
    """

    def __init__(self, loss: ShardedLoss, *, gathers: bool, sums: bool) -> None:
        batch = loss.batch
        like = batch.arguments.input
        self._group, self._sums = batch.group, sums
        self._row = np.zeros((1, like.shape[-1]), batch.arguments.dtype)
        self._works: list[Any] = []
        chunks = loss.chunks(loss.agreed.at_a_time)
        self._left = self._planned(batch.shard, chunks, gathers)

    def _planned(
        self, shard: _shards.Shard, chunks: Iterator[Rows], gathers: bool
    ) -> Iterator[tuple[bool, int]]:
        """(is it an all-gather?, of how many numbers or rows)."""
        for rows in chunks:
            if gathers:
                yield True, _exchange.numbers_of_rows(shard, n_rows(rows))
            if self._sums:
                yield False, n_rows(_span(rows))
        if self._sums:
            yield True, 1

    @contextmanager
    def _next(self) -> Iterator[None]:
        next(self._left)
        try:
            yield
        except BaseException:  # the group is broken, or all know who has failed
            self._left = iter(())
            raise

    def gathered(self, numbers: Any) -> Any:
        """The numbers of all ranks."""
        with self._next():
            every = gathered(numbers, self._group)
            check_failures(every)
            return every

    def sum(self, rows: Tensor) -> None:
        """Begin to add those of all ranks to these rows."""
        with self._next():
            self._works.append(dist.all_reduce(rows, group=self._group, async_op=True))

    def finish(self) -> None:
        """Wait for the sums."""
        if not self._sums:
            return
        with self._next():
            wait = gathering(np.zeros(1), self._group)
            for work in self._works:
                work.wait()
            check_failures(wait())

    def fail(self) -> None:
        """Take part in what the others wait for, until they learn that this rank has failed."""
        for is_gather, size in self._left:
            if is_gather:
                send_failure(size, self._group)
                return
            dist.all_reduce(tensor(self._row.repeat(size, axis=0)), group=self._group)


class _SummedProducts:
    """Products of a layer; the gradient of the input is summed over ranks while others are made."""

    def __init__(
        self, products: NumpyProducts, places: dict[str, Any], collectives: _Collectives
    ) -> None:
        self.logits = products.logits
        self.grad_linear_weight = products.grad_linear_weight
        self.grad_linear_bias = products.grad_linear_bias
        self._products, self._places, self._collectives = products, places, collectives

    def grad_input(self, rows: Any, grad_logits: Any) -> None:
        self._products.grad_input(rows, grad_logits)
        whole = self._places["input"]
        self._collectives.sum(tensor(whole.reshape(-1, whole.shape[-1])[_span(rows)]))

    def finish(self) -> None:
        self._products.finish()
        self._collectives.finish()


def _span(rows: Rows) -> slice:
    """From the first to the last; those between that do not count are 0 on every rank."""
    return rows if isinstance(rows, slice) else slice(int(rows[0]), int(rows[-1]) + 1)
