"""xentropy.torch in graphs: torch.compile, torch.export, dispatch modes, torch.library's checks."""

import pytest
import torch
from helpers.torch_oracle import labels, logits_and_labels, seeded
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from xentropy.torch import CrossEntropyLoss, cross_entropy, patch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPERATOR = torch.ops.xentropy.cross_entropy.default
BACKWARD = torch.ops.xentropy.cross_entropy_backward.default
PLAIN = (1, -100, "mean", None, 0.0, 0.0, 1.0, None, None)


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch.compiler.reset()


def both(function, x, y, **options):
    """(loss, gradient) eager and compiled, without a break in the graph."""
    answers = []
    whole = torch.compile(function, fullgraph=True, backend=options.pop("backend", "aot_eager"))
    for f in (function, whole):
        loss = f(x, y)
        answers.append((loss.detach(), *torch.autograd.grad(loss.sum(), x)))
    return answers


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_without_a_break_gives_the_same(dtype, reduction):
    x, y = logits_and_labels(dtype=dtype)

    def loss(a, b):
        weight = torch.ones(5, dtype=dtype)
        rows = torch.ones(6)
        return 2 * cross_entropy(a, b, weight, reduction=reduction, sample_weight=rows, z_loss=0.1)

    eager, compiled = both(loss, x, y)
    assert torch.equal(compiled[0], eager[0])
    # float32 and float64 gradients are scaled in eager mode: one rounding more
    assert torch.allclose(compiled[1], eager[1], rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_by_inductor():
    head = torch.nn.Linear(4, 9)
    criterion = CrossEntropyLoss(label_smoothing=0.1)
    x, y = logits_and_labels(6, 4)
    eager, compiled = both(lambda a, b: criterion(head(a), b), x, y, backend="inductor")
    # the matrix products differ by a few units of their terms, which are below 8
    assert torch.allclose(compiled[0], eager[0], rtol=0, atol=1e-5)
    assert torch.allclose(compiled[1], eager[1], rtol=0, atol=1e-5)


def test_compiled_with_probabilities_autocast_and_without_gradient():
    x, _ = logits_and_labels(dtype=torch.bfloat16)
    p = torch.rand(6, 5).requires_grad_()

    def soft(a, b):
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(a, b.detach())

    eager, compiled = both(soft, x, p)
    assert compiled[0].dtype == torch.float32
    assert torch.equal(compiled[0], eager[0])
    whole = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(whole(x, p), cross_entropy(x, p))
    a, b = torch.rand(6, 5, requires_grad=True), p  # the target's own gradient
    expected = torch.autograd.grad(cross_entropy(a, b), (a, b))
    for ours, exact in zip(torch.autograd.grad(whole(a, b), (a, b)), expected, strict=True):
        assert torch.allclose(ours, exact, rtol=1e-5, atol=1e-7)  # torch's own function


def test_compiled_for_any_number_of_rows():
    whole = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5, 8):
        x, y = logits_and_labels(rows)
        assert torch.equal(whole(x, y), cross_entropy(x, y))


def test_compiled_transforms():
    x, y = logits_and_labels()
    x = x.detach()
    each = torch.func.vmap(torch.func.grad(lambda a, b: cross_entropy(a, b)))
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")(x, y)
    assert torch.allclose(compiled, each(x, y), rtol=1e-6, atol=0)  # torch's operations, twice


def test_compiled_while_patched():
    x, y = logits_and_labels(1, 2)
    x = torch.tensor([[20.0, 0.0]], requires_grad=True)
    with patch():
        _, compiled = both(lambda a, b: torch.nn.functional.cross_entropy(a, b), x, y)
    assert compiled[0].item() == pytest.approx(2.06e-9, rel=1e-3)  # torch: 0


def test_a_bad_label_in_a_compiled_graph_raises():
    whole = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    x, y = logits_and_labels()
    with pytest.raises(IndexError, match=r"target\[0\] = 5 is out of range"):
        whole(x, y + 5)


def test_exported():
    class Model(torch.nn.Module):
        def forward(self, a, b):
            return cross_entropy(a, b, reduction="none")

    x, y = logits_and_labels()
    exported = torch.export.export(Model(), (x.detach(), y))
    assert torch.equal(
        exported.module()(x.detach(), y), cross_entropy(x.detach(), y, reduction="none")
    )
    assert any(node.target is OPERATOR for node in exported.graph.nodes)


def test_dispatch_modes_see_the_operator():
    x, y = logits_and_labels()
    graph = make_fx(lambda a, b: cross_entropy(a, b))(x.detach(), y).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [OPERATOR]
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(6, 5)
        assert cross_entropy(fake, torch.zeros(6).long(), reduction="none").shape == (6,)


SAMPLES = {
    "plain": lambda: (*logits_and_labels(), None, None, *PLAIN),
    "none": lambda: (*logits_and_labels(), None, torch.ones(6), 1, 2, "none", *PLAIN[3:]),
    "images": lambda: (
        torch.rand(2, 3, 4, 5).requires_grad_(),
        torch.zeros(2, 4, 5).long(),
        torch.ones(3),
        None,
        1,
        -100,
        "none",
        None,
        0.1,
        0.1,
        0.5,
        2.0,
        1,
    ),
    "soft": lambda: (torch.rand(4, 3).requires_grad_(), torch.rand(4, 3), None, None, *PLAIN),
    "transposed": lambda: (
        torch.rand(5, 6).T.requires_grad_(),
        torch.zeros(6).long(),
        None,
        None,
        *PLAIN,
    ),
    "one row": lambda: (torch.rand(5).requires_grad_(), torch.tensor(2), None, None, *PLAIN),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    arguments = SAMPLES[name]()
    torch.library.opcheck(OPERATOR, (*arguments, torch.float32))
    rows = OPERATOR(*arguments, torch.float32).detach()
    arguments = [a.detach() if torch.is_tensor(a) else a for a in arguments]
    torch.library.opcheck(BACKWARD, (rows, *arguments))


def test_the_operator_itself_passes_gradcheck_and_has_no_second_derivative():
    x, y = logits_and_labels(dtype=torch.float64)
    loss = lambda a: OPERATOR(a, y, None, None, *PLAIN, torch.float64)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x,))
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cross_entropy_backward"):
        gradient.sum().backward()


# --- numbers that change ---

CHANGING = {
    "normalizer": [30 + i for i in range(5)],
    "normalizer, floats": [30.5 + i for i in range(5)],
    "label_smoothing": [0.3 / (1 + i) for i in range(5)],
    "z_loss": [1e-4 * i for i in range(5)],
    "softcap": [10.0 + i for i in range(5)],
    "logit_scale": [1 + i / 8 for i in range(5)],
    "base": [2 + i / 8 for i in range(5)],
    "n_threads": [1, 2, 3, 4],
    "ignore_index": list(range(-5, 0)),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_number_that_changes_is_compiled_at_most_twice(name):
    """Once for its first value, and once for all the others, as torch's own functions."""
    x, y = logits_and_labels(4, 3, torch.float64)
    option, values = name.partition(",")[0], CHANGING[name]
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda a, b, n: cross_entropy(a, b, **{option: n}), backend=counter, fullgraph=True
    )
    for n in values:
        loss = function(x, y, n)
        expected = cross_entropy(x, y, **{option: n})
        assert torch.equal(loss, expected)
        found, exact = (torch.autograd.grad(each, x)[0] for each in (loss, expected))
        assert torch.equal(found, exact)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["normalizer", "logit_scale"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_tensor_that_changes_is_compiled_once(name, learned):
    x, y = logits_and_labels(4, 3, torch.float64)
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda a, b, n: cross_entropy(a, b, **{name: n}), backend=counter, fullgraph=True
    )
    for n in range(1, 6):
        number = torch.tensor(float(n), requires_grad=learned)
        expected = cross_entropy(x, y, **{name: float(n)})
        assert torch.allclose(function(x, y, number), expected, rtol=1e-14)
    assert counter.frame_count == 1


def test_batches_of_any_size_are_compiled_at_most_twice():
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda a, b, v, n: cross_entropy(a, b, sample_weight=v, normalizer=n),
        backend=counter,
        fullgraph=True,
    )
    for rows in range(3, 8):
        x, y = seeded(rows, 5), labels((rows, 5))
        v = torch.linspace(0, 1, rows)
        expected = cross_entropy(x, y, sample_weight=v, normalizer=rows)
        assert torch.equal(function(x, y, v, rows), expected)
    assert counter.frame_count <= 2
