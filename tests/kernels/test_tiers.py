"""Instruction-set tiers: the best is chosen, one can be forced, a wrong name is told so."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.support import assert_ulps, make_logits, make_target, plain

import xentropy as xe
from xentropy import _kernels


def python(code, tier=None):
    """Run code in a fresh interpreter under this XENTROPY_TIER."""
    environment = {k: v for k, v in os.environ.items() if k != "XENTROPY_TIER"}
    if tier is not None:
        environment["XENTROPY_TIER"] = tier
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


NAME = "from xentropy import _kernels; print(_kernels.tier())"


def test_the_best_tier_is_the_default():
    assert python(NAME).stdout.strip() == _kernels.tiers()[-1]


def test_the_environment_forces_a_tier(tier):
    assert python(NAME, tier).stdout.strip() == tier


def test_show_config_names_the_tier(tier, capsys):
    xe.show_config()
    shown = capsys.readouterr().out
    assert tier in shown
    assert xe.__version__ in shown


@pytest.mark.parametrize("wrong", ["x86_64_v9", "avx2", "X86_64_V3"])
def test_an_unknown_tier_is_refused_and_the_choice_listed(wrong):
    failed = python(NAME, wrong)
    assert failed.returncode != 0
    assert "RuntimeError" in failed.stderr
    for name in (wrong, *_kernels.tiers()):
        assert name in failed.stderr


def test_use_tier_refuses_what_is_not_there_and_keeps_what_is():
    before = _kernels.tier()
    for wrong in ("x86_64_v9", ""):
        with pytest.raises(ValueError, match=before):
            _kernels.use_tier(wrong)
    assert _kernels.tier() == before
    assert _kernels.use_tier(before) == before


def test_tiers_agree(tier):
    best = _kernels.tiers()[-1]
    for shape in ((50, 10), (9, 300), (3, 5000), (2, 21, 130)):
        x, target = make_logits(shape), make_target("labels", shape)
        here = xe.cross_entropy_with_grad(x, target, reduction="none")
        _kernels.use_tier(best)
        there = xe.cross_entropy_with_grad(x, target, reduction="none")
        _kernels.use_tier(tier)
        for a, b in zip(here, there, strict=True):
            assert_ulps(a, b.astype(np.float64), 2 * plain("float32"))
