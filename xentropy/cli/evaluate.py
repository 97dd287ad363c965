"""The subcommand `evaluate`: what logits in a file say of their targets."""

import argparse
import json
import math
import sys
from typing import Any

from .demo_progress import Progress
from .evaluate_run import Counted, count, open_inputs

DESCRIPTION = (
    "Perplexity, accuracy, entropy and calibration of logits in a file, with\n"
    "standard errors; with --against also the KL divergence and what else\n"
    "llama.cpp prints of two models. A file is .npy, .safetensors or that of\n"
    "llama-perplexity --save-all-logits, and may be larger than memory. Ctrl-C\n"
    "ends with the figures of what has been read so far."
)
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and what they hold."""
    parser.usage = "%(prog)s [options]\n  LOGITS [TARGET]"  # argparse's own is too wide
    add = parser.add_argument
    add("logits", metavar="LOGITS", help="logits, or log-probabilities, of the model")
    add("target", metavar="TARGET", nargs="?", help="class indices; default: those in LOGITS")
    add("--against", metavar="OTHER", help="logits of another model, such as the base")
    add("--bytes", type=bytes_of, metavar="N|FILE", help="of the text, or one number a row")
    add("--groups", metavar="FILE", help="integers, say of documents, for clustered errors")
    add("--axis", type=int, help="of the classes (default: 1)")
    add("--dtype", choices=["bfloat16"], help="what uint16 numbers are")
    add("--name", metavar="TENSOR", help="of the logits in .safetensors")
    add("--target-name", metavar="TENSOR", help="of the class indices in .safetensors")
    add("--top", type=numbers, default=(1, 5), metavar="K,...", help="accuracies (default: 1,5)")
    add("--bins", type=at_least_1, default=15, help="of the calibration error (default: 15)")
    add("--json", metavar="FILE", help="write the figures there")
    add("--plot", metavar="FILE", help="draw calibration and losses there: .png, .svg, .pdf")


def at_least_1(text: str) -> int:
    """A positive integer."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def bytes_of(text: str) -> int | str:
    """Their number, or the file of one a row."""
    return at_least_1(text) if text.isdecimal() else text


def numbers(text: str) -> tuple[int, ...]:
    """Positive integers between commas."""
    return tuple(at_least_1(part) for part in text.split(","))


def main(options: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    try:
        return run(options)
    except (ValueError, IndexError, ImportError) as error:
        print(f"xentropy: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Read, count and print. What cannot be written later is refused at once."""
    inputs = open_inputs(options)
    if options.plot:
        from .evaluate_plot import draw, pyplot

        pyplot()
    for path in filter(None, (options.json, options.plot)):
        with open(path, "ab"):
            pass
    with Progress() as progress:
        counted = count(inputs, options, progress)
    if not counted.complete:
        share = counted.rows_read / inputs.logits.n_rows
        print(
            f"Interrupted after {counted.rows_read:,} of {inputs.logits.n_rows:,} rows "
            f"({share:.0%}); the figures are those of these rows"
            f"{', without bits a byte' if isinstance(options.bytes, int) else ''}."
        )
    report(counted, options)
    if options.plot:
        draw(counted, options.plot)
    return 0 if counted.complete else INTERRUPTED


def report(counted: Counted, options: argparse.Namespace) -> None:
    """Print the tables, and write them as JSON."""
    results = {"evaluation": counted.evaluation.result()}
    if counted.paired is not None:
        results["paired"] = counted.paired.result()
    print("\n\n".join(str(result) for result in results.values()), flush=True)
    if options.json:
        files = {key: getattr(options, key) for key in ("logits", "target", "against", "groups")}
        written = {
            "files": files,
            "rows_read": counted.rows_read,
            "complete": counted.complete,
            **{name: result.to_dict() for name, result in results.items()},
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(finite(written), file, indent=2)
            file.write("\n")


def finite(value: Any) -> Any:
    """The same with None for nan and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
