"""xentropy.torch's softmax family against torch in float64: values, gradients, refusals."""

import doctest
import functools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import seeded

import xentropy as xe
import xentropy.torch as xt
from xentropy.torch import _softmax, _softmax_autograd

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS16 = DTYPES[:2]
INF, NAN = math.inf, math.nan


def torch_entropy(x, dim, base=None):
    log_p = torch.log_softmax(x, dim)
    return -(log_p.exp() * log_p).sum(dim) / math.log(base or math.e)


def torch_divergence(target, x, dim, reduction, base=None):
    each = torch.xlogy(target, target) - target * torch.log_softmax(x, dim)
    rows = each.sum(dim) / math.log(base or math.e)
    return {"none": lambda: rows, "sum": rows.sum, "mean": rows.mean}[reduction]()


# Ours and torch's, of a tensor and a dimension.
PAIRS = {
    "softmax": (xt.softmax, torch.softmax),
    "log_softmax": (xt.log_softmax, torch.log_softmax),
    "logsumexp": (xt.logsumexp, torch.logsumexp),
    "keepdim": (
        functools.partial(xt.logsumexp, keepdim=True),
        functools.partial(torch.logsumexp, keepdim=True),
    ),
    "entropy": (xt.entropy, torch_entropy),
    "bits": (functools.partial(xt.entropy, base=2), functools.partial(torch_entropy, base=2)),
}
EVERY = pytest.mark.parametrize("name", PAIRS)


def upstream_of(values):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.dtype)


def value_and_gradient(function, x, dim, upstream=None):
    x = x.detach().requires_grad_()
    values = function(x, dim)
    upstream = upstream_of(values) if upstream is None else upstream
    (gradient,) = torch.autograd.grad(values, x, upstream)
    return values.detach(), gradient


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


def assert_close(actual, exact, unit, what):
    """Within so many eps of the row's scale `unit`; results in 16 bits are rounded once."""
    info = torch.finfo(actual.dtype)
    if actual.dtype in BITS16:  # half an ulp, and what float32 adds
        size = exact.abs().clamp(min=info.tiny)
        bound = 0.5 * info.eps * 2.0 ** size.log2().floor() + 16 * 2**-23 * unit
    else:
        bound = 16 * info.eps * unit  # both sums of exps and the logits' differences
    assert ((actual.double() - exact).abs() <= bound).all(), what


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


# --- tails ---


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


# --- rows that are not finite, or empty ---


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
    assert gradient[:4].isnan().all()
    assert gradient[4:].isfinite().all()
    if name != "log_softmax":
        assert gradient[4, 0] == 0


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


# --- derivatives of any order, batched, forward ---

SCRIPTED = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


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


# --- dtype=, dim=None, refusals ---


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


# --- kl_divergence ---


@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [(DTYPES[2], d) for d in BITS16])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_divergences_and_both_gradients(dim, reduction, dtypes):
    target = seeded(4, 5, 3, dtype=torch.float64, seed=3).detach().softmax(dim).to(dtypes[0])
    target, x = target.requires_grad_(), seeded(4, 5, 3, dtype=dtypes[1])
    values = xt.kl_divergence(target, x, dim=dim, reduction=reduction, base=2)
    upstream = upstream_of(values)
    found = torch.autograd.grad(values, (target, x), upstream)
    wide = [t.detach().double().requires_grad_() for t in (target, x)]
    exact = torch_divergence(*wide, dim, reduction, base=2)
    exact_gradients = torch.autograd.grad(exact, wide, upstream.double())
    assert (values.dtype, values.shape) == (torch.promote_types(*dtypes), exact.shape)
    assert_close(values.detach(), exact.detach(), 10 + exact.detach().abs(), "value")
    for gradient, e, like in zip(found, exact_gradients, (target, x), strict=True):
        assert gradient.dtype == like.dtype
        assert_close(gradient, e, 20 * upstream.double().abs().max(), "gradient")


@SCRIPTED
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dim", [0, -1])
def test_divergence_gradcheck_and_gradgradcheck(dim, reduction):
    x = seeded(2, 3, dtype=torch.float64)
    target = torch.linspace(0.1, 0.9, 6).double().reshape(2, 3).requires_grad_()

    def function(a, b):
        return xt.kl_divergence(a, b, dim=dim, reduction=reduction, base=2)

    for inputs in ((target, x), (target.detach(), x), (target, x.detach())):
        assert torch.autograd.gradcheck(
            function, inputs, check_batched_grad=True, check_forward_ad=True
        )
        assert torch.autograd.gradgradcheck(function, inputs, check_batched_grad=True)


def test_classes_without_target_mass_contribute_nothing():
    target = torch.tensor([[0.0, 0.25, 0.75, 0.0]], requires_grad=True)
    x = torch.tensor([[1.0, 2.0, 0.5, -INF]], requires_grad=True)
    for create_graph in (False, True):
        loss = xt.kl_divergence(target, x)
        of_target, of_x = torch.autograd.grad(loss, (target, x), create_graph=create_graph)
        assert torch.equal(of_target == 0, target == 0)
        assert of_target.isfinite().all()
        assert torch.equal(of_x == 0, x == -INF)
    assert torch.allclose(loss, _softmax._divergence_by_torch(target, x, 1, "mean", None, x.dtype))
    # a teacher that masks a class gets a gradient that is finite
    teacher = torch.tensor([[1.0, 2.0, -INF]], requires_grad=True)
    xt.kl_divergence(xt.softmax(teacher, 1), torch.zeros(1, 3)).backward()
    assert teacher.grad.isfinite().all()


def test_divergences_of_vectors_and_of_nothing():
    x, target = seeded(5), torch.full((5,), 0.2)
    assert torch.equal(xt.kl_divergence(target, x), xt.kl_divergence(target[None], x[None]))
    none = torch.zeros(0, 3, requires_grad=True)
    assert xt.kl_divergence(none.detach(), none).isnan()
    assert xt.kl_divergence(none.detach(), none, reduction="none").shape == (0,)
    (gradient,) = torch.autograd.grad(xt.kl_divergence(none.detach(), none), none)
    assert gradient.shape == (0, 3)


def test_divergences_that_are_refused():
    x = torch.zeros(2, 3)
    cases = [
        ((x, x[:1]), {}, ValueError, "target has shape"),
        (([1.0], x), {}, TypeError, "target must be a tensor, not list"),
        ((x, None), {}, TypeError, "logits must be a tensor, not None"),
        ((x.long(), x), {}, TypeError, "target must be floating"),
        ((x, x.long()), {}, TypeError, "logits must be floating"),
        ((x, x), {"reduction": "batchmean"}, ValueError, "batchmean"),
        ((x, x), {"dim": 2}, IndexError, "out of range"),
        ((x, x), {"dim": 1.0}, TypeError, "dim"),
        ((x[:, :0], x[:, :0]), {}, ValueError, "no classes"),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            xt.kl_divergence(*arguments, **options)


def test_autocast_gives_float32_as_for_the_cross_entropy():
    x = seeded(4, 5, dtype=torch.bfloat16).detach()
    target = torch.full((4, 5), 0.2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert xt.kl_divergence(target, x).dtype == torch.float32
        for name in ("softmax", "log_softmax", "logsumexp"):
            ours, theirs = PAIRS[name]
            assert ours(x, 1).dtype == theirs(x, 1).dtype


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
