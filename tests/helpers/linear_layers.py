"""Linear layers with targets, and a step through their loss, for the tests of xentropy.torch."""

import torch
import torch.nn.functional as F

import xentropy.torch as xt

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
REDUCTIONS = "mean", "sum", "none"


def layer(rows=23, features=11, classes=37, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(classes, (rows,), generator=generator)
    return scale * normal(rows, features), normal(classes, features), normal(classes), labels


def by_logits(input, linear_weight, target, *, linear_bias=None, **options):
    """The same by all logits: the specification."""
    return xt.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def results(function, input, linear_weight, linear_bias, target, upstream=None, **options):
    """The loss and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in (input, linear_weight, linear_bias)]
    loss = function(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(ours, exact, eps, terms=1.0):
    """Per entry, in units of the largest: sums of `terms` rounded products cancel."""
    for a, e in zip(ours, exact, strict=True):
        assert a.shape == e.shape
        error = (a.double() - e).abs().max().item()
        assert error <= terms * eps * e.abs().max().item(), (error, eps)
