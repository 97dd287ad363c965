"""xentropy.torch in backward: what is kept, handed out, scaled; second derivatives, transforms."""

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import exact_gradient, logits_and_labels

from xentropy.torch import _arrays, _autograd, cross_entropy

FLOATS = [torch.float32, torch.float64]
BITS16 = [torch.float16, torch.bfloat16]

# What torch itself loads for forward-mode derivatives.
SCRIPTED = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture
def calls(monkeypatch):
    """The calls of the kernels: (with gradient, address of the result's memory)."""
    made = []

    def noted(function):
        def call(with_grad, *rest):
            result = function(with_grad, *rest)
            made.append((with_grad, result[1].data_ptr() if with_grad else None))
            return result

        return call

    for name in ("as_tensors", "compute"):
        monkeypatch.setattr(_autograd, name, noted(getattr(_arrays, name)))
    return made


@pytest.mark.parametrize("rows", [6, 1 << 18], ids=["small", "large"])  # torch's memory, ours
@pytest.mark.parametrize("dtype", FLOATS + BITS16, ids=str)
def test_an_upstream_gradient_of_1_gets_the_kept_memory_itself(calls, dtype, rows):
    x, y = logits_and_labels(rows, dtype=dtype)
    cross_entropy(x, y).backward()
    assert calls == [(True, x.grad.data_ptr())]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_another_upstream_gradient_scales_the_kept_memory(calls, dtype):
    x, y = logits_and_labels(dtype=dtype)
    (3 * cross_entropy(x, y)).backward()
    assert calls == [(True, x.grad.data_ptr())]
    assert torch.equal(x.grad, 3 * torch.autograd.grad(cross_entropy(x, y), x)[0])


@pytest.mark.parametrize("dtype", BITS16, ids=str)
def test_in_16_bits_the_upstream_gradient_comes_before_the_rounding(calls, dtype):
    """Loss scaling: a gradient that underflows float16 is there when the loss is scaled."""
    x, y = logits_and_labels(64, 1000, dtype=dtype)
    upstream = torch.tensor(2.0**15)
    with torch.autocast("cpu", torch.bfloat16):  # a float32 loss, as GradScaler sees it
        (cross_entropy(x, y) * upstream).backward()
    exact = exact_gradient(x, y, upstream)
    # rounded once: half a unit in the last place, which is tiny * eps below tiny
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((x.grad.double() - exact).abs() <= 0.501 * unit).all()
    assert calls[1][1] == calls[0][1] == x.grad.data_ptr()  # into the memory that was kept


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", FLOATS + BITS16, ids=str)
def test_rows_that_do_not_count_get_0_of_an_infinite_upstream_gradient_too(
    dtype, inplace, retained
):
    x, y = logits_and_labels(8, 5, dtype=dtype)
    y[::2] = -100
    found = []
    for call in (lambda: cross_entropy(1 * x, y, inplace=inplace), lambda: F.cross_entropy(x, y)):
        x.grad = None
        call().backward(torch.tensor(torch.inf, dtype=dtype), retain_graph=retained)
        found.append(x.grad)
    for gradient in found:
        assert (gradient[::2] == 0).all()
        assert not gradient[1::2].isfinite().any()


@pytest.mark.parametrize("retained", [False, True])
def test_an_upstream_gradient_that_only_the_loss_has_room_for(retained):
    """2 ** 16, with which loss scaling starts, is inf in float16, and 1e300 is in float32."""
    x, y = logits_and_labels(8, 5, dtype=torch.float16)
    y[::2] = -100
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(1 * x, y, inplace=True).backward(torch.tensor(2.0**16), retained)
    expected = x.detach().double().requires_grad_()
    F.cross_entropy(expected, y).backward(torch.tensor(2.0**16, dtype=torch.float64))
    torch.testing.assert_close(x.grad.double(), expected.grad, rtol=2e-3, atol=4)
    x, rows = torch.randn(4, 5, requires_grad=True), torch.tensor([1.0, 0, 1, 0])
    loss = cross_entropy(x, torch.full((4, 5), 0.2, dtype=torch.float64), sample_weight=rows)
    loss.backward(torch.tensor(1e300, dtype=torch.float64), retained)
    assert (x.grad[1::2] == 0).all()
    assert not x.grad[::2].isfinite().any()


@pytest.mark.parametrize("dtype", FLOATS + BITS16, ids=str)
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_a_retained_graph_gives_the_same_again_whatever_became_of_the_first(dtype, upstream):
    x, y = logits_and_labels(dtype=dtype)
    loss = cross_entropy(x, y) * upstream
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    expected = first.clone()
    first.mul_(0)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(second, expected)
    second.mul_(0)
    (last,) = torch.autograd.grad(loss, x)
    # scaled instead of computed with the scale: one rounding more
    assert torch.allclose(last, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_one_retained_graph_with_several_upstream_gradients():
    x, y = logits_and_labels(dtype=torch.float64)
    loss = cross_entropy(x, y)
    (2 * loss).backward(retain_graph=True)
    (3 * loss).backward(retain_graph=True)
    loss.backward()
    assert torch.allclose(x.grad, exact_gradient(x, y, torch.tensor(6.0)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", FLOATS + BITS16, ids=str)
def test_none_computes_in_backward_once_and_exactly(calls, dtype):
    x, y = logits_and_labels(dtype=dtype)
    upstream = torch.linspace(-2, 2, 6).to(dtype)
    loss = cross_entropy(x, y, reduction="none")
    assert calls == [(False, None)]
    loss.backward(upstream)
    assert calls[1:] == [(True, x.grad.data_ptr())]
    exact = exact_gradient(x, y, upstream, reduction="none")
    eps = max(torch.finfo(dtype).eps, 1e-14)  # torch's float64 is no more exact
    assert torch.allclose(x.grad.double(), exact, rtol=4 * eps, atol=torch.finfo(dtype).tiny * eps)
    x.grad = None
    cross_entropy(x, y, reduction="none").sum().backward()  # an upstream gradient of stride 0
    assert torch.allclose(
        x.grad.double(),
        exact_gradient(x, y, torch.tensor(1.0), reduction="sum"),
        rtol=4 * eps,
        atol=torch.finfo(dtype).tiny * eps,
    )


def test_logits_modified_before_backward_are_an_error():
    leaf, y = logits_and_labels()
    for reduction in ("mean", "none"):
        x = leaf * 1
        loss = cross_entropy(x, y, reduction=reduction).sum()
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# --- derivatives of any order, transforms ---


@pytest.mark.parametrize("target", ["labels", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2},
        {"z_loss": 0.1, "logit_scale": 0.5, "base": 2.0},
        {"softcap": 1.5, "logit_scale": 0.5},
        {"sample_weight": torch.tensor([1.0, 0.5, 2.0, 0.3]).double()},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_gradcheck_and_gradgradcheck(target, reduction, options):
    x, y = logits_and_labels(4, 3, torch.float64)
    if target == "probabilities":
        y = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weight = torch.tensor([0.5, 1, 2]).double()

    def loss(a, b):
        return cross_entropy(a, b, weight, reduction=reduction, **options)

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y), fast_mode=True)


@pytest.mark.parametrize("upstream", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (32, 10)], ids=str)
def test_second_derivatives_are_torchs_whatever_the_upstream_gradient(shape, upstream):
    x, y = logits_and_labels(*shape, torch.float64)
    direction = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(shape)
    found = []
    for function in (cross_entropy, F.cross_entropy):
        loss = upstream * function(x, y)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append((first, *torch.autograd.grad(first, x, direction)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-16)


def test_a_gradient_that_has_a_graph_is_not_the_kept_one():
    """Also where the graph of the loss is not retained, and the upstream gradient is 1."""
    x, y = logits_and_labels()
    loss = cross_entropy(x, y)
    (first,) = torch.autograd.grad(loss, x, create_graph=True, retain_graph=False)
    assert first.requires_grad


def test_gradients_in_logits_and_target_come_together():
    x, _ = logits_and_labels(4, 3, torch.float64)
    p = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    ours = torch.autograd.grad(cross_entropy(x, p), (x, p))
    theirs = torch.autograd.grad(F.cross_entropy(x, p), (x, p))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_weights_that_want_a_gradient_get_it():
    x, _ = logits_and_labels(4, 3, torch.float64)
    p = torch.rand(4, 3).double()
    weight = torch.ones(3).double().requires_grad_()
    rows = torch.ones(4).double().requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda w: cross_entropy(x.detach(), p, w), (weight,))
    assert check(lambda v: cross_entropy(x, p, sample_weight=v), (rows,))


@SCRIPTED
def test_transforms_of_torch_func():
    x, y = logits_and_labels(4, 3, torch.float64)
    x = x.detach()
    hessian = torch.func.hessian(lambda a: cross_entropy(a, y))(x)
    assert torch.allclose(hessian, torch.func.hessian(lambda a: F.cross_entropy(a, y))(x))
    each = torch.func.vmap(torch.func.grad(lambda a, b: cross_entropy(a, b)))(x, y)
    expected = exact_gradient(x, y, torch.tensor(1.0), reduction="sum")
    assert torch.allclose(each, expected)
    _, tangent = torch.func.jvp(lambda a: cross_entropy(a, y), (x,), (torch.ones_like(x),))
    assert abs(tangent) < 1e-15  # a constant added to all logits changes nothing


@SCRIPTED
def test_forward_mode_is_not_dropped():
    x, y = logits_and_labels(4, 3, torch.float64)
    with torch.autograd.forward_ad.dual_level():
        direction = torch.zeros(4, 3).double()
        direction[0, 0] = 1
        dual = torch.autograd.forward_ad.make_dual(x.detach(), direction)
        tangent = torch.autograd.forward_ad.unpack_dual(cross_entropy(dual, y)).tangent
    assert torch.allclose(tangent, exact_gradient(x, y, torch.tensor(1.0))[0, 0])


def test_a_target_that_is_computed_from_the_logits_has_each_path_once():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    second = []
    for function in (cross_entropy, torch.nn.functional.cross_entropy):
        loss = function(x, (2 * x).softmax(1))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second.append((first, *torch.autograd.grad(first.square().sum(), x)))
    for ours, theirs in zip(*second, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
