"""exp and log1p of every tier against the C library in a wider type (kernels/elementary_main.cpp).

A thousandth of all float32 numbers by default; all of them where XENTROPY_EXHAUSTIVE is set, which
takes some minutes a tier. arm64 is compiled for, and run by qemu, where both are at hand: it is
twenty times slower, and has a tenth of the numbers.
"""

import os
import shutil
import subprocess

import pytest
from compile_driver import build_elementary
from helpers.tiers import TIERS

from xentropy import _kernels

STEP, EMULATED = (1, 1) if "XENTROPY_EXHAUSTIVE" in os.environ else (997, 9973)
# For both types: exp for two ways to choose k, log1p, softcaps of three sizes and their slopes,
# and whether neighbours change their bits; log1p in float32; exp and exp - 1 at once, in float64.
FUNCTIONS = 23


def compiler_and_runner(tier):
    """What compiles for the tier, and what runs the result: nothing, or qemu."""
    native, cross = "c++", "aarch64-linux-gnu-g++"
    if shutil.which(native) is None:
        pytest.skip("no C++ compiler here")
    if tier in _kernels.tiers():
        return native, []
    if tier == "arm64" and shutil.which(cross) and shutil.which("qemu-aarch64"):
        return cross, ["qemu-aarch64"]
    pytest.skip(f"neither this CPU nor an emulator at hand runs {tier}")


@pytest.mark.parametrize("tier", TIERS)
def test_exp_and_log1p_keep_their_bounds(tier, tmp_path):
    compiler, runner = compiler_and_runner(tier)
    flags = ["-static"] if runner else []  # no libraries of that architecture are needed then
    program = build_elementary(tmp_path, tier, *flags, compiler=compiler)
    command = [*runner, program, str(EMULATED if runner else STEP)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == FUNCTIONS
