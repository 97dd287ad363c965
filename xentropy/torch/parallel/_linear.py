"""Vocabulary-parallel linear loss: the public function, its chunks, and its step of autograd."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..._kernels import Options
from ..._linear import _driver
from ..._linear._arguments import PARAMETERS, Arguments, checked
from ..._linear._loss import BatchLoss
from ..._linear._products import NumpyProducts
from ..._linear._rows import index_of
from .._arrays import array, loss_tensor, tensor
from .._linear import linear_cross_entropy
from .._linear_products import TorchProducts, numpy_multiplies
from . import _exchange, _shards
from ._dtensor import has_dtensors, local_tensors
from ._group import exchanged, gathered, size_of
from ._vocabulary import (
    check_derived,
    check_offset,
    check_one,
    check_tensors,
    is_dense,
    options_of,
    plain,
)

NAMES = "hidden", "weight_shard", "bias_shard", "target", "weight", "sample_weight"
OPTIONAL = "bias_shard", "weight", "sample_weight"


def vocab_parallel_linear_cross_entropy(
    hidden: Tensor,
    weight_shard: Tensor,
    target: Tensor,
    *,
    bias_shard: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    offset: int | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    empty_mean: float = math.nan,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    base: float | None = None,
    logits_bytes: int | None = None,
    n_threads: int | None = None,
) -> Tensor:
    r"""Cross entropy of a linear layer whose classes are spread over the ranks of a process group.

    The loss that `vocab_parallel_cross_entropy` has for the logits
    ``torch.nn.functional.linear(hidden, weight_shard, bias_shard)`` of all ranks, which are made
    by chunks of rows and never kept. Each rank gets the gradients of its own weight and bias, and
    the whole gradient of `hidden`, the sum over ranks of

    .. math:: \frac{\partial \ell}{\partial \text{hidden}} = \sum_r G_r \, \text{weight\_shard}_r

    with the gradient G_r of the loss in the logits of rank r.

    Parameters
    ----------
    hidden : Tensor of float16, bfloat16, float32 or float64
        Shape (N, H), or any other with the features last; the same on every rank.
    weight_shard : Tensor (C, H)
        The rows of the layer's weight for this rank's classes. Or a DTensor that is sharded along
        its first axis, on a mesh of one dimension: it has the group and the offset. The other
        tensors are then local, or DTensors of the same mesh: sharded along their classes, or
        replicated (hidden, labels, sample_weight). So are gradients.
    target, group, offset
        As in `vocab_parallel_cross_entropy`; probabilities have this rank's classes last.
    bias_shard : Tensor (C,), optional
        Added to the logits.
    weight, sample_weight, ignore_index, reduction, normalizer, empty_mean, label_smoothing
        As there.
    z_loss, logit_scale, softcap, base, n_threads
        As there.
    logits_bytes : int, optional
        Bytes of the logits of a chunk, as in `xentropy.linear_cross_entropy`. The rank that can
        hold the fewest rows says how many a chunk has.

    Returns
    -------
    Tensor
        The loss, the same bits on every rank; dtype of `hidden`.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As `vocab_parallel_cross_entropy`.

    Notes
    -----
    Collectives: an all-gather of a few numbers before anything is multiplied (with `weight`, for
    the mean, another of one a row), and for each chunk one of two float64 numbers a row (up to
    four, as there), and if `hidden` requires a gradient one
    all-reduce of its rows, in float32 (float64), while the product of the gradient of the weight is
    made. The gradients of a mean and a sum are computed with the loss, so that backward needs no
    collective; for reduction="none" backward makes the logits a second time, and takes them all.

    The products are in float32 (float64 if an argument is). In a group of one the result is that
    of `linear_cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy
    >>> hidden = torch.eye(3, 2, requires_grad=True)  # in a process of its own
    >>> layer = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> loss = vocab_parallel_linear_cross_entropy(hidden, layer, torch.tensor([0, 1, -100]))
    >>> loss.backward()
    >>> f"{loss.item():.6f}", hidden.grad.shape
    ('1.006409', torch.Size([3, 2]))
    """
    options = options_of({"axis": 1, **locals()})
    tensors: tuple[Any, ...] = hidden, weight_shard, bias_shard, target, weight, sample_weight
    if has_dtensors(tensors):
        axes = None, 0, 0, hidden.dim() - 1 if is_dense(target) else None, 0, None
        named, places = (dict(zip(NAMES, each, strict=True)) for each in (tensors, axes))
        tensors, group, offset = local_tensors(named, places, NAMES[1], group, offset)
    derived = torch.is_grad_enabled()
    call = _Call(tensors, options, empty_mean, logits_bytes, group, offset, derived)
    if size_of(group) == 1:
        return _alone(call)
    loss: Tensor = _LinearVocabParallel.apply(*tensors[:3], call)
    return loss


class _Call(NamedTuple):
    tensors: tuple[Any, ...]  # in the order of NAMES
    options: Options
    empty_mean: float
    logits_bytes: int | None
    group: dist.ProcessGroup | None
    offset: Any
    derived: bool  # are gradients enabled?


def _alone(call: _Call) -> Tensor:
    """The loss of a group of one."""
    check_one(call.offset)
    hidden, weight_shard, bias_shard, target, weight, sample_weight = call.tensors
    given = {name: getattr(call.options, name) for name in Options.NAMES if name != "axis"}
    return linear_cross_entropy(
        hidden,
        weight_shard,
        target,
        linear_bias=bias_shard,
        weight=weight,
        sample_weight=sample_weight,
        empty_mean=call.empty_mean,
        logits_bytes=call.logits_bytes,
        **given,
    )


class _LinearVocabParallel(torch.autograd.Function):
    """apply(*layer, call); gradients come with the loss, but of "none"."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *others: Any) -> Tensor:
        call = ctx.call = others[-1]
        pairs = zip(PARAMETERS, ctx.needs_input_grad, strict=False)
        ctx.wanted = tuple(name for name, needed in pairs if needed)
        now = () if call.options.reduction == "none" else ctx.wanted
        loss, ctx.kept = _computed(call, now, None)
        ctx.save_for_backward(*call.tensors)
        dtype = torch.float32 if torch.is_autocast_enabled("cpu") else hidden.dtype
        return loss_tensor(loss, torch.promote_types(hidden.dtype, dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        call = ctx.call._replace(tensors=ctx.saved_tensors)
        if call.options.reduction == "none":
            found = _computed(call, ctx.wanted, upstream)[1]
        else:
            found = {name: kept * upstream.to(kept.dtype) for name, kept in ctx.kept.items()}
        like = dict(zip(PARAMETERS, call.tensors, strict=False))
        return *(found[n].to(like[n].dtype) if n in found else None for n in PARAMETERS), None


class _Batch(NamedTuple):
    """What a rank needs for its chunks."""

    arguments: Arguments
    shard: _shards.Shard  # with logits that take no memory
    kind: type[NumpyProducts]
    first: int  # class of this rank


def _computed(
    call: _Call, wanted: tuple[str, ...], upstream: Tensor | None
) -> tuple[Any, dict[str, Tensor]]:
    """The loss, and the wanted gradients by name."""

    headers, batch = exchanged(
        lambda: _prepared(call, wanted, upstream), _exchange.HEADER, call.group
    )
    headers = headers()
    shards = _exchange.agreed(batch.shard, headers)
    loss = _ShardedLoss(call, batch, shards, _divisor(call, batch))
    at_a_time = int(headers[:, _exchange.AT_A_TIME].min())
    given, one_chunk = batch.arguments, loss.n_counted <= at_a_time
    places = {name: np.zeros(getattr(given, name).shape, given.dtype) for name in wanted}
    layer = given.input, given.linear_weight, given.linear_bias
    with np.errstate(all="ignore"):
        multiplied = batch.kind(*layer, places, at_a_time, given.dtype, one_chunk=one_chunk)
        products = _SummedProducts(multiplied, places, call.group)
        _driver.run(loss, products, at_a_time, wanted)
    return loss.result(given.dtype), {name: tensor(place) for name, place in places.items()}


def _prepared(call: _Call, wanted: tuple[str, ...], upstream: Tensor | None) -> tuple[Any, _Batch]:
    """The first message of this rank, of arguments that are valid here, and its batch."""
    check_tensors(NAMES, call.tensors, OPTIONAL)
    if call.derived:
        check_derived(NAMES[3:], call.tensors[3:], call.options)
    options = plain(call.options, call.tensors[0])
    terms = {name: getattr(options, name) for name in Options.NAMES} | {"axis": -1}
    layer = dict(zip(PARAMETERS, map(array, call.tensors), strict=False))
    others = dict(zip(NAMES[3:], map(array, call.tensors[3:]), strict=True))
    given = checked(
        **layer,
        **others,
        grad_output=array(upstream),
        wanted=wanted,
        logits_bytes=call.logits_bytes,
        empty_mean=call.empty_mean,
        **terms,
    )
    shape = (*given.input.shape[:-1], len(given.linear_weight))
    nothing = np.broadcast_to(given.dtype.type(0), shape)
    rows = given.target, given.weight, given.sample_weight
    shard = _shards.Shard(nothing, *rows, given.options)
    first = check_offset(call.offset, dist.get_rank(call.group), shard.classes)
    kind = NumpyProducts if numpy_multiplies() else TorchProducts
    room = given.dtype, given.logits_bytes, wanted
    n_counted = int(shard.counted.sum())
    at_a_time = kind.at_a_time(n_counted, given.linear_weight.shape, *room)  # type: ignore[arg-type]
    sums = given.input.shape[-1], given.dtype.name, "input" in wanted  # of the gradient in it
    header = _exchange.header(shard, first, at_a_time, sums)
    return header, _Batch(given, shard, kind, first)


def _divisor(call: _Call, batch: _Batch) -> float:
    """That of the mean; class weights of labels take an all-gather."""
    shard = batch.shard
    own_mean = shard.options.reduction == "mean" and shard.options.normalizer is None
    if shard.weight is None or not shard.has_labels or not own_mean:
        return _shards.divisor(shard, np.ones((1, shard.rows)))
    masses = shard.masses_of(shard.labels_in(batch.first, shard.classes))
    return _shards.divisor(shard, gathered(masses, call.group))


class _ShardedLoss(BatchLoss):
    """The losses of a batch whose classes are spread over ranks: an all-gather for each chunk."""

    def __init__(
        self, call: _Call, batch: _Batch, shards: _exchange.Shards, divisor: float
    ) -> None:
        a = batch.arguments
        self._all, self._call, self._shards = divisor, call, shards
        classes = shards.classes if batch.shard.has_labels else batch.shard.classes
        rows = a.target, classes, a.weight, a.sample_weight, a.grad_output
        super().__init__(*rows, a.options, a.empty_mean)

    def _divisor(self, normalizer: float | None) -> float:
        return self._all

    def fill(self, logits: Any, rows: Any, *, with_grad: bool) -> None:
        target = self.target[rows if self.has_labels else index_of(self.target, rows)]
        repeat = None if self.sample_weight is None else self.sample_weight[rows]
        target = target if self.has_labels else target.reshape(logits.shape)
        shard = _shards.Shard(logits, target, self.weight, repeat, self._options)
        rank = dist.get_rank(self._call.group)
        part = _shards.part_of(shard, int(self._shards.first[rank]))
        every = gathered(_exchange.numbers(shard, part), self._call.group)
        parts = _exchange.parts(shard, self._shards, every)
        whole = _shards.whole_of(shard, parts, self._shards.classes, rank)
        self.losses[rows] = _shards.reduced(shard, whole, math.nan)
        if with_grad:
            each = self._upstream
            each = each[rows] if isinstance(each, np.ndarray) else each
            _shards.gradient(shard, part, whole, each, logits)


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
