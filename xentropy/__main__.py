"""The command: `python -m xentropy`, or `xentropy`."""

import argparse
import math
import sys

import xentropy


def positive(text):
    """A positive, finite number of seconds."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(text)
    return value


def parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="xentropy",
        description="Train a byte-level language model on the sources of Python's standard library "
        "and report its loss on held-out files, in bits per byte, beside zlib, bz2 and lzma.",
        epilog="`xentropy config` prints what runs here: instruction set, compiler, threads.",
    )
    parser.add_argument("command", nargs="?", choices=["config"], help="print the configuration")
    parser.add_argument(
        "--seconds", type=positive, default=30.0, help="time for everything (default: 30)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the held-out files and the batches (default: 0)"
    )
    return parser


def main(argv=None):
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    if options.command == "config":
        xentropy.show_config()
        return 0
    from xentropy import demo

    try:
        demo.run(options.seconds, options.seed)
    except demo.SourcesMissing as missing:
        print(f"xentropy: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
