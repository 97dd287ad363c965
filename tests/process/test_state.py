"""The state of the process: calls neither change it nor depend on it, and clean input is silent."""

import os
import sys

import numpy as np
import pytest
from helpers.processes import run
from helpers.support import make_logits, make_target
from helpers.tiers import HERE

import xentropy as xe

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

def masks(status):
    "Of signals; but for 32 and 33, which glibc catches from the first thread of a process on."
    own = 3 << 31
    lines = [line.split() for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
    return [(name, int(mask, 16) & ~own) for name, mask in lines]

def state():
    os.umask(mask := os.umask(0))
    status = open("/proc/self/status").read().splitlines()
    return {
        "floating": floating(),
        "signals": masks(status),
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
            xe.row_statistics(x, target, n_threads=n_threads)
        try:
            xe.cross_entropy(x, target + 10**6)
        except IndexError:
            pass
    same(dtype)
assert np.float32(1e-40) * np.float32(0.5) > 0
assert tiny > 0
"""


@linux
@pytest.mark.parametrize("tier", HERE)
def test_neither_import_nor_calls_change_the_state_of_the_process(tier):
    run(STATE + CALLS, XENTROPY_TIER=tier)


@linux
def test_a_rounding_mode_of_the_user_stays():
    upward = 0x400000 if os.uname().machine == "aarch64" else 0x800
    run(STATE + f"libm.fesetround({upward}); before = state()\n" + CALLS)


# Bits of x86's MXCSR and of ARM's FPCR. The first call in a mode starts OpenMP's threads, which
# inherit it.
MODES = {
    "subnormal numbers are flushed": (0x8040, 1 << 24),
    "rounding is upward": (0x4000, 1 << 22),
    "rounding is toward zero": (0x6000, 3 << 22),
    "invalid operations and divisions by zero trap": (0x280, 3 << 8),
}
IN_ANOTHER_MODE = """
place, bits = (7, {mxcsr}) if platform.machine() in ("x86_64", "AMD64") else (0, {fpcr})

def change_mode():
    libm.fegetenv(environment := (ctypes.c_uint32 * 64)())
    environment[place] ^= bits
    libm.fesetenv(environment)

rng, cases = np.random.default_rng(0), []
for dtype in ("f2", "f4", "f8"):
    for shape in ((3, 2), (30_000, 3), (3000, 100), (30, 9000), (2, 21, 5000)):
        x = rng.normal(0, 60, shape).astype(dtype)
        x[rng.random(shape) < 0.2] = np.finfo(dtype).tiny / 4
        p = np.abs(x) / np.abs(x).sum(axis=1, dtype=float, keepdims=True)
        labels = np.zeros(shape[:1] + shape[2:], int)
    cases.append((x, labels, p.astype(dtype), rng.random(shape[1])))
x[0, :, 0] = np.inf

def results(n_threads):
    for x, labels, p, weight in cases:
        for target in (labels, p):
            for reduction in ("none", "mean"):
                options = dict(reduction=reduction, n_threads=n_threads)
                yield from xe.cross_entropy_with_grad(x, target, **options)
        for function in (xe.softmax, xe.log_softmax, xe.logsumexp, xe.entropy):
            yield function(x, axis=1, n_threads=n_threads)
        yield from xe.row_statistics(x, labels, n_threads=n_threads)
        for base in (2, 5, 10):
            yield xe.cross_entropy(x, labels, weight, base=base, n_threads=n_threads)
            yield xe.entropy(x, axis=1, base=base, n_threads=n_threads)

def bits_of_results(n_threads):
    return [np.asarray(each).tobytes() for each in results(n_threads)]

change_mode()
before = state()
there = bits_of_results(3)
same("calls")
change_mode()
here = bits_of_results(1)
assert there == here, [i for i, (a, b) in enumerate(zip(there, here)) if a != b]
assert bits_of_results(3) == here, "threads that were started in the other mode"
"""


@linux
@pytest.mark.parametrize("tier", HERE)
@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_floating_point_modes_of_threads(mode, tier):
    mxcsr, fpcr = MODES[mode]
    run(STATE + IN_ANOTHER_MODE.format(mxcsr=mxcsr, fpcr=fpcr), XENTROPY_TIER=tier)


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
                xe.row_statistics(x, target)
    assert not recwarn.list


def test_an_infinite_divergence_causes_no_floating_point_error():
    huge = np.array([[-3e38, 3e38]], np.float32)
    with np.errstate(all="raise"):
        rows = xe.kl_divergence(np.array([[1.0, 0.0]], np.float32), huge, reduction="none")
    assert np.isinf(rows).all()
