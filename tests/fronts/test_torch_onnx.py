"""xentropy.torch exported to ONNX."""

import warnings

import pytest
import torch
from helpers.traced_losses import CLASSES, OPTIONS, X2, Y2, X, Y, assert_close, without_ignored

from xentropy.torch import CrossEntropyLoss, patch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


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
