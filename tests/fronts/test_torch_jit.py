"""xentropy.torch in torch.jit: traced and scripted losses, and what is not traced."""

import subprocess
import sys

import pytest
import torch
from helpers.traced_losses import (
    CLASSES,
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

from xentropy.torch import CrossEntropyLoss, cross_entropy

pytestmark = DEPRECATED


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
