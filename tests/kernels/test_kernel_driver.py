"""The kernels without Python (kernels/driver_main.cpp): here, for arm64, under sanitizers.

Compiling every tier takes a minute or two, so these run where XENTROPY_DRIVER is set, as in CI.
"""

import os
import shutil
import subprocess

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


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return build(tmp_path_factory.mktemp("native"), *STRICT)


@pytest.fixture(scope="module")
def arm64(tmp_path_factory):
    need(ARM64, "qemu-aarch64")
    return build(tmp_path_factory.mktemp("arm64"), *STRICT, "-static", compiler=ARM64)


def test_every_kernel_on_this_machine(native):
    lines_of([native])


def test_every_kernel_on_arm64(arm64):
    lines_of(["qemu-aarch64", arm64])


def bits_of(command):
    """Hashes of losses and gradient by tier, and by kernel and batch."""
    tiers = {}
    for line in lines_of([*command, "--bits"]):
        tier, batch = line.split(" ", 1)
        name, *hashes = batch.rsplit(" ", 2)
        tiers.setdefault(tier, {})[name] = hashes
    return {tier: bits for tier, bits in tiers.items() if tier in FUSED}


def test_every_kernel_has_the_same_bits_on_every_tier_with_fma(native, arm64):
    bits = bits_of([native]) | bits_of(["qemu-aarch64", arm64])
    for tier in bits:
        assert len(bits[tier]) > 400
        assert bits[tier] == bits["arm64"], tier


def test_nothing_beyond_an_array_is_touched(tmp_path):
    """Arrays end where their memory ends; AddressSanitizer and UndefinedBehaviorSanitizer look."""
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    lines_of([build(tmp_path, "-O1", "-g1", *sanitizers)])


def test_threads_race_for_nothing(tmp_path):
    """Chunks handed out, labels inspected, pages taken and given back, under ThreadSanitizer."""
    try:  # of one tier: the others do not differ in what threads share
        program = build(
            tmp_path, "-O1", "-g1", "-fsanitize=thread", leave_out=_kernels.tiers()[:-1]
        )
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no ThreadSanitizer")
    lines_of([program], TSAN_OPTIONS="halt_on_error=1")
