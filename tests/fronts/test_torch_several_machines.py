"""The scripts of the guide to several machines do what it says, on two processes."""

import os
import re
import subprocess
import sys

import pytest
from helpers.examples import ROOT, blocks

GUIDE = ROOT / "docs" / "guides" / "several_machines.md"
SCRIPTS = GUIDE.with_suffix("")
PAGE = GUIDE.read_text(encoding="utf-8")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the files that the first block of the guide makes."""
    folder, before = tmp_path_factory.mktemp("files"), os.getcwd()
    os.chdir(folder)
    try:
        exec(blocks(PAGE)[0].code, {})
    finally:
        os.chdir(before)
    return folder


def printed(folder, *command):
    """What a command prints."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table():
    """The table of the guide, which test_examples.py compares with that of one process."""
    return re.search(r">>> print\(whole.result\(\)\)\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_guide_shows_each_script():
    shown = set(re.findall(r"literalinclude\} several_machines/(\w+\.py)", PAGE))
    assert shown == {path.name for path in SCRIPTS.glob("*.py")}


def test_a_pool_of_processes(folder):
    assert printed(folder, SCRIPTS / "pool.py") == table()


def test_two_ranks(folder):
    assert printed(folder, *TORCHRUN, "2", SCRIPTS / "ranks.py") == table()


@pytest.mark.parametrize("ranks", [1, 2])
def test_training(folder, ranks):
    assert f"```text\n{printed(folder, *TORCHRUN, str(ranks), SCRIPTS / 'train.py')}```" in PAGE
