"""CPUs that this machine is not: import, choice of the tier and results under qemu's models.

(Below x86-64-v2 it is NumPy, whose wheels need that too, that does not start.)
"""

import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.support import assert_ulps, make_logits, make_target, oracle, plain

MODELS = {
    "Nehalem": ["x86_64_v2"],
    "Haswell": ["x86_64_v2", "x86_64_v3"],
    "Haswell,-fma": ["x86_64_v2"],  # a level is all of its features
    "Haswell,-xsave": ["x86_64_v2"],  # the operating system does not save wide registers
}

PROGRAM = """
import sys
import numpy as np
import xentropy as xe
from xentropy import _kernels

given, answers = np.load(sys.argv[1]), {"tiers": _kernels.tiers(), "tier": _kernels.tier()}
for k in range(len(given.files) // 2):
    x, target = given[f"x{k}"], given[f"target{k}"]
    answer = xe.cross_entropy_with_grad(x, target, reduction="none")
    answers[f"loss{k}"], answers[f"grad{k}"] = answer
np.savez(sys.argv[2], **answers)
"""
SHAPES = ((37, 3), (20, 10), (3, 700), (2, 21, 40))  # few classes, groups, rows, columns


def python(model, code, *arguments, **environment):
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("the models are of x86-64")
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    clean = {name: value for name, value in os.environ.items() if name != "XENTROPY_TIER"}
    return subprocess.run(
        [qemu, "-cpu", model, sys.executable, "-c", code, *arguments],
        env={**clean, "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("model", MODELS)
def test_an_old_cpu_gets_the_tier_that_it_can_run(model, tmp_path):
    cases = []
    for dtype in ("float32", "float64"):
        cases += [(make_logits(s, dtype), make_target("labels", s)) for s in SHAPES]
    given = {f"x{k}": x for k, (x, _) in enumerate(cases)}
    given |= {f"target{k}": target for k, (_, target) in enumerate(cases)}
    np.savez(tmp_path / "given.npz", **given)
    done = python(model, PROGRAM, tmp_path / "given.npz", tmp_path / "answers.npz")
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    assert answers["tiers"].tolist() == MODELS[model]
    assert answers["tier"] == MODELS[model][-1]
    for k, (x, target) in enumerate(cases):
        exact = oracle(x.dtype).cross_entropy_with_grad(x, target, reduction="none")
        for name, right in zip(("loss", "grad"), exact, strict=True):
            assert_ulps(answers[f"{name}{k}"], right, plain(x.dtype), f"{name} {x.dtype} {x.shape}")


def test_a_forced_tier_that_the_cpu_lacks_is_refused():
    done = python("Haswell", "import xentropy", XENTROPY_TIER="x86_64_v4")
    assert done.returncode == 1  # an exception, not a signal
    assert "RuntimeError: XENTROPY_TIER=x86_64_v4 is not available on this machine" in done.stderr
    assert done.stderr.rstrip().endswith("available: x86_64_v2, x86_64_v3")


def test_use_tier_refuses_what_the_cpu_lacks():
    code = "from xentropy import _kernels; _kernels.use_tier('x86_64_v3')"
    done = python("Nehalem", code)
    assert done.returncode == 1
    assert "ValueError: tier 'x86_64_v3' is not available" in done.stderr
