"""NumPy's calls and the reference against torch, where torch is right."""

import itertools

import numpy as np
import pytest
import torch
from helpers.support import TARGETS, assert_within, eps, make_logits, make_target

import xentropy as xe
from xentropy import reference
from xentropy._kernels import make_options
from xentropy.torch._formula import formula
from xentropy.torch._recorded import recorded_cross_entropy


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(  # torch refuses ignore_index with probabilities
    ("kind", "ignored"), [("labels", -100), ("labels", 2), ("probabilities", -100)]
)
def test_calls_agree(kind, ignored, weighted, smoothing, reduction):
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


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_reference_agrees(kind, weighted, smoothing, reduction):
    x = make_logits((6, 5, 3), "float64")
    target = make_target(kind, x.shape, dtype="float64")
    if kind == "labels":
        target[2, 1] = -100
    weight = np.linspace(0.5, 2.0, 5) if weighted else None
    ours = reference.cross_entropy_with_grad(
        x, target, weight, label_smoothing=smoothing, reduction=reduction
    )
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        leaf,
        torch.tensor(target),
        None if weight is None else torch.tensor(weight),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    theirs.sum().backward()
    # torch subtracts lse from the logits: absolute errors of a few units of |x| < 16
    assert_within(ours[0], theirs.detach().numpy(), 1e-14 * x.size)
    assert_within(ours[1], leaf.grad.numpy(), 1e-14 * x.size)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_two_formulas_in_torchs_operations_agree(kind, reduction):
    """That of transforms and other devices, and that of TorchScript and ONNX."""
    x = torch.tensor(make_logits((6, 5, 3), "float64"))
    target = torch.tensor(make_target(kind, x.shape, dtype="float64"))
    if kind == "labels":
        target[2, 1] = -100
    weights = (None, torch.linspace(0, 2, 5).double())
    of_rows = (None, torch.linspace(0, 2, 18).double().view(6, 3))
    normalizers = (None, 7.0, torch.tensor(3.0)) if reduction == "mean" else (None,)
    grid = itertools.product(weights, of_rows, (0.0, 0.1), (0.0, 0.2), (None, 2), normalizers)
    for weight, sample_weight, smoothing, z_loss, base, normalizer in grid:
        scale = 1.0 if base is None else torch.tensor(0.5)
        options = {
            "label_smoothing": smoothing,
            "z_loss": z_loss,
            "base": base,
            "normalizer": normalizer,
            "logit_scale": scale,
            "softcap": None if z_loss == 0 else 2,
            "reduction": reduction,
        }
        record = make_options(**options)
        ours = formula((x, target, weight, sample_weight), record)
        theirs = recorded_cross_entropy(x, target, weight, sample_weight=sample_weight, **options)
        # sums of 18 rows of losses below 100 in two orders
        assert_within(ours.numpy(), theirs.numpy(), 1e-12)
