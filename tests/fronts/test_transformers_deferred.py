"""Deferred logits as a tensor: what they know, what they become, and what is refused."""

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xentropy.torch import cross_entropy
from xentropy.transformers import materialised
from xentropy.transformers._deferred import Deferred, defer

H, V = 6, 11


@pytest.fixture
def operands():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(2, 5, H), torch.randn(V, H), torch.randn(V)
    return [t.requires_grad_() for t in (hidden, weight, bias)]


def both(operands):
    return defer(*operands), F.linear(*operands)


def count():
    return sum(materialised().values())


def grads(loss, operands):
    return torch.autograd.grad(loss, operands, allow_unused=True)


TARGET = torch.tensor([3, 0, -100, 10, 5, 5, -100, 1, 2, 3])
LABELS = TARGET.view(2, 5)

STAY = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32).to("cpu").to(LABELS.device, torch.float32),
    "type": lambda x: x.type(torch.float32),
    "contiguous": lambda x: x.contiguous(),
    "scale": lambda x: 2 * x / 3.0,
    "torch.div": lambda x: torch.div(x, 3),
    "cap": lambda x: torch.tanh(x / 2) * 2,
    "cap of cap": lambda x: (x * 0.5).tanh() * 3 / 2,
    "bias": lambda x: x + torch.arange(V) * torch.ones(1, 1),
    "squeezed": lambda x: x.unsqueeze(0).squeeze(0),
    "flat": lambda x: x.flatten(0, 1).unflatten(0, (2, 5)),
    "sliced": lambda x: x[:, 0:][..., :5, :][:, :, :].contiguous(),
    "new axis": lambda x: x[None][0],
    "columns": lambda x: x[:, torch.arange(5)],
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays_deferred_has_loss_gradients_and_logits_of_the_real_ones(name, operands):
    before = count()
    x, real = (STAY[name](z) for z in both(operands))
    assert (x.shape, x.dtype, x.stride()) == (real.shape, real.dtype, real.stride())
    assert isinstance(x, Deferred)
    ours = F.cross_entropy(x.view(-1, V), TARGET)
    theirs = F.cross_entropy(real.view(-1, V), TARGET)
    assert count() == before
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(grads(ours, operands), grads(theirs, operands), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(x + 0, real)
    assert count() == before + 1


SHIFTS = {
    "slice": lambda x, y: (x[..., :-1, :].contiguous(), y[..., 1:].contiguous()),
    "mask": lambda x, y: (x[:, :-1][y[:, 1:] > 1], y[:, 1:][y[:, 1:] > 1]),
    "list of rows": lambda x, y: (x[torch.tensor([0, 1, 1]), torch.tensor([4, 0, 0])], y[0, :3]),
    "last": lambda x, y: (x[:, -1], y[:, 0]),
    "one row": lambda x, y: (x[1, 2].view(1, -1), y[:1, 0]),
    "reshape": lambda x, y: (x[:, 1:].reshape(-1, V), y[:, 1:]),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_rows_of_the_logits_have_the_loss_of_those_rows(name, operands):
    before = count()
    losses = []
    for z in both(operands):
        x, y = SHIFTS[name](z, LABELS)
        losses.append(nn.CrossEntropyLoss(reduction="sum")(x.view(-1, V), y.reshape(-1)))
    assert count() == before
    torch.testing.assert_close(*losses)
    for a, b in zip(*(grads(loss, operands) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("function", [F.cross_entropy, cross_entropy])
def test_options_of_cross_entropy(reduction, smoothing, weighted, function, operands):
    weight = torch.linspace(0.5, 2, V) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": 5}
    target = TARGET.clamp(min=0)
    x, real = (z.flatten(0, 1) for z in both(operands))
    ours = function(x, target, weight, **options)
    theirs = F.cross_entropy(real, target, weight, **options)
    assert x.record.value is None
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(grads(ours.sum(), operands), grads(theirs.sum(), operands), strict=True):
        torch.testing.assert_close(a, b)


# Everything else is computed from the logits. The name under which it is counted, and the call.
COMPUTES = {
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "argmax": lambda x: x.argmax(-1).float(),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "transpose": lambda x: x.transpose(0, 1),
    "grad_fn": lambda x: torch.tensor(float(x.grad_fn is not None)),
    "__getitem__": lambda x: x[..., :3],
    "__getitem__ ": lambda x: x[0, 0, 0],
    "view": lambda x: x.view(-1),
    "mul": lambda x: x * torch.tensor(2.0),
    "mul ": lambda x: x * 0,
    "add": lambda x: x + 1,
    "tanh": lambda x: x.tanh().tanh(),
    "to": lambda x: x.to(torch.float32, copy=True),
    "cat": lambda x: torch.cat([x, x]),
    "where": lambda x: torch.where(x > 0, x, 0),
    "cross_entropy": lambda x: F.cross_entropy(x.view(-1, V), torch.full((10, V), 1 / V)),
    "cross_entropy ": lambda x: F.cross_entropy((x * -1).view(-1, V), TARGET),
    "cross_entropy  ": lambda x: cross_entropy(x.view(-1, V), TARGET, z_loss=0.1),
    "cross_entropy   ": lambda x: F.cross_entropy(x[0].unsqueeze(0), LABELS[:1, :1].expand(1, V)),
    "__reduce_ex__": lambda x: pickle.loads(pickle.dumps(x.detach())),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
}


@pytest.mark.parametrize("name", COMPUTES)
def test_anything_else_gets_the_logits(name, operands):
    x, real = both(operands)
    before = materialised()
    ours, theirs = COMPUTES[name](x), COMPUTES[name](real)
    assert type(ours) is torch.Tensor
    torch.testing.assert_close(ours, theirs)
    assert any(materialised().get(n, 0) > before.get(n, 0) for n in (name.strip(), "gt", "detach"))
    if theirs.requires_grad:
        for a, b in zip(grads(ours.sum(), operands), grads(theirs.sum(), operands), strict=True):
            torch.testing.assert_close(a, b)


def test_logits_are_computed_once(operands):
    x = defer(*operands)
    before = count()
    first = x.exp()
    assert torch.equal(x.exp(), first)
    assert count() == before + 1
    assert x.untyped_storage().data_ptr() == x[0].untyped_storage().data_ptr()
    assert type(x[:, :2]) is torch.Tensor  # a slice of real logits
    assert torch.equal(
        F.cross_entropy(x.view(-1, V), TARGET), F.cross_entropy(x.reshape(-1, V), TARGET)
    )


def test_writing_to_logits_is_seen_by_all_views_and_by_nothing_else(operands):
    results = []
    with torch.no_grad():
        for x in both(operands):
            view, scaled, copied = x.view(-1, V), x * 2, x[LABELS > 1]
            x[:, 0] = 7
            later = x * 3
            view[1] = 8
            results.append([x + 0, view + 0, scaled + 0, copied + 0, later, x[:, 1].clone()])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    x, real = both(operands)
    for z in (x, real):
        z.unsqueeze_(0)
        z.mul_(2)
    assert x.shape == real.shape
    assert torch.equal(x, real)


def test_views_from_before_a_write_have_its_loss(operands):
    """Neither a loss nor a further view may come from the hidden states then."""
    for write in (lambda x: x[..., :4].fill_(-50), lambda x: x.data.mul_(2)):
        found = []
        for x in both(operands):
            flat, rows = x.view(-1, V), x[:, 1:]
            write(x)
            rest = rows.reshape(-1, V)
            loss = F.cross_entropy(flat, TARGET) + F.cross_entropy(rest, TARGET[:8])
            found.append([loss, *grads(loss, operands)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def test_copies_from_before_a_write_are_without_it_in_inference_mode(operands):
    with torch.inference_mode():
        x, real = both(operands)
        double, expected = x * 2, real * 2
        x[...] = 0
        assert torch.equal(double + 0, expected)
        assert not x.any()


def test_logits_read_under_no_grad_still_have_their_gradient(operands):
    x, real = both(operands)
    with torch.no_grad():
        accuracy = (x.argmax(-1) == LABELS).float().mean()
    with torch.inference_mode():
        again = defer(*operands) * 1
        again.argmax(-1)
    assert not accuracy.requires_grad
    assert all(a is not None for a in grads(x.exp().sum(), operands))
    with torch.inference_mode():
        y = defer(*operands)
    assert not (y * 2 + 1).requires_grad  # as in the mode that made it
    assert real.requires_grad


def test_logits_made_under_no_grad_have_a_loss_without_one(operands):
    with torch.no_grad():
        x = defer(*operands).view(-1, V)
        late = defer(*operands)
    assert not x.requires_grad
    assert not F.cross_entropy(x, TARGET).requires_grad
    assert not late.view(-1, V).exp().requires_grad
    y = defer(*operands)
    with torch.no_grad():
        y = y.view(-1, V)
    assert not F.cross_entropy(y, TARGET).requires_grad


@pytest.mark.parametrize("place", [0, 1, 2])
def test_logits_of_changed_weights_are_refused(place, operands):
    names = ["hidden states", "weight", "bias"]
    for use in (lambda x: x.exp(), lambda x: F.cross_entropy(x.view(-1, V), TARGET)):
        x = defer(*operands)
        with torch.no_grad():
            operands[place].mul_(2)
        with pytest.raises(RuntimeError, match=f"{names[place]} has been changed.*before that"):
            use(x)
    x = defer(*operands)
    kept = x.exp()
    with torch.no_grad():
        operands[place].mul_(2)
    assert torch.equal(x.exp(), kept)  # read before


def test_waiting_for_a_gradient_of_logits(operands):
    x, real = both(operands)
    for z in (x, real):
        z.retain_grad()
        F.cross_entropy(z.view(-1, V), TARGET).backward()
    torch.testing.assert_close(x.grad, real.grad)
    x = defer(*operands)
    F.cross_entropy(x.view(-1, V), TARGET).backward()
    for wait in (x.retain_grad, lambda: x.register_hook(print), lambda: (x * 2).retain_grad()):
        with pytest.raises(RuntimeError, match="no gradient will pass through them; unpatch"):
            wait()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(F.cross_entropy(defer(*operands).view(-1, V), TARGET), x)


class Below(torch.autograd.Function):
    """Custom functions see tensors below `__torch_function__`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("name", ["scale", "cap", "bias", "flat", "columns", "sliced"])
def test_custom_functions_have_values_and_gradients(name, operands):
    ours, theirs = (Below.apply(STAY[name](z)) for z in both(operands))
    assert torch.equal(ours, theirs)
    for a, b in zip(grads(ours.sum(), operands), grads(theirs.sum(), operands), strict=True):
        torch.testing.assert_close(a, b)


class Fills(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x.fill_(1)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return 0 * grad


def test_writing_below_python_is_refused(operands):
    with pytest.raises(RuntimeError, match=r"autograd.Function writes to logits.*clone"):
        Fills.apply(defer(*operands)) * 2
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        x = defer(*operands)
        with pytest.raises(RuntimeError, match=r"aten::fill_.* writes to logits.*clone"):
            x.fill_(1)


def test_backward_from_logits(operands):
    x, real = both(operands)
    grad = torch.randn(real.shape)
    for z in (x, real):
        z.backward(grad)
    ours, theirs = (torch.autograd.grad(z, operands, grad) for z in both(operands))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_through_logits(operands):
    norms = []
    for z in both(operands):
        (first,) = torch.autograd.grad(
            F.log_softmax(z, -1)[..., 0].sum(), operands[1], create_graph=True
        )
        norms.append(torch.autograd.grad(first.square().sum(), operands[0])[0])
    assert torch.equal(*norms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_converted_have_a_float32_loss(dtype, operands):
    operands = [t.detach().to(dtype).requires_grad_() for t in operands]
    narrow, wide = defer(*operands), defer(*operands).float()
    assert F.cross_entropy(narrow.view(-1, V), TARGET).dtype == dtype
    loss = F.cross_entropy(wide.view(-1, V), TARGET)
    exact = [t.detach().double().requires_grad_() for t in operands]
    truth = F.cross_entropy(F.linear(*exact).view(-1, V), TARGET)
    theirs = F.cross_entropy(F.linear(*operands).float().view(-1, V), TARGET)
    assert loss.dtype == torch.float32
    assert abs(loss - truth) <= 2 * abs(theirs - truth)  # the logits' rounding is spared
    rounded = torch.finfo(dtype).eps
    for a, b in zip(grads(loss, operands), grads(truth, exact), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * rounded * b.abs().max().item())
    assert torch.equal(wide + 0, F.linear(*operands).float())


def test_copies_are_real(operands):
    with torch.no_grad():
        real = F.linear(*operands)
        saved = io.BytesIO()
        torch.save({"logits": defer(*operands)}, saved)
        saved.seek(0)
        copies = [copy.deepcopy(defer(*operands)), torch.load(saved)["logits"]]
        copies += [copy.copy(defer(*operands)), pickle.loads(pickle.dumps(defer(*operands)))]
    for copied in copies:
        assert torch.equal(copied, real)
    assert repr(defer(*operands)) == repr(F.linear(*operands))


def test_errors_are_those_of_torch(operands):
    x = defer(*operands)
    for call in (
        lambda z: z.view(-1, V + 1),
        lambda z: z.view(3, -1, V),
        lambda z: z[7],
        lambda z: z[:, :, :, 0],
        lambda z: F.cross_entropy(z.view(-1, V), TARGET[:3]),
        lambda z: F.cross_entropy(z.view(-1, V), TARGET.int()),
        lambda z: F.cross_entropy(z.view(-1, V), TARGET, reduction="other"),
    ):
        with pytest.raises((RuntimeError, IndexError, ValueError)) as theirs:
            call(F.linear(*operands))
        with pytest.raises(theirs.type):
            call(x)
    assert (len(x), x.ndim, x.numel(), x.size(-1), x.device.type) == (2, 3, 2 * 5 * V, V, "cpu")


def test_indices_either_keep_rows_or_compute(operands):
    """All short indices of a few kinds, against the real logits."""
    mask = LABELS > 1
    kinds = [0, -1, slice(None), slice(1, None, 2), None, ..., torch.tensor([1, 0]), True, [0, 1]]
    tried = [i for n in (1, 2, 3) for i in itertools.product(kinds, repeat=n)]
    tried += itertools.product([0, ...], [None, ...], [slice(None), 0], [slice(None), None, ...])
    tried += [(mask,), (mask, slice(None)), (mask, ...), (..., mask), (slice(None), mask)]
    with torch.no_grad():
        real = F.linear(*operands)
        for index in tried:
            try:
                wanted = real[index]
            except (IndexError, ValueError, RuntimeError) as error:
                with pytest.raises(type(error)):
                    defer(*operands)[index]
                continue
            found = defer(*operands)[index]
            assert found.shape == wanted.shape, index
            assert torch.equal(found + 0, wanted), index
            if isinstance(found, Deferred):
                scores = F.linear(found.record.rows, *operands[1:])
                torch.testing.assert_close(scores, wanted, msg=str(index))
