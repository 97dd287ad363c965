"""Builds the programs in this folder with any compiler, for any architecture.

    CXX=clang++ python tests/kernels/compile_driver.py FOLDER [FLAG ...]

What flags a kernel is compiled with, and which tiers an architecture has, is read from setup.py.
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "xentropy" / "kernels"


@cache
def settings():
    """Return setup.py as a module, which builds nothing when it is imported."""
    spec = importlib.util.spec_from_file_location("xentropy_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def architecture(compiler):
    """The key in TIERS of the machine that the compiler compiles for."""
    command = [compiler, "-dumpmachine"]
    triple = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return settings().ARCHITECTURES[triple.split("-")[0]]


def compile_file(source, target, tier, *flags, compiler):
    """Compile as setup.py does, with the flags of the tier (None: of no tier)."""
    known = settings()
    own = [f"-I{KERNELS}", *known.TIERS[architecture(compiler)].get(tier, [])]
    if source.parent == HERE:  # the standard library is not free of these
        own += ["-fexceptions", "-frtti"]
    command = [compiler, *known.COMMON, *known.KERNEL, *own, *flags, str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return str(target)


def build(folder, *flags, compiler="c++", leave_out=(), ready=()):
    """Compile the kernels and the driver into `folder`; returns the path of the program.

    `ready` are objects of the kernels that are there already, compiled with the same flags.
    """
    folder, program = Path(folder), Path(folder) / "driver"
    tiers = [t for t in settings().TIERS[architecture(compiler)] if t not in leave_out]
    defined = "-DXENTROPY_TIERS=" + "".join(f"X({tier})" for tier in tiers)
    sources = [] if ready else [ROOT / path for path in settings().kernel_sources(tiers)]
    sources.append(HERE / "driver_main.cpp")

    def compile_one(source):
        tier, target = source.stem.removeprefix("tier_"), folder / f"{source.stem}.o"
        return compile_file(source, target, tier, *flags, defined, "-c", compiler=compiler)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*map(str, ready), *pool.map(compile_one, sources)]
    subprocess.run([compiler, *objects, *flags, "-pthread", "-o", str(program)], check=True)
    return program


def build_elementary(folder, tier, *flags, compiler="c++"):
    """The same of elementary_main.cpp, for one tier."""
    program = Path(folder) / "elementary"
    flags = (*flags, f"-DXENTROPY_TIER={tier}", "-pthread")
    compile_file(HERE / "elementary_main.cpp", program, tier, *flags, compiler=compiler)
    return program


if __name__ == "__main__":
    print(build(sys.argv[1], *sys.argv[2:], compiler=os.environ.get("CXX", "c++")))
