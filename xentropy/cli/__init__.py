"""The subcommands of `xentropy`, a module each; xentropy/__main__.py has the table of them.

A module has a DESCRIPTION for its help, `add_arguments(parser)`, and `main(options)`, which returns
the exit code.
"""
