"""The process around a call: forks, other libraries, the GIL, quotas, and its state."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.installed import NEIGHBOURS, missing
from helpers.support import make_logits, make_target

import xentropy as xe
from xentropy import _config, _kernels
from xentropy._quota import cpu_quota

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")


def environment_at_start():
    """Of this process, where it can be known: imports may have changed os.environ."""
    place = Path("/proc/self/environ")
    if not place.exists():
        return dict(os.environ)
    pairs = place.read_text(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def run(program, **environment):
    """Run a program in a process of its own; returns what it prints."""
    inherited = {k: v for k, v in environment_at_start().items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    done = subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- other libraries, each of which brings threads

# A call of each that its threads share.
USES = {
    "torch": """
import torch
torch.set_num_threads(2)
x_torch = torch.from_numpy(x).requires_grad_()
torch.nn.functional.cross_entropy(x_torch, torch.from_numpy(target)).backward()""",
    "sklearn": """
from sklearn._loss import HalfMultinomialLoss
wide = x.astype(np.float64)
HalfMultinomialLoss(n_classes=200).loss_gradient(target.astype(np.float64), wide, n_threads=2)""",
    "jax": """
import jax
float(jax.jit(lambda x: jax.nn.log_softmax(x).sum() + (x @ x.T).sum())(x))""",
}
OTHERS = [name for name in NEIGHBOURS if not missing([name])]

START = """
import os, sys, time
import numpy as np
x = np.random.default_rng(0).normal(size=(3000, 200)).astype(np.float32)
target = np.arange(3000) % 200
"""
OURS = """
import xentropy as xe
from xentropy import reference
loss, grad = xe.cross_entropy_with_grad(x, target, n_threads=2)
exact = reference.cross_entropy_with_grad(x, target)
assert abs(loss / exact[0] - 1) < 1e-6, (loss, exact[0])
assert np.abs(grad - exact[1]).max() < 1e-9
"""
# Within a minute, because machines are busy; a child that waits for lost threads waits for ever.
FORK = """
def check():
    again, slope = xe.cross_entropy_with_grad(x, target, n_threads=2)
    return again == loss and (slope == grad).all() and xe.cross_entropy(x, target) == loss

child = os.fork()
if child == 0:
    os._exit(0 if check() and xe.get_num_threads() == 1 else 3)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
assert os.waitstatus_to_exitcode(status) == 0, f"the child exits with {status}"
assert check(), "the parent changed"
"""
POOL = """
import multiprocessing

def work(k):
    part = slice(k, None, 3)
    return xe.cross_entropy_with_grad(x[part], target[part], n_threads=2)

before = [work(k) for k in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    inside = pool.map_async(work, range(3)).get(60)
for there, here, again in zip(inside, before, map(work, range(3)), strict=True):
    assert there[0] == here[0] == again[0]
    assert (there[1] == here[1]).all() and (again[1] == here[1]).all()
"""


def need_fork():
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_libraries_in_either_order_and_in_a_child(other, order):
    need_fork()
    both = OURS + USES[other] + OURS if order == "second" else USES[other] + OURS + USES[other]
    run(START + both + FORK)


@pytest.mark.parametrize("tier", _kernels.tiers())
def test_a_child_of_a_process_that_has_used_threads(tier):
    """It computes on one: whoever started the others, they are gone."""
    need_fork()
    run(START + OURS + FORK, XENTROPY_TIER=tier)


def test_a_child_of_a_process_that_has_not():
    need_fork()
    program = """
import os, xentropy as xe
child = os.fork()
if child == 0:
    os._exit(xe.get_num_threads())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1"""
    run(program)


def test_a_pool_of_forked_processes():
    need_fork()
    run(START + OURS + POOL)


# ---- the GIL


@pytest.mark.parametrize("name", ["cross_entropy_with_grad", "cross_entropy", "softmax", "entropy"])
def test_other_python_threads_go_on_during_a_call(name):
    """Nobody is made to let go of the GIL here: what they count, they count during the call."""
    x = make_logits((500, 20_000))
    arguments = (x, make_target("labels", x.shape)) if name.startswith("cross") else (x,)
    counted, ready, done = [0], threading.Event(), threading.Event()

    def count():
        ready.set()
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)  # lets go of the GIL

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    ready.wait()
    try:
        sys.setswitchinterval(1000)
        during = 0
        for _ in range(1000):  # at once, unless the machine is busy
            before = counted[0]
            getattr(xe, name)(*arguments, n_threads=1)
            during += counted[0] - before
            if during > 10:
                break
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert during > 10


def test_the_gil_stays_off_where_python_can_do_without():
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python is not free-threaded")
    assert run("import sys, xentropy; print(sys._is_gil_enabled())") == "False\n"


# ---- how many threads


@linux
def test_the_default_number_of_threads_respects_affinity():
    program = """
import os
allowed = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, allowed[:{n}])
import xentropy as xe
print(xe.get_num_threads())"""
    most = len(os.sched_getaffinity(0))
    for n in {1, min(2, most), most}:
        assert int(run(program.format(n=n))) <= n
    assert int(run(program.format(n=1), OMP_NUM_THREADS="3")) == 3  # somebody knows better


# Files of a system, and the quota that they mean.
V2 = "0::/outer/inner\n"
V1 = "12:cpuset:/\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
QUOTAS = {
    "nothing": ({}, None),
    "no controller": ({"proc/self/cgroup": "3:memory:/\n"}, None),
    "version 2": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "version 2, no quota": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        None,
    ),
    "version 2, inside": (
        {"proc/self/cgroup": V2, "sys/fs/cgroup/outer/inner/cpu.max": "20000 10000"},
        2,
    ),
    "version 2, outside": (
        {
            "proc/self/cgroup": V2,
            "sys/fs/cgroup/outer/inner/cpu.max": "800000 100000",
            "sys/fs/cgroup/outer/cpu.max": "300000 100000",
        },
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "version 1, mounted as the container's own": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, no quota": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "nonsense": (
        {"proc/self/cgroup": "0\n::\n0::/\n:cpu:", "sys/fs/cgroup/cpu.max": "0 0 0"},
        None,
    ),
    "a period of 0": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 0"},
        None,
    ),
}


@pytest.mark.parametrize("system", QUOTAS)
def test_quotas_of_containers(tmp_path, system):
    files, quota = QUOTAS[system]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_the_default_number_of_threads_respects_a_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    xe.set_num_threads(None)
    default = xe.get_num_threads()
    try:
        for quota, threads in ((None, default), (1e9, default), (0.2, 1), (1.0, 1), (1.5, 2)):
            _config._limit_threads(quota)
            assert xe.get_num_threads() == min(default, threads)
        _config._limit_threads(1.0)
        xe.set_num_threads(5)  # somebody knows better
        assert xe.get_num_threads() == 5
        xe.set_num_threads(None)
        assert xe.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        _kernels.limit_threads(1000)
        _config._limit_threads(1.0)
        assert xe.get_num_threads() == default
    finally:
        _kernels.limit_threads(1 << 30)
        monkeypatch.undo()
        _config._limit_threads(cpu_quota())
        xe.set_num_threads(None)


def test_the_quota_is_asked_for_at_import():
    program = """
import importlib
from xentropy import _config, _quota
_quota.cpu_quota = lambda: 1.0
print(importlib.reload(_config).get_num_threads())"""
    assert int(run(program)) == 1


# ---- the state of the process

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


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import xentropy as xe
import numpy as np
x, target = np.array([[20.0, 0.0]], np.float32), np.array([0])
expected = xe.cross_entropy(x, target)
program = '''
try:
    import warnings
    warnings.simplefilter("ignore")  # of NumPy, about interpreters
    import xentropy as xe
    import numpy as np
    loss = xe.cross_entropy(np.array([[20.0, 0.0]], np.float32), np.array([0]))
    said = "right" if abs(loss / 2.061153620314381e-09 - 1) < 1e-6 else f"wrong: {loss}"
except ImportError as error:
    said = f"ImportError: {error}"
print(said, flush=True)
'''
inner = interpreters.create()
interpreters.run_string(inner, program)
interpreters.destroy(inner)
assert xe.cross_entropy(x, target) == expected
"""


def test_a_subinterpreter_computes_or_is_refused():
    names = ("_interpreters", "_xxsubinterpreters")
    if not any(importlib.util.find_spec(name) for name in names):
        pytest.skip("this Python has no module for subinterpreters")
    said = run(SUBINTERPRETER)
    assert said.startswith("right") or "ImportError: " in said, said
    if "ImportError" in said:
        assert "interpreter" in said, said
