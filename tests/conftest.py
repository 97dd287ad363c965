"""Fixtures: every kernel test runs on every instruction-set tier this CPU has."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# For `bench`, whose cells and measures of accuracy the tests share. Last: an installed xentropy
# comes before the one in this folder, which may not be built.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from helpers.installed import NEEDED, missing
from helpers.support import DTYPES

from xentropy import _kernels

# Not collected without these libraries: test_left_out.py says so.
collect_ignore_glob = [files for files, libraries in NEEDED.items() if missing(libraries)]

TIERS = ("x86_64_v2", "x86_64_v3", "x86_64_v4", "arm64")

# No deadline: timing is never asserted. Derandomised: a red run is red for everybody.
settings.register_profile("xentropy", deadline=None, derandomize=True, database=None)
settings.load_profile("xentropy")


@pytest.fixture(scope="module", params=TIERS)
def tier(request):
    """Run on this tier, or skip and say why not."""
    name = request.param
    forced = os.environ.get("XENTROPY_TIER")
    if forced and name != forced:
        pytest.skip(f"XENTROPY_TIER={forced} leaves {name} out")
    if name not in _kernels.tiers():
        pytest.skip(f"this CPU has no {name}, only {', '.join(_kernels.tiers())}")
    before = _kernels.use_tier(name)
    assert _kernels.tier() == name
    yield name
    assert _kernels.tier() == name, "a test switched the tier and did not switch back"
    _kernels.use_tier(before)
    assert _kernels.tier() == before


@pytest.fixture(params=DTYPES)
def dtype(request):
    """float16, bfloat16, float32, float64."""
    if request.param == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(request.param)
