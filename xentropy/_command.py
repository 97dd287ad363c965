"""Whether this process is the command `xentropy`, which Ctrl-C ends without a traceback.

The package imports this first: at its own imports, NumPy's among them, Ctrl-C has its default
action in the command (and only there); `__main__.command` takes over from there.
"""

import os
import sys


def is_command() -> bool:
    """`python -m xentropy`, or the script `xentropy`."""
    given = sys.orig_argv
    module = given.index("-m") + 1 if "-m" in given else len(given)
    if sys.argv[:1] == ["-m"]:  # as long as the module is looked for
        return given[module : module + 1] == ["xentropy"]
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name in ("xentropy", "xentropy.exe", "xentropy-script.py")


if is_command():
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
