"""The command line: `python -m xentropy`, or `xentropy`."""

import argparse
import importlib
import os
import signal
import sys

from . import __version__
from .cli.demo_progress import wrapped

# The modules of xentropy.cli that are subcommands; only the one that is run is imported.
COMMANDS = {
    "demo": "a small language model, trained and evaluated (without a subcommand: this one)",
    "evaluate": "perplexity, calibration and more of logits in files; two models compared",
    "config": "what runs here: version, instruction sets, compiler, threads",
}
DEFAULT = "demo"


def parser(name, module):
    """The parser of a subcommand's arguments; that of the default lists all of them."""
    lines = ["subcommands:", *(f"  {name:<8} {what}" for name, what in COMMANDS.items())]
    parser = argparse.ArgumentParser(
        prog="xentropy" if name == DEFAULT else f"xentropy {name}",
        usage="xentropy [subcommand] [options]" if name == DEFAULT else None,
        description=wrapped(module.DESCRIPTION),
        epilog=wrapped("\n".join(lines)) if name == DEFAULT else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xentropy {__version__}")
    module.add_arguments(parser)
    return parser


def main(argv=None):
    """Run a subcommand; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and argv[0] in COMMANDS else DEFAULT
    module = importlib.import_module(f"xentropy.cli.{name}")
    options = parser(name, module).parse_args(argv)
    return module.main(options)


def output_error(error):
    """What a failed write to standard output means; returns the exit code."""
    if sys.stdout is not None:  # what is buffered cannot be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader has what it wanted: `| head -1`
        return 128 + 13  # what a shell says of SIGPIPE
    where = f": {error.filename}" if error.filename else ""
    print(f"xentropy: {error.strerror or error}{where}", file=sys.stderr)
    return 1


def exit_code():
    """Of `main`, and of argparse, which ends after --help and errors."""
    try:
        return main()
    except SystemExit as end:
        return end.code


def command():
    """Run the process of the command: no traceback for Ctrl-C or a closed pipe."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = exit_code()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except OSError as error:
        code = output_error(error)
    finally:  # nor while the interpreter ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


if __name__ == "__main__":
    command()
