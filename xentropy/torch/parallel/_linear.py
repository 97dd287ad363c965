"""Vocabulary-parallel linear loss: the public function, its chunks, and its step of autograd."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..._kernels import Options
from ..._linear._arguments import PARAMETERS, checked
from ..._linear._products import NumpyProducts
from .._arrays import array, loss_tensor
from .._autograd import times
from .._linear import linear_cross_entropy
from .._linear_products import TorchProducts, numpy_multiplies
from . import _exchange, _shards
from ._derivatives import check_derived, first_derivative
from ._dtensor import group_of, has_dtensors, local_tensors
from ._group import Collectives
from ._linear_chunks import Agreed, Batch, ShardedLoss, first_step, planned, run
from ._vocabulary import (
    check_offset,
    check_one,
    check_tensors,
    is_dense,
    options_of,
    plain,
    torchs_words,
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
        As `vocab_parallel_cross_entropy`. If a rank fails, the others raise at their next
        all-gather; so they do in backward (reduction="none"), if `hidden` requires a gradient. A
        rank that fails after its last all-gather fails alone.

    Notes
    -----
    Collectives: before anything is multiplied an all-gather of 7 numbers a rank, and with `weight`,
    for the mean, one of a number a row. For each chunk an all-gather of two float64 numbers a row
    (up to four, as there); and if `hidden` requires a gradient, an all-reduce of its rows, in
    float32 (float64), while the gradient of the weight is multiplied; after these an all-gather of
    one number, which tells whether a rank has failed.

    The gradients of a mean and a sum are computed with the loss, so that backward needs no
    collective; for reduction="none" backward makes the logits a second time, and takes the
    all-reduces. Forward keeps some ten float64 numbers a row for it.

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
    tensors: tuple[Any, ...] = hidden, weight_shard, bias_shard, target, weight, sample_weight
    members = group_of((weight_shard, *tensors), group)
    with Collectives(members, [_exchange.HEADER]) as ranks:
        options = options_of({"axis": 1, **locals()})
        if has_dtensors(tensors):
            axes = None, 0, 0, hidden.dim() - 1 if is_dense(target) else None, 0, None
            named, places = (dict(zip(NAMES, each, strict=True)) for each in (tensors, axes))
            tensors, offset = local_tensors(named, places, NAMES[1], group, offset)
        derived = torch.is_grad_enabled()
        call = _Call(tensors, options, empty_mean, logits_bytes, offset, derived)
        if ranks.size == 1:
            return _alone(call)
        loss: Tensor = _LinearVocabParallel.apply(*tensors[:3], call, ranks)
        return loss


class _Call(NamedTuple):
    tensors: tuple[Any, ...]  # in the order of NAMES
    options: Options
    empty_mean: float
    logits_bytes: int | None
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
    """apply(*layer, call, ranks); gradients come with the loss, but of "none"."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *others: Any) -> Tensor:
        *_, call, ranks = others
        ctx.call = call._replace(tensors=())
        pairs = zip(PARAMETERS, ctx.needs_input_grad, strict=False)
        ctx.wanted = tuple(name for name, needed in pairs if needed and call.derived)
        later = call.options.reduction == "none"
        now = () if later else ctx.wanted
        batch, agreed = _agreed(call, ranks, ctx.wanted, now)
        ctx.later = None, ()
        if later and "input" in ctx.wanted:
            sums = planned(batch, agreed.at_a_time, gathers=False, sums=True)
            ctx.later = ranks.group, sums
        loss = ShardedLoss(batch, agreed, ranks, now)
        kept = run(loss)
        ctx.numbers = agreed, loss.numbers if later else []
        ctx.save_for_backward(*call.tensors, *kept.values())  # all is freed after backward
        dtype = torch.float32 if torch.is_autocast_enabled("cpu") else hidden.dtype
        of_rows = loss.result(batch.arguments.dtype)
        return loss_tensor(of_rows, torch.promote_types(hidden.dtype, dtype))

    @staticmethod
    @first_derivative("vocab_parallel_linear_cross_entropy", "linear_cross_entropy")
    def backward(ctx: Any, saved: Any, upstream: Tensor) -> tuple[Any, ...]:
        call = ctx.call._replace(tensors=saved[: len(NAMES)])
        if call.options.reduction == "none":
            agreed, numbers = ctx.numbers
            upstreams = array(upstream.double())
            batch = _batch(call, ctx.ranks.rank)
            found = run(ShardedLoss(batch, agreed, ctx.ranks, ctx.wanted, numbers, upstreams))
        else:
            kept = zip(ctx.wanted, saved[len(NAMES) :], strict=True)
            found = {name: times(each, upstream, given=False) for name, each in kept}
        like = dict(zip(PARAMETERS, call.tensors, strict=False))
        return *(found[n].to(like[n].dtype) if n in found else None for n in PARAMETERS), None, None


def _agreed(
    call: _Call, ranks: Collectives, wanted: tuple[str, ...], now: tuple[str, ...]
) -> tuple[Batch, Agreed]:
    """The batch of this rank, and what it has to know of the others."""
    with torchs_words():
        batch, header = _prepared(call, ranks.rank, wanted)
    shard, sums = batch.shard, "input" in now
    weighs = _weighs(shard)
    ranks.plan([1 + shard.rows] if weighs else [])
    headers = ranks.gathered(header)
    at_a_time = int(headers[:, _exchange.AT_A_TIME].min())
    ranks.plan(first_step(batch, at_a_time, sums=sums))
    shards = _exchange.agreed(shard, ranks, headers)
    steps = planned(batch, at_a_time, gathers=True, sums=sums)
    divisor = _divisor(batch, ranks) if weighs else _shards.divisor(shard, np.ones((1, shard.rows)))
    ranks.plan(steps[1:])
    return batch, Agreed(shards, divisor, at_a_time)


def _prepared(call: _Call, rank: int, wanted: tuple[str, ...]) -> tuple[Batch, Any]:
    """The batch of this rank, of arguments that are valid here, and its header."""
    check_tensors(NAMES, call.tensors, OPTIONAL)
    if call.derived:
        check_derived(NAMES[3:], call.tensors[3:], call.options)
    batch = _batch(call, rank)
    given = batch.arguments
    room = given.dtype, given.logits_bytes, wanted
    at_a_time = batch.kind.at_a_time(batch.n_counted, given.linear_weight.shape, *room)  # type: ignore[arg-type]
    sums = given.input.shape[-1], given.dtype.name, "input" in wanted  # of the gradient in it
    return batch, _exchange.header(batch.shard, batch.first, at_a_time, sums)


def _batch(call: _Call, rank: int) -> Batch:
    """The arguments, checked."""
    options = plain(call.options, call.tensors[0])
    terms = {name: getattr(options, name) for name in Options.NAMES} | {"axis": -1}
    layer = dict(zip(PARAMETERS, map(array, call.tensors), strict=False))
    others = dict(zip(NAMES[3:], map(array, call.tensors[3:]), strict=True))
    given = checked(
        **layer,
        **others,
        logits_bytes=call.logits_bytes,
        empty_mean=call.empty_mean,
        **terms,
    )
    shape = (*given.input.shape[:-1], len(given.linear_weight))
    nothing = np.broadcast_to(given.dtype.type(0), shape)
    rows = given.target, given.weight, given.sample_weight
    shard = _shards.Shard(nothing, *rows, given.options)
    first = check_offset(call.offset, rank, shard.classes)
    kind = NumpyProducts if numpy_multiplies() else TorchProducts
    return Batch(given, shard, kind, first, int(shard.counted.sum()))


def _weighs(shard: _shards.Shard) -> bool:
    """Does the divisor of the mean take an all-gather, of class weights of labels?"""
    own_mean = shard.options.reduction == "mean" and shard.options.normalizer is None
    return shard.weight is not None and shard.has_labels and own_mean


def _divisor(batch: Batch, ranks: Collectives) -> float:
    """The sum of these weights."""
    shard = batch.shard
    masses = shard.masses_of(shard.labels_in(batch.first, shard.classes))
    every = ranks.gathered(np.concatenate([np.zeros(1), masses]))
    return _shards.divisor(shard, every[:, 1:])
