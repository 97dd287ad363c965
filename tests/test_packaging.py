"""That the package is what its metadata and stub say, and its machine code what the flags say."""

import ast
import importlib.metadata
import inspect
import platform
import re
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from compile_driver import settings

import xentropy
from xentropy import _kernels

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "xentropy" / "_kernels.pyi"
KERNELS = ROOT / "xentropy" / "kernels"


# --- the stub against the module ---


def parameters_in_stub(node):
    """Name and kind of each parameter of a function in the stub."""
    a = node.args
    kinds = inspect.Parameter
    listed = [(arg.arg, kinds.POSITIONAL_ONLY) for arg in a.posonlyargs]
    listed += [(arg.arg, kinds.POSITIONAL_OR_KEYWORD) for arg in a.args]
    listed += [(a.vararg.arg, kinds.VAR_POSITIONAL)] if a.vararg else []
    listed += [(arg.arg, kinds.KEYWORD_ONLY) for arg in a.kwonlyargs]
    return listed + ([(a.kwarg.arg, kinds.VAR_KEYWORD)] if a.kwarg else [])


def public_in_stub(body):
    """Public names: functions with their parameters, classes with their methods, others None."""
    public = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            public[node.name] = parameters_in_stub(node)
        elif isinstance(node, ast.ClassDef):
            public[node.name] = public_in_stub(node.body)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            public[node.target.id] = None
    return {name: value for name, value in public.items() if not name.startswith("_")}


def public_in_module(namespace):
    """The same of the compiled module; what it imports is not its own."""
    public = {}
    for name, value in namespace.items():
        own = getattr(value, "__module__", None) in {None, _kernels.__name__}
        if name.startswith("_") or isinstance(value, types.ModuleType) or not own:
            continue
        public[name] = None
        if isinstance(value, type):
            public[name] = public_in_module(vars(value))
        elif callable(value):
            signature = inspect.signature(value)
            public[name] = [(p.name, p.kind) for p in signature.parameters.values()]
    return public


def test_stub_and_module_have_the_same_public_names_and_parameters():
    stub = ast.parse(STUB.read_text(encoding="utf-8"))
    assert public_in_stub(stub.body) == public_in_module(vars(_kernels))


# --- metadata ---


def test_numpy_is_the_only_requirement():
    required = importlib.metadata.requires("xentropy-cpu")
    assert [r for r in required if "extra ==" not in r] == ["numpy>=2"]


def test_version_is_the_one_of_the_metadata():
    assert xentropy.__version__ == importlib.metadata.version("xentropy-cpu")


def test_every_public_name_exists():
    assert [name for name in xentropy.__all__ if not hasattr(xentropy, name)] == []


# --- flags ---


def test_every_object_has_the_flags_of_its_kind():
    """A file that is moved could lose them silently: then no exp is exact any more."""
    setup = settings()
    for tiers in setup.TIERS.values():
        sources = setup.extension(tiers).sources
        kernels = set(KERNELS.rglob("*.cpp"))
        others = {
            ROOT / f"{setup.KERNELS}/tier_{tier}.cpp" for t in setup.TIERS.values() for tier in t
        }
        others -= {ROOT / f"{setup.KERNELS}/tier_{tier}.cpp" for tier in tiers}
        assert {ROOT / path for path in sources} == {ROOT / setup.BINDINGS} | (kernels - others)
        for source in sources:
            flags = setup.compile_flags(source, tiers)
            tier = Path(source).stem.removeprefix("tier_")
            kernel = setup.KERNEL if source != setup.BINDINGS else setup.OPENMP[0]
            assert flags == setup.COMMON + kernel + tiers.get(tier, []) + setup.EXTRA, source


def test_flags_of_a_file_that_is_no_kernel_are_not_guessed():
    with pytest.raises(SystemExit, match="no flags are known"):
        settings().compile_flags("elsewhere/driver/calls.cpp", {})


# --- the machine code ---

# What must not occur in the code of a tier, or outside of all of them (""): registers and
# VEX-encoded instructions (their names start with v) that a lesser CPU does not have.
FOREIGN = {
    "": r"\tv\w+ |%[yz]mm\d|%k[0-7]",
    "x86_64_v2": r"\tv\w+ |%[yz]mm\d|%k[0-7]",
    "x86_64_v3": r"%zmm\d|%k[0-7]",
    "x86_64_v4": None,
}


def run_binutil(tool, *arguments):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} (binutils) is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, check=True, text=True).stdout


def tier_of_symbol(symbol):
    """The tier whose namespace stands in a mangled name, or ""."""
    found = re.search(r"\d(x86_64_v[234]|arm64)", symbol)
    return found.group(1) if found else ""


def test_code_of_a_tier_stays_in_the_tier():
    if platform.machine() not in {"x86_64", "AMD64"} or not _kernels.__file__.endswith(".so"):
        pytest.skip("knows the registers and the file format of Linux on x86-64 alone")
    command = ("--disassemble", "--no-show-raw-insn", _kernels.__file__)
    seen, found = set(), set()
    for function in run_binutil("objdump", *command).split("\n\n"):
        if named := re.match(r"\s*[0-9a-f]+ <(.*)>:\n", function):
            seen.add(tier := tier_of_symbol(named[1]))
            if FOREIGN[tier] and re.search(FOREIGN[tier], function[named.end() :]):
                found.add(named[1])
    assert seen == set(FOREIGN), "the tiers' symbols are not all there: a stripped build?"
    assert found == set()


def test_linker_has_nothing_to_merge_between_tiers():
    objects = sorted((ROOT / "build").glob("temp*/xentropy/kernels/tier_*.o"))
    if not objects:
        pytest.skip("no objects of tiers in build: `python setup.py build_ext` leaves them there")
    weak = []
    for path in objects:
        for line in run_binutil("nm", "--defined-only", str(path)).splitlines():
            kind, symbol = line.split()[-2:]
            if kind in "WVu" and not tier_of_symbol(symbol):
                weak.append(f"{path.name}: {symbol}")
    assert weak == []
