"""The softmax family of torch in calls of one argument, and in a module."""

import pytest
import torch

import xentropy.torch as xt

from .torch_oracle import seeded

TARGET = torch.softmax(seeded(4, 6, seed=5).detach(), 1)
FUNCTIONS = {
    "softmax": lambda x: xt.softmax(x, 1),
    "dtype": lambda x: xt.softmax(x, dim=1, dtype=torch.float64),
    "log_softmax": lambda x: xt.log_softmax(x, -1),
    "logsumexp": lambda x: xt.logsumexp(x, (0, 1)),
    "keepdim": lambda x: xt.logsumexp(x, 1, True),
    "entropy": lambda x: xt.entropy(x),
    "bits": lambda x: xt.entropy(x, dim=0, base=2.0),
    "kl_divergence": lambda x: xt.kl_divergence(TARGET, x),
    "rows": lambda x: xt.kl_divergence(xt.softmax(x, 1), 2 * x, reduction="none", base=2.0),
}
EVERY = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


class Module(torch.nn.Module):
    """All of them: one number a row."""

    def forward(self, x, target):
        rows = xt.softmax(x, 1)[:, 0] + xt.log_softmax(x, 1)[:, 1] + xt.logsumexp(x, 1)
        return rows + xt.entropy(x, -1, 2.0) + xt.kl_divergence(target, x, reduction="none")


def value_and_gradient(function, x):
    x = x.detach().requires_grad_()
    values = function(x)
    return values.detach(), torch.autograd.grad(values.square().sum(), x)[0]


def assert_same(function, other, x):
    for a, b in zip(value_and_gradient(function, x), value_and_gradient(other, x), strict=True):
        assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
        assert torch.allclose(a, b, rtol=1e-5, atol=2e-6)
