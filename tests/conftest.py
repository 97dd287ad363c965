"""Fixtures: every kernel test runs on every instruction-set tier this CPU has."""

import os
import signal
import sys
from pathlib import Path

# Before OpenMP is loaded. Tests run side by side: threads that wait leave the cores to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy: they would wait busily

import numpy as np
import pytest
from hypothesis import settings

# For `bench`, whose cells and measures of accuracy the tests share. Last: an installed xentropy
# comes before the one in this folder, which may not be built.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from helpers.installed import NEEDED, missing
from helpers.support import DTYPES
from helpers.tiers import HERE

from xentropy import _kernels

# What a shell starts in the background ignores Ctrl-C, and so would the processes of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Not collected without these libraries: test_left_out.py says so.
collect_ignore_glob = [files for files, libraries in NEEDED.items() if missing(libraries)]

# No deadline: timing is never asserted. Derandomised: what fails here fails for everybody. Half of
# the usual number of examples, on each tier; the fuzzer looks further.
settings.register_profile(
    "xentropy", max_examples=50, deadline=None, derandomize=True, database=None
)
settings.load_profile("xentropy")


@pytest.fixture(params=HERE)
def tier(request):
    """Run on each tier that this CPU has, or on the one that XENTROPY_TIER names."""
    before = _kernels.use_tier(request.param)
    yield request.param
    assert _kernels.tier() == request.param, "a test switched the tier and did not switch back"
    _kernels.use_tier(before)


@pytest.fixture(params=DTYPES)
def dtype(request):
    """float16, bfloat16, float32, float64."""
    return np.dtype(request.param)


def pytest_runtest_setup():
    """Calls have the threads that they ask for, whatever other processes took before."""
    _kernels._forget_debt()


def pytest_collection_modifyitems(items):
    """A test on one tier, then the same on the next: its inputs and oracle are remembered."""

    def without_tier(item):
        tier = getattr(item, "callspec", None) and item.callspec.params.get("tier")
        return item.nodeid.replace(tier, "") if tier else item.nodeid

    first = {}
    for place, item in enumerate(items):
        first.setdefault(without_tier(item), place)
    items.sort(key=lambda item: first[without_tier(item)])
