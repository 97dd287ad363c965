"""The rules of the house, and that the package is what its metadata and stub say."""

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
KERNELS = sorted((ROOT / "xentropy" / "kernels").rglob("*.[hc]*"))
CODE = [
    ROOT / "setup.py",
    *sorted((ROOT / "xentropy").glob("**/*.p[xy]*")),
    *KERNELS,
    *sorted((ROOT / "tests").glob("**/*.py")),
    *sorted((ROOT / "bench").glob("**/*.py")),
]
CODE = [path for path in CODE if path.suffix in {".py", ".pyi", ".pyx", ".pxi", ".h", ".cpp"}]
PYTHON = [path for path in CODE if path.suffix == ".py"]
VECTORS = sorted(path.name for path in KERNELS if path.parent.name == "simd")
LIMIT_OF_A_KERNEL_FILE = 330
LIMIT_OF_A_FUNCTION = 40


def name_of(path):
    return str(path.relative_to(ROOT))


def code_of(path):
    """The text of a file without its comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".h", ".cpp"}:
        return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"(?m)(^|\s)#[^\n]*$", "", text)


def offenders(pattern, paths, *, but=()):
    """`file: match` for everything in `paths`, except the files `but`, that matches."""
    return [
        f"{name_of(path)}: {match.group().strip()}"
        for path in paths
        if path.name not in {Path(__file__).name, *but}
        for match in re.finditer(pattern, code_of(path))
    ]


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


# --- where things may stand ---


def test_intrinsics_only_in_simd():
    pattern = r"\b_mm\d*_\w+|\bv\w+_[fsup](?:8|16|32|64)\b|__builtin_(?:ia32|neon)\w+"
    pattern += r"|\w*mmintrin\.h|\barm_neon\b"
    assert offenders(pattern, CODE, but=VECTORS) == []


def test_if_on_the_cpu_only_in_simd_and_cpu_h():
    """Apart from the guards of the tiers, which check the flags they are compiled with."""
    cpu = r"__(?:AVX|SSE|FMA|F16C|BMI|x86_64|amd64|i386|aarch64|arm|ARM|ARM_)\w*|_M_(?:X64|ARM\w*)"
    pattern = rf"(?m)^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*?(?:{cpu})"
    files = [path for path in KERNELS if not path.name.startswith("tier_")]
    assert offenders(pattern, files, but=[*VECTORS, "cpu.h"]) == []


def test_openmp_only_in_threads_pxi():
    pattern = (
        r"#\s*pragma\s+omp.*|\bomp_\w+\(|\bomp\.h|\bprange\b|\bcimport openmp|cython\.parallel"
    )
    assert offenders(pattern, CODE, but=["_threads.pxi", "setup.py"]) == []


def test_cpu_flags_only_in_setup_py():
    """But for the probe of the bench, which is compiled where it runs."""
    pattern = r"(?<![\w-])-m(?:arch|tune|cpu|avx|sse|fma|f16c|prefer)[\w=-]*"
    pattern += r"|\btarget_clones\b|__attribute__\s*\(\(\s*target\b|#\s*pragma\s+GCC\s+target"
    assert offenders(pattern, CODE, but=["setup.py", "ceiling.py"]) == []


def test_no_fast_math():
    assert offenders(r"""["'](?:-ffast-math|-Ofast|-funsafe-math\S*)""", CODE) == []


@pytest.mark.parametrize("path", [p for p in KERNELS if p.suffix == ".h"], ids=name_of)
def test_kernel_header_leaves_nothing_to_merge_between_tiers(path):
    """Its code is in the tier's namespace or has internal linkage."""
    code = code_of(path)
    assert "namespace XENTROPY_TIER" in code or not re.search(r"(?<!static )\binline\b", code)


# --- flags ---


def test_every_object_has_the_flags_of_its_kind():
    """A file that is moved could lose them silently: then no exp is exact any more."""
    setup = settings()
    for tiers in setup.TIERS.values():
        sources = setup.extension(tiers).sources
        kernels = {path for path in KERNELS if path.suffix == ".cpp"}
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


# --- sizes ---


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_kernel_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LIMIT_OF_A_KERNEL_FILE


def length_without_docstring(function):
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    long = [f.name for f in functions if length_without_docstring(f) >= LIMIT_OF_A_FUNCTION]
    assert long == []


# --- the repository ---


def test_no_tracked_file_names_a_path_of_a_machine():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: the tracked files are unknown")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    pattern = re.compile(r"(?<![\w.$}])/(?:work|home|root|Users|tmp|mnt|opt)/\w")
    found = []
    for name in filter(None, listed.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" in data:
            continue
        lines = data.decode("utf-8").splitlines()
        found += [f"{name}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


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
    function, seen, found = "", set(), set()
    arguments = ("--disassemble", "--no-show-raw-insn", _kernels.__file__)
    for line in run_binutil("objdump", *arguments).splitlines():
        if line.endswith(">:"):
            function = line.split("<")[1][:-2]
            seen.add(tier_of_symbol(function))
        elif (pattern := FOREIGN[tier_of_symbol(function)]) and re.search(pattern, line):
            found.add(function)
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
