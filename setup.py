"""Builds xentropy._kernels: baseline code plus one object per instruction-set tier.

The only place that knows a -m flag. Metadata is in pyproject.toml, but for README's links.
XENTROPY_CFLAGS appends flags to every compile and link (-W flags: to the kernels only).
Never add -ffast-math, not even for linking: it makes the whole process flush subnormals.
"""

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Ascending: the last one that the CPU supports is used.
TIERS = {
    "x86_64": {
        "x86_64_v2": ["-march=x86-64-v2"],
        "x86_64_v3": ["-march=x86-64-v3"],
        "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "arm64": {
        "arm64": [],  # NEON is part of the arm64 baseline
    },
}
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
BINDINGS = "xentropy/_kernels.pyx"
KERNELS = "xentropy/kernels"

COMMON = ["-std=c++17", "-O3", "-fvisibility=hidden"]
# No contraction: kernels write each fused multiply-add that precision needs (vector.h). Left to
# the compiler they come and go with the optimisation level, and with them the exactness of exp.
KERNEL = [
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-psabi",
]
# (compile, link). macOS and Windows are untested.
OPENMP = {
    "darwin": (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),
    "win32": (["-fopenmp"], ["libomp.lib"]),
}.get(sys.platform, (["-fopenmp"], ["-fopenmp"]))
EXTRA = shlex.split(os.environ.get("XENTROPY_CFLAGS", ""))


def target_architecture():
    """Return the key in TIERS of the machine compiled for, which may not be this one."""
    machine = sysconfig.get_platform().split("-")[-1]
    if sys.platform == "win32":
        machine = os.environ.get("VSCMD_ARG_TGT_ARCH", machine).replace("x64", "amd64")
    if sys.platform == "darwin":
        os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
        architectures = shlex.split(os.environ["ARCHFLAGS"])[1::2]
        if len(architectures) != 1:
            raise SystemExit(f"xentropy builds one architecture at a time, not {architectures}")
        machine = architectures[0]
    if machine.lower() not in ARCHITECTURES:
        raise SystemExit(f"xentropy has kernels for x86-64 and arm64, not for {machine}")
    return ARCHITECTURES[machine.lower()]


def kernel_sources(tiers):
    """Return the C++ files of the kernels: those compiled once, then one a tier."""
    here = Path(__file__).resolve().parent
    sources = sorted(p.relative_to(here).as_posix() for p in (here / KERNELS).rglob("*.cpp"))
    once = [path for path in sources if not Path(path).stem.startswith("tier_")]
    return once + [f"{KERNELS}/tier_{tier}.cpp" for tier in tiers]


def compile_flags(source, tiers):
    """Return the flags of one file; `source` is relative to this folder."""
    if Path(source).stem == Path(BINDINGS).stem:  # the code that Cython generates
        return COMMON + OPENMP[0] + [flag for flag in EXTRA if not flag.startswith("-W")]
    if not Path(source).is_relative_to(KERNELS):
        raise SystemExit(f"no flags are known for {source}")
    tier = Path(source).stem.removeprefix("tier_")
    return COMMON + KERNEL + tiers.get(tier, []) + EXTRA


class BuildTiers(build_ext):
    """Compiles every source with its own flags, as many at a time as there are cores."""

    def build_extension(self, ext):
        compile_sources = self.compiler.compile
        if self.compiler.compiler_type == "msvc":
            self.use_clang_cl()
        else:
            self.drop_python_optimisation_flags()

        def compile_each(sources, **options):
            def compile_one(source):
                flags = compile_flags(source, TIERS[target_architecture()])
                if self.compiler.compiler_type == "msvc":
                    flags = [f"/clang:{flag}" for flag in flags]
                return compile_sources([source], **{**options, "extra_postargs": flags})

            longest_first = sorted(sources, key=lambda source: "tier_" not in source)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for objs in pool.map(compile_one, longest_first) for obj in objs]

        self.compiler.compile = compile_each
        super().build_extension(ext)

    def drop_python_optimisation_flags(self):
        """Drop the -O and -g that Python itself was built with; ours must be the only ones."""
        for name in ("compiler_so", "compiler_so_cxx"):
            command = getattr(self.compiler, name)
            setattr(self.compiler, name, [c for c in command if not c.startswith(("-O", "-g"))])

    def use_clang_cl(self):
        """Use clang-cl in the place of cl, which has no GNU vector types (untested)."""
        self.compiler.initialize(self.plat_name)
        self.compiler.cc = shutil.which("clang-cl") or "clang-cl"


def extension(tiers):
    return Extension(
        "xentropy._kernels",
        sources=[BINDINGS, *kernel_sources(tiers)],
        depends=sorted(glob("xentropy/**/*.h", recursive=True) + glob("xentropy/*.pxi")),
        include_dirs=["xentropy", KERNELS, np.get_include()],
        define_macros=[
            ("XENTROPY_TIERS", "".join(f"X({tier})" for tier in tiers)),
            ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
            ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),  # else 2.0's headers hide allocators
        ],
        extra_link_args=OPENMP[1] + EXTRA,
        language="c++",
    )


def readme():
    """Return README.md for a package index, which has none of the files that it links to."""
    here = Path(__file__).resolve().parent
    project = tomllib.loads((here / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def absolute(match):
        kind = "raw" if match[1] else "blob"
        place = f"{project['urls']['Source']}/{kind}/v{project['version']}"
        return f"{match[1]}[{match[2]}]({place}/{match[3]})"

    link = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
    return link.sub(absolute, (here / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":  # tests import the flags
    from Cython.Build import cythonize

    tiers = TIERS[target_architecture()]
    setup(
        ext_modules=cythonize([extension(tiers)]),
        cmdclass={"build_ext": BuildTiers},
        long_description=readme(),
        long_description_content_type="text/markdown",
    )
