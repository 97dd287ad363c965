"""`empty_mean` of the losses in torch: the mean over no row, wherever it is computed."""

import math

import pytest
import torch

import xentropy.torch as xt

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.*is deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
GENERATOR = torch.Generator().manual_seed(0)
X, LAYER = torch.randn(4, 5, generator=GENERATOR), torch.randn(5, 5, generator=GENERATOR)
LABELS, NONE = torch.tensor([0, 3, -100, 4]), torch.full((4,), -100)
SOFT = torch.softmax(LAYER[:4], -1)
WEIGHTS, ZEROS = torch.tensor([0.0, 1, 2, 0]), torch.zeros(4)
EMPTY = {
    "labels": (NONE, None),
    "weights": (LABELS, ZEROS),
    "both": (torch.tensor([0, -100, -100, 4]), WEIGHTS),
    "probabilities": (SOFT, ZEROS),
}
SOME = {"labels": (LABELS, None), "weights": (LABELS, WEIGHTS), "probabilities": (SOFT, WEIGHTS)}
each_empty = pytest.mark.parametrize("name", EMPTY)


class Loss(torch.nn.Module):
    """As users write it, and TorchScript compiles it."""

    def __init__(self, empty_mean: float) -> None:
        super().__init__()
        self.empty_mean = empty_mean

    def forward(self, x, target, rows: torch.Tensor | None):
        return xt.cross_entropy(x, target, sample_weight=rows, empty_mean=self.empty_mean)


class InPlace(Loss):
    def forward(self, x, target, rows):
        options = {"sample_weight": rows, "empty_mean": self.empty_mean, "inplace": True}
        return xt.cross_entropy(x.clone(), target, **options)


class Linear(Loss):
    def forward(self, x, target, rows):
        options = {"sample_weight": rows, "empty_mean": self.empty_mean}
        return xt.linear_cross_entropy(x, LAYER.to(x.dtype), target, **options)


def compiled(module):
    return torch.compile(module, backend="aot_eager", fullgraph=True)


def traced(module):
    """Traced with rows of other weights, so that which rows count is an input of the graph."""

    def loss(x, target, rows):
        if rows is None:
            return torch.jit.trace(lambda x, t: module(x, t, None), (X, LABELS))(x, target)
        example = LABELS if target.dim() == 1 else SOFT
        return torch.jit.trace(lambda *call: module(*call), (X, example, WEIGHTS))(x, target, rows)

    return loss


def by_transform(module):
    """torch.func computes by torch's own operations."""
    return lambda *call: torch.func.vmap(module, (0, None, None))(call[0][None], *call[1:])[0]


ROUTES = {
    "eager": (Loss, lambda module: module),
    "in place": (InPlace, lambda module: module),
    "compiled": (Loss, compiled),
    "scripted": (Loss, torch.jit.script),
    "traced": (Loss, traced),
    "transformed": (Loss, by_transform),
    "linear": (Linear, lambda module: module),
    "linear compiled": (Linear, compiled),
    "linear traced": (Linear, traced),
}


@pytest.mark.parametrize("route", ROUTES)
@each_empty
def test_no_row(route, name):
    build, record = ROUTES[route]
    loss = record(build(0.5))
    x = X.clone().requires_grad_()
    value = loss(x, *EMPTY[name])
    assert value.item() == 0.5
    value.backward()
    assert torch.equal(x.grad, torch.zeros_like(X))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", SOME)
def test_some_rows(route, name):
    build, record = ROUTES[route]
    results = []
    for module in (record(build(0.5)), build(math.nan)):
        x = X.clone().requires_grad_()
        value = module(x, *SOME[name])
        value.backward()
        results.append((value.detach(), x.grad))
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-6, atol=1e-7)  # float32 in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_dtype_is_that_of_the_loss(dtype):
    for module in (Loss(0.5), Linear(0.5)):
        value = module(X.to(dtype), NONE, None)
        assert (value.dtype, value.item()) == (dtype, 0.5)


def test_modules():
    assert xt.CrossEntropyLoss(empty_mean=0.0)(X, NONE).item() == 0
    loss = xt.LinearCrossEntropyLoss(5, 7, bias=True, empty_mean=0.0)
    value = loss(X, NONE)
    value.backward()
    assert value.item() == 0
    assert not any(p.grad.any() for p in loss.parameters())
    assert "empty_mean=0.0" in repr(loss)


def test_a_normalizer_divides_as_ever():
    options = {"normalizer": 2.0, "empty_mean": 5.0}
    assert xt.cross_entropy(X, NONE, **options).item() == 0
    assert xt.linear_cross_entropy(X, LAYER, NONE, **options).item() == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"empty_mean": 0.0, "reduction": "sum"}, ValueError),
        ({"empty_mean": "0"}, TypeError),
        ({"empty_mean": None}, TypeError),
    ],
)
def test_what_is_refused(options, error):
    with pytest.raises(error, match="empty_mean"):
        xt.cross_entropy(X, NONE, **options)
    with pytest.raises(error, match="empty_mean"):
        xt.linear_cross_entropy(X, LAYER, NONE, **options)


def test_overrides_see_it():
    """torch's own function, which has no such option, is not asked."""
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (xt.cross_entropy, xt.linear_cross_entropy):
                seen.append(kwargs["empty_mean"])
            return function(*args, **(kwargs or {}))

    with Mode():
        xt.cross_entropy(X, NONE, empty_mean=0.5)
        xt.linear_cross_entropy(X, LAYER, NONE, empty_mean=0.5)
    assert seen == [0.5, 0.5]
