"""Who is measured: one function a peer, each at its best setting.

A peer's function takes the number of threads, imports its library, and returns `prepare`,
which takes `Inputs` and returns the `Way` of every mode that the peer has. What a way's `run`
returns becomes numbers by the peer's `answer`, which is not timed. A call and the release of its
result are timed together: whoever loops pays for both.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .cells import DTYPES, MODES, Cell, aligned


@dataclass(frozen=True)
class Inputs:
    """The numbers of a cell: logits at the start of a cache line, one label a row."""

    cell: Cell
    logits: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Way:
    """One call to be timed, and what has to be done before it, which is not."""

    run: Callable
    before: Callable | None = None


def version(distribution):
    """Its version; a source folder that is on the path, but not installed, has none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Peer:
    """A library that computes the loss, and what it can be asked for."""

    make: Callable
    answer: Callable  # what run returned -> (loss, gradient or None)
    packages: tuple  # distributions, named in the header; the first is the peer
    modules: tuple  # that must be there
    modes: tuple = ("loss", "fresh")
    divides: bool = True  # its loss is the mean, else the sum
    compiles: bool = False  # for every shape, at the first call
    dtypes: tuple = DTYPES
    most_dimensions: int = 32
    most_elements: int = 1 << 62

    @property
    def installed(self):
        return all(importlib.util.find_spec(name) for name in self.modules)

    def versions(self):
        return {name: version(name) for name in self.packages}

    def why_not(self, cell):
        """Why this peer does not take the cell; None if it does."""
        if cell.dtype not in self.dtypes:
            return f"no {cell.dtype}"
        if len(cell.shape) > self.most_dimensions:
            return "rows of classes only"
        if cell.elements > self.most_elements:
            return f"more than {self.most_elements >> 20} Mi elements"
        return None


def xentropy(threads):
    """The calls that users make: without `n_threads`."""
    import xentropy as xe
    from xentropy import _kernels

    if threads != xe.get_num_threads():
        xe.set_num_threads(threads)

    def prepare(inputs):
        _kernels._forget_debt()  # what busy cores cost in an earlier visit
        x, target = inputs.logits, inputs.target
        out, own = aligned(x.shape, x.dtype), aligned(x.shape, x.dtype)
        out[...] = 0  # its pages are there

        def loss():
            return xe.cross_entropy(x, target), None

        def fresh():
            return xe.cross_entropy_with_grad(x, target)

        def into():
            return xe.cross_entropy_with_grad(x, target, out=out)

        def in_place():
            return xe.cross_entropy_with_grad(own, target, out=own)

        def copy():
            own[...] = x

        return {
            "loss": Way(loss),
            "fresh": Way(fresh),
            "out": Way(into),
            "in place": Way(in_place, before=copy),
        }

    return prepare


def numpy_reference(threads):
    from xentropy import reference

    def prepare(inputs):
        x, target = inputs.logits, inputs.target
        return {
            "loss": Way(lambda: (reference.cross_entropy(x, target), None)),
            "fresh": Way(lambda: reference.cross_entropy_with_grad(x, target)),
        }

    return prepare


def scipy_log_softmax(threads):
    from scipy.special import log_softmax

    def prepare(inputs):
        x, target = inputs.logits, np.expand_dims(inputs.target, 1)

        def loss():
            return -np.take_along_axis(log_softmax(x, axis=1), target, 1).mean(), None

        return {"loss": Way(loss)}

    return prepare


def scikit_learn(threads):
    from sklearn._loss.loss import HalfMultinomialLoss

    def prepare(inputs):
        x, target = inputs.logits, inputs.target.astype(inputs.logits.dtype)
        half = HalfMultinomialLoss(n_classes=inputs.cell.classes)

        def loss():
            return half.loss(target, x, n_threads=threads), None

        def fresh():
            return half.loss_gradient(target, x, n_threads=threads)

        return {"loss": Way(loss), "fresh": Way(fresh)}

    return prepare


def scikit_learn_answer(result):
    losses, gradient = result
    return np.sum(losses, dtype=np.float64), gradient


def _torch_ways(torch, inputs, cross_entropy):
    x = inputs.logits
    if inputs.cell.dtype == "bfloat16":
        logits = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    else:
        logits = torch.from_numpy(x)
    logits, target = logits.requires_grad_(), torch.from_numpy(inputs.target)

    def loss():
        with torch.no_grad():
            return cross_entropy(logits, target), None

    def fresh():
        loss = cross_entropy(logits, target)
        return loss, *torch.autograd.grad(loss, logits)

    return {"loss": Way(loss), "fresh": Way(fresh)}


def torch_eager(threads):
    import torch

    torch.set_num_threads(threads)

    def prepare(inputs):
        return _torch_ways(torch, inputs, torch.nn.functional.cross_entropy)

    return prepare


def torch_compile(threads):
    import torch

    torch.set_num_threads(threads)
    compiled = {}

    def prepare(inputs):
        if inputs.cell not in compiled:  # one shape at a time: else it gives up specialising
            torch.compiler.reset()
            compiled.clear()
            function = torch.nn.functional.cross_entropy
            compiled[inputs.cell] = torch.compile(lambda x, t: function(x, t), dynamic=False)
        return _torch_ways(torch, inputs, compiled[inputs.cell])

    return prepare


def torch_answer(result):
    import torch

    loss, gradient = result
    if gradient is None:
        return loss.item(), None
    if gradient.dtype == torch.bfloat16:
        import ml_dtypes

        return loss.item(), gradient.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return loss.item(), gradient.numpy()


def jax_optax(threads):
    import jax
    import optax

    @jax.jit
    def mean(logits, target):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target, axis=1)
        return losses.mean()

    with_gradient = jax.jit(jax.value_and_grad(mean))

    def prepare(inputs):
        jax.config.update("jax_enable_x64", inputs.cell.dtype == "float64")
        x, target = jax.device_put(inputs.logits), jax.device_put(inputs.target.astype(np.int32))
        return {
            "loss": Way(lambda: (jax.block_until_ready(mean(x, target)), None)),
            "fresh": Way(lambda: jax.block_until_ready(with_gradient(x, target))),
        }

    return prepare


def jax_answer(result):
    loss, gradient = result
    return float(loss), None if gradient is None else np.asarray(gradient)


def _onnx_model(cell):
    """A model of one node, SoftmaxCrossEntropyLoss, as bytes."""
    from onnx import TensorProto, helper

    kind = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}
    kind = kind.get(cell.dtype, TensorProto.DOUBLE)
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "target"], ["loss"], reduction="mean")
    value = helper.make_tensor_value_info
    inputs = [value("x", kind, cell.shape), value("target", TensorProto.INT64, cell.row_shape)]
    graph = helper.make_graph([node], "loss", inputs, [value("loss", kind, [])])
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def onnx_runtime(threads):
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1

    def prepare(inputs):
        model = _onnx_model(inputs.cell)
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        feeds = {"x": wrap(inputs.logits), "target": wrap(inputs.target)}
        return {"loss": Way(lambda: (session.run_with_ort_values(None, feeds)[0], None))}

    return prepare


def onnx_answer(result):
    return float(result[0].numpy()), None


def plain_answer(result):
    return result


US = "xentropy"
REFERENCE = "numpy reference"
PEERS = {
    US: Peer(xentropy, plain_answer, ("xentropy-cpu",), ("xentropy",), modes=tuple(MODES)),
    "torch": Peer(torch_eager, torch_answer, ("torch",), ("torch",)),
    "torch.compile": Peer(torch_compile, torch_answer, ("torch",), ("torch",), compiles=True),
    "jax.jit + optax": Peer(
        jax_optax, jax_answer, ("optax", "jax", "jaxlib"), ("jax", "optax"), compiles=True
    ),
    "onnxruntime": Peer(
        onnx_runtime,
        onnx_answer,
        ("onnxruntime",),
        ("onnxruntime", "onnx"),
        modes=("loss",),
        dtypes=("float16", "float32", "float64"),
    ),
    "scikit-learn": Peer(
        scikit_learn,
        scikit_learn_answer,
        ("scikit-learn",),
        ("sklearn",),
        divides=False,
        dtypes=("float32", "float64"),
        most_dimensions=2,
    ),
    "scipy": Peer(scipy_log_softmax, plain_answer, ("scipy",), ("scipy",), modes=("loss",)),
    REFERENCE: Peer(  # in float64, and many temporaries: 64 bytes an element and more
        numpy_reference, plain_answer, ("numpy",), ("numpy",), most_elements=1 << 25
    ),
}
