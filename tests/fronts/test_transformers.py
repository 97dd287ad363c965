"""xentropy.transformers.patch: models of every kind compute what they computed, without logits."""

import copy
import io
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.language_models import (
    BOUND,
    CAUSAL,
    SIZES,
    V,
    assert_same_step,
    batch,
    causal,
    step,
    twin,
)
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    T5Config,
    TrOCRConfig,
    TrOCRForCausalLM,
)

from xentropy.transformers import materialised, patch, unpatch
from xentropy.transformers._deferred import Deferred
from xentropy.transformers._patch import DeferringForward


def patched(model):
    model = twin(model)
    patch(model)
    return model


def computed(before):
    """What has materialised since."""
    return {k: n - before.get(k, 0) for k, n in materialised().items() if n != before.get(k, 0)}


# --- architectures ---


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models(kind):
    """Not one of them computes its logits; on demand they are the same bits."""
    model, before = causal(kind), materialised()
    ours = patched(model)
    theirs, outputs = assert_same_step(model, ours, batch())
    assert computed(before) == {}
    assert isinstance(outputs.logits, Deferred)
    assert torch.equal(outputs.logits.detach(), theirs.logits)


SMALL = {"d_model": 32, "decoder_start_token_id": 0, "vocab_size": V, "pad_token_id": 0}


def test_models_that_call_cross_entropy_themselves():
    """Sequence to sequence, masked, and causal ones that are older than `loss_function`."""
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "decoder_ffn_dim": 64,
        "encoder_ffn_dim": 64,
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    bert = BertConfig(**{k: v for k, v in SIZES.items() if "key_value" not in k})
    models = [
        AutoModelForSeq2SeqLM.from_config(T5Config(**SMALL, d_ff=64, num_layers=1, d_kv=8)),
        AutoModelForSeq2SeqLM.from_config(BartConfig(**SMALL, **layers, **heads)),
        AutoModelForMaskedLM.from_config(bert),
        TrOCRForCausalLM(TrOCRConfig(**SMALL, **layers, **heads)),
    ]
    models[1].final_logits_bias.uniform_()
    for model in models:
        before = materialised()
        theirs, ours = assert_same_step(model.eval(), patched(model), batch())
        assert computed(before) == {}, type(model)
        assert torch.equal(ours.logits.detach(), theirs.logits)


@pytest.mark.parametrize(
    "more",
    [
        {"num_items_in_batch": 31},
        {"num_items_in_batch": torch.tensor(31)},
        {"num_items_in_batch": torch.tensor([31.0])},
        {"ignore_index": -5},
        {"shift_labels": batch(seed=3)["labels"]},
        {"logits_to_keep": 17},
        {"return_dict": True, "output_hidden_states": True},
    ],
    ids=str,
)
def test_arguments_of_the_loss(more):
    before = materialised()
    model = causal("gemma2")
    inputs = batch()
    inputs["labels"][inputs["labels"] == -100] = more.get("ignore_index", -100)
    assert_same_step(model, patched(model), inputs, **more)
    assert computed(before) == {}


def test_tuples_and_evaluation():
    model, inputs = causal("qwen2"), batch()
    ours, before = patched(model), materialised()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            theirs, found = (m(**inputs, return_dict=False) for m in (model, ours))
        torch.testing.assert_close(found[0], theirs[0], rtol=BOUND, atol=0)
        assert not found[0].requires_grad
        assert computed(before) == {}
        assert torch.equal(found[1] + 0, theirs[1])
        before = materialised()


def test_labels_that_all_do_not_count():
    model, inputs = causal(), batch(ignored=17)
    a, b = step(model, inputs), step(patched(model), inputs)
    assert a[0].loss.isnan()
    assert b[0].loss.isnan()
    inputs["labels"][0, 3] = V
    with pytest.raises(IndexError):
        model(**inputs)
    with pytest.raises(IndexError):
        patched(model)(**inputs)


def test_bfloat16_is_nearer_to_the_truth():
    model, inputs = causal(), batch()
    exact = step(model.double(), inputs)[1]
    narrow = model.bfloat16()
    outputs, found = step(patched(narrow), inputs)
    assert outputs.loss.dtype == torch.float32
    theirs, wanted = step(narrow, inputs)
    assert torch.equal(outputs.logits.detach(), theirs.logits)
    name = "lm_head.weight"
    assert (found[name] - exact[name]).norm() <= 1.05 * (wanted[name] - exact[name]).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, inputs = causal("gemma2"), batch()
    ours, before = patched(model), materialised()
    exact = step(twin(model).double(), inputs)[1]
    with torch.autocast("cpu", dtype=dtype):
        theirs, outputs = model(**inputs), ours(**inputs)
    assert outputs.logits.dtype == theirs.logits.dtype
    assert outputs.loss.dtype == theirs.loss.dtype
    for m, o in ((model, theirs), (ours, outputs)):
        m.zero_grad(set_to_none=True)
        o.loss.backward()
    assert computed(before) == {}
    for (name, p), q in zip(model.named_parameters(), ours.parameters(), strict=True):
        assert q.grad.dtype == p.grad.dtype
        error, theirs_error = ((x.grad - exact[name]).norm() for x in (q, p))
        # What both round the same way is most of it.
        assert error <= 1.5 * theirs_error + 1e-9, name
    assert torch.equal(outputs.logits.detach(), theirs.logits)  # outside of autocast


# --- the output layer ---


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


# --- patches come and go ---


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


def test_generation_does_not_defer():
    model, ids = causal(), batch()["input_ids"]
    ours, before = patched(model), materialised()
    for options in ({}, {"num_beams": 2}, {"do_sample": True}, {"use_cache": False}):
        found = []
        for m in (model, ours):
            torch.manual_seed(0)
            found.append(m.generate(ids, max_new_tokens=5, **options))
        assert torch.equal(*found)
    assert computed(before) == {}


def test_what_computes_logits_is_said_once(caplog):
    model = causal()
    patch(model)
    outputs, before = model(**batch()), materialised()
    with caplog.at_level(logging.DEBUG, "xentropy.transformers"):
        for _ in range(2):
            model(**batch()).logits.erfinv()
    assert computed(before) == {"erfinv": 2}
    assert [r.getMessage() for r in caplog.records] == [
        "logits are computed, and take their memory: erfinv"
    ]
    assert isinstance(outputs.logits, Deferred)


def test_logits_after_the_optimizers_step_are_refused():
    model = causal("gemma")
    patch(model)
    optimizer = torch.optim.AdamW(model.parameters())
    outputs = model(**batch())
    outputs.loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="weight has been changed in place since"):
        outputs.logits.argmax(-1)


def test_losses_of_ones_own():
    """From outputs.logits, as training scripts have it."""
    model, inputs = causal("cohere"), batch()
    ours, before = patched(model), materialised()
    labels, grads = inputs.pop("labels"), []
    for m in (model, ours):
        logits = m(**inputs).logits
        shifted = logits[:, :-1].contiguous().float().view(-1, logits.size(-1))
        loss = nn.CrossEntropyLoss()(shifted, labels[:, 1:].reshape(-1))
        loss = loss + F.cross_entropy(logits[:, 0], labels[:, 9], label_smoothing=0.1)
        loss.backward()
        grads.append(m.model.embed_tokens.weight.grad)
    assert computed(before) == {}
    torch.testing.assert_close(*grads, rtol=0, atol=BOUND * grads[0].abs().max().item())


def test_forwards_are_attributes_that_end():
    model = causal()
    patch(model)
    assert isinstance(model.lm_head.forward, DeferringForward)
    unpatch(model)
    assert model.lm_head.forward.__func__ is nn.Linear.forward
