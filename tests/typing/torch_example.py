"""As example.py, for the front for PyTorch."""

from typing import assert_type

import torch
from torch import Tensor

from xentropy import torch as xt

x = torch.zeros(2, 3, requires_grad=True)
labels = torch.tensor([0, 2])

assert_type(xt.cross_entropy(x, labels), Tensor)
assert_type(xt.cross_entropy(x, labels, normalizer=torch.tensor(2.0), inplace=True), Tensor)
assert_type(xt.CrossEntropyLoss(label_smoothing=0.1), xt.CrossEntropyLoss)
assert_type(xt.softmax(x, dim=1, dtype=torch.float64), Tensor)
assert_type(xt.log_softmax(x, 1), Tensor)
assert_type(xt.logsumexp(x, (0, 1), keepdim=True), Tensor)
assert_type(xt.entropy(x, base=2), Tensor)
assert_type(xt.kl_divergence(x, x, reduction="none"), Tensor)
with xt.patch():
    pass
xt.unpatch()

xt.cross_entropy(x, labels, axis=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
