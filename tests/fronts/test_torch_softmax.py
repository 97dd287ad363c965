"""xentropy.torch's softmax family against torch in float64: values, gradients, tails."""

import doctest
import functools
import math

import pytest
import torch
from helpers.torch_oracle import seeded
from helpers.torch_softmax import (
    BITS16,
    DTYPES,
    EVERY,
    INF,
    NAN,
    PAIRS,
    assert_close,
    upstream_of,
    value_and_gradient,
)

import xentropy as xe
import xentropy.torch as xt
from xentropy.torch import _softmax, _softmax_autograd


def layouts(dtype):
    """(what, tensor, dim): contiguous, strided, permuted, expanded, in another memory format."""
    x = seeded(6, 4, 5, dtype=dtype).detach()
    yield "last", x, -1
    yield "first", x, 0
    yield "between", x, 1
    yield "step", x[::2, :, ::2], 2
    yield "permuted", x.permute(2, 0, 1), 1
    yield "rows expanded", x[:1].expand(6, 4, 5), 2
    yield "classes expanded", x[:, :1].expand(6, 4, 5), 1
    yield "offset", x[1:, 1:, 1:], -1
    yield (
        "channels last",
        seeded(2, 5, 3, 4, dtype=dtype).detach().contiguous(memory_format=torch.channels_last),
        1,
    )
    yield "vector", x[0, 0], 0
    yield "long rows", seeded(3, 700, dtype=dtype).detach(), 1
    yield "kernels' memory", seeded(300, 1001, dtype=dtype).detach().repeat(2, 2), 1


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_in_every_layout(dtype, name):
    ours, theirs = PAIRS[name]
    for what, x, dim in layouts(dtype):
        values, gradient = value_and_gradient(ours, x, dim)
        upstream = upstream_of(values)
        exact, exact_gradient = value_and_gradient(theirs, x.double(), dim, upstream.double())
        assert (values.dtype, values.shape) == (dtype, exact.shape), what
        assert (gradient.dtype, gradient.shape) == (dtype, x.shape), what
        assert_close(values, exact, exact.abs() + 1, what)
        if name == "softmax" and dtype in BITS16:  # from the rounded result, as torch's
            theirs_gradient = value_and_gradient(theirs, x, dim, upstream)[1]
            bound = 2 * torch.finfo(dtype).eps * upstream.abs().max()
            assert (gradient - theirs_gradient).abs().max() <= bound, what
            continue
        total = upstream.double().abs()
        if upstream.shape == x.shape:
            total = total.sum(dim, keepdim=True).expand_as(x)
        elif name != "keepdim":
            total = total.unsqueeze(dim).expand_as(x)
        assert_close(gradient, exact_gradient, 20 * total, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(0, 2), [1, -1], (0, 1, 2), (1,)], ids=str)
def test_logsumexp_over_several_dimensions(dims, dtype):
    x = seeded(4, 5, 3, dtype=dtype)
    for keepdim in (False, True):
        values, gradient = value_and_gradient(
            functools.partial(xt.logsumexp, keepdim=keepdim), x, dims
        )
        exact, exact_gradient = value_and_gradient(
            functools.partial(torch.logsumexp, keepdim=keepdim),
            x.double(),
            dims,
            upstream_of(values).double(),
        )
        assert values.shape == exact.shape
        assert_close(values, exact, exact.abs() + 1, keepdim)
        assert_close(gradient, exact_gradient, 5, keepdim)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_memory_format_is_kept(name):
    function = getattr(xt, name)
    small = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for x in (small, small.repeat(8, 8, 16, 16), small.permute(3, 1, 0, 2)):
        assert function(x, 1).stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_have_the_bits_of_the_numpy_calls(dtype):
    x = seeded(7, 300, dtype=dtype).detach()
    for name in ("softmax", "log_softmax"):
        wide = getattr(xe, name)(x.float().numpy() if dtype in BITS16 else x.numpy(), axis=1)
        # 16 bits: float32's result, rounded
        assert torch.equal(getattr(xt, name)(x, 1), torch.from_numpy(wide).to(dtype))


def test_negated_views():
    for dtype in DTYPES:
        x = seeded(4, 6, dtype=dtype).detach()
        for ours, _ in PAIRS.values():
            assert torch.equal(ours(torch._neg_view(x), 1), ours(-x, 1))
    z = torch.complex(torch.randn(4, 6), torch.randn(4, 6))
    assert torch.equal(xt.log_softmax(z.conj().imag, 1), xt.log_softmax(-z.imag, 1))


def test_tails_are_exact():
    x = torch.tensor([[20.0, 0.0]], requires_grad=True)
    tail = math.exp(-20) / (1 + math.exp(-20))
    log_p = xt.log_softmax(x, 1)
    assert log_p[0, 0].item() == pytest.approx(-math.log1p(math.exp(-20)), rel=1e-6)
    for at, sign in ((0, 1), (1, -1)):  # torch: 0 at class 0
        (gradient,) = torch.autograd.grad(xt.log_softmax(x, 1)[0, at], x)
        expected = [tail, -tail] if at == 0 else [tail - 1, 1 - tail]
        assert gradient[0].tolist() == pytest.approx(expected, rel=1e-6), sign
    value, gradient = value_and_gradient(xt.entropy, x, 1, torch.ones(1))
    assert value.item() == pytest.approx(21 * math.exp(-20), rel=1e-6)
    assert gradient[0].tolist() == pytest.approx([-20 * tail, 20 * tail], rel=1e-6)
    target = torch.tensor([[1.0, 0.0]])
    loss = xt.kl_divergence(target, x)
    assert loss.item() == pytest.approx(tail, rel=1e-6)
    assert torch.autograd.grad(loss, x)[0][0].tolist() == pytest.approx([-tail, tail], rel=1e-6)


@pytest.mark.parametrize("classes", [5, 100, 3000])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_gradient_of_a_confident_log_probability(dtype, classes):
    """At the most probable class: g (1 - p), relative to itself, where torch rounds 1 - p."""
    x = seeded(8, classes, dtype=dtype).detach()
    x[:, 2] += 30
    value, gradient = value_and_gradient(
        lambda a, dim: xt.log_softmax(a, dim)[:, 2], x, 1, torch.ones(8, dtype=dtype)
    )
    exact = -torch.softmax(x.double(), 1)
    exact[:, 2] = 0
    exact[:, 2] = -exact.sum(1)  # 1 - p, of which float64 itself loses the end
    epsilon = torch.finfo(dtype).eps
    assert torch.allclose(gradient.double(), exact, rtol=32 * epsilon, atol=1e-30)
    assert torch.allclose(value.double(), torch.log1p(-exact[:, 2]), rtol=32 * epsilon, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_rows_that_are_not_finite(name, dtype):
    ours, theirs = PAIRS[name]
    rows = [[-INF, -INF, -INF], [INF, 0, 0], [INF, INF, 1], [NAN, 0, 1], [-INF, 0, 1], [2, 0, 1]]
    x = torch.tensor(rows, dtype=dtype)
    values, gradient = value_and_gradient(ours, x, 1)
    if name == "entropy":
        finite = xt.entropy(x[4:, 1:], 1)
        assert values[:4].isnan().all()
        assert values[4] == finite[0]
    else:
        expected, _ = value_and_gradient(theirs, x, 1)
        eps = 2 * torch.finfo(dtype).eps
        assert torch.allclose(values, expected, rtol=eps, atol=eps, equal_nan=True)
    assert gradient[4:].isfinite().all()
    if name != "log_softmax":
        assert gradient[4, 0] == 0
    if name != "logsumexp":
        assert gradient[:4].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_terms_have_no_part_in_an_infinite_sum(dtype):
    """The gradient of logsumexp is exp(x - lse): 0 beside an infinite logit, at which it is nan."""
    rows = [[INF, 0, -INF], [INF, INF, 1], [INF, NAN, 1], [-INF, -INF, -INF], [2, 0, 1]]
    x = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for dims in (1, 0, (0, 1)):
        for graph in (False, True):
            found, wanted = (
                torch.autograd.grad(function(x, dims).sum(), x, create_graph=graph)[0]
                for function in (xt.logsumexp, torch.logsumexp)
            )
            bound = 4 * torch.finfo(dtype).eps
            assert torch.allclose(found, wanted, rtol=bound, atol=0, equal_nan=True)
    x = torch.tensor(rows[:2], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(xt.logsumexp(x, 1).sum(), x)
    assert gradient.nan_to_num(7).tolist() == [[7, 0, 0], [7, 7, 0]]


@EVERY
def test_nothing(name):
    ours, theirs = PAIRS[name]
    for shape, dim in (((0, 3), 1), ((3, 0), 1), ((3, 0), 0), ((0,), 0), ((2, 0, 4), 2)):
        x = torch.zeros(shape)
        values, gradient = value_and_gradient(ours, x, dim)
        assert values.shape == theirs(x, dim).shape
        assert gradient.shape == shape
    no_classes = ours(torch.zeros(3, 0), 1)
    if name in ("entropy", "bits"):
        assert (no_classes == 0).all()
    elif no_classes.numel():
        assert (no_classes == -INF).all()


@EVERY
def test_scalars_are_one_class(name):
    ours, _ = PAIRS[name]
    expected = {"softmax": 1.0, "logsumexp": 3.0, "keepdim": 3.0}.get(name, 0.0)
    for dim in (0, -1):
        values, gradient = value_and_gradient(ours, torch.tensor(3.0), dim)
        assert values.shape == gradient.shape == ()
        assert values == expected
        assert math.copysign(1, values) == 1


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "entropy"])
def test_the_kernels_compute(name, monkeypatch):
    """And not torch's own functions, which would pass all that is above but the tails."""
    called = []
    for what in ("normalized", "reduced"):
        for module in (_softmax, _softmax_autograd):
            function = getattr(module, what)
            monkeypatch.setattr(
                module, what, lambda *a, f=function, **k: called.append(f) or f(*a, **k)
            )
    PAIRS[name][0](torch.zeros(2, 3), 1)
    PAIRS[name][0](torch.zeros(2, 3, requires_grad=True), 1)
    assert len(called) == 2


def test_docstrings():
    result = doctest.testmod(_softmax)
    assert result.attempted > 15
    assert result.failed == 0
