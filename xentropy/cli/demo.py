"""The subcommand `demo`: a language model of Python's standard library."""

import math
import sys
import time

from .demo_data import Corpus, SourcesMissing, library, sources, split
from .demo_model import BATCH, ContextModel, evaluate, train
from .demo_progress import Progress
from .demo_report import compare, compressors, introduce, report

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
    with Progress() as progress:
        found = sources(root, lambda count: progress.show(0, f"{count} files read"))
    files = split(found, seed)
    introduce(root, *files)
    with Progress() as progress:
        corpus, held_out = (
            Corpus(part, lambda share: progress.show(share, f"{share:4.0%} of the contexts"))
            for part in files
        )
        progress.done(f"{len(corpus) / 1e6:6.2f} million bytes with their contexts")
        progress.show(1, "zlib, bz2, lzma")
        others = compressors(held_out.text)
        model = ContextModel(corpus.text)
        # To evaluate a batch takes less than half as long as to learn it.
        reserve = len(held_out) / BATCH / 2
        training = train(model, corpus, seed, deadline, reserve, progress, steps)
        progress.show(1, "the held-out files")
        bits = evaluate(model, held_out)
        progress.show(1, "other losses")
        context, labels = held_out.batch(slice(0, BATCH))
        compared = compare(model.logits(context), labels)
    report(bits, others, training, compared)
    return bits
