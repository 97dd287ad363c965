"""Builds the driver of the kernels (driver_main.cpp) with any compiler, for any architecture.

    CXX=clang++ python tests/kernels/compile_driver.py FOLDER [FLAG ...]

What flags a kernel is compiled with, and which tiers an architecture has, is read from setup.py.
"""

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "xentropy" / "kernels"


def settings():
    """The constants of setup.py, which is not imported: it would build."""
    constants = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # computed
                continue
    return constants


def architecture(compiler):
    """The key in TIERS of the machine that the compiler compiles for."""
    command = [compiler, "-dumpmachine"]
    triple = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return settings()["ARCHITECTURES"][triple.split("-")[0]]


def build(folder, *flags, compiler="c++", leave_out=()):
    """Compile the kernels and the driver into `folder`; returns the path of the program."""
    folder, known = Path(folder), settings()
    tiers = known["TIERS"][architecture(compiler)]
    tiers = {tier: own for tier, own in tiers.items() if tier not in leave_out}
    defined = "".join(f"X({tier})" for tier in tiers)
    sources = [p for p in sorted(KERNELS.glob("*.cpp")) if not p.stem.startswith("tier_")]
    sources += [KERNELS / f"tier_{tier}.cpp" for tier in tiers] + [HERE / "driver_main.cpp"]

    def compile_one(source):
        own = tiers.get(source.stem.removeprefix("tier_"), [])
        if source.parent == HERE:  # the standard library needs exceptions; all else is as there
            own = ["-fexceptions", "-frtti", f"-I{KERNELS}"]
        target = folder / f"{source.stem}.o"
        command = [compiler, *known["COMMON"], *known["KERNEL"], *own, *flags]
        command += [f"-DXENTROPY_TIERS={defined}", "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "driver"
    subprocess.run([compiler, *objects, *flags, "-pthread", "-o", str(program)], check=True)
    return program


if __name__ == "__main__":
    print(build(sys.argv[1], *sys.argv[2:], compiler=os.environ.get("CXX", "c++")))
