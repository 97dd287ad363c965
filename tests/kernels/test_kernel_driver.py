"""The kernels without Python (driver_main.cpp): here, for arm64, under three sanitizers.

Compiling every tier takes a minute or two, so these run where XENTROPY_DRIVER is set, as in CI.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from compile_driver import build
from helpers.tiers import FUSED

from xentropy import _kernels

if "XENTROPY_DRIVER" not in os.environ:
    pytest.skip("takes minutes: set XENTROPY_DRIVER=1", allow_module_level=True)

STRICT = ("-Wall", "-Wextra", "-Werror")
ARM64 = "aarch64-linux-gnu-g++"


def need(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user) not here")


def lines_of(command, **environment):
    """What the program prints; it must say that all is well."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout
    return done.stdout.splitlines()


# What .ci/native has compiled already: the folder of the extension's objects.
SANITIZED = os.environ.get("XENTROPY_SANITIZED_OBJECTS")
SANITIZERS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The driver where a touch beyond an array, and undefined behaviour, end it."""
    ready = sorted(set(Path(SANITIZED).rglob("kernels/**/*.o"))) if SANITIZED else ()
    return build(tmp_path_factory.mktemp("native"), *SANITIZERS, ready=ready)


def bits_of(command):
    """Hashes of losses and gradient by tier, and by kernel and batch.

    The program fails where an error is above its bound, or two ways to a gradient differ.
    """
    tiers = {}
    for line in lines_of([*command, "--bits"]):
        tier, batch = line.split(" ", 1)
        name, *hashes = batch.rsplit(" ", 2)
        tiers.setdefault(tier, {})[name] = hashes
    return tiers


def test_every_kernel_here_and_on_arm64_to_the_same_bits(native, tmp_path):
    """Every tier against scalar arithmetic, nothing beyond an array touched; those with fused
    multiply-add agree with NEON, which qemu computes."""
    here = bits_of([native])
    assert set(_kernels.tiers()) <= set(here)
    if "arm64" in here:
        return
    need(ARM64, "qemu-aarch64")
    there = bits_of(["qemu-aarch64", build(tmp_path, *STRICT, "-static", compiler=ARM64)])
    assert len(there["arm64"]) > 400
    for tier in set(here) & set(FUSED):
        assert here[tier] == there["arm64"], tier


def test_threads_race_for_nothing(tmp_path):
    """Chunks handed out, labels inspected, pages taken and given back, under ThreadSanitizer."""
    try:  # of one tier: the others do not differ in what threads share
        program = build(
            tmp_path, "-O1", "-g1", "-fsanitize=thread", leave_out=_kernels.tiers()[:-1]
        )
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no ThreadSanitizer")
    lines_of([program], TSAN_OPTIONS="halt_on_error=1")
