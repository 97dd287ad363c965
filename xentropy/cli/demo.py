"""The subcommand `demo`: a language model of Python's standard library."""

import math
import sys
import time

from .demo_data import Corpus, SourcesMissing, library, sources, split
from .demo_model import BATCH, ContextModel, evaluate, train
from .demo_report import compare_with_reference, compressors, introduce, report

DESCRIPTION = (
    "Train a byte-level language model on the sources of Python's standard library and\n"
    "report its loss on held-out files, in bits per byte, beside zlib, bz2 and lzma."
)


def add_arguments(parser):
    """The options of the demonstration."""
    parser.add_argument(
        "--seconds", type=positive, default=30.0, help="time for everything (default: 30)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the held-out files and the batches (default: 0)"
    )


def positive(text):
    """A positive, finite number of seconds."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(text)
    return value


def main(options):
    """Run the demonstration; returns the exit code."""
    try:
        run(options.seconds, options.seed)
    except SourcesMissing as missing:
        print(f"xentropy: {missing}", file=sys.stderr)
        return 1
    return 0


def run(seconds, seed, steps=None):
    """Train, evaluate, compare and report in about `seconds`, or after exactly `steps` steps.

    Returns the held-out bits per byte. Raises `SourcesMissing`.
    """
    deadline = time.perf_counter() + seconds
    root = library()
    files = split(sources(root), seed)
    introduce(root, *files)
    corpus, held_out = map(Corpus, files)
    others = compressors(held_out.text)
    model = ContextModel(corpus.text)
    # To evaluate a batch takes less than half as long as to learn it.
    training = train(model, corpus, seed, deadline, len(held_out) / BATCH / 2, steps)
    bits = evaluate(model, held_out)
    context, labels = held_out.batch(slice(0, BATCH))
    report(bits, others, training, compare_with_reference(model.logits(context), labels))
    return bits
