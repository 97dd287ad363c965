"""What the figures depend on: CPU, tier, compiler, threads, versions."""

import datetime
import os
import platform
import re

from .peers import PEERS, REFERENCE

CPU_NOISE = re.compile(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*| with .*", re.IGNORECASE)


def cpu_name():
    """The CPU's name without trade marks; the architecture if it cannot be told."""
    try:
        from cpuinfo import get_cpu_info  # comes with pytest-benchmark

        brand = get_cpu_info().get("brand_raw", "")
    except ImportError:
        brand = ""
    return " ".join(CPU_NOISE.sub(" ", brand).split()) or platform.machine()


def wait_policy():
    """How idle OpenMP threads wait: what the environment asks for, or the default."""
    asked = [name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    return ", ".join(f"{name}={os.environ[name]}" for name in asked) or "default"


def openmp_runtime():
    """Name of the library that our kernels have loaded, or of the one they were built for."""
    from xentropy import _kernels

    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return _kernels.config()["openmp"]
    loaded = [info for info in threadpool_info() if info["user_api"] == "openmp"]
    names = {re.match(r"lib\w+", os.path.basename(info["filepath"]))[0] for info in loaded}
    return ", ".join(sorted(names)) or _kernels.config()["openmp"]


def header(names, threads):
    """The header of a run with these peers."""
    from xentropy import _kernels

    config = _kernels.config()
    versions = {}
    for name in names:
        versions |= PEERS[name].versions()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "tier": config["tier"],
        "compiler": config["compiler"],
        "openmp": openmp_runtime(),
        "wait_policy": wait_policy(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": PEERS[REFERENCE].versions() | versions,
    }


def slug(header):
    """The name of a machine's results."""
    words = f"{header['cpu']} {header['cores']} cores {header['tier']}"
    return re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-")


def describe(header):
    """The header in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    return [
        f"{header['cpu']}, {header['cores']} cores, {header['threads']} threads, "
        f"{header['tier']}, {header['compiler']}, {header['openmp']} "
        f"(wait policy: {header['wait_policy']}), {header['system']}, {header['date']}",
        f"Python {header['python']}, {versions}",
    ]
