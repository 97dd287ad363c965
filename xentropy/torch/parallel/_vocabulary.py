"""Vocabulary-parallel cross entropy: the public function, and its step of autograd."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from ... import _check
from ..._kernels import Options, make_options
from .. import _numbers
from .._arrays import BITS16, array, loss_tensor, tensor
from .._autograd import check_in_place, graph_is_retained
from .._loss import cross_entropy
from .._refusals import in_torchs_words, no_tensor
from .._routing import PLAIN
from . import _exchange, _shards
from ._derivatives import check_derived, first_derivative
from ._dtensor import Axes, axis_of, group_of, has_dtensors, local_tensors
from ._group import Collectives, attempted

LARGEST_OFFSET = 2**53  # float64 numbers it
NAMES = "logits_shard", "target", "weight", "sample_weight"
OPTIONAL = "weight", "sample_weight"


def vocab_parallel_cross_entropy(
    logits_shard: Tensor,
    target: Tensor,
    *,
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
    axis: int = 1,
    base: float | None = None,
    n_threads: int | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Cross entropy of logits whose classes are spread over the ranks of a process group.

    Each rank has the logits of some adjacent classes, as the output layer of a tensor-parallel
    model makes them, and gets the loss that `xentropy.torch.cross_entropy` has for the logits of
    all classes; ``loss.backward()`` gives it the gradient in its own. With lse_r the log-sum-exp
    of the classes of rank r, and their target masses q_c:

    .. math:: \ell = \sum_r \Big[ \sum_{c \in r} q_c (\mathrm{lse}_r - x_c) +
              (\mathrm{lse} - \mathrm{lse}_r) \sum_{c \in r} q_c \Big], \qquad
              \mathrm{lse} - \mathrm{lse}_r = \mathrm{log1p} \sum_{j \neq r}
              e^{\mathrm{lse}_j - \mathrm{lse}_r}

    No term is a difference of almost equal numbers, so the tails stay exact. Ranks exchange
    lse_r and these two sums, in one collective that follows a short one, of which the logits are
    read meanwhile: what each has been given, so that all refuse what does not fit. Backward needs
    none.

    Parameters
    ----------
    logits_shard : Tensor of float16, bfloat16, float32 or float64
        The logits of this rank's classes, on the CPU: any shape, with the classes along `axis`; all
        ranks have the same rows. Or a DTensor that is sharded along `axis`, on a mesh of one
        dimension: it has the group and the offset. The other tensors are then local, or DTensors
        that are placed likewise.
    target : Tensor
        Class indices among all classes, the same on every rank: integers, shape of the logits
        without the class axis. Or class probabilities, sharded as the logits; they have no
        gradient.
    group : ProcessGroup, optional
        The ranks that share the classes: all without it. In a group of one, and where
        torch.distributed has not been initialized, the result is that of `cross_entropy`.
    offset : int, optional
        The number of this rank's first class. Without it all ranks have equally many, in the order
        of ranks. Shards of different sizes must say it.
    weight : Tensor, optional
        Weights of this rank's classes.
    sample_weight : Tensor, optional
        Weight of each row, the same on every rank.
    ignore_index, reduction, empty_mean, label_smoothing, z_loss, softcap, axis, base, n_threads
        As in `xentropy.torch.cross_entropy`, the same on every rank (but `n_threads`).
    normalizer, logit_scale : float or Tensor of one number
        The same; a tensor must not require a gradient.
    inplace : bool, default False
        In backward, the gradient overwrites the logits' storage.

    Returns
    -------
    Tensor
        The loss of whole rows, as of `cross_entropy`: the same bits on every rank, whichever rank
        has which classes.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentropy.cross_entropy`. A label that no rank has is an IndexError on every rank.
    ValueError
        The shards do not make up a range of classes; numbers of rows, labels, sample weights or
        options differ between ranks. On every rank.
    RuntimeError
        Another rank has failed, by a wrong argument of its own or for want of memory, say: that
        rank raises its own error, all others one that names it, and the group is as before. In
        backward no rank hears of others. If a rank is gone, the error is torch's. A gradient
        (create_graph=True) is differentiated: only a group of one has that derivative.

    Notes
    -----
    The collective is one all-gather of 2 float64 numbers a row, and of one number that tells
    whether the rank has failed; of one more a row with `weight` or probabilities, and one more with
    `label_smoothing`. Another all-gather, of 7 numbers a rank, tells whether the ranks belong
    together; it is under way while the logits are read. Formulas that exchange the maximum, the sum
    of exponentials and the logit of the label take three collectives, each after the other.

    Each rank keeps its logits and some float64 numbers a row for backward, which reads the logits
    and writes their gradient once.

    With targets that have a mass at every class (probabilities, label_smoothing) the logits are
    read several times.

    References
    ----------
    Shoeybi et al., arXiv:1909.08053, section 3, for the sharded output layer.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch.parallel import vocab_parallel_cross_entropy
    >>> logits = torch.tensor([[20.0, 0.0]], requires_grad=True)  # in a process of its own
    >>> loss = vocab_parallel_cross_entropy(logits, torch.tensor([0]))
    >>> loss.backward()
    >>> f"{loss.item():.2e}", [f"{g:.2e}" for g in logits.grad[0].tolist()]
    ('2.06e-09', ['-2.06e-09', '2.06e-09'])
    """
    tensors: tuple[Any, ...] = logits_shard, target, weight, sample_weight
    with Collectives(group_of(tensors, group), [_exchange.HEADER]) as ranks:
        options = options_of(locals())
        if has_dtensors(tensors):
            axes = _axes(logits_shard, target, axis)
            named = dict(zip(NAMES, tensors, strict=True))
            tensors, offset = local_tensors(named, axes, NAMES[0], group, offset)
        if ranks.size == 1:
            check_one(offset)
            return _alone(tensors, options, empty_mean, inplace)
        derived = torch.is_grad_enabled()
        call = _Call(tensors, options, empty_mean, ranks, offset, inplace, derived)
        loss: Tensor = _VocabParallel.apply(tensors[0], call)
        return loss


def _axes(logits: Tensor, target: Tensor, axis: int) -> Axes:
    """How DTensors must be sharded."""
    classes = axis_of(axis, logits)
    of_target = classes if is_dense(target) else None
    return dict(zip(NAMES, (classes, of_target, 0, None), strict=True))


def is_dense(target: Any) -> bool:
    """Are these class probabilities?"""
    return isinstance(target, Tensor) and target.is_floating_point()


def options_of(call: dict[str, Any]) -> Options:
    """The options among the arguments of a call."""
    return make_options(**{name: call[name] for name in Options.NAMES})


def check_one(offset: Any) -> None:
    """Raise unless it is that of a rank which has all classes."""
    if offset is not None and _check.integer(offset, "offset") != 0:
        raise ValueError(f"offset = {offset}, but a group of one rank has all classes")


def _alone(tensors: Any, options: Options, empty_mean: float, inplace: bool) -> Tensor:
    """The loss of a group of one."""
    given = {name: getattr(options, name) for name in Options.NAMES}
    return cross_entropy(
        *tensors[:3], sample_weight=tensors[3], empty_mean=empty_mean, inplace=inplace, **given
    )


class _Call(NamedTuple):
    tensors: tuple[Any, ...]  # logits, target, weight, sample_weight
    options: Options
    empty_mean: float
    ranks: Collectives
    offset: Any
    inplace: bool
    derived: bool  # are gradients enabled?


class _VocabParallel(torch.autograd.Function):
    """apply(logits, call)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: _Call) -> Tensor:
        shard, part, whole = _computed(call)
        ctx.options, ctx.inplace = shard.options, call.inplace
        ctx.numbers = part, whole
        ctx.later = None, ()
        ctx.save_for_backward(*call.tensors)
        loss = _shards.reduced(shard, whole, call.empty_mean)
        return loss_tensor(loss, _loss_dtype(call.tensors))

    @staticmethod
    @first_derivative("vocab_parallel_cross_entropy", "cross_entropy")
    def backward(ctx: Any, saved: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits = saved[0]
        shard = _shard(saved, ctx.options)
        part, whole = ctx.numbers
        over = array(logits) if ctx.inplace and not graph_is_retained() else None
        gradient = tensor(_shards.gradient(shard, part, whole, array(upstream.double()), over))
        if over is None:
            return gradient, None
        increment_version(logits)
        return logits.detach(), None


def _computed(call: _Call) -> tuple[_shards.Shard, _shards.Part, _shards.Whole]:
    """The numbers of this shard, and those of whole rows, by an all-gather."""
    ranks, rank = call.ranks, call.ranks.rank
    with torchs_words():
        shard, offset = _of_this_rank(call, rank)
    header = _exchange.header(shard, offset)
    ranks.plan([_exchange.numbers_of_rows(shard, shard.rows)])
    headers = ranks.gathering(header)
    of_this_rank = attempted(lambda: _shards.part_of(shard, offset))  # while headers are under way
    shards = _exchange.agreed(shard, ranks, headers())
    part = of_this_rank()
    every = ranks.gathered(_exchange.numbers(shard, part))
    parts = _exchange.parts(shard, shards, every)
    return shard, part, _shards.whole_of(shard, parts, shards.classes, rank)


@contextmanager
def torchs_words() -> Iterator[None]:
    """Errors of checks speak of tensors."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        raise type(error)(in_torchs_words(error)) from error


def _of_this_rank(call: _Call, rank: int) -> tuple[_shards.Shard, int]:
    """The shard of this rank, checked, and its first class."""
    check_tensors(NAMES, call.tensors, OPTIONAL)
    if call.inplace and call.derived and call.tensors[0].requires_grad:
        check_in_place(call.tensors[0], None)
    if call.derived:
        check_derived(NAMES[1:], call.tensors[1:], call.options)
    options = plain(call.options, call.tensors[0])
    if call.empty_mean is not math.nan:
        _check.empty_mean(call.empty_mean, options.reduction)
    shard = _shard(call.tensors, options)
    offset = check_offset(call.offset, rank, shard.classes)
    return shard, offset


def check_offset(given: Any, rank: int, classes: int) -> int:
    """The first class of this rank."""
    offset = rank * classes if given is None else _check.integer(given, "offset")
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError(f"offset = {offset} is no class")
    return offset


def _shard(tensors: tuple[Any, ...], options: Options) -> _shards.Shard:
    logits, target, weight, sample_weight = map(array, tensors)
    return _shards.Shard(logits, target, weight, sample_weight, options)


def check_tensors(names: Any, tensors: tuple[Any, ...], optional: tuple[str, ...]) -> None:
    """Raise for what is no plain tensor on the CPU."""
    for name, given in zip(names, tensors, strict=True):
        if given is None and name in optional:
            continue
        if not isinstance(given, Tensor):
            raise no_tensor(name, given)
        if type(given) not in PLAIN or given.layout is not torch.strided or not given.is_cpu:
            kind = f"{type(given).__name__}, {given.layout}, on {given.device}"
            raise TypeError(f"{name} must be a plain dense tensor on the CPU, not {kind}")


def plain(options: Options, logits: Tensor) -> Options:
    """The options with Python's numbers for tensors."""
    _numbers.check(options, logits.device)
    given = {name: getattr(options, name) for name in Options.NAMES}
    for name in _numbers.NAMES:
        if isinstance(given[name], Tensor):
            given[name] = given[name].item()
    return make_options(**given)


def _loss_dtype(tensors: tuple[Any, ...]) -> torch.dtype:
    """As `cross_entropy` has it."""
    logits, target, weight, _ = tensors
    lifted = torch.is_autocast_enabled("cpu")
    joined = [t for t in (logits, target, weight) if t is not None and target.is_floating_point()]
    dtypes = [t.dtype for t in joined or [logits]]
    dtypes = [torch.float32 if lifted and d in BITS16 else d for d in dtypes]
    return functools.reduce(torch.promote_types, dtypes)
