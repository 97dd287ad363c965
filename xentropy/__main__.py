"""The command line: `python -m xentropy`, or `xentropy`."""

import argparse
import importlib
import sys

# The modules of xentropy.cli that are subcommands; only the one that is run is imported.
COMMANDS = {
    "demo": "a small language model, trained and evaluated (without a subcommand: this one)",
    "config": "what runs here: version, instruction sets, compiler, threads",
}
DEFAULT = "demo"


def parser(name, module):
    """The parser of a subcommand's arguments; that of the default lists all of them."""
    lines = [f"  {command:<8} {purpose}" for command, purpose in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="xentropy" if name == DEFAULT else f"xentropy {name}",
        usage="xentropy [subcommand] [options]" if name == DEFAULT else None,
        description=module.DESCRIPTION,
        epilog="\n".join(["subcommands:", *lines]) if name == DEFAULT else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def main(argv=None):
    """Run a subcommand; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and argv[0] in COMMANDS else DEFAULT
    module = importlib.import_module(f"xentropy.cli.{name}")
    options = parser(name, module).parse_args(argv)
    try:
        return module.main(options)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
