"""xentropy.torch's softmax family in recorded graphs: torch.compile, export, jit, fx."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import seeded
from helpers.torch_softmax_calls import EVERY, TARGET, Module, assert_same
from torch.fx.experimental.proxy_tensor import make_fx

import xentropy.torch as xt

DEPRECATED = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@EVERY
def test_compiled_without_a_break(function):
    torch._dynamo.reset()
    whole = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(whole, function, seeded(4, 6))


def test_compiled_errors_are_clear():
    torch._dynamo.reset()
    whole = torch.compile(lambda a, b: xt.kl_divergence(a, b), backend="aot_eager")
    with pytest.raises(Exception, match="target has shape"):
        whole(TARGET[:2], TARGET)


def test_the_implicit_dim_is_compiled_as_torch_has_it():
    torch._dynamo.reset()
    whole = torch.compile(lambda x: xt.softmax(x), backend="aot_eager")
    x = seeded(4, 6).detach()
    with pytest.warns(UserWarning, match="Implicit dimension"):
        assert torch.allclose(whole(x), torch.softmax(x, 1))


def test_a_compiled_graph_for_every_shape():
    torch._dynamo.reset()
    whole = torch.compile(Module(), fullgraph=True, dynamic=True, backend="eager")
    for shape in ((4, 6), (5, 7), (2, 9)):
        x, target = seeded(*shape).detach(), torch.full(shape, 0.1)
        assert torch.allclose(whole(x, target), Module()(x, target), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_backward_of_an_eager_forward():
    found = []
    for context in (torch._dynamo.compiled_autograd._enable, lambda compiler: nullcontext()):
        x, target = seeded(4, 6), TARGET.clone().requires_grad_()
        total = sum(Module()(x, target)) + xt.logsumexp(x, (0, 1))
        with context(torch.compile(backend="eager")):
            total.backward()
        found.append((x.grad, target.grad))
    for compiled, eager in zip(*found, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    x, other = seeded(4, 6).detach(), seeded(4, 6, seed=9).detach()
    program = torch.export.export(Module(), (x, TARGET), strict=strict)
    assert torch.allclose(program.module()(other, TARGET), Module()(other, TARGET), atol=1e-5)


@DEPRECATED
@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace_records_operations_and_no_constant(grad):
    x, other = (seeded(4, 6, seed=s).detach().requires_grad_(grad) for s in (0, 9))
    traced = torch.jit.trace(Module(), (x, TARGET))
    assert torch.allclose(traced(other, TARGET), Module()(other, TARGET), atol=1e-5)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert {"aten::softmax", "aten::log_softmax", "aten::logsumexp"} <= kinds


@DEPRECATED
def test_jit_script_has_torchs_operators():
    class Scripted(torch.nn.Module):
        def forward(self, x):
            log_p = xt.log_softmax(x, dim=1, dtype=torch.float64)
            return xt.softmax(x, 1) + log_p + xt.logsumexp(x, [0, 1], keepdim=True)

    x = seeded(4, 6).detach()
    scripted = torch.jit.script(Scripted())
    assert torch.allclose(scripted(x), Scripted()(x), atol=1e-5)
    kinds = {node.kind() for node in scripted.inlined_graph.nodes()}
    assert {"aten::softmax", "aten::log_softmax", "aten::logsumexp"} <= kinds


def test_symbolic_trace_and_make_fx():
    x, other = seeded(4, 6).detach(), seeded(4, 6, seed=9).detach()
    graph = torch.fx.symbolic_trace(Module())
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    torchs = {F.softmax, F.log_softmax, torch.logsumexp}
    assert torchs | {xt.entropy, xt.kl_divergence} <= called
    for traced in (graph, make_fx(Module())(x, TARGET)):
        assert torch.allclose(traced(other, TARGET), Module()(other, TARGET), atol=1e-5)
    implicit = torch.fx.symbolic_trace(lambda a: xt.softmax(a))
    with pytest.warns(UserWarning, match="Implicit dimension"):
        assert torch.allclose(implicit(x), torch.softmax(x, 1))
