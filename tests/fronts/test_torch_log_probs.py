"""xentropy.torch.selected_log_probs: TRL's numbers, exact gradients, graphs and transforms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xentropy as xe
from xentropy.torch import selected_log_probs

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-23, torch.float64: 2**-52}


def make(*shape, dtype=torch.float32, k=None, spread=3.0, seed=0):
    """Logits, and one class a row or k."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
    rows = shape[:-1] if k is None else (*shape[:-1], k)
    return x, torch.randint(shape[-1], rows, generator=generator)


def selective_log_softmax(logits, index):
    """log p of the classes, as TRL's function of this name defines it, in float64."""
    several = index.dim() == logits.dim()
    log_p = F.log_softmax(logits.double(), dim=-1)
    found = log_p.gather(-1, index if several else index.unsqueeze(-1))
    return found if several else found.squeeze(-1)


def entropy_from_logits(logits):
    """The entropy of rows, as TRL's function of this name defines it, in float64."""
    log_p = F.log_softmax(logits.double(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def upstream_of(values, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in values]


def compare(x, index, **options):
    """Values and gradient against float64: relative to a row's largest, as near as dtype is.

    In float64 the formulas themselves are off by some units of what cancels in them.
    """
    x = x.detach().requires_grad_()
    found = selected_log_probs(x, index, return_entropy=True, **options)
    wide = x.detach().double().requires_grad_()
    scaled = wide / options.get("temperature", 1.0)
    exact = selective_log_softmax(scaled, index), entropy_from_logits(scaled)
    step = EPS[x.dtype]
    for value, of in zip(found, exact, strict=True):
        assert value.dtype == options.get("dtype", x.dtype)
        assert value.shape == of.shape
        near = 8 * EPS[value.dtype]
        torch.testing.assert_close(value.double(), of, rtol=near, atol=near)
    upstream = [u.to(v.dtype).double() for u, v in zip(upstream_of(exact), found, strict=True)]
    gradients = [u.to(v.dtype) for u, v in zip(upstream, found, strict=True)]
    torch.autograd.backward(found, gradients)
    torch.autograd.backward(exact, upstream)
    largest = wide.grad.abs().amax(-1, keepdim=True)
    allowed = 100 * step * (1 + largest) if x.dtype is torch.float64 else 8 * step * largest
    assert ((x.grad.double() - wide.grad).abs() <= allowed).all()
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("shape", [(7, 2), (4, 5, 33), (6, 400), (3, 4099)])
def test_the_numbers_and_gradients_are_those_of_the_formulas(shape, k, dtype):
    x, index = make(*shape, dtype=dtype, k=k)
    compare(x, index)
    compare(x, index, temperature=0.7)
    if dtype in (torch.float16, torch.bfloat16):
        compare(x, index, dtype=torch.float32)


def test_the_gradient_of_the_entropy_where_all_classes_are_almost_alike():
    """-p (log p + H): the sum cancels, and H in float32 is not enough."""
    x, index = make(4, 1000, spread=1e-3)
    wide = x.double().requires_grad_()
    entropy_from_logits(wide).sum().backward()
    selected_log_probs(x.requires_grad_(), index, return_entropy=True)[1].sum().backward()
    assert (x.grad - wide.grad).norm() <= EPS[x.dtype] * wide.grad.norm()


def test_without_the_entropy_it_is_one_tensor():
    x, index = make(5, 40)
    both = selected_log_probs(x, index, return_entropy=True)
    assert torch.equal(selected_log_probs(x, index), both[0])


def test_the_bits_are_those_of_numpy():
    x, index = make(9, 700, k=2)
    x.requires_grad_()
    log_prob, entropy = selected_log_probs(x, index, return_entropy=True, n_threads=1)
    found = xe.selected_log_probs(x.detach().numpy(), index.numpy())
    assert np.array_equal(log_prob.detach().numpy(), found.log_prob)
    assert np.array_equal(entropy.detach().numpy(), found.entropy)
    log_prob.sum().backward()
    numbers = found.lse, found.log_prob.astype("f8"), found.entropy
    grad = xe.selected_log_probs_grad(x.detach().numpy(), index.numpy(), *numbers, 1.0)
    np.testing.assert_allclose(x.grad.numpy(), grad, rtol=1e-6, atol=1e-8)


def test_any_dimension_and_strides():
    x, index = make(4, 5, 30, k=2)
    expected = selected_log_probs(x, index, return_entropy=True)
    for dim in (0, 1, 2, -2):
        moved = x.movedim(-1, dim), index.movedim(-1, dim)
        log_prob, entropy = selected_log_probs(*moved, dim=dim, return_entropy=True)
        assert torch.equal(log_prob.movedim(dim, -1), expected[0])
        assert torch.equal(entropy, expected[1])
    one = index[..., 0]
    assert torch.equal(selected_log_probs(x, one.int()), expected[0][..., 0])


def test_masked_tokens_have_no_gradient_and_are_not_read():
    x, index = make(6, 50)
    index[::2] = -100
    x[::2] = torch.nan
    x.requires_grad_()
    log_prob, entropy = selected_log_probs(x, index, return_entropy=True)
    assert not log_prob[::2].any()
    assert not entropy[::2].any()
    (log_prob.sum() + entropy.sum()).backward()
    assert not x.grad[::2].any()
    assert x.grad[1::2].all()


@pytest.mark.parametrize("shape", [(6, 50), (3, 1500)])
def test_ratios_of_ppo_and_a_bonus_for_entropy(shape):
    """The upstream gradients depend on the log-probabilities; gradcheck by finite differences."""
    x, index = make(*shape, dtype=torch.float64)
    old, advantage = torch.randn(shape[0]).double(), torch.randn(shape[0]).double()

    def loss(logits, function):
        log_p, entropy = function(logits, index, return_entropy=True)
        ratio = (log_p - log_p.detach() + 0.1 * old).exp()
        clipped = ratio.clamp(0.9, 1.1)
        return -(torch.minimum(ratio * advantage, clipped * advantage) + 0.01 * entropy).mean()

    def formula(logits, index, return_entropy):
        return selective_log_softmax(logits, index), entropy_from_logits(logits)

    gradients = []
    for function in (selected_log_probs, formula):
        leaf = x.clone().requires_grad_()
        loss(leaf, function).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_gradcheck_and_gradgradcheck():
    x, index = make(3, 6, dtype=torch.float64, k=2)
    index[0, 0] = -100
    for options in ({"temperature": 0.7}, {"softcap": 4.0}):

        def function(logits, options=options):
            return selected_log_probs(logits, index, return_entropy=True, **options)

        leaf = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(function, leaf)
        assert torch.autograd.gradgradcheck(function, leaf)


def test_gradients_of_one_result_alone():
    x, index = make(5, 20, dtype=torch.float64)
    for which, formula in enumerate((selective_log_softmax, lambda x, _: entropy_from_logits(x))):
        leaf, wide = (x.clone().requires_grad_() for _ in range(2))
        selected_log_probs(leaf, index, return_entropy=True)[which].sum().backward()
        formula(wide, index).sum().backward()
        torch.testing.assert_close(leaf.grad, wide.grad, rtol=1e-10, atol=1e-13)


def test_the_operators_are_what_torch_expects_of_operators():
    x, index = make(4, 30, k=2)
    operators = torch.ops.xentropy
    arguments = x.requires_grad_(), index, -1, -100, 1.0, None, None
    for dtype in (torch.float32, torch.float64):
        torch.library.opcheck(operators.selected_log_probs.default, (*arguments, dtype))
    log_prob, entropy, lse = operators.selected_log_probs(*arguments, torch.float32)
    kept = [t.detach() for t in (x, index, log_prob, entropy, lse)]
    backward = kept[2], kept[3], *kept, *arguments[2:]
    torch.library.opcheck(operators.selected_log_probs_backward.default, backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_without_a_graph_break(dtype):
    x, index = make(8, 300, dtype=dtype)

    def loss(logits, index):
        log_p, entropy = selected_log_probs(
            logits, index, return_entropy=True, temperature=0.9, dtype=torch.float32
        )
        return (log_p * 0.5 + 0.1 * entropy).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        value = function(leaf, index)
        value.backward()
        results.append((value.detach(), leaf.grad))
    for mine, compiled in zip(*results, strict=True):
        torch.testing.assert_close(mine, compiled)


def test_no_graph_is_made_without_gradients():
    x, index = make(5, 40)
    x.requires_grad_()
    with torch.no_grad():
        assert not selected_log_probs(x, index).requires_grad
    with torch.inference_mode():
        assert torch.equal(selected_log_probs(x, index), selected_log_probs(x.detach(), index))


def test_autocast_gives_float32():
    x, index = make(5, 40, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = selected_log_probs(x, index, return_entropy=True)
    assert [each.dtype for each in found] == [torch.float32] * 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of forward mode
def test_transforms_and_forward_derivatives_use_torchs_operations():
    x, index = make(4, 30, dtype=torch.float64)
    rows = torch.func.vmap(lambda a, i: selected_log_probs(a, i, return_entropy=True))(x, index)
    for mapped, direct in zip(rows, selected_log_probs(x, index, return_entropy=True), strict=True):
        torch.testing.assert_close(mapped, direct)
    tangent = torch.ones_like(x).cumsum(-1)
    _, derivative = torch.func.jvp(lambda a: selected_log_probs(a, index), (x,), (tangent,))
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(selected_log_probs(leaf, index).sum(), leaf)[0]
    torch.testing.assert_close(derivative.sum(), (gradient * tangent).sum())


def test_batched_upstream_gradients():
    """Jacobians by is_grads_batched."""
    x, index = make(3, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda a: selected_log_probs(a, index), x, vectorize=True
    )
    exact = torch.autograd.functional.jacobian(lambda a: selective_log_softmax(a, index), x)
    torch.testing.assert_close(jacobian, exact)


def test_memory_is_the_gradient_alone():
    """No array of the size of the logits but the gradient: what torch allocates, and NumPy."""
    x, index = make(4, 10)
    meta = selected_log_probs(x.requires_grad_(), index)
    kept = [t for t in meta.grad_fn.next_functions[0][0].saved_tensors if t is not None]
    assert sum(t.numel() == x.numel() for t in kept) == 1
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_may_be_written_into(dtype):
    x, index = make(4, 10, dtype=dtype)
    gradients = []
    for in_place in (False, True):
        log_p, entropy = selected_log_probs(x.requires_grad_(), index, return_entropy=True)
        log_p, entropy = (log_p.mul_(2), entropy.neg_()) if in_place else (log_p * 2, -entropy)
        gradients += torch.autograd.grad((log_p.sum() + entropy.sum()), x)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


MISTAKES = [
    ({"logits": [[0.0]]}, TypeError, "logits must be a tensor"),
    ({"index": np.zeros(2, int)}, TypeError, "index must be a tensor.*as_tensor"),
    ({"logits": torch.zeros(2, 3).long()}, TypeError, "logits must be floating"),
    ({"index": torch.zeros(2)}, TypeError, "index must be integers"),
    ({"index": torch.tensor([0, 3])}, IndexError, r"index\[1\] = 3 .* 3 classes"),
    ({"index": torch.zeros(3).long()}, ValueError, r"index has shape \(3,\), not \(2,\)"),
    ({"dim": 2}, ValueError, "axis = 2 is out of range"),
    ({"temperature": 0}, ValueError, "temperature = 0"),
    ({"temperature": "1"}, TypeError, "temperature must be a number"),
    ({"softcap": -1}, ValueError, "softcap"),
    ({"n_threads": 0}, ValueError, "n_threads"),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    call = {"logits": torch.zeros(2, 3), "index": torch.zeros(2).long(), **spoiled}
    with pytest.raises(error, match=says):
        selected_log_probs(call.pop("logits"), call.pop("index"), **call)
