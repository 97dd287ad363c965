"""The softmax family of torch: ours and theirs, values with gradients, bounds."""

import functools
import math

import pytest
import torch

import xentropy.torch as xt

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS16 = DTYPES[:2]
INF, NAN = math.inf, math.nan


def torch_entropy(x, dim, base=None):
    log_p = torch.log_softmax(x, dim)
    return -(log_p.exp() * log_p).sum(dim) / math.log(base or math.e)


# Ours and torch's, of a tensor and a dimension.
PAIRS = {
    "softmax": (xt.softmax, torch.softmax),
    "log_softmax": (xt.log_softmax, torch.log_softmax),
    "logsumexp": (xt.logsumexp, torch.logsumexp),
    "keepdim": (
        functools.partial(xt.logsumexp, keepdim=True),
        functools.partial(torch.logsumexp, keepdim=True),
    ),
    "entropy": (xt.entropy, torch_entropy),
    "bits": (functools.partial(xt.entropy, base=2), functools.partial(torch_entropy, base=2)),
}
EVERY = pytest.mark.parametrize("name", PAIRS)


def upstream_of(values):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.dtype)


def value_and_gradient(function, x, dim, upstream=None):
    x = x.detach().requires_grad_()
    values = function(x, dim)
    upstream = upstream_of(values) if upstream is None else upstream
    (gradient,) = torch.autograd.grad(values, x, upstream)
    return values.detach(), gradient


def assert_close(actual, exact, unit, what):
    """Within so many eps of the row's scale `unit`; results in 16 bits are rounded once."""
    info = torch.finfo(actual.dtype)
    if actual.dtype in BITS16:  # half an ulp, and what float32 adds
        size = exact.abs().clamp(min=info.tiny)
        bound = 0.5 * info.eps * 2.0 ** size.log2().floor() + 16 * 2**-23 * unit
    else:
        bound = 16 * info.eps * unit  # both sums of exps and the logits' differences
    assert ((actual.double() - exact).abs() <= bound).all(), what


SCRIPTED = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
