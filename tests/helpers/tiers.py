"""Instruction-set tiers: all there are, and those that the tests run on."""

import os

from xentropy import _kernels

TIERS = ("x86_64_v2", "x86_64_v3", "x86_64_v4", "arm64")
FUSED = ("x86_64_v3", "x86_64_v4", "arm64")  # with fused multiply-add
FORCED = os.environ.get("XENTROPY_TIER")
HERE = [tier for tier in _kernels.tiers() if FORCED in (None, "", tier)]
