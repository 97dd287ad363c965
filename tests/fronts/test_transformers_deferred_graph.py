"""Deferred logits in autograd: writes, modes, gradients of logits, custom functions."""

import pytest
import torch
import torch.nn.functional as F
from helpers.deferred_logits import LABELS, STAY, TARGET, V, both, grads, make_operands

from xentropy.transformers._deferred import defer

operands = pytest.fixture(make_operands)


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
