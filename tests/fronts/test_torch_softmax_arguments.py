"""xentropy.torch's softmax family: dtype=, dim=None, autocast, refusals."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import seeded
from helpers.torch_softmax import INF, NAN, PAIRS

import xentropy.torch as xt


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_dtype_is_cast_to_first(name):
    ours, theirs = PAIRS[name]
    x = seeded(4, 6, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.float64, torch.float16):
        values = ours(x, 1, dtype=dtype)
        assert torch.equal(values, ours(x.to(dtype), 1))
        (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values) / 3)
        assert gradient.dtype == x.dtype
    integers = torch.arange(6).reshape(2, 3)
    assert torch.equal(ours(integers, 1, torch.float32), ours(integers.float(), 1))
    for wrong in (torch.int64, "cpu"):
        with pytest.raises((NotImplementedError, TypeError)) as raised:
            theirs(x, 1, dtype=wrong)
        with pytest.raises(raised.type):
            ours(x, 1, dtype=wrong)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_implicit_dim_is_torchs_with_its_warning(name):
    ours = getattr(xt, name)
    for shape in ((), (4,), (4, 5), (4, 5, 6), (2, 3, 4, 5)):
        x = torch.linspace(-3, 3, math.prod(shape)).reshape(shape)
        with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
            values = ours(x)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.allclose(values, getattr(F, name)(x), atol=1e-6)


def error_of(function, *arguments):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        function(*arguments)
    return raised


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_errors_are_torchs(name):
    ours, theirs = PAIRS[name]
    x = torch.zeros(2, 3)
    cases = [(x, 2), (x, -3), (x, "a"), (x, 1.0), (x, True), (x.to_sparse(), 1), (x, (0, 0))]
    cases += [([1.0], 0), (torch.tensor(1.0), 1)]
    if name == "logsumexp":
        cases += [(x, ()), (x, None), (x, [1.0])]
    if name == "entropy":
        cases += [(x, None), (x, [0, 1])]
    for arguments in cases:
        expected = error_of(theirs, *arguments)
        assert error_of(ours, *arguments).type is expected.type, arguments[1]


def test_integers_are_refused_as_torch_does():
    x = torch.zeros(2, 3, dtype=torch.int64)
    for function in (xt.softmax, xt.log_softmax):
        with pytest.raises(NotImplementedError, match="input must be floating"):
            function(x, 1)
    with pytest.raises(TypeError, match="logits must be floating"):
        xt.entropy(x)
    assert torch.equal(xt.logsumexp(x, 1), torch.logsumexp(x, 1))
    z = torch.complex(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.equal(xt.logsumexp(z, 1), torch.logsumexp(z, 1))


@pytest.mark.parametrize(
    ("base", "error"), [(1, ValueError), (INF, ValueError), (NAN, ValueError), ("2", TypeError)]
)
def test_a_base_that_is_none(base, error):
    x = torch.zeros(2, 3)
    with pytest.raises(error, match="base"):
        xt.entropy(x, base=base)
    with pytest.raises(error, match="base"):
        xt.kl_divergence(x, x, base=base)


def test_autocast_gives_float32_as_for_the_cross_entropy():
    x = seeded(4, 5, dtype=torch.bfloat16).detach()
    target = torch.full((4, 5), 0.2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert xt.kl_divergence(target, x).dtype == torch.float32
        for name in ("softmax", "log_softmax", "logsumexp"):
            ours, theirs = PAIRS[name]
            assert ours(x, 1).dtype == theirs(x, 1).dtype
