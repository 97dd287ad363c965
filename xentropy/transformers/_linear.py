"""A stand-in for xentropy.torch.linear_cross_entropy: by chunks, computed again in backward."""

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ..torch import cross_entropy

_ROWS = 512


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    logits_bytes: int | None = None,
) -> Tensor:
    """Cross entropy of input @ linear_weight.T + linear_bias, without all the logits at once."""
    index = -100 if ignore_index is None else ignore_index

    def chunk(rows: Tensor, w: Tensor, b: Tensor | None, labels: Tensor) -> Tensor:
        x = linear(rows, w, b).float() if rows.dtype is not torch.float64 else linear(rows, w, b)
        x = x * logit_scale if softcap is None else softcap * (x * (logit_scale / softcap)).tanh()
        own = {"ignore_index": index, "label_smoothing": label_smoothing, "reduction": "none"}
        return cross_entropy(x, labels, None if weight is None else weight.to(x.dtype), **own)

    kept = (target != index).nonzero().squeeze(1)
    parts = [
        checkpoint(chunk, input[i], linear_weight, linear_bias, target[i], use_reentrant=False)
        for i in kept.split(_ROWS)
    ]
    losses = torch.cat(parts)
    dtype = torch.float32 if torch.is_autocast_enabled("cpu") else input.dtype
    if reduction == "none":
        return losses.new_zeros(len(target)).index_put((kept,), losses).to(dtype)
    total = losses.sum()
    if reduction == "mean":
        count = weight[target[kept]].sum() if weight is not None else len(kept)
        total = total / (count if normalizer is None else normalizer)
    return total.to(dtype)
