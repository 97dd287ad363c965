"""xentropy.torch's linear loss as torch's own: its cases, its errors, its module, patches."""

import pytest
import torch
import torch.nn.functional as F
from helpers.linear_layers import assert_close, layer
from helpers.torch_oracle import as_float64

import xentropy.torch as xt


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


def test_what_is_no_tensor_of_the_layers_type_is_named():
    x, w, b, y = layer(4, 3, 5)
    for name in ("input", "linear_weight", "target", "linear_bias"):
        call = {"input": x, "linear_weight": w, "target": y, "linear_bias": b}
        call[name] = call[name].tolist()
        with pytest.raises(TypeError, match=f"^{name} must be a tensor, not list"):
            xt.linear_cross_entropy(**call)
    with pytest.raises(TypeError, match=r"^linear_weight .* not Linear; give the layer's weight"):
        xt.linear_cross_entropy(x, torch.nn.Linear(3, 5), y)
    with pytest.raises(RuntimeError, match=r"^linear_weight must be torch\.float64 as input, not"):
        xt.linear_cross_entropy(x.double(), w.float(), y)
    with pytest.raises(RuntimeError, match=r"^linear_bias must be torch\.float32 as input, not"):
        xt.linear_cross_entropy(x.float(), w.float(), y, linear_bias=b.double())
    hot = torch.nn.functional.one_hot(y, 5)
    with pytest.raises(RuntimeError, match=r"must be floating: give target.float\(\)"):
        xt.linear_cross_entropy(x, w, hot)


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
