"""Tiny language models of random weights, made from their configurations: nothing is downloaded."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xentropy.transformers import materialised, patch

V = 211
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Roundings to float32: as many as the longest sum of a step has terms.
BOUND = 2**-24 * (SIZES["hidden_size"] + SIZES["intermediate_size"])

# Types whose configurations have other names, or options worth a test.
CAUSAL = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "mixtral": {"num_local_experts": 2},
    "phi3": {},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},  # tied head, capped where it shows
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"num_key_value_heads": None},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "stablelm": {},
    "olmo": {},
    "olmo2": {},
    "phi": {},  # a head with a bias
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
}


def causal(kind="llama", seed=0, **changes):
    options = {**SIZES, **CAUSAL.get(kind, {}), **changes}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **options), dtype=torch.float32
    ).eval()


def batch(rows=2, length=17, ignored=5, seed=1):
    """Token ids, and labels of which the first of each row do not count."""
    ids = torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :ignored] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model):
    """By the names of the model within torch.compile's wrapper."""
    named = ((n.removeprefix("_orig_mod."), p.grad) for n, p in model.named_parameters())
    return {name: grad.clone() for name, grad in named if grad is not None}


def step(model, inputs, **more):
    """Outputs and gradients of one call."""
    model.zero_grad(set_to_none=True)
    outputs = model(**inputs, **more)
    outputs.loss.backward()
    return outputs, gradients(model)


def twin(model):
    return copy.deepcopy(model)


def patched(model):
    model = twin(model)
    patch(model)
    return model


def computed(before):
    """What has materialised since."""
    return {k: n - before.get(k, 0) for k, n in materialised().items() if n != before.get(k, 0)}


def assert_same_step(model, patched, inputs, bound=BOUND, **more):
    """Loss and gradients of two models: within `bound` of the largest entry of each gradient.

    And one unit of the largest of all: some gradients are zero but for rounding (a key's bias).
    """
    theirs, wanted = step(model, inputs, **more)
    ours, found = step(patched, inputs, **more)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=bound, atol=0)
    assert found.keys() == wanted.keys()
    unit = 2**-23 * max(grad.abs().max() for grad in wanted.values())
    for name, grad in wanted.items():
        assert found[name].dtype == grad.dtype
        error, size = (found[name] - grad).abs().max(), grad.abs().max()
        assert error <= bound * size + unit, f"{name}: {error} of {size}"
    return theirs, ours
