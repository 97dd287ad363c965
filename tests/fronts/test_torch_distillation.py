"""xentropy.torch.distillation_loss against TRL's formula in float64, and its derivatives."""

import math

import numpy as np
import pytest
import torch
from helpers.divergences import BETAS
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

import xentropy as xe
from xentropy.torch import _distillation_operator, distillation_loss, kl_divergence
from xentropy.torch._distillation_operator import Options, by_torch, computed

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCTIONS = ["mean", "sum", "none"]
# What 16-bit losses and gradients are rounded to, how far float32 ones may be off, and what the
# formula itself loses in float64 where beta is small.
RELATIVE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-11}


def pair(dtype=torch.float32, shape=(13, 30), **options):
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    return [t.to(dtype).requires_grad_(options.get("grad", True)) for t in made]


def trl(x, y, beta, temperature=1.0):
    """The terms of generalized_jsd_loss, as TRL's GKD has them."""
    s, t = functional.log_softmax(x / temperature, -1), functional.log_softmax(y / temperature, -1)
    if beta == 0:
        return functional.kl_div(s, t, reduction="none", log_target=True)
    if beta == 1:
        return functional.kl_div(t, s, reduction="none", log_target=True)
    m = torch.logsumexp(torch.stack([s + math.log1p(-beta), t + math.log(beta)]), 0)
    of_t = functional.kl_div(m, t, reduction="none", log_target=True)
    of_s = functional.kl_div(m, s, reduction="none", log_target=True)
    return beta * of_t + (1 - beta) * of_s


def reduced(rows, reduction):
    return rows if reduction == "none" else getattr(rows, reduction)()


def both_gradients(x, y, loss):
    upstream = torch.linspace(0.5, 2, max(loss.numel(), 1), dtype=loss.dtype).reshape(loss.shape)
    return torch.autograd.grad(loss, (x, y), upstream)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_both_gradients_are_those_of_trls_formula(beta, reduction, dtype):
    x, y = pair(dtype)
    loss = distillation_loss(x, y, beta=beta, temperature=2.0, reduction=reduction)
    assert loss.dtype == dtype
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    exact = reduced(trl(*wide, beta, 2.0).sum(-1), reduction)
    off = RELATIVE[dtype]
    assert torch.allclose(loss.double(), exact, rtol=2 * off, atol=1e-12)
    for found, wanted in zip(both_gradients(x, y, loss), both_gradients(*wide, exact), strict=True):
        assert found.dtype == dtype
        largest = wanted.abs().amax(-1, keepdim=True)
        assert ((found.double() - wanted).abs() <= 3 * off * largest + 1e-7 * (off > 1e-4)).all()


def test_only_what_is_required_has_a_gradient():
    for which in (0, 1):
        x, y = pair()
        (x, y)[which].requires_grad_(False)
        distillation_loss(x, y, beta=0.3).backward()
        assert [(t.grad is None) for t in (x, y)] == [which == 0, which == 1]
    x, y = pair(grad=False)
    assert not distillation_loss(x, y).requires_grad


def test_backward_twice_on_a_retained_graph():
    x, y = pair()
    loss = distillation_loss(x, y, beta=0.5)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    (3 * loss).backward()
    assert torch.allclose(x.grad, 4 * first)


def test_rows_that_do_not_count_get_0_of_an_infinite_upstream_gradient_too():
    x, y = pair()
    weight = torch.ones(len(x))
    weight[::2] = 0
    compiled = torch.compile(distillation_loss, backend="aot_eager")
    for call, retained in (distillation_loss, False), (distillation_loss, True), (compiled, False):
        x.grad = None
        loss = call(x, y, sample_weight=weight)
        loss.backward(torch.tensor(torch.inf), retained)
        assert (x.grad[::2] == 0).all()
        assert not x.grad[1::2].isfinite().any()


def test_weights_and_options():
    x, y = pair()
    weights = torch.arange(13) % 3
    loss = distillation_loss(x, y, beta=0.5, sample_weight=weights.double())
    rows = trl(x, y, 0.5).sum(-1)
    assert torch.allclose(loss, (rows * weights).sum() / weights.sum())
    masked = distillation_loss(x, y, beta=0.5, sample_weight=weights > 0)
    assert torch.allclose(masked, rows[weights > 0].mean())
    assert torch.allclose(distillation_loss(x, y, beta=0.5, normalizer=7.0), rows.sum() / 7)
    turned = distillation_loss(x.T, y.T, beta=0.5, axis=0)
    assert torch.allclose(turned, rows.mean())
    given = distillation_loss(x, teacher_log_probs=y.log_softmax(-1), beta=0.5)
    assert torch.allclose(given, rows.mean())
    none = distillation_loss(x, y, sample_weight=torch.zeros(13), empty_mean=0)
    assert none == 0
    none.backward()
    assert not x.grad.any()
    assert distillation_loss(x, y).isnan() == distillation_loss(x, y, empty_mean=0).isnan()
    row = distillation_loss(x[0], y[0], beta=0.5)
    assert torch.allclose(row, rows[0])


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_first_and_second_order(beta, reduction):
    x, y = pair(torch.float64, (3, 4))
    weights = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)

    def loss(x, y):
        return distillation_loss(
            x, y, beta=beta, temperature=1.5, reduction=reduction, sample_weight=weights
        )

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))


@pytest.mark.parametrize(("factor", "calls"), [(1.0, 1), (0.3, 2)])
def test_16_bits_are_rounded_once_and_computed_once_where_that_is_enough(
    monkeypatch, factor, calls
):
    counted = []

    def count(with_grad, *arguments):
        counted.append(with_grad)
        return computed(with_grad, *arguments)

    monkeypatch.setattr(_distillation_operator, "computed", count)
    x, y = (t.half() for t in pair(grad=False))
    loss = distillation_loss(x.requires_grad_(), y)
    (loss * factor).backward()
    assert counted == [True] * calls
    upstream = float(torch.tensor(factor).half())
    given = x.detach().numpy(), y.numpy()
    exact = xe.distillation_loss_with_grad(*given, grad_output=upstream)[1]
    assert np.array_equal(x.grad.numpy().view(np.int16), exact.view(np.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_break(reduction, dtype):
    def step(x, y):
        return distillation_loss(2 * x, y, beta=0.5, temperature=2.0, reduction=reduction) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, y = pair(dtype)
    eager, found = step(x, y), compiled(x, y)
    assert torch.equal(found, eager)
    for here, there in zip(both_gradients(x, y, found), both_gradients(x, y, eager), strict=True):
        assert torch.allclose(here, there, rtol=RELATIVE[dtype], atol=1e-6 * RELATIVE[dtype])


@pytest.mark.parametrize("name", ["beta", "temperature", "normalizer"])
def test_a_schedule_is_compiled_at_most_twice(name):
    """Once for the first value, and once for all others."""
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, y, number):
        return distillation_loss(x, y, **{"beta": 0.5, name: number})

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for number in (0.25, 0.5, 0.625, 0.75, 0.875):
        x, y = pair()
        eager, found = step(x, y, number), compiled(x, y, number)
        assert torch.equal(found, eager)
        for a, b in zip(both_gradients(x, y, found), both_gradients(x, y, eager), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count <= 2
    with pytest.raises(ValueError, match=f"{name} = -?0.0"):
        compiled(*pair(), -0.0 if name != "beta" else -0.01)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_torchs_own_operations_agree(beta):
    x, y = pair(torch.float64)
    x = x.detach()
    x[:, 3] = y.detach()[:, 3] = -math.inf
    options = Options(1, "none", beta, 1.5, True, "tail", None, None)
    x.requires_grad_()
    ours = distillation_loss(x, y, beta=beta, temperature=1.5, reduction="none")
    theirs = by_torch(x, y, None, None, options)
    assert torch.allclose(ours, theirs)
    for a, b in zip(both_gradients(x, y, ours), both_gradients(x, y, theirs), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("missing", ["tail", "zero", "renormalize"])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_sparse_teacher(beta, missing):
    """Against torch's operations, which autograd derives; and the second derivative of these."""
    if beta == 1 and missing != "tail":
        pytest.skip("infinite")
    x, y = pair(torch.float64, (4, 9))
    given, index = y.detach().log_softmax(-1).topk(3)
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    options = {"beta": beta, "temperature": 1.5, "missing": missing, "sample_weight": weights}

    def loss(x, **more):
        teacher = {"teacher_log_probs": given, "teacher_index": index}
        return distillation_loss(x, **teacher, **options, **more)

    for reduction in REDUCTIONS:
        record = Options(1, reduction, beta, 1.5, False, missing, None, None)
        theirs = by_torch(x, given, index, weights, record)
        ours = loss(x, reduction=reduction)
        assert torch.allclose(ours, theirs)
        upstream = torch.ones_like(ours)
        of_x = (torch.autograd.grad(each, x, upstream)[0] for each in (ours, theirs))
        assert torch.allclose(*of_x)
    assert torch.autograd.gradgradcheck(loss, x)
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(x), loss(x))


def test_kl_divergence_of_two_matrices_of_logits():
    x, y = pair(torch.float64)
    found = kl_divergence(y, x, base=2, target_logits=True)
    exact = trl(x, y, 0).sum(-1).mean() / math.log(2)
    assert torch.allclose(found, exact)
    for here, there in zip(both_gradients(x, y, found), both_gradients(x, y, exact), strict=True):
        assert torch.allclose(here, there)
    with pytest.raises(ValueError, match="target has shape"):
        kl_divergence(y[:, :3], x, target_logits=True)


def test_log_probabilities_that_require_a_gradient():
    x, y = pair(torch.float64, (4, 9))
    loss = distillation_loss(x, teacher_log_probs=y.log_softmax(-1), temperature=2.0)
    exact = trl(x / 2, y, 0).sum(-1).mean()
    for here, there in zip(both_gradients(x, y, loss), both_gradients(x, y, exact), strict=True):
        assert torch.allclose(here, there)


def test_transforms_and_other_devices():
    x, y = pair(torch.float64, (4, 5), grad=False)
    found = torch.func.grad(lambda x: distillation_loss(x, y))(x)
    assert np.allclose(found, xe.distillation_loss_with_grad(x.numpy(), y.numpy())[1])
    batched = torch.func.vmap(lambda x, y: distillation_loss(x, y, reduction="none"))(
        x[None], y[None]
    )
    assert torch.allclose(batched[0], distillation_loss(x, y, reduction="none"))
    meta = distillation_loss(x.to("meta"), y.to("meta"), reduction="none")
    assert meta.shape == (4,)


def test_autocast_widens_the_loss():
    x, y = pair(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(x, y)
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == torch.bfloat16


def test_opcheck():
    x, y = pair()
    options = Options(1, "mean", 0.5, 2.0, True, "tail", None, None)
    arguments = x, y, None, None, *options, torch.float32, True
    torch.library.opcheck(torch.ops.xentropy.distillation_loss.default, arguments)


@pytest.mark.parametrize(
    ("spoiled", "error", "says"),
    [
        ({"logits": np.zeros((13, 30), "f4")}, TypeError, "logits must be a tensor"),
        ({"teacher_logits": None}, TypeError, "none is given"),
        ({"teacher_logits": torch.zeros(13, 30).long()}, TypeError, "teacher_logits.*floating"),
        ({"teacher_logits": torch.zeros(13, 40)}, ValueError, r"give teacher_logits\[:, :30\]"),
        ({"beta": 2}, ValueError, "beta = 2"),
        ({"temperature": 0}, ValueError, "temperature = 0"),
        ({"temperature": torch.tensor(2.0)}, TypeError, "temperature must be a number, not a t"),
        ({"reduction": "batchmean"}, ValueError, "reduction"),
        ({"axis": 2}, ValueError, "axis = 2"),
        ({"sample_weight": torch.zeros(12)}, ValueError, "sample_weight has shape"),
        ({"sample_weight": [1]}, TypeError, "sample_weight must be a tensor"),
    ],
)
def test_mistakes(spoiled, error, says):
    x, y = pair(grad=False)
    with pytest.raises(error, match=says):
        distillation_loss(**{"logits": x, "teacher_logits": y, **spoiled})
