"""Check what a wheel and a source distribution hold: contents.py WHEEL SDIST."""

import re
import subprocess
import sys
import tarfile
import zipfile

COMPILED = r"xentropy/_kernels\.[\w.-]*(so|pyd)"
IN_A_WHEEL = (
    COMPILED,
    r"xentropy/(_kernels|reference)\.pyi",
    r"xentropy/py\.typed",
    r"xentropy/((_check|_distillation|_evaluation|_files|_linear|boosting|cli|dask|jax|torch|transformers)/)?\w+\.py",
    r"xentropy/torch/parallel/\w+\.py",
    r"xentropy_cpu-[\w.]+\.dist-info/[\w./]+",
)
NOT_IN_AN_SDIST = {".gitignore", ".editorconfig"}


def check_wheel(names):
    unwanted = [name for name in names if not any(re.fullmatch(w, name) for w in IN_A_WHEEL)]
    missing = [w for w in IN_A_WHEEL if not any(re.fullmatch(w, name) for name in names)]
    return unwanted, missing


def check_sdist(names):
    names = {name.partition("/")[2] for name in names}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = set(subprocess.check_output(command, text=True).splitlines())
    unwanted = [name for name in names if name.endswith((".so", ".pyd", "_kernels.cpp"))]
    return unwanted, tracked - names - NOT_IN_AN_SDIST


def main(wheel, sdist):
    with zipfile.ZipFile(wheel) as packed:
        in_wheel = packed.namelist()
    with tarfile.open(sdist) as packed:
        in_sdist = packed.getnames()
    for path, names, check in ((wheel, in_wheel, check_wheel), (sdist, in_sdist, check_sdist)):
        unwanted, missing = check(names)
        if unwanted or missing:
            raise SystemExit(f"{path}: not wanted {sorted(unwanted)}, missing {sorted(missing)}")
        print(f"{path}: {len(names)} entries, as wanted")


main(*sys.argv[1:])
