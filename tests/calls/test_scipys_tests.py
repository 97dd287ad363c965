"""SciPy's own tests of logsumexp, softmax and log_softmax, unchanged, on xentropy's functions."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

THEIRS = "scipy.special.tests.test_logsumexp"
HELPERS = Path(__file__).resolve().parent.parent
# With it, SciPy's tests run on every array library that is there; these functions are NumPy's.
OTHER_LIBRARIES = "SCIPY_ARRAY_API"
# Options of this run, such as -W error: SciPy's tests have filters of their own.
OURS = "PYTEST_ADDOPTS"


@pytest.mark.skipif(find_spec(THEIRS) is None, reason="SciPy is installed without its tests")
def test_scipys_tests(tmp_path):
    paths = [str(HELPERS), *filter(None, sys.path)]
    env = {name: value for name, value in os.environ.items() if name not in (OTHER_LIBRARIES, OURS)}
    env["PYTHONPATH"] = os.pathsep.join(paths)
    plugins = "-p", "helpers.in_scipys_tests", "-p", "no:cacheprovider", "-p", "no:xdist"
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "--pyargs", THEIRS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed(?:, \d+ warnings?)? in", done.stdout)
    assert passed, f"some were left out: {done.stdout}"
    assert int(passed[1]) > 100
