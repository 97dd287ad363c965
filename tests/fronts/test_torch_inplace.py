"""xentropy.torch with inplace=True: the gradient in the memory of the logits, and who is told."""

import pytest
import torch
from helpers.torch_oracle import exact_gradient, logits_and_labels

from xentropy.torch import cross_entropy

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inplace_uses_the_memory_of_the_logits(dtype, reduction, upstream):
    leaf, y = logits_and_labels(dtype=dtype)
    upstream = torch.tensor(upstream, dtype=dtype)
    x = leaf * 1
    seen = []
    x.register_hook(lambda g: seen.append(g.data_ptr()))
    loss = cross_entropy(x, y, reduction=reduction, inplace=True)
    loss.backward(upstream.expand_as(loss))
    assert seen == [x.data_ptr()]
    expected = cross_entropy(leaf * 1, y, reduction=reduction)
    assert torch.equal(loss, expected)
    exact = exact_gradient(leaf, y, upstream, reduction=reduction)
    # one rounding by the kernel's 4 ulp, one by the scaling
    assert torch.allclose(leaf.grad.double(), exact, rtol=5 * torch.finfo(dtype).eps, atol=1e-7)


def test_inplace_in_a_retained_graph():
    leaf, y = logits_and_labels(dtype=torch.float64)
    for reduction in ("mean", "none"):
        loss = cross_entropy(leaf * 1, y, reduction=reduction, inplace=True).sum()
        exact = exact_gradient(leaf, y, torch.tensor(1.0), reduction=reduction)
        for scale, retain in ((2, True), (1, True), (3, False)):
            (gradient,) = torch.autograd.grad(scale * loss, leaf, retain_graph=retain)
            assert torch.allclose(gradient, scale * exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inplace_tells_whoever_has_saved_the_logits(reduction):
    leaf, y = logits_and_labels()
    x = leaf.tanh()  # tanh saves its result
    loss = cross_entropy(x, y, reduction=reduction, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss.sum() + x.square().sum()).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cross_entropy(leaf.tanh(), y, reduction=reduction, inplace=True).sum().backward()


def test_inplace_refuses_what_it_must_not_overwrite():
    leaf, y = logits_and_labels()
    base = torch.zeros(1, 5, requires_grad=True)
    for x, words in ((leaf, "leaf"), (leaf[:, :], "leaf"), ((base * 1).expand(6, 5), "place")):
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=words):
            cross_entropy(x, y, inplace=True)
        assert torch.equal(x, before)
    with pytest.raises(RuntimeError, match="target"):
        cross_entropy(leaf * 1, torch.ones(6, 5, requires_grad=True), inplace=True)
    x = leaf * 1
    before, version = x.detach().clone(), x._version
    with pytest.raises(IndexError, match="out of range"):
        cross_entropy(x, y + 5, inplace=True)
    assert torch.equal(x, before)
    assert x._version == version


def test_inplace_without_a_gradient_writes_nothing():
    leaf, y = logits_and_labels()
    before = leaf.detach().clone()
    with torch.no_grad():
        cross_entropy(leaf, y, inplace=True)
    cross_entropy(leaf.detach(), y, inplace=True)
    assert torch.equal(leaf, before)


def test_inplace_has_no_second_derivative():
    leaf, y = logits_and_labels()
    loss = cross_entropy(leaf * 1, y, inplace=True)
    with pytest.raises(RuntimeError, match="inplace=True has overwritten the logits"):
        torch.autograd.grad(loss, leaf, create_graph=True)
