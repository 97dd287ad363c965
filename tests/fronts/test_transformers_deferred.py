"""Deferred logits as a tensor: what they know, what they become, and what is refused."""

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.deferred_logits import LABELS, STAY, TARGET, V, both, count, grads, make_operands
from torch import nn

from xentropy.torch import cross_entropy
from xentropy.transformers import materialised
from xentropy.transformers._deferred import Deferred, defer

operands = pytest.fixture(make_operands)


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
