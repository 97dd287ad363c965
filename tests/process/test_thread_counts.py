"""The default number of threads: affinity, quotas of containers, OpenMP's variable."""

import os
import sys

import pytest
from helpers.processes import run

import xentropy as xe
from xentropy import _config, _kernels
from xentropy._quota import cpu_quota

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")


@linux
def test_no_more_threads_than_chunks_are_started():
    program = """
import os
import numpy as np
import xentropy as xe
x, y = np.zeros((20_000, 10), np.float32), np.zeros(20_000, int)  # five chunks
before = len(os.listdir("/proc/self/task"))
xe.cross_entropy(x, y, n_threads=64)
xe.softmax(x, 1, n_threads=64)
print(len(os.listdir("/proc/self/task")) - before)"""
    assert int(run(program)) <= 4


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


@linux
@pytest.mark.parametrize("n_threads", [None, 4])
def test_n_threads_is_an_upper_bound_while_other_processes_want_the_cores(n_threads):
    """After threads have cost time, no call starts any, and its bits are the same."""
    program = f"""
import os
import numpy as np
import xentropy as xe
from xentropy import _kernels
x, y = np.random.default_rng(0).normal(size=(20_000, 10)).astype(np.float32), np.zeros(20_000, int)
row = np.random.default_rng(1).normal(size=(1, 300_000)).astype(np.float32)  # is split

def results():
    chosen = dict(n_threads={n_threads})
    yield from xe.cross_entropy_with_grad(x, y, **chosen)
    yield from xe.cross_entropy_with_grad(row, y[:1], **chosen)
    yield from (f(x, axis=1, **chosen) for f in (xe.softmax, xe.entropy, xe.logsumexp))
    for arguments in ((x, y), (row, y[:1])):
        yield from xe.row_statistics(*arguments, **chosen)

def threads_and_bits():
    bits = [np.asarray(each).tobytes() for each in results()]
    return len(os.listdir("/proc/self/task")) - before, bits

before = len(os.listdir("/proc/self/task"))
_kernels._account(-600)  # seconds that threads have cost
alone, bits = threads_and_bits()
_kernels._forget_debt()
threads, same = threads_and_bits()
print(alone, threads, bits == same)"""
    alone, threads, same = run(program, OMP_NUM_THREADS="4").split()
    assert int(alone) == 0
    assert int(threads) > 0
    assert same == "True"


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
