"""The command as a process: closed pipes, Ctrl-C at any moment, narrow terminals."""

import os
import re
import signal
import subprocess
import sys

import pytest
from helpers.processes import environment_at_start

import xentropy as xe

posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")

MODULE = [sys.executable, "-m", "xentropy"]
# In sitecustomize.py: Ctrl-C when a module is looked for, or when the interpreter ends.
CTRL_C = """
import atexit, os, signal, sys

def now():
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, *_):
        if name == {moment!r}:
            now()

sys.meta_path.insert(0, Finder())
if {moment!r} == "exit":
    atexit.register(now)
"""
SCRIPT = "import sys\nfrom xentropy.__main__ import command\nsys.exit(command())\n"


def environment(**more):
    inherited = {k: v for k, v in environment_at_start().items() if k != "COLUMNS"}
    return {**inherited, **more}


def run(*arguments, command=MODULE, env=None, **how):
    """The process when it has ended."""
    how = {"stdout": subprocess.PIPE, **how}
    return subprocess.run(
        [*command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        env=env or environment(),
        **how,
    )


def test_the_version():
    for arguments in (["--version"], ["config", "--version"]):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"xentropy {xe.__version__}\n"


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("arguments", [["--help"], ["config", "--help"], ["evaluate", "--help"]])
def test_help_is_clean_in_any_width(arguments, columns):
    done = run(*arguments, env=environment(COLUMNS=str(columns)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: xentropy" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns


@posix
@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["--version"], ["--seconds", "1"]])
def test_a_closed_pipe_is_no_error(arguments):
    """As in `xentropy | head -1`: the reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert done.stderr == ""
    # With PYTHONUNBUFFERED argparse leaves out in silence what it cannot print.
    assert done.returncode in ((0, 141) if arguments[0] in ("--help", "--version") else (141,))


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is full")
@pytest.mark.parametrize("arguments", [["config"], ["--seconds", "1"]])
def test_output_that_cannot_be_written_is_said_in_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 1
    assert re.fullmatch(r"xentropy: No space left on device\n", done.stderr)


@posix
def test_without_standard_output():
    done = run(command=["bash", "-c", f"exec {sys.executable} -m xentropy config >&-"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def interrupted(tmp_path):
    """A function that runs a command which Ctrl-C meets at a moment."""

    def run_interrupted(moment, command):
        (tmp_path / "sitecustomize.py").write_text(CTRL_C.format(moment=moment))
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        (tmp_path / "xentropy").write_text(SCRIPT)
        command = [each.format(tmp_path) for each in command]
        return run(command=command, env=environment(PYTHONPATH=path))

    return run_interrupted


MOMENTS = [
    "xentropy._kernels",
    "numpy",
    "numpy.linalg",
    "xentropy._softmax",
    "xentropy.__main__",
    "argparse",
    "xentropy.cli.demo",
    "lzma",
    "exit",
]


@posix
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("command", [MODULE, [sys.executable, "{}/xentropy"]], ids=["-m", "script"])
def test_ctrl_c_at_any_moment_leaves_no_traceback(interrupted, moment, command):
    arguments = ["--version"] if moment == "exit" else ["demo", "--seconds", "1"]
    done = interrupted(moment, [*command, *arguments])
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert done.stderr == ""


@posix
def test_ctrl_c_in_other_programs_is_theirs(interrupted):
    program = "import xentropy, signal; print(signal.getsignal(signal.SIGINT))"
    done = interrupted("numpy", [sys.executable, "-c", program])
    assert "KeyboardInterrupt" in done.stderr
    done = interrupted("nothing", [sys.executable, "-c", program])
    assert "default_int_handler" in done.stdout
