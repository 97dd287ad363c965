"""xentropy.torch's softmax family in modes, overrides and transforms, and on other devices."""

import functools

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import seeded
from helpers.torch_softmax_calls import EVERY, FUNCTIONS, TARGET, Module, value_and_gradient
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import xentropy.torch as xt
from xentropy.torch import _softmax

DEPRECATED = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# --- modes and objects that override functions ---


class Functions(TorchFunctionMode):
    """Records torch's functions."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Records operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Operators])
def test_modes_see_torchs_operations(mode):
    x = seeded(4, 6)
    with mode() as seen:
        rows = Module()(x, TARGET)
        rows.sum().backward()
    assert torch.allclose(rows, Module()(x, TARGET), atol=1e-5)
    for name in ("softmax", "log_softmax", "logsumexp"):
        assert any(name in each for each in seen.names)
    with FlopCounterMode(display=False):
        Module()(x, TARGET)


@EVERY
def test_a_mode_that_comes_for_backward(function):
    x = seeded(4, 6)
    values = function(x).square().sum()
    with Operators() as seen:
        values.backward()
    assert seen.names
    assert torch.allclose(x.grad, value_and_gradient(function, x)[1], rtol=1e-5, atol=2e-6)


@EVERY
def test_fake_tensors(function):
    mode = FakeTensorMode()
    real = function(TARGET.log())
    fake = mode.from_tensor(seeded(4, 6).detach())
    with mode:
        target = mode.from_tensor(TARGET)
        inside = xt.kl_divergence(target, fake) if real.dim() == 0 else None
    assert inside is None or inside.shape == ()
    if function in (FUNCTIONS["kl_divergence"],):
        return  # its target is real
    outside = function(fake)
    assert (outside.shape, outside.dtype) == (real.shape, real.dtype)
    assert isinstance(outside, torch._subclasses.FakeTensor)


class Subclass(torch.Tensor):
    pass


class Table(torch.Tensor):
    """Implements some functions only."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return "seen" if func in (F.softmax, F.log_softmax, torch.logsumexp) else NotImplemented


class Other:
    """No tensor at all."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func.__name__, args, kwargs


@EVERY
def test_subclasses_stay_what_they_are(function):
    x = seeded(4, 6).detach()
    values = function(x.as_subclass(Subclass))
    assert type(values) is Subclass
    assert torch.allclose(values.as_subclass(torch.Tensor), function(x), atol=1e-5)
    parameter = torch.nn.Parameter(x)
    assert torch.equal(function(parameter), function(x))


def test_objects_that_override_functions_see_the_call():
    table = seeded(4, 6).detach().as_subclass(Table)
    assert xt.softmax(table, 1) == xt.log_softmax(table, 1) == xt.logsumexp(table, 1) == "seen"
    other = Other()
    assert xt.softmax(other, 1)[:2] == ("softmax", (other,))
    assert xt.log_softmax(other, 1)[:2] == ("log_softmax", (other,))
    assert xt.logsumexp(other, 1)[0] == "logsumexp"
    assert xt.entropy(other) == ("entropy", (other,), {"dim": -1, "base": None})
    for arguments in ((other, TARGET), (TARGET, other)):
        name, seen, options = xt.kl_divergence(*arguments)
        assert (name, seen) == ("kl_divergence", arguments)
        assert options == {"dim": 1, "reduction": "mean", "base": None, "target_logits": False}


# --- transforms ---


@DEPRECATED
@pytest.mark.parametrize(
    "function",
    [
        lambda x: xt.softmax(x, -1),
        lambda x: xt.log_softmax(x, 0),
        lambda x: xt.logsumexp(x, 0),
        lambda x: xt.entropy(x, base=2),
        lambda x: xt.kl_divergence(TARGET[0].double(), x),
        lambda x: xt.kl_divergence(xt.softmax(x, 0), x.sin()),
    ],
    ids=["softmax", "log_softmax", "logsumexp", "entropy", "kl_divergence", "both"],
)
def test_transforms_of_torch_func(function):
    x = seeded(4, 6, dtype=torch.float64).detach()

    def total(row):
        return function(row).square().sum()

    each = torch.stack([function(row) for row in x])
    gradients = torch.stack([value_and_gradient(function, row)[1] for row in x])
    assert torch.allclose(torch.vmap(function)(x), each)
    assert torch.allclose(torch.vmap(torch.func.grad(total))(x), gradients)
    expected = torch.autograd.functional.hessian(total, x[0])
    assert torch.allclose(torch.func.hessian(total)(x[0]), expected)
    jacobian = torch.autograd.functional.jacobian(function, x[0])
    assert torch.allclose(torch.func.jacrev(function)(x[0]), jacobian)
    assert torch.allclose(torch.func.jacfwd(function)(x[0]), jacobian)
    assert torch.allclose(
        torch.autograd.functional.jacobian(function, x[0], vectorize=True, strategy="forward-mode"),
        jacobian,
    )


def test_vmap_over_a_backward_that_was_recorded_outside():
    x = seeded(4, 6)
    for function in FUNCTIONS.values():
        values = function(x)
        pull = functools.partial(torch.autograd.grad, values, x, retain_graph=True)
        upstream = torch.randn(3, *values.shape, dtype=values.dtype)
        for found, g in zip(torch.vmap(pull)(upstream)[0], upstream, strict=True):
            assert torch.allclose(found, pull(g)[0], rtol=1e-5, atol=2e-6)


def test_checkpoint_and_saved_tensor_hooks():
    x = seeded(4, 6)
    for function in FUNCTIONS.values():
        expected = value_and_gradient(function, x)[1]
        again = value_and_gradient(lambda a, f=function: checkpoint(f, a, use_reentrant=False), x)
        assert torch.equal(again[1], expected)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            assert torch.equal(value_and_gradient(function, x)[1], expected)


# --- devices ---


@EVERY
def test_other_devices(function):
    if function in (FUNCTIONS["kl_divergence"],):
        function = functools.partial(xt.kl_divergence, TARGET.to("meta"))
    values = function(torch.empty(4, 6, device="meta"))
    assert values.device.type == "meta"


@EVERY
def test_the_default_device_changes_nothing(function):
    x = seeded(4, 6).detach()
    expected = value_and_gradient(function, x)
    with torch.device("meta"):
        found = value_and_gradient(function, x)
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)  # computed by the kernels as well


def test_no_ml_dtypes_means_torch_for_bfloat16(monkeypatch):
    monkeypatch.setattr(_softmax, "FLOATS", _softmax.FLOATS - {torch.bfloat16})
    x = seeded(4, 6, dtype=torch.bfloat16)
    assert torch.equal(xt.softmax(x, 1), torch.softmax(x, 1))
    assert xt.kl_divergence(TARGET.bfloat16(), x).dtype == torch.bfloat16
    assert xt.entropy(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::UserWarning")  # a prototype
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    values = xt.softmax(nested, -1)
    assert values.is_nested
    for found, part in zip(values.unbind(), parts, strict=True):
        assert torch.allclose(found, torch.softmax(part, -1))
