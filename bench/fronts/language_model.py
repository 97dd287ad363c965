"""A transformer with a 50,000-word vocabulary, trained with torch's loss and with xentropy's.

The text is the source code of Python's standard library, cut into words and signs. Both models
begin with the same weights and see the same batches; their steps take turns. Peak memory is that of
a few steps in a process of its own.
"""

import collections
import itertools
import re
import statistics
import sys
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import xentropy.torch

from ..peers import Way
from ..quiet import UNKNOWN, notes, watched
from ..stopwatch import peak_extra_bytes, said_by_fresh_process
from .table import Table

WORD = re.compile(r"\w+|[^\w\s]|\n")
LOSSES = {
    "torch": F.cross_entropy,
    "xentropy.torch": xentropy.torch.cross_entropy,
    "inplace=True": lambda x, y: xentropy.torch.cross_entropy(x, y, inplace=True),
}
# words, width, layers, rows of text, words a row, steps, files
FULL = 50_000, 96, 2, 8, 128, 60, None
QUICK = 2_000, 32, 1, 2, 32, 4, 40
MEMORY_STEPS = 3


def words_of_the_library(most_files):
    """The words of the standard library, tests too: a list of text."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in folder.rglob("*.py") if "site-packages" not in p.parts)
    text = (p.read_text("utf-8", "replace") for p in paths[:most_files])
    return [word for each in text for word in WORD.findall(each)]


def numbered(words, size):
    """Words as numbers by frequency; the rare ones share the last. The number of classes too."""
    common = [w for w, _ in collections.Counter(words).most_common(size - 1)]
    number = {word: i for i, word in enumerate(common)}
    return torch.tensor([number.get(w, len(common)) for w in words]), len(common) + 1


class Model(torch.nn.Module):
    """A transformer whose output layer is the transposed table of words."""

    def __init__(self, classes, width, layers, length):
        super().__init__()
        self.words = torch.nn.Embedding(classes, width)
        self.places = torch.nn.Parameter(torch.zeros(length, width))
        layer = torch.nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = torch.nn.LayerNorm(width)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask)
        torch.nn.init.normal_(self.words.weight, std=0.05)

    def forward(self, x):
        hidden = self.layers(self.words(x) + self.places, mask=self.mask, is_causal=True)
        return self.norm(hidden) @ self.words.weight.T


class Training:
    """A model, its optimiser, its loss of a batch; the n-th step is the same for every loss."""

    def __init__(self, model, loss_of, text, rows, length):
        self.model, self.loss_of, self.text = model, loss_of, text
        self.rows, self.length = rows, length
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        self.batches = torch.Generator().manual_seed(1)
        self.curve, self.times = [], []

    def step(self):
        start = time.perf_counter()
        last = len(self.text) - self.length - 1
        at = torch.randint(last, (self.rows, 1), generator=self.batches)
        cut = self.text[at + torch.arange(self.length + 1)]
        self.optimiser.zero_grad()
        loss = self.loss_of(self.model, cut)
        loss.backward()
        self.optimiser.step()
        self.curve.append(loss.item())
        self.times.append(time.perf_counter() - start)

    def parameters(self):
        return sum(p.numel() for p in self.model.parameters())


def trained_by_turns(runs, steps):
    """The Visit, made once because every step changes the model."""

    def train():
        for _, training in itertools.product(range(steps), runs.values()):
            training.step()

    return watched(train)


def training_rows(runs, visit, memory):
    """Of each run: name, ms a step, memory(name), first and last loss, distance from the first."""
    plain = next(iter(runs.values())).curve
    return [
        [
            name,
            1e3 * statistics.median(run.times[1:]) if visit.quiet else UNKNOWN,
            memory(name),
            f"{run.curve[0]:.6f}",
            f"{run.curve[-1]:.6f}",
            max(abs(a - b) for a, b in zip(run.curve, plain, strict=True)),
        ]
        for name, run in runs.items()
    ]


def training(loss, text, classes, setting):
    """The Training of a new model with a loss of logits and labels."""
    _, width, layers, rows, length, _, _ = setting
    torch.manual_seed(0)

    def loss_of(model, cut):
        return loss(model(cut[:, :-1]).flatten(0, 1), cut[:, 1:].flatten())

    return Training(Model(classes, width, layers, length), loss_of, text, rows, length)


def memory(name, setting):
    """The peak of a few steps in bytes, from a process that has the model and has loaded all."""
    text, classes = numbered(words_of_the_library(setting[-1]), setting[0])
    LOSSES[name](torch.zeros(2, 2, requires_grad=True) * 1, torch.zeros(2).long()).backward()
    run = training(LOSSES[name], text, classes, setting)
    return peak_extra_bytes(Way(lambda: [run.step() for _ in range(MEMORY_STEPS)]))


def extra_memory(name, quick):
    """The same of a fresh process, in MB."""
    (said,) = said_by_fresh_process("bench.fronts.language_model", name, int(quick))
    return None if said is None else round(said / 1e6)


def tables(quick):
    """Step time, peak memory and loss of every loss; how far the curves are apart."""
    setting = QUICK if quick else FULL
    text, classes = numbered(words_of_the_library(setting[-1]), setting[0])
    runs = {name: training(loss, text, classes, setting) for name, loss in LOSSES.items()}
    visit = trained_by_turns(runs, setting[-2])
    rows = training_rows(runs, visit, lambda name: extra_memory(name, quick))
    columns = ["loss function", "step, ms", "peak extra memory, MB", "first loss", "last loss"]
    columns.append("largest difference from torch's curve")
    logits = 4e-6 * setting[3] * setting[4] * classes
    remarks = [
        f"{runs['torch'].parameters() / 1e6:.1f} million parameters, {classes:,} words, "
        f"{setting[3]} x {setting[4]} words a step (logits of {logits:.0f} MB), {setting[-2]} "
        f"steps on {len(text) / 1e6:.1f} million words of the standard library.",
        *notes([visit]),
    ]
    title = "A language model trained on the CPU, by loss function"
    return [Table("language_model", title, columns, rows, remarks)]


if __name__ == "__main__":
    print(memory(sys.argv[1], QUICK if sys.argv[2] == "1" else FULL))
