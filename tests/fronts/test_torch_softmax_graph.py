"""xentropy.torch's softmax family: derivatives of any order, batched, forward; what is recorded."""

import functools

import pytest
import torch
from helpers.torch_oracle import seeded
from helpers.torch_softmax import BITS16, EVERY, PAIRS, SCRIPTED, upstream_of

import xentropy.torch as xt


@EVERY
@SCRIPTED
@pytest.mark.parametrize("dim", [1, -1])
def test_gradcheck_and_gradgradcheck(name, dim):
    x = seeded(2, 3, 2, dtype=torch.float64)

    def function(a):
        return PAIRS[name][0](a, dim)

    batched = {"check_batched_grad": True}
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(function, x, **batched, **forward)
    assert torch.autograd.gradgradcheck(function, x, **batched)


def test_gradgradcheck_of_logsumexp_over_several_dimensions():
    x = seeded(3, 4, 2, dtype=torch.float64)
    for keepdim in (False, True):
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            function = functools.partial(xt.logsumexp, dim=(2, 0), keepdim=keepdim)
            assert check(function, x, check_batched_grad=True)


@EVERY
@pytest.mark.parametrize("dtype", [*BITS16, torch.float32], ids=str)
def test_a_gradient_with_a_graph_is_the_one_without(name, dtype):
    x = seeded(4, 6, dtype=dtype)
    found = []
    for create_graph in (False, True):
        values = PAIRS[name][0](x, 1)
        (gradient,) = torch.autograd.grad(values, x, upstream_of(values), create_graph=create_graph)
        assert gradient.requires_grad == create_graph
        found.append(gradient.detach())
    assert torch.allclose(*found, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@EVERY
def test_batched_upstream_gradients(name):
    x = seeded(4, 6)
    values = PAIRS[name][0](x, 1)
    upstream = torch.randn(3, *values.shape)
    (batched,) = torch.autograd.grad(values, x, upstream, retain_graph=True, is_grads_batched=True)
    for each, g in zip(batched, upstream, strict=True):
        single = torch.autograd.grad(values, x, g, retain_graph=True)[0]
        assert torch.allclose(each, single, rtol=1e-5, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian
    function = functools.partial(PAIRS[name][0], dim=1)
    assert torch.allclose(
        jacobian(function, x.detach(), vectorize=True), jacobian(function, x.detach()), atol=1e-6
    )


def test_the_graph_can_be_walked_twice_and_inputs_are_guarded():
    x = seeded(4, 6)
    for ours, _ in PAIRS.values():
        values = ours(x, 1)
        first, second = (
            torch.autograd.grad(values.sum(), x, retain_graph=True)[0] for _ in range(2)
        )
        assert torch.equal(first, second)
        inner = x * 1
        values = ours(inner, 1)
        (values if ours is xt.softmax else inner).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            values.sum().backward()


@EVERY
def test_without_a_gradient_nothing_is_recorded(name):
    x, ours = seeded(4, 6), PAIRS[name][0]
    with torch.no_grad():
        assert not ours(x, 1).requires_grad
    with torch.inference_mode():
        inside = ours(x, 1)
        assert inside.is_inference()
        assert torch.equal(inside, ours(inside.new_tensor(x.tolist()), 1))
    assert not ours(x.detach(), 1).requires_grad
    assert ours(x, 1).requires_grad
