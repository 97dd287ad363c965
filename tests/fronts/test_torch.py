"""xentropy.torch against torch.nn.functional.cross_entropy: results, types, the graph."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import assert_as_torch, gradients, labels, probabilities, seeded
from torch.utils.checkpoint import checkpoint

import xentropy as xe
from xentropy import _kernels, reference
from xentropy.torch import CrossEntropyLoss, _arrays, _formula, _loss, cross_entropy

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCTIONS = ["mean", "sum", "none"]
SHAPES = [(7, 5), (3, 300), (2, 5, 3, 4), (5,)]


# --- results ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_option_of_torch(dtype, shape):
    classes = shape[min(1, len(shape) - 1)]
    weight = torch.linspace(0.5, 2, classes).to(dtype)
    logits = seeded(*shape, dtype=dtype)
    ignored = labels(shape).clone()
    if ignored.dim():
        ignored.view(-1)[::3] = 2
    for reduction, w, smoothing in itertools.product(REDUCTIONS, (None, weight), (0.0, 0.3)):
        if reduction == "sum" and w is not None:
            continue  # the mean has its sum
        common = {"reduction": reduction, "weight": w, "label_smoothing": smoothing}
        assert_as_torch(logits, ignored, f"{common}", **common)
        assert_as_torch(logits, ignored, f"{common} ignored", **common, ignore_index=2)
        assert_as_torch(logits, probabilities(shape, dtype), f"{common} soft", **common)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch_and_all_ignored(dtype, reduction):
    for x, y in (
        (torch.zeros(0, 3, dtype=dtype), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(0, 3, dtype=dtype), torch.zeros(0, 3, dtype=dtype)),
        (torch.zeros(2, 3, 0, dtype=dtype), torch.zeros(2, 0, dtype=torch.long)),
    ):
        a, ours, _ = gradients(cross_entropy, x, y, reduction=reduction)
        b, theirs, _ = gradients(F.cross_entropy, x, y, reduction=reduction)
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(5), b.nan_to_num(5))
        assert ours.shape == theirs.shape
    loss, gradient, _ = gradients(
        cross_entropy, seeded(2, 3, dtype=dtype), torch.tensor([-100, -100]), reduction="mean"
    )
    assert loss.isnan()
    assert not gradient.any()  # torch: nan


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_types_of_probabilities_promote_as_torch_does(dtype):
    logits = seeded(4, 3, dtype=dtype)
    for other in DTYPES:
        for weight in (None, torch.ones(3, dtype=torch.float64)):
            ours, a, at = gradients(
                cross_entropy, logits, probabilities((4, 3), other), weight=weight
            )
            theirs, b, bt = gradients(
                F.cross_entropy, logits, probabilities((4, 3), other), weight=weight
            )
            assert (ours.dtype, a.dtype, at.dtype) == (theirs.dtype, b.dtype, bt.dtype)


def test_exact_tails_reach_loss_gradient_and_target_gradient():
    loss, gradient, _ = gradients(cross_entropy, torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(2.061153620314381e-09, rel=1e-6)
    assert gradient[0, 0].item() == pytest.approx(-2.061153615e-09, rel=1e-6)
    _, _, of_target = gradients(
        cross_entropy, torch.tensor([[20.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    )
    assert of_target[0, 0].item() == pytest.approx(2.061153620314381e-09, rel=1e-6)


def test_uint8_labels_as_torch_takes_them():
    x, y = seeded(4, 3), torch.tensor([0, 1, 2, 0])
    assert cross_entropy(x, y.to(torch.uint8)) == cross_entropy(x, y)


def test_any_strides():
    x, y = seeded(6, 8), labels((6, 8))
    exact = gradients(cross_entropy, x, y)
    wide = torch.zeros(6, 16)
    wide[:, ::2] = x.detach()
    images = x.detach().reshape(1, 6, 8).movedim(2, 1)  # classes strided
    for strided, target in ((wide[:, ::2], y), (x.detach().T.contiguous().T, y), (images, y[None])):
        loss, gradient, _ = gradients(cross_entropy, strided, target)
        assert torch.allclose(loss, exact[0], rtol=1e-6, atol=0)  # kernels differ in the last bits
        assert torch.allclose(gradient.reshape(-1).sort()[0], exact[1].reshape(-1).sort()[0], 1e-5)


# --- where the loss is computed ---

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


def test_other_devices_go_to_torch():
    loss = cross_entropy(X.to("meta"), Y.to("meta"), reduction="none")
    assert (loss.device.type, loss.shape) == ("meta", (4,))
    loss = cross_entropy(X.to("meta"), Y.to("meta"), z_loss=0.1, sample_weight=Y.to("meta"))
    assert (loss.device.type, loss.shape) == ("meta", ())


def test_without_ml_dtypes_bfloat16_goes_to_torch(monkeypatch):
    monkeypatch.setattr(_arrays, "bfloat16", None)
    without = _kernels.Tensors(
        _arrays.PLAIN,
        getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
        None,
        torch.empty_like,
        _arrays.tensor,
    )
    monkeypatch.setattr(_arrays, "TENSORS", without)
    monkeypatch.setattr(_loss, "FLOATS", _arrays.FLOATS - {torch.bfloat16})
    x, y, weight = seeded(4, 3, dtype=torch.bfloat16), labels((4, 3)), torch.ones(3).bfloat16()
    assert cross_entropy(x, y) == F.cross_entropy(x, y)
    p = probabilities((4, 3))
    assert cross_entropy(x.float(), p, weight) == F.cross_entropy(x.float(), p, weight)
    with pytest.raises(TypeError, match="ml_dtypes"):
        cross_entropy(x.float(), y, sample_weight=torch.ones(4).bfloat16())


class Renamed(torch.Tensor):
    pass


def test_subclasses_stay_what_they_are():
    assert type(cross_entropy(X.as_subclass(Renamed), Y)) is Renamed


OURS = {
    "sample_weight": lambda n: {"sample_weight": torch.linspace(0, 2, n, dtype=torch.float64)},
    "normalizer": lambda n: {"normalizer": 3.5},
    "z_loss": lambda n: {"z_loss": 0.1},
    "logit_scale": lambda n: {"logit_scale": 0.7},
    "softcap": lambda n: {"softcap": 2.5},
    "base": lambda n: {"base": 2.0},
}


@pytest.mark.parametrize("target", ["labels", "probabilities"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_formula_in_torchs_operations_is_the_kernels(reduction, target):
    """All subsets of our options; float64, so that what differs is not rounding."""
    x = seeded(6, 5, dtype=torch.float64)
    y = labels((6, 5)) if target == "labels" else probabilities((6, 5), torch.float64)
    if target == "labels":
        y[1] = -100
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    for chosen in itertools.product([False, True], repeat=len(OURS)):
        options = {"reduction": reduction, "weight": weight, "label_smoothing": 0.2}
        for name, on in zip(OURS, chosen, strict=True):
            options |= OURS[name](6) if on else {}
        if reduction != "mean":
            options.pop("normalizer", None)
        ours = gradients(cross_entropy, x, y, **options)
        sample_weight = options.pop("sample_weight", None)
        weight = options.pop("weight")
        call = _kernels.make_options(**options)
        theirs = gradients(
            lambda a, b, w=weight, v=sample_weight, c=call: _formula.formula((a, b, w, v), c), x, y
        )
        for a, b in zip(ours, theirs, strict=True):
            if a is not None:
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-14), options


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_in_probabilities_is_that_of_the_reference(reduction):
    """In eager mode and of the formula; all subsets of our options, in float64."""
    x, y = seeded(6, 5, dtype=torch.float64), probabilities((6, 5), torch.float64)
    upstream = torch.linspace(-1, 2, 6).double() if reduction == "none" else torch.tensor(1.5)
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    for chosen in itertools.product([False, True], repeat=len(OURS)):
        options = {"reduction": reduction, "label_smoothing": 0.2}
        for name, on in zip(OURS, chosen, strict=True):
            options |= OURS[name](6) if on else {}
        if reduction != "mean":
            options.pop("normalizer", None)
        given = {name: np.asarray(value) for name, value in options.items() if name != "reduction"}
        given |= {"reduction": reduction, "normalizer": options.get("normalizer")}
        exact = reference.cross_entropy_target_grad(
            x.detach().numpy(), y, weight, grad_output=upstream, **given
        )
        _, _, eager = gradients(cross_entropy, x, y, upstream, weight=weight, **options)
        v = options.pop("sample_weight", None)
        call = _kernels.make_options(**options)
        _, _, formula = gradients(
            lambda a, b, v=v, c=call: _formula.formula((a, b, weight, v), c), x, y, upstream
        )
        for actual in (eager, formula):
            np.testing.assert_allclose(actual.numpy(), exact, rtol=1e-12, atol=1e-14)


def test_options_reach_the_kernels():
    x, y, v = seeded(5, 7, 4), torch.arange(35).reshape(5, 7) % 4, torch.rand(5, 7)
    options = {"z_loss": 0.1, "logit_scale": 0.5, "base": 2.0, "axis": 2, "normalizer": 3.0}
    options["softcap"] = 1.5
    loss, gradient, _ = gradients(cross_entropy, x, y, sample_weight=v, **options)
    exact, exact_gradient = xe.cross_entropy_with_grad(
        x.detach().numpy(), y.numpy(), sample_weight=v.numpy(), **options
    )
    assert loss.item() == np.float32(exact)
    assert np.array_equal(gradient.numpy(), exact_gradient)
    by_torch = torch.func.grad(lambda a: cross_entropy(a, y, sample_weight=v, **options))(
        x.detach()
    )
    assert torch.allclose(by_torch, gradient, rtol=1e-5, atol=1e-7)  # float32, cancelling terms


@pytest.mark.parametrize("weight", [None, torch.ones(5)], ids=["plain", "weight"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_16_bits_and_returns_float32(dtype, weight):
    x, y = seeded(8, 5, dtype=dtype), labels((8, 5))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient, _ = gradients(cross_entropy, x, y, weight=weight)
        theirs, other, _ = gradients(F.cross_entropy, x, y, weight=weight)
    assert (loss.dtype, gradient.dtype) == (theirs.dtype, other.dtype) == (torch.float32, dtype)
    exact = F.cross_entropy(x.double(), y)
    assert abs(loss - exact) <= 1e-6 * exact  # not rounded to 16 bits on the way


def test_no_graph_where_none_is_wanted():
    x, y = seeded(4, 3), labels((4, 3))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss = cross_entropy(x, y)
        assert not loss.requires_grad
        assert loss.is_inference() == (context is torch.inference_mode)
    assert not cross_entropy(x.detach(), y).requires_grad
    with torch.inference_mode():
        x = torch.ones(4, 3)
    assert cross_entropy(x, y) == cross_entropy(torch.ones(4, 3), y)


def test_a_module_that_loads_and_saves_as_torchs(tmp_path):
    theirs = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    ours = CrossEntropyLoss(torch.ones(3), label_smoothing=0.1, z_loss=0.2)
    torch.save(theirs.state_dict(), tmp_path / "state")
    ours.load_state_dict(torch.load(tmp_path / "state"))
    assert ours.state_dict().keys() == theirs.state_dict().keys() == {"weight"}
    x, y, v = seeded(4, 3), labels((4, 3)), torch.rand(4)
    expected = cross_entropy(x, y, theirs.weight, label_smoothing=0.1, z_loss=0.2, sample_weight=v)
    assert ours(x, y, v) == copy.deepcopy(ours)(x, y, v) == expected
    assert isinstance(ours, torch.nn.CrossEntropyLoss)
    assert repr(ours) == repr(theirs)


def test_a_module_hands_on_every_option():
    x, y = seeded(5, 7, 4), torch.arange(35).reshape(5, 7) % 4
    options = {"ignore_index": 1, "reduction": "mean", "label_smoothing": 0.1, "normalizer": 3.0}
    options |= {"z_loss": 0.1, "logit_scale": 0.5, "base": 2.0, "axis": 2, "n_threads": 1}
    options["softcap"] = 1.5
    weight = torch.linspace(1, 2, 4)
    ours = CrossEntropyLoss(weight, **options)
    assert ours(x, y) == cross_entropy(x, y, weight, **options)
    logits = x * 1
    CrossEntropyLoss(weight, **options, inplace=True)(logits, y).backward()
    assert torch.equal(logits, x.grad)


def test_threads_each_with_its_own_graph():
    x, y = seeded(64, 50), labels((64, 50))
    expected = gradients(cross_entropy, x, y)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(gradients, cross_entropy, x, y) for _ in range(64)]
        for job in jobs:
            assert torch.equal(job.result()[1], expected[1])


def test_accumulation_over_micro_batches_is_the_whole_batch():
    x, y = seeded(12, 5, dtype=torch.float64), labels((12, 5))
    cross_entropy(x, y).backward()
    whole, x.grad = x.grad, None
    for part in range(0, 12, 4):
        cross_entropy(x[part : part + 4], y[part : part + 4], normalizer=12).backward()
    assert torch.allclose(x.grad, whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpointing(reduction, reentrant):
    x, y, head = seeded(6, 4), labels((6, 9)), seeded(4, 9, seed=5)
    expected = torch.autograd.grad(cross_entropy(x @ head, y, reduction=reduction).sum(), (x, head))
    run = lambda a: cross_entropy(a @ head, y, reduction=reduction)  # noqa: E731
    head.grad = x.grad = None
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(head.grad, expected[1])


def test_checkpointing_drops_the_kept_gradient():
    """Everything of the logits' size goes through autograd's hooks for saved tensors."""
    packed = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t) or 0, lambda _: None
    )
    with hooks:
        loss = cross_entropy(seeded(6, 50), labels((6, 50)))
    assert sum(t.numel() == 300 for t in packed) == 2  # logits and gradient
    assert all(not torch.is_tensor(v) for v in vars(loss.grad_fn).values())
