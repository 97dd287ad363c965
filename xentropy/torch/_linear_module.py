"""The linear loss as a module, with the output layer as its parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from ._linear import linear_cross_entropy

# torch's class since 2.13: instances of ours are instances of it.
_Base: Any = getattr(nn, "LinearCrossEntropyLoss", _WeightedLoss)


class LinearCrossEntropyLoss(_Base):
    """torch.nn.LinearCrossEntropyLoss (torch 2.13), computed by `linear_cross_entropy`.

    Loads and saves as torch's: its state is `weight`, `linear.weight` and `linear.bias`. It needs
    no torch 2.13.

    Parameters
    ----------
    in_features, num_classes : int
        H and C.
    out_features : tuple of int, default ()
        Dimensions of a loss of several dimensions, as torch has it; then all logits are made.
    bias : bool, default False
        Whether the layer has a bias.
    device, dtype : optional
        Of the layer's parameters.
    weight, reduction, ignore_index, label_smoothing, options
        As for `linear_cross_entropy`.
    normalizer, empty_mean, z_loss, logit_scale, softcap, base, logits_bytes, n_threads
        As for `linear_cross_entropy`; `sample_weight` goes with the call,
        ``loss(input, target, sample_weight)``.

    Raises
    ------
    RuntimeError
        `weight` has not one number per class, or `label_smoothing` is out of range.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import LinearCrossEntropyLoss
    >>> loss = LinearCrossEntropyLoss(16, 1000)  # features, classes
    >>> loss(torch.zeros(4, 16), torch.arange(4)).item()  # the logarithm of 1000
    6.9077...
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        **ours: Any,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            found = tuple(weight.shape)
            raise RuntimeError(f"weight has shape {found}, not ({num_classes},), one per class")
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(f"label_smoothing = {label_smoothing} is not in [0, 1]")
        for name in ours:
            if name not in OURS:
                raise TypeError(f"LinearCrossEntropyLoss has no parameter {name!r}")
        _WeightedLoss.__init__(self, weight, None, None, reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        self.ours = ours
        outputs = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of these inputs of the layer and targets."""
        shape = self.num_classes, *self.out_features
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            sample_weight=sample_weight,
            **self.ours,
        )

    def extra_repr(self) -> str:
        shown = ("num_classes", "out_features", "reduction", "ignore_index", "label_smoothing")
        values = {name: getattr(self, name) for name in shown} | self.ours
        return ", ".join(f"{name}={value!r}" for name, value in values.items())


OURS = linear_cross_entropy.__annotations__.keys() - {
    *("linear_bias", "weight", "reduction", "ignore_index", "label_smoothing", "options"),
    *("sample_weight", "input", "linear_weight", "target", "return"),
}
