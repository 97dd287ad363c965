"""Version, configuration and number of threads."""

from __future__ import annotations

import math
import os
import sys
from typing import SupportsIndex

from . import _check, _kernels
from ._quota import cpu_quota


def version() -> str:
    """The version of the installed package; asked for alone, because to look takes 10 ms."""
    from importlib import metadata

    try:
        return metadata.version("xentropy-cpu")
    except metadata.PackageNotFoundError:  # run from a folder that was built but not installed
        return "unknown"


def _limit_threads(quota: float | None) -> None:
    """Limit the default to the quota, unless OMP_NUM_THREADS is set.

    With more threads the system would suspend all of them whenever the quota is used up.
    """
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        _kernels.limit_threads(max(1, math.ceil(quota)))


_limit_threads(cpu_quota())


def show_config() -> None:
    """Print version, tier, tiers available, compiler, OpenMP runtime and threads.

    With xentropy.torch imported, also who makes the products of its linear loss.

    Examples
    --------
    >>> import xentropy as xe
    >>> xe.show_config()
    version   ...
    """
    config = {"version": version(), **_kernels.config()}
    config["tiers"] = ", ".join(config["tiers"])
    if products := sys.modules.get("xentropy.torch._linear_products"):
        config |= products.config()
    for name, value in config.items():
        print(f"{name:<9} {value}")


def set_num_threads(n: SupportsIndex | None) -> None:
    """Set the number of threads of calls without `n_threads`; None is the default.

    The default is OpenMP's: OMP_NUM_THREADS, or else the cores that this process was allowed at
    its start; but not more than the CPU quota of its container (cgroup), rounded up. Calls may
    use fewer, with `n_threads` too: one if they are short, or if other processes want the cores and
    threads have cost more time than they saved. No result depends on the number.

    Examples
    --------
    >>> import xentropy as xe
    >>> xe.set_num_threads(2)
    >>> xe.get_num_threads()
    2
    >>> xe.set_num_threads(None)  # the default
    """
    _kernels.set_num_threads(_check.n_threads(n, "n") or 0)


def get_num_threads() -> int:
    """Return the number of threads of calls without `n_threads`.

    Examples
    --------
    >>> import xentropy as xe
    >>> xe.get_num_threads() >= 1
    True
    """
    return _kernels.get_num_threads()
