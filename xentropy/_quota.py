"""The CPU time that Linux allots to a container: cgroups, version 1 and 2.

Without pathlib, whose import would be a fifth of the package's own.
"""

import os.path


def cpu_quota(root="/"):
    """CPU time per unit of time that this process may use, as a float; None without a limit.

    Neither the affinity nor the number of cores shows it: a container limited to two of 64 cores
    sees all of them. See Documentation/admin-guide/cgroup-v2.rst (cpu.max) and
    scheduler/sched-bwc.rst (cpu.cfs_quota_us) of the kernel.
    """
    shares = [share for folder in _folders(os.fspath(root)) if (share := _share(folder))]
    return min(shares, default=None)


def _folders(root):
    """Folders with the quotas of this process's cgroup and of those that contain it."""
    try:
        lines = _read(os.path.join(root, "proc/self/cgroup")).splitlines()
    except (OSError, ValueError):
        return
    for line in lines:  # number:controllers:path
        controllers, _, path = line.partition(":")[2].partition(":")
        mounts = ["sys/fs/cgroup"]  # version 2
        if controllers:
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        for mount in mounts:
            for length in range(len(parts), -1, -1):
                yield os.path.join(root, mount, *parts[:length])


def _share(folder):
    """Quota / period of this cgroup; None if it has none."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            texts = [_read(os.path.join(folder, name)) for name in names]
            quota, period = " ".join(texts).split()
            share = int(quota) / int(period)  # without a quota: "max" in version 2, -1 in version 1
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if share > 0:
            return share
    return None


def _read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()
