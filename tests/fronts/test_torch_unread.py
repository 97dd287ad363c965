"""Rows that do not count are not read: what they hold reaches no loss and no gradient."""

import itertools

import numpy as np
import pytest
import torch
from helpers.torch_oracle import labels, probabilities, seeded
from torch.utils._python_dispatch import TorchDispatchMode

from xentropy import reference
from xentropy.torch import cross_entropy

REDUCTIONS = ["mean", "sum", "none"]
VOID = [torch.nan, torch.inf, -torch.inf]

# torch itself loads a script for forward mode.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


class Renamed(torch.Tensor):
    pass


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def backward(loss, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


def with_graph(loss, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x, create_graph=True)[0].detach()


def of_a_subclass(loss, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x.as_subclass(Renamed)).sum(), x)[0].as_subclass(torch.Tensor)


def under_a_mode(loss, x):
    with Watched():
        return backward(loss, x)


def compiled(loss, x):
    torch.compiler.reset()
    return backward(torch.compile(loss, backend="aot_eager"), x)


def of_torch_func(loss, x):
    return torch.func.grad(lambda a: loss(a).sum())(x)


def reverse_jacobian(loss, x):
    return torch.func.jacrev(lambda a: loss(a).sum())(x)


def forward_jacobian(loss, x):
    return torch.func.jacfwd(lambda a: loss(a).sum())(x)


def vmapped(loss, x):
    return torch.func.vmap(lambda a: of_torch_func(loss, a))(x[None])[0]


WAYS = [
    backward,
    with_graph,
    of_a_subclass,
    under_a_mode,
    compiled,
    of_torch_func,
    reverse_jacobian,
    forward_jacobian,
    vmapped,
]


def hidden(kind, shape=(5, 4)):
    """(loss of logits and options, logits, rows that do not count)."""
    x = seeded(*shape, dtype=torch.float64).detach()
    rows = torch.tensor([1.0, 0, 2, 0.5, 0]).double()
    if kind == "ignored":
        y = torch.where(rows == 0, 2, torch.tensor([0, 1, 3, 3, 1]))
        return lambda a, **k: cross_entropy(a, y, ignore_index=2, **k), x, rows == 0
    y = labels(shape)
    if kind == "probabilities of weight 0":
        y = probabilities(shape, torch.float64)
        y[rows == 0] = torch.nan
    return lambda a, **k: cross_entropy(a, y, sample_weight=rows, **k), x, rows == 0


KINDS = ["ignored", "labels of weight 0", "probabilities of weight 0"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_their_gradient_is_0_and_the_others_are_the_same(kind, way):
    loss, x, unread = hidden(kind)
    options = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "logit_scale": 0.5}]
    cases = itertools.product(REDUCTIONS, VOID, options)
    for reduction, void, ours in [("mean", torch.nan, options[1])] if way is compiled else cases:
        call = lambda a, r=reduction, k=ours: loss(a, reduction=r, **k)  # noqa: E731
        expected = way(call, x)
        spoiled = x.clone()
        spoiled[unread, 1:3] = void
        assert torch.equal(call(spoiled).nan_to_num(), call(x).nan_to_num())
        found = way(call, spoiled)
        assert not found[unread].any()
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_nor_do_they_reach_second_derivatives(kind):
    loss, x, unread = hidden(kind)
    spoiled = x.clone()
    spoiled[unread] = torch.nan
    for find in (torch.func.hessian, lambda f: lambda a: torch.autograd.functional.hessian(f, a)):
        assert torch.allclose(find(loss)(spoiled), find(loss)(x), rtol=1e-12, atol=1e-16)


def test_in_images_and_along_any_axis():
    x, y = seeded(2, 3, 4, 5).detach(), torch.zeros(2, 4, 5).long()
    y[0, 1, 2] = -100
    spoiled = x.clone()
    spoiled[0, :, 1, 2] = torch.nan
    found = of_torch_func(lambda a: cross_entropy(a, y), spoiled)
    assert torch.equal(found, of_torch_func(lambda a: cross_entropy(a, y), x))
    assert not found[0, :, 1, 2].any()
    last = of_torch_func(lambda a: cross_entropy(a, y, axis=-1), spoiled.movedim(1, -1))
    assert torch.equal(last.movedim(-1, 1), found)


def test_a_byte_that_torch_takes_for_a_label_is_no_ignore_index():
    x, y = seeded(2, 200).detach(), torch.tensor([156, 3], dtype=torch.uint8)  # -100 as a byte
    found = of_torch_func(lambda a: cross_entropy(a, y), x)
    assert torch.allclose(found, backward(lambda a: cross_entropy(a, y), x), rtol=1e-5)
    assert found[0].any()


def test_all_rows_ignored():
    x, y = seeded(2, 3).detach(), torch.tensor([-100, -100])
    for way in (backward, of_torch_func, with_graph):
        assert not way(lambda a: cross_entropy(a, y), x).any()  # torch: nan


def test_weights_of_the_wrong_shape_are_not_broadcast():
    x, y = seeded(4, 3).detach(), labels((4, 3))
    for rows in (torch.ones(1), torch.ones(4, 1), torch.tensor(2.0)):
        with pytest.raises(ValueError, match="sample_weight has shape"):
            of_torch_func(lambda a, v=rows: cross_entropy(a, y, sample_weight=v), x)


# --- 0 log 0 = 0 in the gradient in probabilities ---


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_minus_infinity_times_a_weight_of_0_is_0(weighted, smoothing, reduction):
    x, y = seeded(4, 3, dtype=torch.float64).detach(), probabilities((4, 3), torch.float64)
    x[0, 1] = x[2, 0] = -torch.inf
    x[3] = torch.nan
    y[0, 1] = y[2, 0] = 0
    options = {"reduction": reduction, "label_smoothing": smoothing}
    arrays = {"weight": torch.tensor([0.0, 2, 1]).double()} if weighted else {}
    for rows in (None, torch.tensor([1.0, 2, 0.5, 0]).double()):
        given = arrays if rows is None else {**arrays, "sample_weight": rows}
        y.requires_grad_()
        loss = cross_entropy(x, y, **given, **options)
        upstream = torch.linspace(1, 2, loss.numel()).double().reshape(loss.shape)
        (found,) = torch.autograd.grad(loss, y, upstream)
        exact = reference.cross_entropy_target_grad(
            x.numpy(), y.detach(), grad_output=upstream.numpy(), **given, **options
        )
        np.testing.assert_allclose(found.numpy(), exact, rtol=1e-14)


@pytest.mark.parametrize("way", [with_graph, of_torch_func, forward_jacobian])
@pytest.mark.parametrize("ours", [{}, {"z_loss": 0.1}], ids=len)
def test_minus_infinity_without_target_mass_costs_nothing(ours, way):
    """Masked classes: torch's own function says nan."""
    x, p = seeded(4, 3, dtype=torch.float64).detach(), probabilities((4, 3), torch.float64)
    x[0, 1] = x[2, 0] = -torch.inf
    p[0, 1] = p[2, 0] = 0
    weight = torch.tensor([0.0, 2, 1]).double()
    y = torch.tensor([0, 1, 0, 2])  # row 2: the logit -inf, with weight 0
    cases = [(p, {}), (p, {"weight": weight}), (y, {"weight": weight})]
    cases.append((y, {"weight": torch.tensor([0.0, 0, 1]).double(), "label_smoothing": 0.1}))
    for target, options in cases:
        loss = lambda a, t=target, k=options: cross_entropy(a, t, **k, **ours)  # noqa: E731
        expected = backward(loss, x)
        assert expected.isfinite().all()
        assert torch.allclose(way(loss, x), expected, rtol=1e-12, atol=1e-16)
        assert torch.allclose(torch.func.vmap(loss)(x[None]), loss(x), rtol=1e-14)


def test_float16_row_weights_are_summed_in_float64():
    rows = torch.full((2000,), 60.0, dtype=torch.float16)  # 120000 in all, float16 ends at 65504
    x, y = torch.zeros(2000, 2), torch.full((2000, 2), 0.5, requires_grad=True)
    (found,) = torch.autograd.grad(cross_entropy(x, y, sample_weight=rows), y)
    assert torch.allclose(found, torch.full_like(found, 0.6931472 / 2000), rtol=1e-6)
