"""The loss for graphs that stand alone: torch.jit.trace, torch.jit.script, ONNX.

Such a graph is loaded where xentropy is not, so it consists of torch's own operations: of torch's
function wherever that is enough. All here is TorchScript too: types are declared, parameters are
not keyword-only, and a number out of a union of types is converted before its use.
"""

import math

import torch
from torch import Tensor
from torch.nn import _reduction

from ._formula import torch_cross_entropy


def recorded_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: int | float = 0.0,
    sample_weight: Tensor | None = None,
    normalizer: int | float | Tensor | None = None,
    empty_mean: int | float = math.nan,
    z_loss: int | float = 0.0,
    logit_scale: int | float | Tensor = 1.0,
    softcap: int | float | None = None,
    axis: int = 1,
    base: int | float | None = None,
    n_threads: int | None = None,
    inplace: bool = False,
    for_onnx: bool = False,
) -> Tensor:
    """`cross_entropy`; `n_threads` and `inplace` mean nothing here.

    ONNX has torch's function for labels without smoothing; torch's exporters get the rest wrong.
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    nats = None if base is None else math.log(float(base))
    terms = (float(label_smoothing), float(z_loss), nats)
    x = _scaled(input, logit_scale)
    if softcap is not None:
        cap = float(softcap)
        x = cap * torch.tanh(x / cap)
    tensors = (x, target, weight, sample_weight)
    loss = _loss(tensors, terms, axis, ignore_index, reduction, normalizer, for_onnx)
    if normalizer is not None:
        return loss
    return or_empty(loss, target, sample_weight, ignore_index, float(empty_mean))


def _loss(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    terms: tuple[float, float, float | None],
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: int | float | Tensor | None,
    for_onnx: bool,
) -> Tensor:
    """By torch's function if it has all of it, else from a log_softmax."""
    x, target, weight, sample_weight = tensors
    smoothing, z_loss, nats = terms
    plain = axis == 1 and sample_weight is None and nats is None and z_loss == 0
    if for_onnx and (smoothing != 0 or target.is_floating_point()):
        plain = False
    if plain and normalizer is None:
        index = ignore_index
        return torch_cross_entropy(x, target, weight, None, index, None, reduction, smoothing)
    _reduction.get_enum(reduction)  # raises for an unknown one
    numbers = (
        None if smoothing == 0 else smoothing,
        None if z_loss == 0 else z_loss,
        nats,
    )
    return elementary(tensors, numbers, axis, ignore_index, reduction, normalizer)


def or_empty(
    mean: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    ignore_index: int,
    empty_mean: float,
) -> Tensor:
    """The mean, or `empty_mean` if no row counts; its gradient is 0 then. nan changes nothing."""
    if empty_mean != empty_mean:
        return mean
    if sample_weight is not None:
        counted = sample_weight != 0
        if not target.is_floating_point():
            counted = counted & (target.to(torch.int64) != ignore_index)
    elif target.is_floating_point():
        counted = torch.full_like(mean, float(target.numel() > 0)) != 0
    else:
        counted = target.to(torch.int64) != ignore_index
    return torch.where(counted.any(), mean, empty_mean)


def _scaled(x: Tensor, scale: int | float | Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return x * scale.reshape(())
    return x if float(scale) == 1 else x * float(scale)


def elementary(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    numbers: tuple[float | None, float | None, float | None],
    axis: int,
    ignore_index: int,
    reduction: str,
    normalizer: int | float | Tensor | None,
) -> Tensor:
    """The loss from a log_softmax. `numbers`: label_smoothing, z_loss, ln(base) or None."""
    logits, target, weight, sample_weight = tensors
    smoothing, z_loss, nats = numbers
    x = logits.movedim(axis if logits.dim() > 1 else 0, -1)
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    probable = target.is_floating_point()
    counted = torch.ones_like(x[..., 0], dtype=torch.bool) if probable else target != ignore_index
    if sample_weight is not None:
        counted = counted & (sample_weight != 0)
    x = torch.where(counted.unsqueeze(-1), x, 0)  # what is not read has no nan in its gradient
    if probable:
        mass = target.movedim(axis if logits.dim() > 1 else 0, -1)
        rows, each = _by_probabilities(x.log_softmax(-1), mass, weight, smoothing)
    else:
        labels = torch.where(counted, target, 0)
        rows, each = _by_labels(x.log_softmax(-1), labels, weight, smoothing)
    rows = rows if nats is None else rows / nats
    rows = rows if z_loss is None else rows + z_loss * torch.logsumexp(x, -1) ** 2
    if sample_weight is not None:
        rows, each = rows * sample_weight.expand_as(rows), each * sample_weight
    rows = torch.where(counted, rows, 0)
    if reduction == "none":
        return rows.to(logits.dtype)
    return _reduced(rows, torch.where(counted, each, 0), reduction, normalizer).to(logits.dtype)


def _reduced(
    rows: Tensor, each: Tensor, reduction: str, normalizer: int | float | Tensor | None
) -> Tensor:
    total = rows.sum()
    if reduction == "sum":
        return total
    if normalizer is None:
        return total / each.sum()
    if isinstance(normalizer, Tensor):
        return total / normalizer.reshape(())
    return total / float(normalizer)


def _by_labels(
    log_p: Tensor, labels: Tensor, weight: Tensor | None, smoothing: float | None
) -> tuple[Tensor, Tensor]:
    """The losses of rows, class axis last, and their weights in the mean."""
    rows = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    each = torch.ones_like(rows) if weight is None else weight.to(rows.dtype)[labels]
    rows = rows * each
    if smoothing is not None:
        sums = log_p.sum(-1) if weight is None else (log_p * weight).sum(-1)
        rows = (1 - smoothing) * rows - smoothing / log_p.size(-1) * sums
    return rows, each


def _by_probabilities(
    log_p: Tensor, mass: Tensor, weight: Tensor | None, smoothing: float | None
) -> tuple[Tensor, Tensor]:
    """The same for class probabilities, whose mean counts rows."""
    if smoothing is not None:
        mass = (1 - smoothing) * mass + smoothing / log_p.size(-1)
    mass = mass if weight is None else mass * weight
    rows = -torch.where(mass == 0, 0, mass * log_p).sum(-1)  # 0 log 0 = 0
    return rows, torch.ones_like(rows)
