"""Programs in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path


def environment_at_start():
    """Of this process, where it can be known: imports may have changed os.environ."""
    place = Path("/proc/self/environ")
    if not place.exists():
        return dict(os.environ)
    pairs = place.read_text(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def run(program, **environment):
    """Run a program in a process of its own; returns what it prints."""
    inherited = {k: v for k, v in environment_at_start().items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    done = subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
