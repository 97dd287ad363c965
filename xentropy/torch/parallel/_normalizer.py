"""What a mean over all ranks divides by."""

import math

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ... import _check
from ..._counted import counting_rows, row_weights
from .._arrays import array
from ._group import Collectives


def global_normalizer(
    target: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    weight: Tensor | None = None,
    axis: int = 1,
) -> float:
    r"""The divisor of the mean over the rows of all ranks, for `normalizer`.

    Where each rank takes the mean over its own rows, those of a rank with few that count (much
    padding, long prompts) weigh more than the others. The mean over the rows of all of R ranks is

    .. math:: \frac{\sum_r \sum_i v_{ri} \ell_{ri}}{N}, \qquad N = \sum_r \sum_i v_{ri} w_{ri}

    with the sample weights v and the class weights w of the labels (1 without) of the rows that
    count; N is what this function returns, to every rank. With it as `normalizer`, the losses of
    the ranks, and their gradients, add up to those of the mean.

    Parameters
    ----------
    target : Tensor
        Of this rank: class indices, or class probabilities.
    group : ProcessGroup, optional
        The ranks that share a batch: all without it. If torch.distributed has not been initialized,
        this process is the only one.
    ignore_index, sample_weight, weight
        As this rank's call of `xentropy.torch.cross_entropy` has them.
    axis : int, default 1
        The class axis of probabilities.

    Returns
    -------
    float
        N, the same bits on every rank; the sum is in float64. 0.0 if no row counts on any rank:
        then there is nothing to learn from, and `normalizer` refuses it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xentropy.cross_entropy` for these arguments; the other ranks get a RuntimeError that
        says which rank it was.

    Notes
    -----
    DistributedDataParallel *averages* gradients over its R ranks. To have their sum, divide by R
    less: ``normalizer=global_normalizer(target) / R``. FSDP averages, too. Where gradients are
    added up (``all_reduce`` with SUM), and for the loss that is logged, N is right as it is.

    With gradient accumulation the batch is that of all micro-batches: give their targets
    together.

    One collective: an all-gather of one float64, which waits for the slowest rank.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch.parallel import global_normalizer
    >>> global_normalizer(torch.tensor([3, -100, 0]))  # in a process of its own
    2.0
    """
    device = target.device if isinstance(target, Tensor) else None
    with Collectives(group, [1], "global_normalizer", device) as ranks:
        mine = _of_this_rank(target, ignore_index, sample_weight, weight, axis)
        if ranks.size == 1:
            return mine
        return math.fsum(ranks.gathered(np.array([mine]))[:, 0])


def _of_this_rank(target, ignore_index, sample_weight, weight, axis):
    """The summed weight of the rows that count here."""
    tensors = {"target": target, "sample_weight": sample_weight, "weight": weight}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) and (value is not None or name == "target"):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    ignored = _check.integer(ignore_index, "ignore_index")
    if target.is_floating_point():  # all rows count, and no probability is read
        labels, target = None, np.broadcast_to(np.float32(0), tuple(target.shape))
        axis = _check.class_axis(axis, target, "target")
        row_shape, classes = target.shape[:axis] + target.shape[axis + 1 :], target.shape[axis]
    else:
        target = _check.target(array(target), None, tuple(target.shape))
        labels, row_shape = target.reshape(-1), target.shape
        classes = _classes_at_least(target, ignored) if weight is None else len(weight)
    weight = _check.weight(array(weight), classes, row_shape)
    by_row = _check.sample_weight(array(sample_weight), row_shape, classes)
    by_row = None if by_row is None else by_row.reshape(-1)
    rows = np.flatnonzero(counting_rows(target, classes, ignored, by_row))
    weights = row_weights(labels, weight, by_row, rows)
    return float(len(rows) if weights is None else weights.sum())


def _classes_at_least(target, ignored):
    """How many classes there must be; a negative label is none of them, however many there are."""
    wrong = np.argwhere((target < 0) & (target != ignored))
    if len(wrong):
        label = target[tuple(wrong[0])]
        raise IndexError(
            f"target{wrong[0].tolist()} = {label} is no class; "
            f"ignore_index={label} leaves out the rows with this label"
        )
    return int(target.max(initial=0)) + 1
