"""xentropy.torch.patch: torch's functions and modules compute by xentropy, and back again."""

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from xentropy.torch import cross_entropy, patch, unpatch

TORCHS = F.cross_entropy
LOGITS, TARGET = torch.tensor([[20.0, 0.0]]), torch.tensor([0])  # costs 2.06e-9; torch says 0


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch()
    assert F.cross_entropy is TORCHS


def losses():
    old = torch.nn.CrossEntropyLoss()
    return [F.cross_entropy(LOGITS, TARGET).item(), old(LOGITS, TARGET).item()]


def test_a_patch_reaches_function_and_module_until_it_is_undone():
    old = torch.nn.CrossEntropyLoss()
    assert losses() == [0, 0]
    patch()
    assert losses() == pytest.approx([2.06e-9] * 2, rel=1e-3)
    assert old(LOGITS, TARGET).item() > 0
    patch()  # twice is once
    unpatch()
    assert losses() == [0, 0]


def test_a_context_restores_what_was_there():
    with patch():
        assert F.cross_entropy is cross_entropy
        with patch():
            assert F.cross_entropy is cross_entropy
        assert F.cross_entropy is cross_entropy
    assert F.cross_entropy is TORCHS
    with pytest.raises(ZeroDivisionError), patch():
        raise ZeroDivisionError
    assert F.cross_entropy is TORCHS


def test_other_devices_and_refused_arguments_do_not_come_back():
    """The fallback is torch's own function, not the one that stands in its place."""
    with patch():
        assert F.cross_entropy(LOGITS.to("meta"), TARGET.to("meta")).device.type == "meta"
        with pytest.raises(RuntimeError, match="int32"):
            F.cross_entropy(LOGITS, TARGET.int())
        with pytest.raises(TypeError):
            F.cross_entropy([[1.0]], TARGET)


def patched():
    return losses()[0] > 0


def test_contexts_may_end_in_any_order():
    first, second = patch(), patch()
    first.__exit__(None, None, None)
    assert patched()
    second.__exit__(None, None, None)
    assert F.cross_entropy is TORCHS
    second.__exit__(None, None, None)  # twice is once
    first, second, third = patch(), patch(), patch()
    for context in (second, third, first):
        assert patched()
        context.__exit__(None, None, None)
    assert F.cross_entropy is TORCHS


def test_a_context_may_be_entered_again():
    context = patch()
    for _ in range(2):
        with context:
            assert patched()
        assert F.cross_entropy is TORCHS


def test_unpatch_ends_all():
    with patch(), patch():
        unpatch()
        assert F.cross_entropy is TORCHS
    assert F.cross_entropy is TORCHS


def test_a_context_leaves_the_function_of_another_library(monkeypatch):
    def another(*args, **kwargs):
        return TORCHS(*args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", another)
    with patch():
        assert patched()
        inner = patch()
    assert patched()
    inner.__exit__(None, None, None)
    assert F.cross_entropy is another


def test_threads_patch_at_once():
    def use(_):
        for _ in range(50):
            with patch():
                assert patched()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert F.cross_entropy is TORCHS


def test_what_describes_the_function_goes_on():
    with patch():
        theirs = list(inspect.signature(TORCHS).parameters)
        assert list(inspect.signature(F.cross_entropy).parameters)[: len(theirs)] == theirs
        assert F.cross_entropy.__name__ == "cross_entropy"
        assert pickle.loads(pickle.dumps(F.cross_entropy)) is F.cross_entropy
