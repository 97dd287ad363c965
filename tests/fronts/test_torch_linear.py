"""xentropy.torch.linear_cross_entropy: torch's cases, exactness, what is kept, what is refused."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import as_float64

import xentropy.torch as xt
from xentropy.torch import _linear_products

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
REDUCTIONS = "mean", "sum", "none"


def layer(rows=23, features=11, classes=37, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(classes, (rows,), generator=generator)
    return scale * normal(rows, features), normal(classes, features), normal(classes), labels


def by_logits(input, linear_weight, target, *, linear_bias=None, **options):
    """The same by all logits: the specification."""
    return xt.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def results(function, input, linear_weight, linear_bias, target, upstream=None, **options):
    """The loss and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in (input, linear_weight, linear_bias)]
    loss = function(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(ours, exact, eps, terms=1.0):
    """Per entry, in units of the largest: sums of `terms` rounded products cancel."""
    for a, e in zip(ours, exact, strict=True):
        assert a.shape == e.shape
        error = (a.double() - e).abs().max().item()
        assert error <= terms * eps * e.abs().max().item(), (error, eps)


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
        xt.linear_cross_entropy, *tensors, target, upstream.to(dtype), logits_bytes=600, **options
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


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of forward mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_every_kind(reduction):
    input, weight, bias, target = layer(5, 3, 7, torch.float64)
    target[2] = -100

    def loss(x, w, b):
        return xt.linear_cross_entropy(
            x, w, target, linear_bias=b, reduction=reduction, label_smoothing=0.1
        )

    leaves = tuple(t.requires_grad_() for t in (input, weight, bias))
    batched = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(loss, leaves, **batched)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_operands_that_depend_on_each_other_have_each_path_once(reduction):
    """Also with create_graph, where torch differentiates the loss of all logits."""
    start = torch.randn(5, 5, dtype=torch.float64)
    target = torch.arange(5)

    def derivatives(function, create_graph, made):
        w = start.clone().requires_grad_()
        input, bias = made(w)
        loss = function(input, w, target, linear_bias=bias, reduction=reduction).square().sum()
        (first,) = torch.autograd.grad(loss, w, create_graph=create_graph)
        return [first, *torch.autograd.grad(first.sum(), w)] if create_graph else [first]

    ways = (lambda w: (w.sin(), None)), (lambda w: (w, None)), (lambda w: (w.cos(), w.sum(1)))
    for made, create_graph in itertools.product(ways, (False, True)):
        ours = derivatives(xt.linear_cross_entropy, create_graph, made)
        theirs = derivatives(by_logits, create_graph, made)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


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


def test_transforms_of_functions():
    input, weight, _, target = layer(6, 4, 9, torch.float64)
    ours = torch.func.vmap(torch.func.grad(xt.linear_cross_entropy), (0, None, 0))
    theirs = torch.func.vmap(torch.func.grad(by_logits), (0, None, 0))
    assert torch.allclose(ours(input, weight, target), theirs(input, weight, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction):
    *tensors, target = layer(dtype=torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    options = (-100, reduction, None, 600, "", None, torch.float64, "input linear_weight")
    torch.library.opcheck(
        torch.ops.xentropy.linear_cross_entropy.default, (*leaves, target, None, None, *options)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_without_a_break(reduction):
    *tensors, target = layer()
    upstream = torch.linspace(-1, 2, 23) if reduction == "none" else torch.tensor(0.5)
    options = {"reduction": reduction, "label_smoothing": 0.1, "logits_bytes": 600}
    compiled = torch.compile(xt.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    ours = results(compiled, *tensors, target, upstream, **options)
    eager = results(xt.linear_cross_entropy, *tensors, target, upstream, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    *tensors, target = layer()
    plain = results(xt.linear_cross_entropy, *tensors, target)

    def again(*args, **options):
        return checkpoint(xt.linear_cross_entropy, *args, use_reentrant=False, **options)

    assert all(map(torch.equal, plain, results(again, *tensors, target)))


def test_autocast():
    *tensors, target = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = results(xt.linear_cross_entropy, *tensors, target)
        theirs = results(by_logits, *tensors, target)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [torch.float32] * 4
    for a, t in zip(ours, theirs, strict=True):
        assert (a - t).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * t.abs().max()


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


def wrong_calls():
    x, w, b, y = layer(4, 3, 5)
    yield "integer input", RuntimeError, (x.long(), w, y), {}
    yield "features", RuntimeError, (x, w[:, :2], y), {}
    yield "transposed", RuntimeError, (x, torch.ones(3, 5), y), {}
    yield "bias", RuntimeError, (x, w, y), {"linear_bias": b[:4]}
    yield "rows", ValueError, (x, w, y[:3]), {}
    yield "label", IndexError, (x, w, torch.tensor([0, 1, 2, 5])), {}
    yield "label types", RuntimeError, (x, w, y.int()), {}
    yield "reduction", ValueError, (x, w, y), {"reduction": "most"}
    yield "smoothing", RuntimeError, (x, w, y), {"label_smoothing": 1.5}
    yield "weight", RuntimeError, (x, w, y), {"weight": torch.ones(4)}
    yield "weight of more", RuntimeError, (x, w, y), {"weight": torch.ones(9)}
    yield "three dimensions", RuntimeError, (x[None], w, y[None]), {}
    yield "ignored", RuntimeError, (x, w, torch.rand(4, 5)), {"ignore_index": 1}


@pytest.mark.parametrize("case", list(wrong_calls()), ids=lambda case: case[0])
def test_errors_are_of_torchs_types(case):
    _, kind, args, options = case
    if hasattr(F, "linear_cross_entropy"):
        with pytest.raises(kind):
            F.linear_cross_entropy(*args, **options)
    with pytest.raises(kind):
        xt.linear_cross_entropy(*args, **options)


def test_a_wrong_number_of_bytes_is_named():
    x, w, _, y = layer(4, 3, 5)
    with pytest.raises(ValueError, match="logits_bytes = 0 must be positive"):
        xt.linear_cross_entropy(x, w, y, logits_bytes=0)


@pytest.mark.filterwarnings("ignore:linear_cross_entropy. ``options`` ignored")  # torch's
@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="since torch 2.13")
class TestTorchsOwn:
    """torch's samples for its function and module, with ours in their place."""

    @pytest.mark.parametrize("variant", ["", "chunked", "chunked_none"])
    def test_samples(self, variant):
        from torch.testing._internal import common_methods_invocations as cases

        name = "nn.functional.linear_cross_entropy"
        case = next(
            c for c in cases.op_db if c.name == name and (c.variant_test_name or "") == variant
        )
        for dtype in sorted(case.dtypes, key=str):
            samples = list(case.sample_inputs("cpu", dtype, requires_grad=False))
            assert samples
            for sample in samples:
                self.assert_as_torch(sample, dtype)

    @staticmethod
    def assert_as_torch(sample, dtype):
        given = [sample.input, *sample.args, *sample.kwargs.values()]
        wide = {k: as_float64(v) for k, v in sample.kwargs.items() if k != "options"}
        results = []
        for function, arguments, options in (
            (xt.linear_cross_entropy, given[:3], sample.kwargs),
            (F.linear_cross_entropy, map(as_float64, given[:3]), wide),
        ):
            x, w, y = (t.detach().clone() for t in arguments)
            x.requires_grad_(), w.requires_grad_()
            loss = function(x, w, y, **options)
            loss.sum().backward()
            results.append((loss.detach(), x.grad, w.grad))
        ours, exact = results
        assert all(a.dtype == dtype for a in ours)
        assert_close(ours, exact, torch.finfo(dtype).eps, terms=64)

    def test_module(self):
        from torch.testing._internal import common_modules as modules

        info = next(m for m in modules.module_db if m.module_cls is torch.nn.LinearCrossEntropyLoss)
        samples = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
        )
        for sample in samples:
            build, call = sample.constructor_input, sample.forward_input
            theirs = torch.nn.LinearCrossEntropyLoss(*build.args, **build.kwargs).double()
            ours = xt.LinearCrossEntropyLoss(*build.args, **build.kwargs).double()
            ours.load_state_dict(theirs.state_dict())
            a, b = (module(*call.args, **call.kwargs) for module in (ours, theirs))
            assert torch.allclose(a, b, rtol=1e-12, equal_nan=True)

    def test_patched(self):
        x, _, _, y = layer(4, 3, 5)
        own = F.linear_cross_entropy
        module = torch.nn.LinearCrossEntropyLoss(3, 5)
        with xt.patch():
            assert F.linear_cross_entropy is xt.linear_cross_entropy
            assert "xentropy" in type(module(x, y).grad_fn).__name__.lower()
        assert F.linear_cross_entropy is own


def test_the_module_without_torchs():
    x, w, b, y = layer(4, 3, 5)
    module = xt.LinearCrossEntropyLoss(3, 5, bias=True, label_smoothing=0.1, z_loss=1e-3)
    module.linear.load_state_dict({"weight": w, "bias": b})
    expected = xt.linear_cross_entropy(x, w, y, linear_bias=b, label_smoothing=0.1, z_loss=1e-3)
    assert torch.equal(module(x, y), expected)
    assert "z_loss=0.001" in repr(module)
    with pytest.raises(TypeError, match="no parameter 'zloss'"):
        xt.LinearCrossEntropyLoss(3, 5, zloss=1)


def test_who_multiplies_is_shown(capsys):
    import xentropy as xe

    xe.show_config()
    assert "products" in capsys.readouterr().out
