"""The statistics of rows for tensors."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .. import _check
from .._statistics import row_statistics as of_arrays
from ._arrays import FLOATS, arrays, tensor
from ._formula import capped
from ._refusals import in_torchs_words, no_tensor
from ._routing import on_kernels
from ._softmax import class_dims
from ._softmax_autograd import wide


class RowStatistics(NamedTuple):
    """What `row_statistics` returns: one number a row in each field.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import row_statistics
    >>> s = row_statistics(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> s.rank, s.sum_squares
    (tensor([0, 3]), tensor([0.2500, 0.2500]))
    """

    lse: Tensor
    loss: Tensor | None
    entropy: Tensor
    argmax: Tensor
    max_log_prob: Tensor
    rank: Tensor | None
    sum_squares: Tensor


def row_statistics(
    logits: Tensor,
    target: Tensor | None = None,
    *,
    dim: int = 1,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    n_threads: int | None = None,
) -> RowStatistics:
    r"""Loss, entropy, confidence and ranks of all rows of logits, in one read of memory.

    `xentropy.row_statistics` of tensors, whose results have no gradient: for metrics, not for a
    loss. The formulas, and rows without a softmax, are described there.

    Parameters
    ----------
    logits : Tensor
        float16, bfloat16, float32 or float64, any shape and strides.
    target : Tensor of integers, optional
        Class indices, shape of the logits without the class axis. None: `loss` and `rank` are None.
    dim : int, default 1
        The class axis. For one dimension the default means 0.
    ignore_index : int, default -100
        Rows with this label are not read.
    logit_scale : float > 0, default 1.0
        Factor of the logits: the inverse of a temperature.
    softcap : float > 0, optional
        Caps the scaled logits, as in `cross_entropy`.
    n_threads : int, optional
        At most so many threads for this call.

    Returns
    -------
    RowStatistics
        Tensors in the shape of the logits without the class axis: float32 (float64 for float64
        logits), and int64 for `argmax` and `rank`.

    Raises
    ------
    TypeError, ValueError, IndexError
        The logits or the target are no tensors, or not of such types; shapes do not fit; `dim` or
        an option is out of range, or a label, which is not looked for on other devices.

    Notes
    -----
    Other devices, tensor subclasses, torch.compile, tracers, modes and transforms of torch.func use
    torch's operations, in the arithmetic of the results.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import row_statistics
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.bfloat16)
    >>> s = row_statistics(logits, torch.tensor([1, 1]))
    >>> s.loss, s.rank < 1
    (tensor([1.4076, 0.0949]), tensor([False,  True]))
    """
    options: Any = {"ignore_index": ignore_index, "logit_scale": logit_scale, "softcap": softcap}
    options["n_threads"] = n_threads
    given = [logits] if target is None else [logits, target]
    for name, value in zip(("logits", "target"), given, strict=False):
        if not isinstance(value, torch.Tensor):
            if not has_torch_function(tuple(given)):
                raise no_tensor(name, value)
            return handle_torch_function(row_statistics, given, *given, dim=dim, **options)  # type: ignore[no-any-return]
    dim = 0 if dim == 1 and logits.dim() == 1 else dim
    judged = class_dims(dim, logits.dim()) is None  # by torch
    if judged or logits.dtype not in FLOATS or not on_kernels(*given):
        return _by_torch(logits, target, dim, ignore_index, logit_scale, softcap)
    x, y = arrays((logits, target))
    try:
        found: Any = of_arrays(x, y, axis=dim, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(in_torchs_words(error)) from error
    numbers: Any = (None if f is None else tensor(np.asarray(f)) for f in found)
    return RowStatistics(*numbers)


def _by_torch(
    logits: Any, target: Any, dim: Any, ignore_index: int, logit_scale: Any, softcap: Any
) -> RowStatistics:
    """The same in torch's operations."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating, not {logits.dtype}")
    if target is not None and (target.is_floating_point() or target.is_complex()):
        raise TypeError(f"target must be integers (class indices), not {target.dtype}")
    logits = logits.detach().movedim(dim, -1)
    counted = None
    if target is not None:
        _check.same_shape(target, logits.shape[:-1], "target", "class indices, one per row")
        counted = target != ignore_index
        logits = torch.where(counted.unsqueeze(-1), logits, 0)
    x = capped(wide(logits) * logit_scale, softcap)
    found: Any = _formula(x, None if counted is None else torch.where(counted, target, 0).long())
    if counted is None:
        return found  # type: ignore[no-any-return]
    ignored = math.nan, 0, math.nan, -1, math.nan, -1, math.nan
    pairs = zip(found, ignored, strict=True)
    return RowStatistics(*(torch.where(counted, value, other) for value, other in pairs))


def _formula(x: Tensor, labels: Tensor | None) -> RowStatistics:
    """The statistics of scaled logits, with the class axis last."""
    argmax = x.argmax(-1)  # the first of several; nan is the largest
    peak = x.gather(-1, argmax.unsqueeze(-1))
    away = peak - x
    exps = (-away).exp().scatter(-1, argmax.unsqueeze(-1), 0)  # of all classes but m
    peak = peak.squeeze(-1)
    tail = torch.where(peak.isfinite(), exps.sum(-1), math.nan)
    log_total = tail.log1p()
    distance = (exps * torch.where(exps > 0, away, 0)).sum(-1)  # 0 * inf = 0
    loss = rank = None
    if labels is not None:
        of_target = x.gather(-1, labels.unsqueeze(-1))
        loss = (peak - of_target.squeeze(-1)) + log_total
        before = torch.arange(x.size(-1), device=x.device) < labels.unsqueeze(-1)
        rank = ((x > of_target) | ((x == of_target) & before)).sum(-1)
        rank = torch.where(peak.isnan(), x.size(-1), rank)
    return RowStatistics(
        lse=torch.where(peak.isfinite(), peak + log_total, peak),
        loss=loss,
        entropy=log_total + distance / (1 + tail),
        argmax=argmax,
        max_log_prob=-log_total,
        rank=rank,
        sum_squares=(1 + exps.square().sum(-1)) / (1 + tail).square(),
    )
