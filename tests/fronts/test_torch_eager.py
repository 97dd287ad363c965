"""Operators that are called directly on plain tensors: whoever has to see them does."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import xentropy.torch as xt
from xentropy.torch import _eager

CLASSES = torch.tensor([0, 4, 2])


def hidden():
    torch.manual_seed(1)
    return torch.randn(3, 5, requires_grad=True)


LAYER = hidden().detach()
CALLS = {
    "distillation_loss": lambda x: xt.distillation_loss(x, LAYER.flip(0)),
    "selected_log_probs": lambda x: xt.selected_log_probs(x, CLASSES).sum(),
    "linear_cross_entropy": lambda x: xt.linear_cross_entropy(x, LAYER.repeat(2, 1), CLASSES),
    "linear_selected_log_probs": lambda x: xt.linear_selected_log_probs(
        x, LAYER.repeat(2, 1), CLASSES
    ).sum(),
}


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **kwargs or {})


def gradient(name):
    x = hidden()
    CALLS[name](x).backward()
    return x.grad


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_the_operator_and_gets_the_same_bits(name):
    expected = gradient(name)
    with Seen() as seen:
        assert torch.equal(gradient(name), expected)
    assert f"xentropy::{name}" in seen.names


@pytest.mark.parametrize("name", CALLS)
def test_plain_tensors_do_not_pay_for_it(name):
    with torch.profiler.profile() as profile:
        gradient(name)
    assert not [event.name for event in profile.events() if event.name.startswith("xentropy::")]
    with torch.no_grad():
        assert CALLS[name](hidden()).grad_fn is None
    assert CALLS[name](hidden().detach()).grad_fn is None


def test_an_operator_whose_function_is_not_known_is_called():
    called = []
    call = _eager.eager(lambda *arguments: called.append(arguments))
    call(LAYER, 1)
    assert called == [(LAYER, 1)]
