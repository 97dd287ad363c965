"""The subcommand `config`."""

import xentropy

DESCRIPTION = "Print the version, the instruction sets, the compiler and the number of threads."


def add_arguments(parser):
    """None."""


def main(options):
    """Print the configuration; returns the exit code."""
    xentropy.show_config()
    return 0
