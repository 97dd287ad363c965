"""The gradient is the slope of the loss, and both are torch's, where torch is right."""

import numpy as np
import pytest
from finite_differences import OPTIONS, problem, slopes
from support import TARGETS, assert_within, eps, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_slope_of_the_loss(name, kind):
    x, target, options, tolerance = problem(kind, OPTIONS[name])
    upstream = options.pop("grad_output", None)
    _, grad = xe.cross_entropy_with_grad(x, target, grad_output=upstream, **options)
    assert_within(grad, slopes(xe.cross_entropy, x, target, upstream, options), tolerance, name)


@pytest.mark.parametrize("kind", TARGETS)
def test_slope_in_long_rows(kind):
    x, target, options, tolerance = problem(kind, OPTIONS["none"], classes=300)
    upstream = options.pop("grad_output")
    _, grad = xe.cross_entropy_with_grad(x, target, grad_output=upstream, **options)
    assert_within(grad, slopes(xe.cross_entropy, x, target, upstream, options), tolerance)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("kind", TARGETS)
def test_agrees_with_torch(kind, ignored, weighted, smoothing, reduction):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    if kind == "probabilities" and ignored != -100:
        pytest.skip("torch refuses ignore_index with probabilities")
    for shape, dtype in (((40, 10), "float64"), ((6, 300), "float64"), ((3, 5, 37), "float32")):
        x = make_logits(shape, dtype)
        target = make_target(kind, shape, dtype=dtype)
        if kind == "labels":
            target.flat[::3] = ignored
        weight = np.linspace(0.5, 2.0, shape[1]).astype(dtype) if weighted else None
        options = {"label_smoothing": smoothing, "reduction": reduction}
        if kind == "labels":
            options["ignore_index"] = ignored
        ours = xe.cross_entropy_with_grad(x, target, weight, **options)
        leaf = torch.tensor(x, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(
            leaf, torch.tensor(target), None if weight is None else torch.tensor(weight), **options
        )
        theirs.sum().backward()
        # torch subtracts lse from logits below 16: 16 eps a row, weights up to 2, sums of rows
        tolerance = 64 * eps(dtype) * (1 if reduction == "none" else len(target.flat))
        assert_within(ours[0], theirs.detach().numpy(), tolerance)
        assert_within(ours[1], leaf.grad.numpy(), 64 * eps(dtype))
