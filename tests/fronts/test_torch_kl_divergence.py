"""xentropy.torch.kl_divergence against torch in float64: values, both gradients, refusals."""

import math

import pytest
import torch
from helpers.torch_oracle import seeded
from helpers.torch_softmax import BITS16, DTYPES, INF, SCRIPTED, assert_close, upstream_of

import xentropy.torch as xt
from xentropy.torch import _softmax


def torch_divergence(target, x, dim, reduction, base=None):
    each = torch.xlogy(target, target) - target * torch.log_softmax(x, dim)
    rows = each.sum(dim) / math.log(base or math.e)
    return {"none": lambda: rows, "sum": rows.sum, "mean": rows.mean}[reduction]()


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
