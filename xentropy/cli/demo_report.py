"""What the demonstration prints, and what it compares the model and the kernel with."""

import bz2
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


@dataclass
class Comparison:
    """The kernel and the NumPy reference on one batch."""

    seconds: float
    reference_seconds: float
    loss_difference: float
    grad_difference: float


def compare_with_reference(logits, labels):
    """Time and largest differences of loss and gradient, row by row, on the same logits."""
    out = np.empty_like(logits)
    seconds, (loss, grad) = best_time(
        lambda: xe.cross_entropy_with_grad(logits, labels, reduction="none", out=out), 20
    )
    reference_seconds, (exact_loss, exact_grad) = best_time(
        lambda: reference.cross_entropy_with_grad(logits, labels, reduction="none"), 2
    )
    return Comparison(
        seconds,
        reference_seconds,
        float(np.abs(loss - exact_loss).max()),
        float(np.abs(grad - exact_grad).max()),
    )


def introduce(root, training, held_out):
    """Say what is read and what is learned."""

    def amount(files):
        return f"{len(files)} files, {sum(map(len, files)) / 1e6:.2f} MB"

    contexts = f"{1 << demo_data.TABLE_BITS:,} contexts"
    print(
        f"xentropy {xe.__version__}: a language model of the standard library of Python "
        f"{platform.python_version()}\n"
        f"  sources   {within(root, sys.base_prefix)}, tests left out\n"
        f"  training  {amount(training)}\n"
        f"  held out  {amount(held_out)}\n"
        f"  model     {TABLES} tables, {contexts} x {CLASSES} classes, float32\n"
        f"  a step    {BATCH:,} bytes at random, one call of cross_entropy_with_grad\n",
        flush=True,
    )


def report(bits, others, training, comparison):
    """Print the figures."""
    print("\nheld-out files             bits per byte")
    print(f"  {'this model':<24} {bits:8.3f}     perplexity {2**bits:.2f} per byte")
    for name, value in others.items():
        print(f"  {name:<24} {value:8.3f}")
    print(
        "  Not a race on equal terms: the model has learned from the other files, and its tables\n"
        "  are not counted; the compressors start cold on the held-out files, laid end to end.\n"
        "\nspeed\n"
        f"  training                 {training.rows_per_second:,.0f} rows/s\n"
        "  cross_entropy_with_grad  "
        f"{training.kernel_seconds / training.seconds:.1%} of the training time\n"
        f"  one batch of {BATCH} x {CLASSES}    {comparison.seconds * 1e3:.2f} ms, NumPy reference "
        f"{comparison.reference_seconds * 1e3:.1f} ms: "
        f"{comparison.reference_seconds / comparison.seconds:.0f} times\n"
        f"  largest difference       gradient {comparison.grad_difference:.1e}, "
        f"loss {comparison.loss_difference:.1e} (float32 against float64)"
    )


def within(path, folder):
    """The path relative to `folder` if it is inside, else the path."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path
