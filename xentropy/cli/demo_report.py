"""What the demonstration prints, and what it compares the model and the kernel with."""

import bz2
import importlib.util
import lzma
import platform
import sys
import time
import zlib
from dataclasses import dataclass

import numpy as np

import xentropy as xe
from xentropy import reference

from . import demo_data
from .demo_data import CLASSES, TABLES
from .demo_model import BATCH
from .demo_progress import say


def compressors(text):
    """Bits per byte of general compressors, and of a model without context, for the same bytes."""
    data, count = text.tobytes(), np.bincount(text)
    packed = {
        "lzma, preset 9 extreme": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "bz2, level 9": bz2.compress(data, 9),
        "zlib, level 9": zlib.compress(data, 9),
    }
    return {
        **{name: 8 * len(stream) / len(data) for name, stream in packed.items()},
        # softmax(log n) = n / sum(n): the entropy of the byte frequencies.
        "single bytes (entropy)": float(xe.entropy(np.log(count[count > 0]), base=2)),
    }


def best_time(function, repeats):
    """(shortest time in seconds, result)."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def in_numpy(logits, labels):
    """Loss and gradient as most people write them: float32, a temporary array for each step."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=1, keepdims=True)
    loss = np.log(total[:, 0]) - shifted[rows, labels]
    gradient = powers / total
    gradient[rows, labels] -= 1
    return loss, gradient


def in_torch(logits, labels):
    """(name, the same calculation by torch as a function); None if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(xe.get_num_threads())
    x, y = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels.astype(np.int64))

    def step():
        loss = torch.nn.functional.cross_entropy(x, y, reduction="none")
        return loss.detach(), *torch.autograd.grad(loss.sum(), x)

    return f"torch {torch.__version__.partition('+')[0]}", step


@dataclass
class Comparison:
    """Seconds that losses of one batch and their gradients take, by library; our errors."""

    seconds: dict
    loss_difference: float
    grad_difference: float


def compare(logits, labels):
    """Time all on the same logits, and find the largest differences from the exact answer."""
    out = np.empty_like(logits)
    ways = {
        "xentropy": lambda: xe.cross_entropy_with_grad(logits, labels, reduction="none", out=out),
        "NumPy, float32": lambda: in_numpy(logits, labels),
    }
    if torch := in_torch(logits, labels):
        ways |= [torch]
    seconds = {name: best_time(way, 20)[0] for name, way in ways.items()}
    loss, grad = ways["xentropy"]()
    exact_loss, exact_grad = reference.cross_entropy_with_grad(logits, labels, reduction="none")
    return Comparison(
        seconds,
        float(np.abs(loss - exact_loss).max()),
        float(np.abs(grad - exact_grad).max()),
    )


def times_text(training, seconds):
    """A line for each library: time, share of a training step, ratio to ours."""
    ours = seconds["xentropy"]
    for name, taken in seconds.items():
        share = taken / (taken + training.other_seconds)
        ratio = "" if taken == ours else f"  {taken / ours:5.1f} times ours"
        yield f"  {name:<16} {taken * 1e3:7.2f} ms  {share:4.0%}{ratio}"


def introduce(root, training, held_out):
    """Say what is read and what is learned."""

    def amount(files):
        return f"{len(files)} files, {sum(map(len, files)) / 1e6:.2f} MB"

    contexts = f"{1 << demo_data.TABLE_BITS:,} contexts"
    say(
        f"xentropy {xe.__version__}: a language model of the standard library of Python "
        f"{platform.python_version()}\n"
        f"  sources   {within(root, sys.base_prefix)}, tests left out\n"
        f"  training  {amount(training)}\n"
        f"  held out  {amount(held_out)}\n"
        f"  model     {TABLES} tables, {contexts} x {CLASSES} classes, float32\n"
        f"  a step    {BATCH:,} bytes at random, one call of cross_entropy_with_grad\n"
    )


def report(bits, others, training, comparison):
    """Print the figures."""
    lines = ["", "held-out files             bits per byte"]
    lines.append(f"  {'this model':<24} {bits:8.3f}")
    lines += [f"  {name:<24} {value:8.3f}" for name, value in others.items()]
    step = training.seconds / training.steps
    lines += [
        f"  Perplexity of this model: {2**bits:.2f} per byte.",
        "  Not a race on equal terms: the model has learned from the other files, and its tables "
        "are not counted; the compressors start cold on the held-out files, laid end to end.",
        "",
        f"training: {training.rows_per_second:,.0f} bytes/s, {step * 1e3:.1f} ms a step",
        "",
        f"loss + gradient of {BATCH} x {CLASSES}, and its share of a step",
        *times_text(training, comparison.seconds),
        f"  With any of them the rest of a step takes {training.other_seconds * 1e3:.1f} ms, which "
        "is NumPy's: table rows are gathered and sums of gradients scattered.",
        f"  Largest difference from float64: gradient {comparison.grad_difference:.1e}, "
        f"loss {comparison.loss_difference:.1e}.",
    ]
    say("\n".join(lines))


def within(path, folder):
    """The path relative to `folder` if it is inside, else the path."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path
