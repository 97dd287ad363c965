"""A step of fine-tuning a small Llama with and without `xentropy.transformers.patch`.

The model has random weights and 150,000 words; the text is the source of Python's standard library.
Two models begin with the same weights and see the same batches; their steps take turns. Memory is
measured in a process for each way, whose peak at two sizes of a step tells the bytes that a token
costs, and so how many tokens fit into 16 GB.
"""

import sys
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import xentropy.transformers

from ..fronts.language_model import (
    Training,
    numbered,
    trained_by_turns,
    training_rows,
    words_of_the_library,
)
from ..fronts.table import Table
from ..peers import Way
from ..quiet import notes
from ..stopwatch import before_and_peak_bytes, peak_extra_bytes, said_by_fresh_process

WITHOUT, WITH = "transformers", "patched"
HEADS, ROOM = 4, 16e9  # ROOM: bytes that a step may take, the model with it


@dataclass(frozen=True)
class Setting:
    """Sizes of the model, of a step and of the text."""

    words: int = 150_000
    width: int = 256
    layers: int = 4
    rows: int = 4
    length: int = 256
    steps: int = 30
    files: int | None = None
    # Vocabularies, and rows of the two steps whose peaks are compared. They are the logits' peaks,
    # not the optimiser's; the patched model's buffer is full, and of the same size in both.
    vocabularies: tuple = (32_000, 128_256, 262_144)
    sizes: tuple = ((WITHOUT, (4, 6)), (WITH, (4, 8)))


FULL = Setting()
QUICK = Setting(500, 32, 1, 2, 32, 3, 20, (500,))
SETTINGS = {"full": FULL, "quick": QUICK}


def loss_of(model, cut):
    """The loss by the model's own function."""
    return model(input_ids=cut[:, :-1], labels=cut[:, :-1]).loss


def training(way, text, setting, words):
    """The Training of a new model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=HEADS,
        max_position_embeddings=setting.length,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    if way == WITH:
        xentropy.transformers.patch(model)
    return Training(model, loss_of, text, setting.rows, setting.length)


def memory(way, setting):
    """The peak of a step in bytes; all is loaded, and the optimiser has its state."""
    text, _ = numbered(words_of_the_library(setting.files), setting.words)
    run = training(way, text, setting, setting.words)
    run.step()
    return [peak_extra_bytes(Way(run.step))]


def peaks(way, setting, words):
    """Peak bytes of the process in steps of two sizes."""
    text = torch.randint(words, (100 * setting.length,), generator=torch.Generator().manual_seed(0))
    run, found = training(way, text, setting, words), []
    run.rows = 1
    run.step()
    for run.rows in dict(setting.sizes)[way]:
        measured = before_and_peak_bytes(Way(run.step))
        found.append(measured and measured[1])
    return found


def in_a_process(what, way, setting, *words):
    """The answer of `memory` or `peaks` from a process of its own."""
    name = next(name for name, each in SETTINGS.items() if each is setting)
    return said_by_fresh_process("bench.linear.fine_tuning", what, way, name, *words)


def megabytes(way, setting):
    (said,) = in_a_process("memory", way, setting)
    return None if said is None else round(said / 1e6)


def step_table(setting):
    """Step time, memory and curves."""
    text, known = numbered(words_of_the_library(setting.files), setting.words)
    runs = {way: training(way, text, setting, setting.words) for way in (WITHOUT, WITH)}
    visit = trained_by_turns(runs, setting.steps)
    rows = training_rows(runs, visit, lambda way: megabytes(way, setting))
    tokens = setting.rows * setting.length
    remarks = [
        f"A Llama of width {setting.width} with {setting.layers} layers, "
        f"{runs[WITH].parameters() / 1e6:.1f} million parameters, {setting.words:,} words "
        f"(of which {known:,} occur); {tokens:,} tokens a step "
        f"(logits of {4e-6 * tokens * setting.words:.0f} MB), {setting.steps} steps on "
        f"{len(text) / 1e6:.1f} million words of the standard library.",
        "Memory: peak of a step beyond what is there before it, gradients included.",
        *notes([visit]),
    ]
    columns = ["model", "step, ms", "peak extra memory, MB", "first loss", "last loss"]
    columns.append("largest difference of the curves")
    return Table("fine_tuning", "A step of fine-tuning, float32", columns, rows, remarks)


def cost(way, setting, words):
    """(bytes a token, tokens that fit) of a way; None where peaks cannot be told."""
    small, large = in_a_process("peaks", way, setting, words)
    if small is None:
        return None, None
    fewer, more = (setting.length * rows for rows in dict(setting.sizes)[way])
    a_token = (large - small) / (more - fewer)
    fits = fewer + (ROOM - small) / a_token if a_token > 0 else None
    return round(a_token), fits and int(fits)


def fits_table(setting):
    """What a token costs, and how many fit into the ROOM, by the size of the vocabulary."""
    rows = []
    for words in setting.vocabularies:
        costs = [cost(way, setting, words) for way in (WITHOUT, WITH)]
        each, most = zip(*costs, strict=True)
        known = None not in most
        rows.append([f"{words:,}", *each, *most, most[1] / most[0] if known else None])
    columns = [
        "words",
        f"bytes a token, {WITHOUT}",
        WITH,
        f"tokens a step, {WITHOUT}",
        WITH,
        "ratio",
    ]
    remarks = [
        "Peaks of the process at two sizes of a step, and a line through them up to 16 GB. Beyond "
        "its buffer for logits, the patched model's cost of a token is that of its layers."
    ]
    title = "What fits into 16 GB: tokens of a step, model and optimiser included"
    return Table("fits", title, columns, rows, remarks)


def tables(quick):
    """The step, and what fits."""
    setting = QUICK if quick else FULL
    return [step_table(setting), fits_table(setting)]


if __name__ == "__main__":
    what, way, name, *words = sys.argv[1:]
    print(*{"memory": memory, "peaks": peaks}[what](way, SETTINGS[name], *map(int, words)))
