"""What tasks of a cluster do: where its workers can import it."""

import os
import signal
from pathlib import Path


def killed_once(block, mark):
    """The block; but the first worker that asks for it is killed. `mark`: a file that says so."""
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return block
    os.kill(os.getpid(), signal.SIGKILL)
    return None
