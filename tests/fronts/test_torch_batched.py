"""xentropy.torch where backward runs under vmap: a batch of upstream gradients for one loss."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import exact_gradient, labels, probabilities, seeded
from torch.autograd.functional import hessian, jacobian

from xentropy.torch import cross_entropy

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCTIONS = ["mean", "sum", "none"]
SOFT = pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
EACH = pytest.mark.parametrize("reduction", REDUCTIONS)


def inputs(soft, dtype=torch.float64):
    x = seeded(4, 3, dtype=dtype)
    return x, probabilities((4, 3), dtype).requires_grad_() if soft else labels((4, 3))


def wanted(x, y):
    return (x, y) if y.requires_grad else (x,)


def upstreams(loss, batch=3):
    generator = torch.Generator().manual_seed(5)
    shape = (batch, *loss.shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(loss.dtype)


def autograds(loss, tensors, v, **options):
    return torch.autograd.grad(loss, tensors, v, is_grads_batched=True, **options)


def of_torch_func(loss, tensors, v, **options):
    return torch.func.vmap(lambda u: torch.autograd.grad(loss, tensors, u, **options))(v)


VMAPS = pytest.mark.parametrize("batched", [autograds, of_torch_func])
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "ours": {"z_loss": 0.1, "logit_scale": 0.5, "base": 2.0},
    "softcap": {"softcap": 2.5, "logit_scale": 0.5},
    "weights": {
        "weight": torch.tensor([0.5, 1, 2]).double(),
        "sample_weight": torch.tensor([1, 0.5, 0, 2]).double(),
    },
}


@SOFT
@EACH
@VMAPS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_gradient_is_the_one_of_a_call_by_itself(options, batched, reduction, soft):
    x, y = inputs(soft)
    loss = cross_entropy(x, y, reduction=reduction, **options)
    v = upstreams(loss)
    found = batched(loss, wanted(x, y), v, retain_graph=True)
    for i, upstream in enumerate(v):
        each = torch.autograd.grad(loss, wanted(x, y), upstream, retain_graph=True)
        for a, b in zip(found, each, strict=True):
            # a kept gradient is scaled there: one rounding more
            assert torch.allclose(a[i], b, rtol=4e-16, atol=1e-17)


@VMAPS
@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_all_dtypes_and_the_kept_gradient_stays_what_it_was(dtype, reduction, batched):
    x, y = inputs(False, dtype)
    loss = cross_entropy(x, y, reduction=reduction)
    (before,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
    v = upstreams(loss)
    (found,) = batched(loss, (x,), v, retain_graph=True)
    assert (found.dtype, found.shape) == (dtype, (3, 4, 3))
    exact = torch.stack([exact_gradient(x, y, u, reduction=reduction) for u in v])
    bound = 4 * max(torch.finfo(dtype).eps, 1e-15) * exact.abs() + 1e-7 * (dtype in DTYPES[:2])
    assert ((found.double() - exact).abs() <= bound).all()
    assert torch.equal(torch.autograd.grad(loss.sum(), x, retain_graph=True)[0], before)
    batched(loss, (x,), v)  # gives the graph up
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss.sum(), x)


@SOFT
@EACH
def test_vectorized_jacobian_and_hessian(reduction, soft):
    x, y = inputs(soft)
    p = y.detach()

    def loss(function):
        return lambda a: function(a, p, reduction=reduction)

    ours, theirs = (jacobian(loss(f), x, vectorize=True) for f in (cross_entropy, F.cross_entropy))
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-16)
    total = [lambda a, f=f: loss(f)(a).sum() for f in (cross_entropy, F.cross_entropy)]
    ours, theirs = (hessian(each, x, vectorize=True) for each in total)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-16)
    graph = jacobian(loss(cross_entropy), x, vectorize=True, create_graph=True)
    assert graph.requires_grad


@SOFT
@EACH
def test_gradcheck_of_batched_gradients(reduction, soft):
    x, y = inputs(soft)
    for options in OPTIONS.values():

        def loss(a, b=y, options=options):
            return cross_entropy(a, b, reduction=reduction, **options)

        arguments = wanted(x, y)
        assert torch.autograd.gradcheck(loss, arguments, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(
            loss, arguments, check_batched_grad=True, fast_mode=False
        )


@VMAPS
@EACH
def test_of_logits_that_are_overwritten(reduction, batched):
    x, y = inputs(False)
    expected = cross_entropy(x, y, reduction=reduction)
    v = upstreams(expected)
    (expected,) = batched(expected, (x,), v)
    loss = cross_entropy(x * 1, y, reduction=reduction, inplace=True)
    (found,) = batched(loss, (x,), v)
    assert torch.allclose(found, expected, rtol=1e-15, atol=0)


def test_batches_of_batches():
    x, y = inputs(False)
    loss = cross_entropy(x, y, reduction="none")
    v = upstreams(loss, 6).reshape(2, 3, 4)
    one = lambda u: torch.autograd.grad(loss, x, u, retain_graph=True)[0]  # noqa: E731
    found = torch.func.vmap(torch.func.vmap(one))(v)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.allclose(found[i, j], one(v[i, j]), rtol=1e-15, atol=0)


# torch itself loads a script for forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@SOFT
@EACH
def test_forward_mode_over_backward(reduction, soft):
    x, y = inputs(soft)
    loss = cross_entropy(x, y, reduction=reduction)
    v, direction = upstreams(loss, 2)
    one = lambda u: torch.autograd.grad(loss, wanted(x, y), u, retain_graph=True)  # noqa: E731
    _, tangents = torch.func.jvp(one, (v,), (direction,))
    for found, exact in zip(tangents, one(direction), strict=True):  # linear in the upstream
        assert torch.allclose(found, exact, rtol=1e-14, atol=0)


OPERATOR = torch.ops.xentropy.cross_entropy.default
PLAIN = (None, None, 1, -100, "none", None, 0.0, 0.0, 1.0, None, None)


@VMAPS
def test_of_the_operator(batched):
    x, y = inputs(False)
    loss = OPERATOR(x, y, *PLAIN, torch.float64)
    v = upstreams(loss)
    (found,) = batched(loss, (x,), v, retain_graph=True)
    for i, upstream in enumerate(v):
        assert torch.equal(found[i], torch.autograd.grad(loss, x, upstream, retain_graph=True)[0])


def test_vmap_of_the_operator_calls_it_for_each_element():
    x, y = seeded(2, 4, 3).detach(), torch.stack([labels((4, 3)), labels((4, 3), seed=7)])
    found = torch.func.vmap(lambda a, b: OPERATOR(a, b, *PLAIN, torch.float32))(x, y)
    for i in range(2):
        assert torch.equal(found[i], OPERATOR(x[i], y[i], *PLAIN, torch.float32))
    one = torch.func.vmap(lambda b: OPERATOR(x[0], b, *PLAIN, torch.float32))(y)
    assert torch.equal(one[1], OPERATOR(x[0], y[1], *PLAIN, torch.float32))


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "logit_scale": torch.tensor(2.0)}])
def test_of_a_backward_that_calls_the_loss(options):
    """It is called on the batch itself."""
    y = torch.tensor([0, 2])

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            return upstream * cross_entropy(upstream, y, reduction="none", **options).unsqueeze(1)

    x, upstream = torch.zeros(2, 3, requires_grad=True), torch.randn(4, 2, 3)
    result = Backward.apply(x)
    (found,) = torch.autograd.grad(result, x, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        (exact,) = torch.autograd.grad(result, x, upstream[i], retain_graph=True)
        assert torch.allclose(found[i], exact, rtol=1e-5, atol=1e-6)
