"""The subcommand `config`."""

import argparse

import xentropy

DESCRIPTION = "Print the version, the instruction sets, the compiler and the number of threads."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(options: argparse.Namespace) -> int:
    """Print the configuration; returns the exit code."""
    xentropy.show_config()
    return 0
