"""Training of patched models: Trainer, peft, accelerate, checkpoints, transforms."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import convert_to_fp32
from helpers.language_models import (
    BOUND,
    assert_same_step,
    batch,
    causal,
    computed,
    gradients,
    twin,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from xentropy.torch import patch as patch_torch
from xentropy.transformers import materialised, patch, unpatch
from xentropy.transformers._deferred import Deferred

# Of transformers to peft, and of peft about adapters of tied weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning",
    "ignore:.*tie_word_embeddings",
    "ignore:Setting `save_embedding_layers`",
)


class Rows(torch.utils.data.Dataset):
    """Rows with different numbers of labels that count."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        inputs = batch(rows=1, ignored=1 + place, seed=place)
        return {name: tensor[0] for name, tensor in inputs.items()}


def trained(model, folder, **options):
    """Losses of a short training, then of an evaluation, and the weights."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=3,
        logging_steps=1,
        learning_rate=1e-3,
        optim="sgd",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    predicted = trainer.predict(Rows())
    evaluated = trainer.evaluate()["eval_loss"]
    return losses, evaluated, predicted, model.state_dict()


TRAINERS = [
    ({}, set()),
    ({"gradient_checkpointing": True}, set()),
    ({"bf16": True}, set()),
    ({"label_smoothing_factor": 0.1, "prediction_loss_only": True}, {"log_softmax"}),
    ({"prediction_loss_only": True, "average_tokens_across_devices": False}, set()),
]


@pytest.mark.parametrize(("options", "expected"), TRAINERS, ids=str)
def test_trainer(options, expected, tmp_path):
    results, model = [], causal("qwen2")
    ours = twin(model)
    patch(ours)
    for m in (model, ours):
        before = materialised()
        results.append(trained(m, tmp_path, **options))
    read = set() if "prediction_loss_only" in options else {"detach"}  # predictions are logits
    assert set(computed(before)) == expected | read
    theirs, found = results
    # 16-bit logits are rounded to 2^-8 in theirs only.
    bound = 2**-8 if "bf16" in options else 10 * BOUND
    assert found[0] == pytest.approx(theirs[0], rel=bound)
    assert found[1] == pytest.approx(theirs[1], rel=bound)
    if read:
        assert found[2].predictions == pytest.approx(theirs[2].predictions, abs=10 * bound)
    for name, weight in theirs[3].items():
        torch.testing.assert_close(found[3][name], weight, rtol=bound, atol=bound * 1e-1)


# --- peft ---

LORA = [
    ({"target_modules": ["q_proj", "v_proj"]}, set()),
    ({"target_modules": "all-linear"}, set()),
    ({"target_modules": ["q_proj", "lm_head"]}, {"add"}),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, set()),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, set()),
]


def with_lora(model, config):
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **config))
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("config", "expected"), LORA, ids=str)
def test_lora(config, expected, tied, tmp_path):
    model = causal(tie_word_embeddings=tied)
    theirs = with_lora(twin(model), config)
    first = twin(model)
    patch(first)
    first = with_lora(first, config)
    last = with_lora(twin(model), config)
    patch(last)
    for ours in (first, last):
        before = materialised()
        assert_same_step(theirs, ours, batch())
        assert set(computed(before)) == expected
        unpatch(ours)
        assert not isinstance(ours(**batch()).logits, Deferred)
    patch(last)
    last.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twin(model), tmp_path).eval()
    torch.testing.assert_close(loaded(**batch()).logits, theirs(**batch()).logits)
    theirs, ours = (m.merge_and_unload()(**batch()).logits for m in (theirs, last))
    torch.testing.assert_close(ours + 0, theirs)


# --- the rest of a training step ---


@pytest.fixture
def accelerators():
    """A process has one state of accelerate, which the tests of Trainer have set."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate(accelerators):
    model = causal("gemma2")
    losses = []
    for ours in (False, True):
        m = twin(model)
        if ours:
            patch(m)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        m, optimizer = accelerator.prepare(m, torch.optim.SGD(m.parameters(), 0.1))
        before = materialised()
        for _ in range(2):
            outputs = m(**batch())
            accelerator.backward(outputs.loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(outputs.loss.item())
        assert computed(before) == {}
        assert outputs.logits.dtype == torch.float32
        assert isinstance(outputs.logits, Deferred) == ours
    assert losses[2:] == pytest.approx(losses[:2], rel=2**-8)
    assert isinstance(convert_to_fp32({"a": [outputs.logits]})["a"][0], Deferred)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_models(reentrant):
    model = causal()
    ours = twin(model)
    patch(ours)
    inputs, embedded = batch(), causal().model.embed_tokens
    found = []
    for m in (model, ours):
        x = embedded(inputs["input_ids"]).detach().requires_grad_()

        def loss(x, m=m):
            return m(inputs_embeds=x, labels=inputs["labels"]).loss

        checkpoint(loss, x, use_reentrant=reentrant).backward()
        found.append({"x": x.grad, **gradients(m)})
    for name, grad in found[0].items():
        size = grad.abs().max().item()
        torch.testing.assert_close(found[1][name], grad, rtol=0, atol=BOUND * size)


def test_backward_twice_and_accumulation():
    model = causal()
    ours = twin(model)
    patch(ours)
    for m in (model, ours):
        loss = m(**batch()).loss * 0.25
        loss.backward(retain_graph=True)
        loss.backward()
        m(**batch(seed=2)).loss.backward()
    wanted, found = gradients(model), gradients(ours)
    for name, grad in wanted.items():
        size = grad.abs().max().item()
        torch.testing.assert_close(found[name], grad, rtol=0, atol=BOUND * size)


def test_transforms_and_functional_calls():
    model = causal()
    ours = twin(model)
    patch(ours)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(p, m):
        return torch.func.functional_call(m, p, (), batch()).loss

    wanted, found = (torch.func.grad(loss)(parameters, m) for m in (model, ours))
    for name, grad in wanted.items():
        assert torch.equal(found[name], grad)
    torch.testing.assert_close(loss(parameters, ours), loss(parameters, model))


def test_with_xentropys_cross_entropy_in_torchs_place():
    model = causal("granite")
    ours, before = twin(model), materialised()
    with patch(ours), patch_torch():
        assert_same_step(model, ours, batch())
    assert computed(before) == {}


def test_default_device():
    model, before = causal(), materialised()
    ours = twin(model)
    patch(ours)
    torch.set_default_device("cpu")
    try:
        assert_same_step(model, ours, batch())
    finally:
        torch.set_default_device(None)
    assert computed(before) == {}
