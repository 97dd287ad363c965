"""What was built and what runs here."""

from importlib.metadata import PackageNotFoundError, version

from . import _kernels

try:
    __version__ = version("xentropy-cpu")
except PackageNotFoundError:  # run from a folder that was built but not installed
    __version__ = "unknown"


def show_config():
    """Print version, tier, tiers available, compiler, OpenMP runtime and threads."""
    config = {"version": __version__, **_kernels.config()}
    config["tiers"] = ", ".join(config["tiers"])
    for name, value in config.items():
        print(f"{name:<9} {value}")
