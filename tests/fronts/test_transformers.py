"""xentropy.transformers.patch: models of every kind compute what they computed, without logits."""

import logging

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
    computed,
    patched,
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

from xentropy.transformers import materialised, patch
from xentropy.transformers._deferred import Deferred


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
