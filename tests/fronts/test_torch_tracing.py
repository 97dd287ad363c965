"""xentropy.torch where Python is recorded or overridden: torch.fx, overrides, patched."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.traced_losses import (
    DEPRECATED,
    ROWS,
    TORCHS,
    X2,
    Y2,
    X,
    Y,
    assert_close,
    each_option,
    without_ignored,
)
from torch.overrides import TorchFunctionMode

from xentropy.torch import CrossEntropyLoss, cross_entropy, patch

pytestmark = DEPRECATED


# --- while patched ---


class Model(torch.nn.Module):
    """As users have it: torch's function and module, looked up at each call."""

    def __init__(self):
        super().__init__()
        self.criterion = torch.nn.CrossEntropyLoss()

    def forward(self, a, b):
        return self.criterion(a, b) + F.cross_entropy(a, b, label_smoothing=0.1)


@pytest.mark.parametrize("how", ["trace", "script", "fx"])
def test_torchs_own_is_recorded_while_patched(how):
    with patch():
        if how == "trace":
            recorded = torch.jit.trace(Model(), (X, Y))
        else:
            recorded = (torch.jit.script if how == "script" else torch.fx.symbolic_trace)(Model())
        assert_close(recorded(X2, Y2), Model()(X2, Y2))
    assert_close(recorded(X2, Y2), Model()(X2, Y2))
    if how == "fx":
        called = [node.target for node in recorded.graph.nodes if node.op == "call_function"]
        assert TORCHS in called
        assert cross_entropy not in called
    else:
        graph = recorded.inlined_graph
        assert "aten::cross_entropy_loss" in str(graph)
        assert "xentropy::" not in str(graph)


# --- torch.fx ---


@each_option
def test_fx_calls_ours(options):
    criterion = CrossEntropyLoss(**options)
    graph = torch.fx.symbolic_trace(criterion)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [cross_entropy]
    x, y = without_ignored(options)
    for copied in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(copied(x, y), criterion(x, y))


def test_fx_graphs_have_what_the_call_has():
    def loss(a, b, rows):
        return cross_entropy(2 * a, b, sample_weight=rows, z_loss=0.1)

    graph = torch.fx.symbolic_trace(loss)
    (node,) = (node for node in graph.graph.nodes if node.target is cross_entropy)
    assert node.kwargs["z_loss"] == 0.1
    assert "n_threads" not in node.kwargs
    assert torch.equal(graph(X2, Y2, ROWS), loss(X2, Y2, ROWS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own class
        scripted = torch.jit.script(graph)
    assert_close(scripted(X2, Y2, ROWS), loss(X2, Y2, ROWS))


# --- __torch_function__ ---


class Table:
    """A tensor-like object with a table of functions, as torch's documentation has it."""

    functions = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return (function, kwargs) if function in cls.functions else NotImplemented


@pytest.mark.parametrize("name", ["input", "target", "weight"])
def test_objects_see_the_call(name, monkeypatch):
    call = {"input": X, "target": Y, "weight": None, name: Table()}
    for known in (TORCHS, cross_entropy):
        monkeypatch.setattr(Table, "functions", [known])
        with patch():
            assert F.cross_entropy(**call)[0] is known
        function, given = cross_entropy(**call, reduction="sum")
        assert function is known
        assert given["reduction"] == "sum"
    assert cross_entropy(**call, z_loss=0.5)[1]["z_loss"] == 0.5
    assert cross_entropy(X, Y, sample_weight=Table())[0] is cross_entropy
    monkeypatch.setattr(Table, "functions", [TORCHS])
    for options in ({"z_loss": 0.5}, {"sample_weight": ROWS[:6]}):
        with pytest.raises(TypeError, match="no implementation found for 'xentropy"):
            cross_entropy(**call, **options)  # torch's function has no such option


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


def test_modes_see_the_call():
    with Seen() as seen:
        loss = cross_entropy(X, Y, z_loss=0.1)
        CrossEntropyLoss()(X, Y)
    assert seen.functions == [cross_entropy, cross_entropy]
    assert torch.equal(loss, cross_entropy(X, Y, z_loss=0.1))
    with patch(), Seen() as seen:
        loss = torch.nn.CrossEntropyLoss()(X, Y)
    assert seen.functions == [TORCHS]
    assert_close(loss, cross_entropy(X, Y))


def test_errors_of_an_override_are_its_own():
    class Broken(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"), Broken():
        cross_entropy(X, Y)


def test_a_default_device_is_no_override():
    """It is a mode for torch, through which a patched function would be torch's."""
    x, y = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    with torch.device("cpu"), patch():
        assert F.cross_entropy(x, y).item() == pytest.approx(2.06e-9, rel=1e-3)


def test_subclasses_remain_what_they_are():
    class Named(torch.Tensor):
        pass

    x = X.as_subclass(Named).requires_grad_()
    loss = cross_entropy(x, Y)
    assert type(loss) is Named
    loss.backward()
    assert_close(x.grad, torch.func.grad(lambda a: TORCHS(a, Y))(X))
