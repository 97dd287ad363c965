"""xentropy.torch.linear_selected_log_probs: the numbers and gradients of all logits, in chunks."""

import pytest
import torch
import torch.nn.functional as F

from xentropy.torch import linear_selected_log_probs, selected_log_probs

NAMES = ("input", "linear_weight", "linear_bias")


def make(*shape, classes=60, dtype=torch.float64, k=None, seed=0):
    """(input, weight, bias), and one class a row or k."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*s):
        return torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype)

    layer = numbers(*shape), numbers(classes, shape[-1]) / 2, numbers(classes)
    rows = shape[:-1] if k is None else (*shape[:-1], k)
    return layer, torch.randint(classes, rows, generator=generator)


def step(function, layer, index, **options):
    """The numbers and the gradients of a loss in which both are."""
    leaves = [each.detach().clone().requires_grad_() for each in layer]
    log_p, entropy = function(leaves, index, return_entropy=True, **options)
    weights = torch.linspace(-1, 1, log_p.numel(), dtype=log_p.dtype).reshape(log_p.shape)
    loss = (weights * log_p.exp()).sum() + 0.3 * entropy.square().sum()
    return log_p.detach(), entropy.detach(), *torch.autograd.grad(loss, leaves)


def chunked(layer, index, **options):
    x, weight, bias = layer
    return linear_selected_log_probs(x, weight, index, linear_bias=bias, **options)


def whole(layer, index, **options):
    options.pop("logits_bytes", None)
    return selected_log_probs(F.linear(*layer), index, **options)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("shape", [(30, 8), (3, 7, 8)])
def test_in_float64_they_are_those_of_all_logits(shape, k):
    layer, index = make(*shape, k=k)
    index[0] = -100
    for options in ({}, {"temperature": 0.7, "softcap": 4.0}, {"logits_bytes": 5 * 60 * 8}):
        for found, exact in zip(
            step(chunked, layer, index, **options),
            step(whole, layer, index, **options),
            strict=True,
        ):
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_are_near(dtype):
    layer, index = make(40, 16, dtype=dtype)
    found = step(chunked, layer, index, dtype=torch.float32)
    exact = step(whole, [each.double() for each in layer], index)
    near = {torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    for value, of in zip(found, exact, strict=True):
        assert (value.double() - of).abs().max() <= near * (1 + of.abs().max())
    for gradient, each in zip(found[2:], layer, strict=True):
        assert gradient.dtype == each.dtype


def test_what_is_frozen_costs_no_gradient():
    (x, weight, bias), index = make(12, 8)
    x.requires_grad_()
    linear_selected_log_probs(x, weight, index, linear_bias=bias).sum().backward()
    assert weight.grad is None
    assert x.grad.abs().sum() > 0
    with torch.no_grad():
        assert not linear_selected_log_probs(x, weight, index).requires_grad


def test_gradcheck_and_gradgradcheck():
    layer, index = make(3, 4, classes=5)

    def function(*leaves):
        return chunked(leaves, index, return_entropy=True, temperature=0.8)

    leaves = [each.requires_grad_() for each in layer]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_the_operators_are_what_torch_expects_of_operators():
    layer, index = make(4, 8, dtype=torch.float32)
    operators = torch.ops.xentropy
    options = -100, 1.0, None, None, None
    arguments = *(each.requires_grad_() for each in layer), index, *options
    torch.library.opcheck(operators.linear_selected_log_probs.default, arguments)
    numbers = operators.linear_selected_log_probs(*arguments)
    kept = [t.detach() for t in (*numbers[:2], *layer, index, *numbers)]
    backward = *kept, *options, "input linear_weight"
    torch.library.opcheck(operators.linear_selected_log_probs_backward.default, backward)


def test_compiled_without_a_graph_break():
    layer, index = make(20, 8, dtype=torch.float32)
    compiled = torch.compile(chunked, fullgraph=True, backend="aot_eager")
    for mine, direct in zip(step(compiled, layer, index), step(chunked, layer, index), strict=True):
        torch.testing.assert_close(mine, direct)


def test_transforms_and_autocast_make_all_logits():
    layer, index = make(6, 8)
    mapped = torch.func.vmap(lambda x, i: linear_selected_log_probs(x, layer[1], i))(
        layer[0], index
    )
    torch.testing.assert_close(mapped, linear_selected_log_probs(layer[0], layer[1], index))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_selected_log_probs(*(t.float() for t in layer[:2]), index)
    assert found.dtype == torch.float32


MISTAKES = [
    ({"input": None}, TypeError, "input must be a tensor, not None"),
    ({"linear_bias": 1.0}, TypeError, "linear_bias must be a tensor"),
    ({"index": torch.zeros(3)}, TypeError, "index must be integers"),
    ({"index": torch.tensor([0, 5, 0])}, IndexError, r"index\[1\] = 5 .* 5 classes"),
    ({"linear_weight": torch.zeros(5, 3)}, ValueError, "linear_weight has shape"),
    ({"linear_weight": torch.zeros(5, 4).double()}, RuntimeError, "dtype"),
    ({"logits_bytes": 0}, ValueError, "logits_bytes"),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    call = {"input": torch.zeros(3, 4), "linear_weight": torch.zeros(5, 4)}
    with pytest.raises(error, match=says):
        linear_selected_log_probs(**{**call, "index": torch.zeros(3).long(), **spoiled})
