"""xentropy.transformers.patch: output layers of all kinds, changed before it and after."""

import pytest
import torch
from helpers.language_models import V, assert_same_step, batch, causal, computed, patched, twin
from torch import nn

from xentropy.transformers import materialised, patch


def with_forward_hook(model):
    model.lm_head.register_forward_hook(lambda module, args, out: out.clamp(max=0.05))


def with_full_backward_hook(model):
    model.lm_head.register_full_backward_hook(lambda module, grads, out: (grads[0] * 2,))


def with_pre_hook(model):
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def with_weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)


def with_a_subclass(model):
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    model.lm_head.__class__ = Scaled


def with_another_module(model):
    model.lm_head = nn.Sequential(nn.Dropout(0.0), model.lm_head)


def with_no_linear_at_all(model):
    class Head(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.weight = layer.weight

        def forward(self, x):
            return x @ self.weight.T

    model.lm_head = Head(model.lm_head)


def with_a_bias(model):
    old = model.lm_head
    model.lm_head = nn.Linear(32, V)
    model.lm_head.weight = old.weight
    model.lm_head.bias.data = torch.linspace(-1, 1, V)


def with_a_frozen_weight(model):
    model.lm_head.weight.requires_grad_(False)


def with_a_frozen_body(model):
    model.model.requires_grad_(False)


HEADS = {
    with_forward_hook: {"clamp"},
    with_full_backward_hook: {"view_as"},
    with_pre_hook: set(),
    with_weight_norm: set(),
    with_a_subclass: {"output layer Scaled"},
    with_another_module: set(),
    with_no_linear_at_all: {"output layer Head"},
    with_a_bias: set(),
    with_a_frozen_weight: set(),
    with_a_frozen_body: set(),
}


@pytest.mark.parametrize("change", HEADS)
@pytest.mark.parametrize("first", [True, False], ids=["changed before", "changed after"])
def test_output_layers_of_all_kinds(change, first):
    model = causal()
    ours, before = twin(model), materialised()
    change(model)
    if first:
        change(ours)
        patch(ours)
    else:
        patch(ours)
        change(ours)
    assert_same_step(model, ours, batch())
    found = set(computed(before))
    if first or change not in (with_no_linear_at_all, with_a_bias):  # new layers are not patched
        assert found == HEADS[change]
    if not HEADS[change]:
        head = [m for m in ours.modules() if isinstance(m, nn.Linear)][-1]
        assert ("forward" in vars(head)) or not first


def test_a_resized_vocabulary_is_patched_again():
    model = causal()
    ours = patched(model)
    for m in (model, ours):
        torch.manual_seed(5)
        m.resize_token_embeddings(V + 13, mean_resizing=False)
    assert_same_step(model, ours, batch())
    patch(ours)
    before = materialised()
    assert_same_step(model, ours, batch())
    assert computed(before) == {}
