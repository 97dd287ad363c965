"""xentropy.torch with numbers that are tensors: values, derivatives, errors."""

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers.torch_oracle import labels, probabilities, seeded

from xentropy.torch import CrossEntropyLoss, cross_entropy

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SOFT = pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch.compiler.reset()


def inputs(soft=False, dtype=torch.float64):
    x = seeded(4, 3, dtype=dtype)
    return x, probabilities((4, 3), dtype) if soft else labels((4, 3))


NUMBERS = {
    "int64": torch.tensor(7),
    "int32": torch.tensor(7, dtype=torch.int32),
    "float32": torch.tensor(2.5),
    "float64": torch.tensor(2.5).double(),
    "bfloat16": torch.tensor(2.5).bfloat16(),
    "one element": torch.tensor([2.5]),
    "one of one": torch.tensor([[3]]),
}


@SOFT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["normalizer", "logit_scale"])
def test_a_tensor_is_its_value(name, dtype, soft):
    x, y = inputs(soft, dtype)
    for number in NUMBERS.values():
        expected = cross_entropy(x, y, **{name: number.item()})
        (gradient,) = torch.autograd.grad(expected, x)
        loss = cross_entropy(x, y, **{name: number})
        assert (loss.dtype, loss.shape) == (dtype, ())
        assert torch.equal(loss, expected)
        assert torch.equal(torch.autograd.grad(loss, x)[0], gradient)
        with torch.no_grad():
            assert torch.equal(cross_entropy(x, y, **{name: number}), expected)
        found = torch.func.grad(lambda a, n=number: cross_entropy(a, y, **{name: n}))(x.detach())
        if dtype in DTYPES[2:]:  # torch's own function computes in 16 bits
            assert torch.allclose(found, gradient, rtol=64 * torch.finfo(dtype).eps, atol=1e-6)


NUMPYS = {"numpy int64": np.int64(3), "numpy float32": np.float32(2.5), "array": np.array(2.5)}


@pytest.mark.parametrize("number", (NUMBERS | NUMPYS).values(), ids=NUMBERS | NUMPYS)
@pytest.mark.parametrize("name", ["normalizer", "logit_scale"])
def test_a_tensor_is_its_value_in_a_compiled_graph(name, number):
    x, y = inputs()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    found = []
    for function, value in ((cross_entropy, number.item()), (compiled, number)):
        loss = function(x, y, **{name: value})
        found.append((loss, *torch.autograd.grad(loss, x)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_sum_that_float16_cannot_hold_is_divided_first():
    x, y = torch.zeros(40000, 10, dtype=torch.float16), torch.zeros(40000).long()
    n = torch.tensor(40000)
    expected = cross_entropy(x, y)  # log 10; the sum is 92103
    assert torch.equal(cross_entropy(x, y, normalizer=n), expected)
    assert torch.equal(cross_entropy(x, y, normalizer=n.float().requires_grad_()), expected)
    losses = torch.func.vmap(lambda m: cross_entropy(x, y, normalizer=m))(n.expand(2))
    assert torch.allclose(losses, expected)


def test_16_bits_count_all_rows_under_transforms():
    x, y = torch.zeros(1001, 2, dtype=torch.bfloat16), torch.zeros(1001).long()
    rows = torch.ones(1001)
    found = torch.func.grad(lambda a: cross_entropy(a, y, sample_weight=rows).float())(x)
    assert torch.equal(found, torch.autograd.grad(cross_entropy(x.requires_grad_(), y), x)[0])


LEARNED = {
    "logit_scale": ["mean", "sum", "none"],
    "normalizer": ["mean"],
    "normalizer logit_scale": ["mean"],
}
OURS = {
    "z_loss": 0.1,
    "base": 2.0,
    "sample_weight": torch.tensor([1.0, 0, 2, 0.5]).double(),
    "weight": torch.tensor([0.5, 1, 2]).double(),
}


def of_numbers(function, learned, y, **options):
    """The loss as a function of the logits and the numbers with these names."""
    return lambda x, *numbers: function(
        x, y, **dict(zip(learned.split(), numbers, strict=True)), **options
    )


def numbers_for(learned, *shape):
    return [
        torch.full(shape, 1.5 + i).double().requires_grad_() for i in range(len(learned.split()))
    ]


@SOFT
@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, OURS], ids=len)
def test_the_gradient_in_numbers(options, learned, soft):
    x, y = inputs(soft)
    for reduction, shape in itertools.product(LEARNED[learned], ((), (1,))):
        loss = of_numbers(cross_entropy, learned, y, reduction=reduction, **options)
        arguments = (x, *numbers_for(learned, *shape))
        assert torch.autograd.gradcheck(loss, arguments, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(loss, arguments)


@pytest.mark.parametrize("learned", LEARNED)
def test_the_gradient_in_numbers_in_a_compiled_graph(learned):
    x, y = inputs()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    arguments = (x, *numbers_for(learned))
    found = [
        torch.autograd.grad(of_numbers(function, learned, y, **OURS)(*arguments), arguments)
        for function in (cross_entropy, compiled)
    ]
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-16)


def test_gradients_in_frozen_logits_are_not_needed():
    x, y = inputs()
    scale = torch.tensor(1.5).double().requires_grad_()
    (a,) = torch.autograd.grad(cross_entropy(x.detach(), y, logit_scale=scale), scale)
    (b,) = torch.autograd.grad(cross_entropy(x, y, logit_scale=scale), scale)
    assert torch.equal(a, b)
    n = torch.tensor(3.0).requires_grad_()
    loss = cross_entropy(x.detach(), y, normalizer=n)
    (gradient,) = torch.autograd.grad(loss, n)
    assert gradient.item() == pytest.approx(-loss.item() / 3, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_in_a_scale_is_exact_in_tails_and_reads_no_unread_row(dtype):
    """torch says 0 for the loss and its gradients here."""
    x = torch.tensor([[20.0, 0.0], [torch.nan, torch.inf], [-torch.inf, 1.0]], dtype=dtype)
    x.requires_grad_()
    y, scale = torch.tensor([0, -100, 1]), torch.tensor(1.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(x, y, reduction="sum", logit_scale=scale).backward()
    # d/ds log1p(exp(-20 s)) = -20 p; float16 has 2.061e-9 as 0, bfloat16 with 8 bits
    expected = 0 if dtype is torch.float16 else -20 * 2.0611536e-09
    assert scale.grad.item() == pytest.approx(expected, rel=2**-8)
    assert not x.grad[1].any()


def test_a_kept_gradient_is_handed_out_with_a_learned_scale_too():
    x, y = inputs()
    scale = torch.tensor(1.5).requires_grad_()
    cross_entropy(x, y, logit_scale=scale).backward()
    (expected,) = torch.autograd.grad(cross_entropy(x, y, logit_scale=1.5), x)
    assert torch.equal(x.grad, expected)
    assert (scale.grad.dtype, scale.grad.shape) == (torch.float32, ())


def test_a_learned_scale_refuses_in_place_before_anything_is_written():
    x, y = inputs()
    logits = x * 1
    with pytest.raises(RuntimeError, match="logit_scale needs"):
        cross_entropy(logits, y, logit_scale=torch.ones((), requires_grad=True), inplace=True)
    assert torch.equal(logits, x)
    assert logits._version == 0


def test_in_a_module():
    x, y = inputs()
    ours = CrossEntropyLoss(logit_scale=torch.nn.Parameter(torch.tensor(1.5)), normalizer=3)
    assert [name for name, _ in ours.named_parameters()] == ["logit_scale"]
    assert CrossEntropyLoss().state_dict() == torch.nn.CrossEntropyLoss().state_dict()
    again = CrossEntropyLoss(logit_scale=torch.nn.Parameter(torch.tensor(0.0)), normalizer=3)
    again.load_state_dict(ours.state_dict())
    assert again(x, y) == copy.deepcopy(ours)(x, y) == cross_entropy(x, y, **SCALED)
    ours(x, y).backward()
    assert ours.logit_scale.grad is not None
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    optimizer.step()
    assert ours.logit_scale.item() != 1.5


SCALED = {"logit_scale": 1.5, "normalizer": 3}

BAD = {
    "zero": ("normalizer", torch.tensor(0), ValueError, "normalizer = 0"),
    "nan": ("normalizer", torch.tensor(torch.nan), ValueError, "normalizer = nan"),
    "infinite": ("normalizer", torch.tensor(torch.inf), ValueError, "normalizer = inf"),
    "scale 0": ("logit_scale", torch.tensor(0.0), ValueError, "logit_scale = 0"),
    "scale nan": ("logit_scale", torch.tensor(torch.nan), ValueError, "logit_scale = nan"),
    "two": ("normalizer", torch.ones(2), ValueError, r"normalizer must be one .* shape \(2,\)"),
    "none": ("logit_scale", torch.ones(0), ValueError, r"logit_scale must be one .* shape \(0,\)"),
    "bool": ("normalizer", torch.tensor(True), TypeError, "normalizer must be .*torch.bool"),
    "complex": ("logit_scale", torch.tensor(1j), TypeError, "logit_scale must be .*complex64"),
    "device": ("normalizer", torch.tensor(1, device="meta"), RuntimeError, "normalizer is on meta"),
    "scale device": (
        "logit_scale",
        torch.tensor(1.0, device="meta"),
        RuntimeError,
        "logit_scale is on meta, but input on cpu",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_tensor_is_named(name):
    option, number, kind, words = BAD[name]
    x, y = inputs()
    learned = [number.clone().requires_grad_()] if number.is_floating_point() else []
    for logits, value in itertools.product((x, x.detach()), [number, *learned]):
        with pytest.raises(kind, match=words):
            cross_entropy(logits, y, **{option: value})


def test_other_numbers_are_no_tensors():
    x, y = inputs()
    under_grad = lambda a, y, **k: torch.func.grad(lambda b: cross_entropy(b, y, **k))(a)  # noqa: E731
    for function, option in itertools.product(
        (cross_entropy, under_grad), ("z_loss", "softcap", "base")
    ):
        with pytest.raises(TypeError, match=f"{option} must be a number"):
            function(x.detach(), y, **{option: torch.tensor(2.0)})


@pytest.mark.parametrize("name", ["zero", "nan", "scale 0", "scale nan"])
def test_a_wrong_value_is_named_in_a_compiled_graph(name):
    option, number, kind, words = BAD[name]
    x, y = inputs()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(kind, match=words):
        compiled(x, y, **{option: number})


def test_a_normalizer_without_a_mean_is_refused_wherever_it_is_computed():
    x, y = inputs()
    compiled = torch.compile(cross_entropy, backend="aot_eager")
    under_grad = lambda a, y, **k: torch.func.grad(lambda b: cross_entropy(b, y, **k).sum())(a)  # noqa: E731
    for n, reduction in itertools.product((3, torch.tensor(3)), ("sum", "none")):
        for function in (cross_entropy, under_grad, compiled):
            with pytest.raises(Exception, match="normalizer goes with"):
                function(x.detach(), y, normalizer=n, reduction=reduction)


def test_under_vmap_each_has_its_number():
    x, y = inputs()
    x = x.detach()
    n, scale = torch.tensor([2.0, 5.0]), torch.tensor([0.5, 2.0])
    found = torch.func.vmap(lambda a, b: cross_entropy(x, y, normalizer=a, logit_scale=b))(n, scale)
    for i in range(2):
        expected = cross_entropy(x, y, normalizer=n[i], logit_scale=scale[i])
        assert torch.allclose(found[i], expected, rtol=1e-7)
    (gradient,) = torch.func.grad(
        lambda s: cross_entropy(x, y, logit_scale=s[0], normalizer=s[1]), argnums=(0,)
    )(torch.tensor([0.5, 2.0]).double())
    s = torch.tensor([0.5, 2.0]).double().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(x, y, logit_scale=s[0], normalizer=s[1]), s)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_exported():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.5))

        def forward(self, a, b, n):
            return cross_entropy(a, b, normalizer=n, logit_scale=self.scale.detach())

    x, y = inputs()
    model = torch.export.export(Model(), (x.detach(), y, torch.tensor(3))).module()
    for n in (3, 5):
        expected = cross_entropy(x, y, normalizer=n, logit_scale=1.5)
        assert torch.equal(model(x.detach(), y, torch.tensor(n)), expected)
