"""Deferred logits and real ones: operands, targets, what stays deferred."""

import torch
import torch.nn.functional as F

from xentropy.transformers import materialised
from xentropy.transformers._deferred import defer

H, V = 6, 11


def make_operands():
    """Hidden states, weight and bias, which require gradients."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(2, 5, H), torch.randn(V, H), torch.randn(V)
    return [t.requires_grad_() for t in (hidden, weight, bias)]


def both(operands):
    return defer(*operands), F.linear(*operands)


def count():
    return sum(materialised().values())


def grads(loss, operands):
    return torch.autograd.grad(loss, operands, allow_unused=True)


TARGET = torch.tensor([3, 0, -100, 10, 5, 5, -100, 1, 2, 3])
LABELS = TARGET.view(2, 5)

STAY = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32).to("cpu").to(LABELS.device, torch.float32),
    "type": lambda x: x.type(torch.float32),
    "contiguous": lambda x: x.contiguous(),
    "scale": lambda x: 2 * x / 3.0,
    "torch.div": lambda x: torch.div(x, 3),
    "cap": lambda x: torch.tanh(x / 2) * 2,
    "cap of cap": lambda x: (x * 0.5).tanh() * 3 / 2,
    "bias": lambda x: x + torch.arange(V) * torch.ones(1, 1),
    "squeezed": lambda x: x.unsqueeze(0).squeeze(0),
    "flat": lambda x: x.flatten(0, 1).unflatten(0, (2, 5)),
    "sliced": lambda x: x[:, 0:][..., :5, :][:, :, :].contiguous(),
    "new axis": lambda x: x[None][0],
    "columns": lambda x: x[:, torch.arange(5)],
}
