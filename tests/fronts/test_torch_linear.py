"""xentropy.torch.linear_cross_entropy: exactness, every option, what is kept."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.linear_layers import DTYPES, REDUCTIONS, assert_close, by_logits, layer, results

import xentropy.torch as xt
from xentropy.torch import _linear_products


@pytest.fixture(params=[(True, True), (False, True), (True, False), (False, False)], ids=str)
def processor(request, monkeypatch):
    """(NumPy's BLAS is the faster, it multiplies bfloat16): every processor that the rule knows."""
    names = "numpy_multiplies", "torch_multiplies_bfloat16"
    for name, answer in zip(names, request.param, strict=True):
        monkeypatch.setattr(_linear_products, name, lambda answer=answer: answer)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_in_float64(dtype, reduction):
    *tensors, target = layer(dtype=dtype)
    target[3:7] = -100
    tensors[0][4] = torch.nan  # in a row that is not read
    upstream = torch.linspace(-1, 2, 23) if reduction == "none" else torch.tensor(0.5)
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-3, "logit_scale": 0.7}
    wide = [t.double() for t in tensors]
    ours = results(
        xt.linear_cross_entropy, *tensors, target, upstream.to(dtype), logits_bytes=40, **options
    )
    wide[0][4] = 0
    exact = results(by_logits, *wide, target, upstream.to(dtype).double(), **options)
    # Logits of some 10 are rounded to 16 bits: 4 ulp of 8 are the error of their gradient.
    assert_close(ours, exact, torch.finfo(dtype).eps, terms=12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [64, 300])
def test_16_bits_are_closer_to_the_truth_than_torchs(dtype, rows):
    *tensors, target = layer(rows, 64, 500, dtype=dtype, scale=0.3)
    exact = results(by_logits, *(t.double() for t in tensors), target)
    ours = results(xt.linear_cross_entropy, *tensors, target, logits_bytes=1 << 17)
    theirs = results(
        lambda x, w, y, linear_bias: F.cross_entropy(F.linear(x, w, linear_bias), y),
        *tensors,
        target,
    )
    for name, a, t, e in zip(
        ("input", "weight", "bias"), ours[1:], theirs[1:], exact[1:], strict=True
    ):
        error, peer = ((g.double() - e).norm().item() for g in (a, t))
        assert error < peer, name


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "features"), [(0, 3), (2, 0), (1, 3)])
def test_edges(dtype, rows, features):
    *tensors, target = layer(rows, features, 5, dtype)
    ours = results(xt.linear_cross_entropy, *tensors, target, reduction="sum")
    exact = results(by_logits, *(t.double() for t in tensors), target, reduction="sum")
    for a, e in zip(ours, exact, strict=True):
        assert torch.allclose(a.double(), e, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_rows_of_bfloat16_are_one_chunk_if_that_takes_no_more_memory():
    layer = (1000, 64), np.dtype(np.float32)
    at_a_time = _linear_products.BFloat16Products.at_a_time
    assert at_a_time(5000, *layer, 10_000_000, ()) == 5000
    assert at_a_time(5000, *layer, 9_999_999, ()) * 2000 <= 9_999_999
    of_the_sum = 4 * 1000 * 64
    assert at_a_time(5000, *layer, 10_000_000 - of_the_sum, ("linear_weight",)) == 5000
    assert at_a_time(5000, *layer, 9_999_999 - of_the_sum, ("linear_weight",)) < 5000
    assert at_a_time(0, *layer, 1, ()) == 1


def test_a_confident_row_keeps_its_tail():
    input = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[20.0], [0.0]], requires_grad=True)
    loss = xt.linear_cross_entropy(input, weight, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(2.0611536e-09, rel=1e-6)
    assert weight.grad[0].item() == pytest.approx(-2.0611536e-09, rel=1e-6)


def test_every_kept_gradient_stays_for_a_second_backward():
    *tensors, target = layer()
    leaves = [t.requires_grad_() for t in tensors]
    loss = xt.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
    loss.backward(retain_graph=True)
    first = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad.mul_(3)  # an optimizer may
        leaf.grad = None
    loss.backward(torch.tensor(2.0), retain_graph=True)
    for leaf, gradient in zip(leaves, first, strict=True):
        assert torch.equal(leaf.grad, 2 * gradient)
        leaf.grad = None
    loss.backward()
    assert all(torch.equal(leaf.grad, g) for leaf, g in zip(leaves, first, strict=True))


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)))
def test_what_is_frozen_has_no_gradient_and_no_memory(needed):
    *tensors, target = layer()
    wanted = results(by_logits, *tensors, target)
    leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
    loss = xt.linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2])
    assert loss.requires_grad == any(needed)
    if any(needed):
        sizes = [t.numel() for t in loss.grad_fn.saved_tensors[-3:]]
        assert sizes == [t.numel() * n for t, n in zip(tensors, needed, strict=True)]
        loss.backward()
    for leaf, n, gradient in zip(leaves, needed, wanted[1:], strict=True):
        assert (leaf.grad is not None) == n
        assert leaf.grad is None or torch.allclose(leaf.grad, gradient, rtol=1e-5, atol=1e-6)


def test_nothing_is_kept_without_gradients():
    *tensors, target = layer()
    plain = xt.linear_cross_entropy(*tensors[:2], target)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            leaf = tensors[0].clone().requires_grad_()
            assert torch.equal(xt.linear_cross_entropy(leaf, tensors[1], target), plain)


def test_the_graph_is_freed():
    *tensors, target = layer()
    leaf = tensors[1].requires_grad_()
    loss = xt.linear_cross_entropy(tensors[0], leaf, target)
    kept = weakref.ref(loss.grad_fn.saved_tensors[-2].untyped_storage())
    loss.backward()
    del loss
    gc.collect()
    assert kept() is None or leaf.grad is not None


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_dtype_of_the_loss_of_probabilities_is_promoted(reduction):
    kinds = torch.float16, torch.bfloat16, torch.float32, torch.float64
    for of_layer, of_target, weighted in itertools.product(kinds, kinds, (False, True)):
        x, w, _, _ = layer(4, 3, 5, of_layer)
        x.requires_grad_()
        target = torch.rand(4, 5).softmax(1).to(of_target)
        options = {"weight": torch.ones(5, dtype=torch.float32)} if weighted else {}
        ours, theirs = (
            function(x, w, target, reduction=reduction, **options)
            for function in (xt.linear_cross_entropy, by_logits)
        )
        assert ours.dtype is theirs.dtype
        assert torch.autograd.grad(ours.sum(), x)[0].dtype is of_layer


def test_numbers_may_be_tensors_with_a_gradient():
    input, weight, _, target = layer(dtype=torch.float64)
    count = torch.tensor(17)
    plain = xt.linear_cross_entropy(input, weight, target, normalizer=17.0)
    assert torch.equal(xt.linear_cross_entropy(input, weight, target, normalizer=count), plain)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = xt.linear_cross_entropy(input, weight, target, logit_scale=scale)
    twin = scale.detach().requires_grad_()
    expected = F.cross_entropy(F.linear(input, weight) * twin, target)
    loss.backward()
    expected.backward()
    assert torch.allclose(scale.grad, twin.grad)


def test_class_and_sample_weights_and_probabilities():
    input, weight, bias, target = layer(dtype=torch.float64)
    options = {
        "weight": torch.linspace(0, 2, 37, dtype=torch.float64),
        "sample_weight": torch.linspace(0, 1, 23, dtype=torch.float64),
        "base": 2.0,
        "logits_bytes": 900,
    }
    soft = torch.rand(23, 37, dtype=torch.float64).softmax(-1)
    for goal in (target, soft):
        ours = results(xt.linear_cross_entropy, input, weight, bias, goal, **options)
        plain = {k: v for k, v in options.items() if k != "logits_bytes"}
        exact = results(by_logits, input, weight, bias, goal, **plain)
        assert_close(ours, exact, 1e-15, terms=100)
    soft.requires_grad_()
    xt.linear_cross_entropy(input, weight, soft).backward()
    assert torch.allclose(soft.grad, -F.linear(input, weight).log_softmax(-1) / 23)


def test_loss_scaling_precedes_the_rounding_of_float16():
    input, weight, bias, target = layer(dtype=torch.float16, scale=0.1)
    scale = torch.tensor(2.0**14, dtype=torch.float16)
    options = {"normalizer": 1e6}
    ours = results(xt.linear_cross_entropy, input, weight, bias, target, scale, **options)
    wide = [t.double() for t in (input, weight, bias)]
    exact = results(by_logits, *wide, target, scale.double(), **options)
    assert_close(ours[1:], exact[1:], torch.finfo(torch.float16).eps, terms=4)


def test_who_multiplies_is_shown(capsys):
    import xentropy as xe

    xe.show_config()
    assert "products" in capsys.readouterr().out
