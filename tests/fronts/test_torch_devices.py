"""xentropy.torch whatever the default device and dtype are: results belong to the logits."""

import contextlib
import itertools

import pytest
import torch
from helpers.torch_oracle import labels, probabilities, seeded

from xentropy.torch import CrossEntropyLoss, cross_entropy

REDUCTIONS = ["mean", "sum", "none"]
OURS = {"z_loss": 0.1, "logit_scale": 0.5, "base": 2.0}


@contextlib.contextmanager
def default_device():
    """As torch.set_default_device, which stands for any device that is not the CPU."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {
    "with device": lambda: torch.device("meta"),
    "set_default_device": default_device,
    "set_default_dtype": default_dtype,
}
defaults = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)
nothing = contextlib.nullcontext


def step(loss_of, x, y, forward=nothing, backward=nothing, create_graph=False):
    """[loss, gradient in x (, in y, a second derivative)], each way in a context of its own."""
    x = x.detach().requires_grad_()
    wanted = (x,)
    if y.is_floating_point():
        y = y.detach().requires_grad_()
        wanted = (x, y)
    with forward():
        loss = loss_of(x, y)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    with backward():
        found = torch.autograd.grad(loss, wanted, upstream, create_graph=create_graph)
        if create_graph:
            found += torch.autograd.grad(found[0], x, torch.ones_like(x))
    return [loss.detach(), *(each.detach() for each in found)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert (a.device.type, a.dtype) == ("cpu", b.dtype)
        assert torch.equal(a, b)


@defaults
@pytest.mark.parametrize("where", ["forward", "backward", "both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_results_are_those_of_no_default(default, where, dtype, soft):
    x = seeded(6, 5, dtype=dtype)
    y = probabilities((6, 5), dtype) if soft else labels((6, 5))
    contexts = {name: default for name in ("forward", "backward") if where in (name, "both")}
    weight, rows = torch.linspace(1, 2, 5, dtype=dtype), torch.linspace(0, 1, 6)
    for reduction, ours, create_graph in itertools.product(REDUCTIONS, ({}, OURS), (False, True)):

        def loss(a, b, reduction=reduction, ours=ours):
            options = {"reduction": reduction, **ours}
            return cross_entropy(a, b, weight, sample_weight=rows if ours else None, **options)

        expected = step(loss, x, y, create_graph=create_graph)
        assert_same(step(loss, x, y, **contexts, create_graph=create_graph), expected)


@defaults
def test_without_a_gradient_and_in_place(default):
    x, y = seeded(6, 5), labels((6, 5))
    for reduction in REDUCTIONS:
        expected = cross_entropy(x.detach(), y, reduction=reduction)
        with default():
            assert_same([cross_entropy(x.detach(), y, reduction=reduction)], [expected])
    (expected,) = torch.autograd.grad(cross_entropy(x, y), x)
    with default():
        (found,) = torch.autograd.grad(cross_entropy(x * 1, y, inplace=True), x)
    assert_same([found], [expected])


@defaults
def test_numbers_that_are_tensors(default):
    x, y = seeded(6, 5), labels((6, 5))
    n, scale = torch.tensor(7), torch.tensor(0.5, requires_grad=True)

    def loss(a, b):
        return CrossEntropyLoss(normalizer=n, logit_scale=scale)(a, b)

    assert_same(step(loss, x, y, default, default), step(loss, x, y))


@defaults
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_and_under_transforms(default, reduction):
    x, y = seeded(6, 5), labels((6, 5))

    def loss(a, b):
        return cross_entropy(a, b, reduction=reduction, z_loss=0.1)

    def gradient(a):
        return torch.func.grad(lambda b: loss(b, y).sum())(a)

    torch.compiler.reset()
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"),):
        expected = step(function, x, y)
        assert_same(step(function, x, y, default, default), expected)
    expected = gradient(x.detach())
    with default():
        assert_same([gradient(x.detach())], [expected])
