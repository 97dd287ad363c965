"""xentropy.transformers.patch: it comes and goes, is found, copied, saved, refused."""

import copy
import io
import pickle

import pytest
import torch
from helpers.language_models import batch, causal, step
from torch import nn

from xentropy.transformers import patch, unpatch
from xentropy.transformers._deferred import Deferred
from xentropy.transformers._patch import DeferringForward


def is_patched(model):
    return isinstance(model(**batch()).logits, Deferred)


def test_patches_come_and_go():
    model = causal()
    unpatch(model)
    assert not is_patched(model)
    patch(model)
    patch(model)
    assert is_patched(model)
    unpatch(model)
    assert not is_patched(model)
    unpatch(model)
    assert "forward" not in vars(model.lm_head)
    context = patch(model)
    for _ in range(2):
        with context, patch(model):
            assert is_patched(model)
        assert not is_patched(model)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_contexts_end_in_any_order(order):
    model = causal()
    contexts = [patch(model) for _ in range(3)]
    for place in order:
        assert is_patched(model)
        contexts[place].__exit__(None, None, None)
        contexts[place].__exit__(None, None, None)  # twice is once
    assert not is_patched(model)
    with pytest.raises(ZeroDivisionError), patch(model):
        raise ZeroDivisionError
    assert not is_patched(model)
    old = patch(model)
    unpatch(model)
    patch(model)
    old.__exit__(None, None, None)  # of a patch that was ended: no other's
    assert is_patched(model)


def test_a_forward_that_others_have_wrapped():
    """As accelerate's hooks do; what they call ends with the patch as well."""
    model = causal()
    patch(model)
    head, calls = model.lm_head, []
    head._old_forward = head.forward

    def wrapper(x):
        calls.append(x)
        return head._old_forward(x)

    head.forward = wrapper
    assert is_patched(model)
    unpatch(model)
    assert not is_patched(model)
    assert head.forward is wrapper
    assert len(calls) == 2
    other = causal()
    other.lm_head.forward = lambda x: x @ other.lm_head.weight.T + 1  # before the patch: it stays
    with patch(other):
        assert not is_patched(other)


@pytest.mark.parametrize(
    "wrap", [nn.Sequential, nn.DataParallel, lambda m: nn.ModuleDict({"a": m})]
)
def test_wrapped_models_are_found(wrap):
    model = causal()
    with patch(wrap(model)):
        assert is_patched(model)
    assert not is_patched(model)


def test_what_cannot_be_patched():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
        patch("llama")
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        patch(causal().model)
    with pytest.raises(ValueError, match="Linear has no output embeddings"):
        patch(nn.Linear(2, 2))


def test_copies_are_patched_independently():
    model = causal()
    patch(model)
    copied = copy.deepcopy(model)
    pickled = pickle.loads(pickle.dumps(model))
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    unpatch(model)
    plain = step(model, batch())
    for other in (copied, pickled, loaded):
        assert is_patched(other)
        assert vars(other.lm_head)["forward"].layer is other.lm_head
        with torch.no_grad():
            other.lm_head.weight.mul_(2)  # its own
        assert step(other, batch())[0].loss != plain[0].loss
        unpatch(other)
        assert not is_patched(other)


def test_saving(tmp_path):
    model = causal("gemma")
    names = list(model.state_dict())
    patch(model)
    assert list(model.state_dict()) == names
    assert [n for n, _ in model.named_modules()] == [n for n, _ in causal("gemma").named_modules()]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not is_patched(loaded)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits + 0)


def test_forwards_are_attributes_that_end():
    model = causal()
    patch(model)
    assert isinstance(model.lm_head.forward, DeferringForward)
    unpatch(model)
    assert model.lm_head.forward.__func__ is nn.Linear.forward
