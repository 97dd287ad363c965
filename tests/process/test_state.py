"""The state of the process: neither import nor calls change it, nor does clean input warn."""

import os
import sys

import numpy as np
import pytest
from helpers.processes import run
from helpers.support import make_logits, make_target

import xentropy as xe
from xentropy import _kernels

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")

STATE = """
import ctypes, locale, os, platform, signal, sys, warnings
import numpy as np
libm = ctypes.CDLL(None) if sys.platform == "darwin" else ctypes.CDLL("libm.so.6")

def floating():
    "Rounding, flushing to zero, traps; not the flags of what has happened."
    libm.fegetenv(environment := (ctypes.c_uint32 * 64)())
    if platform.machine() in ("x86_64", "AMD64"):
        return environment[0] & 0xFFFF, environment[7] & ~0x3F  # x87 control word, MXCSR
    return environment[0]  # FPCR

def state():
    os.umask(mask := os.umask(0))
    status = open("/proc/self/status").read().splitlines()
    return {
        "floating": floating(),
        "signals": [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))],
        "handlers": [signal.getsignal(s) for s in signal.valid_signals()],
        "locale": locale.setlocale(locale.LC_ALL),
        "umask": mask,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "errors": np.geterr(),
        "recursion": sys.getrecursionlimit(),
        "path": list(sys.path),
    }

def same(when):
    now = state()
    assert now == before, [when] + [(k, now[k], before[k]) for k in now if now[k] != before[k]]

locale.setlocale(locale.LC_ALL, "C.UTF-8")
os.umask(0o27)  # that, and ignored signals, come from the process that started this one
for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(each, signal.SIG_DFL)
before = state()
import xentropy as xe
same("import")
tiny = np.float32(1e-40)
"""
CALLS = """
for dtype in ("f2", "f4", "f8"):
    for shape in ((1, 3), (3000, 100), (30, 9000), (2, 21, 5000)):
        x = np.random.default_rng(0).normal(size=shape).astype(dtype)
        target = np.zeros(shape[:1] + shape[2:], int)
        for n_threads in (1, 3):
            xe.cross_entropy_with_grad(x, target, n_threads=n_threads)
            xe.softmax(x, axis=1, n_threads=n_threads)
            xe.entropy(x, axis=1, n_threads=n_threads)
        try:
            xe.cross_entropy(x, target + 10**6)
        except IndexError:
            pass
    same(dtype)
assert np.float32(1e-40) * np.float32(0.5) > 0
assert tiny > 0
"""


@linux
@pytest.mark.parametrize("tier", _kernels.tiers())
def test_neither_import_nor_calls_change_the_state_of_the_process(tier):
    run(STATE + CALLS, XENTROPY_TIER=tier)


@linux
def test_a_rounding_mode_of_the_user_stays():
    upward = 0x400000 if os.uname().machine == "aarch64" else 0x800
    run(STATE + f"libm.fesetround({upward}); before = state()\n" + CALLS)


def test_clean_input_causes_no_floating_point_error(recwarn):
    """Nor does any other: infinities are answers (`python -m tests.fuzz` has all kinds)."""
    for dtype in ("float16", "float32", "float64"):
        for shape in ((1, 3), (300, 10), (30, 400), (2, 21, 50)):
            x, target = make_logits(shape, dtype, spread=30), make_target("labels", shape)
            p = make_target("probabilities", shape)
            with np.errstate(all="raise"):
                for reduction in ("none", "sum", "mean"):
                    xe.cross_entropy_with_grad(x, target, reduction=reduction, label_smoothing=0.1)
                    xe.cross_entropy_with_grad(x, p, reduction=reduction)
                    xe.kl_divergence(p, x, reduction=reduction)
                for function in (xe.softmax, xe.log_softmax, xe.logsumexp, xe.entropy):
                    function(x, axis=1)
    assert not recwarn.list


def test_an_infinite_divergence_causes_no_floating_point_error():
    huge = np.array([[-3e38, 3e38]], np.float32)
    with np.errstate(all="raise"):
        rows = xe.kl_divergence(np.array([[1.0, 0.0]], np.float32), huge, reduction="none")
    assert np.isinf(rows).all()
