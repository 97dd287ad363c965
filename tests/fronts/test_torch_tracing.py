"""xentropy.torch where Python is recorded: torch.jit, torch.fx, ONNX, overrides of functions."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from xentropy.torch import CrossEntropyLoss, cross_entropy, patch

TORCHS = F.cross_entropy
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 5, generator=GENERATOR), torch.tensor([0, 1, 2, 3, 4, 0])
X2, Y2 = torch.randn(9, 5, generator=GENERATOR), torch.tensor([4, 1, -100, 3, 0, 0, 2, 2, 1])
ROWS = torch.tensor([1, 0.5, 0, 2, 1, 1, 3, 1, 1])
CLASSES = torch.tensor([1, 0.5, 0, 2, 1])
OPTIONS = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.1, "weight": CLASSES},
    {"ignore_index": 1, "weight": CLASSES},
    {"z_loss": 0.1, "label_smoothing": 0.1},
    {"z_loss": 1, "base": 2, "weight": CLASSES},  # ints where TorchScript distinguishes
    {"logit_scale": 2, "normalizer": 7},
    {"softcap": 2},
    {"softcap": 1.5, "logit_scale": 0.5, "label_smoothing": 0.1},
    {"reduction": "none", "base": 3.0, "weight": CLASSES, "label_smoothing": 0.3},
    {"axis": -1, "n_threads": 1, "inplace": True},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")


def without_ignored(options):
    """The second input, whose label -100 is to be a label where another is ignored."""
    return X2, Y2.clamp(min=0) if options.get("ignore_index", -100) >= 0 else Y2


def assert_close(ours, exact):
    """Sums of a few float32 terms below 16, in another order."""
    assert ours.dtype == exact.dtype
    assert torch.allclose(ours, exact, rtol=1e-6, atol=1e-6)


# --- torch.jit ---


@each_option
def test_a_traced_loss_is_that_of_its_input(options):
    criterion = CrossEntropyLoss(**options)
    traced = torch.jit.trace(criterion, (X, Y))
    x, y = without_ignored(options)
    assert_close(traced(x, y), criterion(x, y))


@each_option
def test_a_scripted_loss_is_the_same(options):
    criterion = CrossEntropyLoss(**options)
    scripted = torch.jit.script(criterion)
    x, y = without_ignored(options)
    assert_close(scripted(x, y), criterion(x, y))
    assert_close(scripted(x[0], y[0]), criterion(x[0], y[0]))


@pytest.mark.parametrize("record", ["trace", "script"])
def test_probabilities_and_weights_of_rows_in_torch_jit(record):
    criterion = CrossEntropyLoss(weight=CLASSES, z_loss=0.1, label_smoothing=0.1)
    for target in (Y2, X2.softmax(1)):
        if record == "trace":
            first = Y if target is Y2 else X.softmax(1)
            recorded = torch.jit.trace(criterion, (X, first, ROWS[:6]))
        else:
            recorded = torch.jit.script(criterion)
        assert_close(recorded(X2, target, ROWS), criterion(X2, target, ROWS))


@pytest.mark.parametrize("record", ["trace", "script"])
def test_rows_that_do_not_count_are_not_read(record):
    criterion = CrossEntropyLoss(z_loss=0.1)
    jit = {"trace": lambda m: torch.jit.trace(m, (X, Y)), "script": torch.jit.script}
    x = X2.clone()
    x[2] = torch.nan  # its label is ignored
    x[0, 1] = -torch.inf
    gradients = []
    for function in (jit[record](criterion), criterion):
        leaf = x.clone().requires_grad_()
        function(leaf, Y2).backward()
        gradients.append(leaf.grad)
    assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_type_of_a_recorded_loss_is_that_of_the_eager_one(dtype):
    x, criterion = X.to(dtype), CrossEntropyLoss(z_loss=0.1)
    for recorded in (torch.jit.trace(criterion, (x, Y)), torch.jit.script(criterion)):
        eager = criterion(2 * x, Y)
        assert recorded(2 * x, Y).dtype == dtype
        assert torch.allclose(recorded(2 * x, Y), eager, rtol=2 * torch.finfo(dtype).eps, atol=0)
    if dtype != torch.float64:
        with torch.autocast("cpu", torch.bfloat16):
            traced = torch.jit.trace(criterion, (x, Y))
            assert_close(traced(2 * x, Y), criterion(2 * x, Y))


WRONG = [
    {"label_smoothing": 2.0, "z_loss": 0.1},
    {"label_smoothing": torch.tensor(0.2), "z_loss": 0.1},
    {"ignore_index": 2.5, "z_loss": 0.1},
    {"axis": 5},
    {"z_loss": torch.tensor(0.1)},
    {"base": 0.5},
    {"logit_scale": torch.ones(3)},
    {"logit_scale": -1.0},
    {"softcap": -1.0},
    {"normalizer": torch.tensor(2.0), "reduction": "sum"},
    {"sample_weight": torch.ones(6, 1)},
    {"weight": torch.ones(4)},
    {"reduction": "maximum"},
]


@pytest.mark.parametrize("options", WRONG, ids="-".join)
def test_what_is_refused_is_not_traced(options):
    """With the same error; a graph has no checks of its own."""
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)) as eager:
        cross_entropy(X, Y, **options)
    with pytest.raises(type(eager.value)) as traced:
        torch.jit.trace(lambda x, y: cross_entropy(x, y, **options), (X, Y), check_trace=False)
    assert str(traced.value) == str(eager.value)


@pytest.mark.parametrize("record", ["trace", "script"])
def test_tensors_of_one_number_are_inputs_of_a_recorded_graph(record):
    class Loss(torch.nn.Module):
        def forward(self, x, y, scale, count):
            return cross_entropy(x, y, logit_scale=scale, normalizer=count)

    first, second = torch.tensor([[2.0, 7.0], [0.5, 3.0]])
    loss = Loss()
    recorded = (
        torch.jit.script(loss) if record == "script" else torch.jit.trace(loss, (X, Y, *first))
    )
    assert_close(recorded(X2, Y2, *second), loss(X2, Y2, *second))


@pytest.mark.parametrize("record", ["trace", "script", "compile", "export"])
def test_parameters_of_the_criterion_are_those_of_its_record(record):
    names = "logit_scale", "normalizer"
    criterion = CrossEntropyLoss(**{name: torch.nn.Parameter(torch.tensor(2.0)) for name in names})
    records = {
        "trace": lambda: torch.jit.trace(criterion, (X, Y)),
        "script": lambda: torch.jit.script(criterion),
        "compile": lambda: torch.compile(criterion, backend="aot_eager", fullgraph=True),
        "export": lambda: torch.export.export(criterion, (X, Y)).module(),
    }
    recorded = records[record]()
    for value in (2.0, 3.0):
        for parameter in (*criterion.parameters(), *recorded.parameters()):
            parameter.data.fill_(value)
        assert_close(recorded(X2[:6], Y2[:6]), criterion(X2[:6], Y2[:6]))
    gradients = []
    for module in (recorded, criterion):
        wanted = [getattr(module, name) for name in names]
        gradients.append(torch.stack(torch.autograd.grad(module(X2[:6], Y2[:6]), wanted)))
    assert_close(*gradients)


def test_functions_that_call_ours_are_compiled():
    class Model(torch.nn.Module):
        def forward(self, a, b):
            return cross_entropy(a, b, z_loss=0.5, reduction="none")

    assert_close(torch.jit.script(Model())(X2, Y2), Model()(X2, Y2))
    assert_close(torch.jit.script(cross_entropy)(X2, Y2), TORCHS(X2, Y2))
    with pytest.raises(torch.jit.Error, match="not a valid value for reduction"):
        torch.jit.script(cross_entropy)(X2, Y2, reduction="average")


def test_a_saved_graph_needs_no_xentropy(tmp_path):
    criterion = CrossEntropyLoss(z_loss=0.5).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(criterion)), tmp_path / "script.pt")
    torch.jit.save(torch.jit.trace(criterion, (X, Y)), tmp_path / "trace.pt")
    code = (
        "import sys, torch\n"
        "x, y = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1])\n"
        "print(*[torch.jit.load(name)(x, y).item() for name in sys.argv[1:]])\n"
        "assert 'xentropy' not in sys.modules"
    )
    names = [str(tmp_path / "script.pt"), str(tmp_path / "trace.pt")]
    command = [sys.executable, "-W", "ignore", "-c", code, *names]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    eager = criterion(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1])).item()
    assert [float(each) for each in shown] == pytest.approx([eager] * 2, rel=1e-6)


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


# --- ONNX ---


class Head(torch.nn.Module):
    def __init__(self, criterion):
        super().__init__()
        self.layer, self.criterion = torch.nn.Linear(5, 5), criterion

    def forward(self, a, b):
        return self.criterion(self.layer(a), b)


def by_onnx(exporter, tmp_path, model, x, y, first=(X, Y)):
    """The loss of a model that was exported, for any number of rows, with another input."""
    runtime = pytest.importorskip("onnxruntime")
    rows = torch.export.Dim("rows")
    path = str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and onnxscript about one another
        how = {"dynamo": True, "dynamic_shapes": ({0: rows}, {0: rows}), "verbose": False}
        if exporter == "torchscript":
            how = {"dynamo": False, "dynamic_axes": {"a": {0: "rows"}, "b": {0: "rows"}}}
        torch.onnx.export(model, first, path, input_names=["a", "b"], **how)
    session = runtime.InferenceSession(path)
    assert [i.name for i in session.get_inputs()] == ["a", "b"]
    return torch.from_numpy(session.run(None, {"a": x.numpy(), "b": y.numpy()})[0])


@pytest.fixture(params=["torchscript", "dynamo"])
def exporter(request):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return request.param


@pytest.mark.parametrize("options", [OPTIONS[i] for i in (0, 3, 4, 6, 7)], ids="-".join)
def test_onnx_computes_the_loss_of_its_input(exporter, options, tmp_path):
    model = Head(CrossEntropyLoss(**options))
    x, y = without_ignored(options)
    loss = by_onnx(exporter, tmp_path, model, x, y)
    assert_close(loss, model(x, y).detach())


def test_onnx_computes_with_probabilities_and_while_patched(exporter, tmp_path):
    """torch's own export of class probabilities cannot be loaded."""
    model = Head(CrossEntropyLoss(label_smoothing=0.1, weight=CLASSES))
    first = X, X.softmax(1)
    loss = by_onnx(exporter, tmp_path, model, X2, X2.softmax(1), first)
    assert_close(loss, model(X2, X2.softmax(1)).detach())
    model = Head(torch.nn.CrossEntropyLoss())
    with patch():
        loss = by_onnx(exporter, tmp_path, model, X2, Y2)
    assert_close(loss, model(X2, Y2).detach())


def test_onnx_keeps_the_smoothing_beside_a_learned_scale(exporter, tmp_path):
    """torch's own export loses it."""
    scale = torch.nn.Parameter(torch.tensor(2.0))
    model = Head(CrossEntropyLoss(label_smoothing=0.1, logit_scale=scale))
    loss = by_onnx(exporter, tmp_path, model, X2, Y2)
    assert_close(loss, model(X2, Y2).detach())


@pytest.mark.parametrize("learned", [False, True])
def test_onnx_takes_an_exported_program(learned, tmp_path):
    """torch.export keeps our operator; the exporter to ONNX gets its decomposition."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    options = {"z_loss": 0.1, "weight": CLASSES, "base": 2.0}
    if learned:  # by torch's operations, for the derivative
        options = {"label_smoothing": 0.1, "logit_scale": torch.nn.Parameter(torch.tensor(2.0))}
    model = Head(CrossEntropyLoss(**options))
    program = torch.export.export(model, (X, Y))
    path = str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    names = [i.name for i in session.get_inputs()]
    y = Y.flip(0)
    found = session.run(None, dict(zip(names, (X2[:6].numpy(), y.numpy()), strict=True)))[0]
    assert_close(torch.from_numpy(found), model(X2[:6], y).detach())
