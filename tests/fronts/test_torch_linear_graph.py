"""xentropy.torch.linear_cross_entropy in graphs: derivatives, transforms, compiling, autocast."""

import itertools

import pytest
import torch
from helpers.linear_layers import REDUCTIONS, by_logits, layer, results

import xentropy.torch as xt


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of forward mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_every_kind(reduction):
    input, weight, bias, target = layer(5, 3, 7, torch.float64)
    target[2] = -100

    def loss(x, w, b):
        return xt.linear_cross_entropy(
            x, w, target, linear_bias=b, reduction=reduction, label_smoothing=0.1
        )

    leaves = tuple(t.requires_grad_() for t in (input, weight, bias))
    batched = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(loss, leaves, **batched)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operands_that_depend_on_each_other_have_each_path_once(reduction):
    """Also with create_graph, where torch differentiates the loss of all logits."""
    start = torch.randn(5, 5, dtype=torch.float64)
    target = torch.arange(5)

    def derivatives(function, create_graph, made):
        w = start.clone().requires_grad_()
        input, bias = made(w)
        loss = function(input, w, target, linear_bias=bias, reduction=reduction).square().sum()
        (first,) = torch.autograd.grad(loss, w, create_graph=create_graph)
        return [first, *torch.autograd.grad(first.sum(), w)] if create_graph else [first]

    ways = (lambda w: (w.sin(), None)), (lambda w: (w, None)), (lambda w: (w.cos(), w.sum(1)))
    for made, create_graph in itertools.product(ways, (False, True)):
        ours = derivatives(xt.linear_cross_entropy, create_graph, made)
        theirs = derivatives(by_logits, create_graph, made)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_transforms_of_functions():
    input, weight, _, target = layer(6, 4, 9, torch.float64)
    ours = torch.func.vmap(torch.func.grad(xt.linear_cross_entropy), (0, None, 0))
    theirs = torch.func.vmap(torch.func.grad(by_logits), (0, None, 0))
    assert torch.allclose(ours(input, weight, target), theirs(input, weight, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction):
    *tensors, target = layer(dtype=torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    options = (-100, reduction, None, 600, "", None, torch.float64, "input linear_weight")
    torch.library.opcheck(
        torch.ops.xentropy.linear_cross_entropy.default, (*leaves, target, None, None, *options)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_break(reduction):
    *tensors, target = layer()
    upstream = torch.linspace(-1, 2, 23) if reduction == "none" else torch.tensor(0.5)
    options = {"reduction": reduction, "label_smoothing": 0.1, "logits_bytes": 600}
    compiled = torch.compile(xt.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    ours = results(compiled, *tensors, target, upstream, **options)
    eager = results(xt.linear_cross_entropy, *tensors, target, upstream, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    *tensors, target = layer()
    plain = results(xt.linear_cross_entropy, *tensors, target)

    def again(*args, **options):
        return checkpoint(xt.linear_cross_entropy, *args, use_reentrant=False, **options)

    assert all(map(torch.equal, plain, results(again, *tensors, target)))


def test_autocast():
    *tensors, target = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = results(xt.linear_cross_entropy, *tensors, target)
        theirs = results(by_logits, *tensors, target)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [torch.float32] * 4
    for a, t in zip(ours, theirs, strict=True):
        assert (a - t).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * t.abs().max()


def test_rows_that_do_not_count_get_0_of_an_infinite_upstream_gradient_too():
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    target = torch.tensor([0, -100, 1, -100, 2, 4])
    loss = xt.linear_cross_entropy
    compiled = torch.compile(loss, backend="aot_eager")
    for call, retained in (loss, False), (loss, True), (compiled, False):
        hidden.grad = None
        call(hidden, weight, target).backward(torch.tensor(torch.inf), retained)
        assert (hidden.grad[target < 0] == 0).all()
        assert not hidden.grad[target >= 0].isfinite().any()
