"""The rules of the house, for every file that they cover; each lists its offenders."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compile_driver import architecture, settings
from helpers import functions

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xentropy" / "kernels"
KERNELS = sorted(PACKAGE.rglob("*.[hc]*"))
HEADERS = [path for path in KERNELS if path.suffix == ".h"]
BINDINGS = sorted(PACKAGE.parent.glob("*.h"))
CODE = [
    ROOT / "setup.py",
    *sorted((ROOT / "xentropy").glob("**/*.p[xy]*")),
    *BINDINGS,
    *KERNELS,
    *sorted((ROOT / "tests").glob("**/*.*")),
    *sorted((ROOT / "bench").glob("**/*.*")),
]
CODE = [path for path in CODE if path.suffix in {".py", ".pyi", ".pyx", ".pxi", ".h", ".cpp"}]
VECTORS = sorted(path.name for path in KERNELS if path.parent.name == "simd")
LIMIT_OF_A_KERNEL_FILE = 330
LIMIT_OF_A_FUNCTION = 40


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def code_of(path):
    """The text of a file without its comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".h", ".cpp"}:
        return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"(?m)(^|\s)#[^\n]*$", "", text)


def assert_none(offenders):
    offenders = list(offenders)
    assert not offenders, "\n".join(["", *offenders])


def assert_nowhere(pattern, paths, *, but=()):
    """Nothing in `paths` matches, except in the files `but`."""
    assert_none(
        f"{name_of(path)}: {match.group().strip()}"
        for path in paths
        if path.name not in {Path(__file__).name, *but}
        for match in re.finditer(pattern, code_of(path))
    )


# --- where things may stand ---


def test_intrinsics_only_in_simd():
    pattern = r"\b_mm\d*_\w+|\bv\w+_[fsup](?:8|16|32|64)\b|__builtin_(?:ia32|neon)\w+"
    pattern += r"|\w*mmintrin\.h|\barm_neon\b"
    assert_nowhere(pattern, CODE, but=VECTORS)


def test_if_on_the_cpu_only_in_simd_and_cpu_h():
    """Apart from the guards of the tiers, which check the flags they are compiled with."""
    cpu = r"__(?:AVX|SSE|FMA|F16C|BMI|x86_64|amd64|i386|aarch64|arm|ARM|ARM_)\w*|_M_(?:X64|ARM\w*)"
    pattern = rf"(?m)^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*?(?:{cpu})"
    files = [path for path in KERNELS if not path.name.startswith("tier_")]
    assert_nowhere(pattern, files, but=[*VECTORS, "cpu.h"])


def test_openmp_only_in_threads_pxi():
    pattern = (
        r"#\s*pragma\s+omp.*|\bomp_\w+\(|\bomp\.h|\bprange\b|\bcimport openmp|cython\.parallel"
    )
    assert_nowhere(pattern, CODE, but=["_threads.pxi", "setup.py", "ceiling.cpp"])


def test_cpu_flags_only_in_setup_py():
    """But for the probe of the bench, which is compiled where it runs."""
    pattern = r"(?<![\w-])-m(?:arch|tune|cpu|avx|sse|fma|f16c|prefer)[\w=-]*"
    pattern += r"|\btarget_clones\b|__attribute__\s*\(\(\s*target\b|#\s*pragma\s+GCC\s+target"
    assert_nowhere(pattern, CODE, but=["setup.py", "ceiling.py"])


def test_no_fast_math():
    assert_nowhere(r"""["'](?:-ffast-math|-Ofast|-funsafe-math\S*)""", CODE)


def test_kernel_headers_leave_nothing_to_merge_between_tiers():
    """Their code is in the tier's namespace or has internal linkage."""
    mergeable = []
    for path in HEADERS:
        code = code_of(path)
        if "namespace XENTROPY_TIER" not in code and re.search(r"(?<!static )\binline\b", code):
            mergeable.append(name_of(path))
    assert_none(mergeable)


# --- headers ---


def room_of(name):
    """The folder of a kernel's file; table.h, which puts a tier together, is its own."""
    return name if name == "table.h" else Path(name).parent.as_posix().replace(".", "")


# Which rooms the files of a room may include, beside their own. "" is the contract, on top.
INCLUDES = {
    "": set(),
    "driver": {""},
    "simd": {""},
    "common": {"", "simd"},
    **{room: {"", "simd", "common"} for room in ("rows", "groups", "columns")},
    "table.h": {"", "common", "rows", "groups", "columns"},
}


def includes_against_the_rule(name, code):
    """Of the kernel file `name`: what it includes though its room may not."""
    room = room_of(name)
    allowed = INCLUDES[room] | {room} | ({"table.h"} if name.startswith("tier_") else set())
    included = re.findall(r'#include "([^"]+)"', code)
    return [f"{name}: {other}" for other in included if room_of(other) not in allowed]


def test_includes_go_one_way():
    """No way back, and no way from a sibling to another."""
    assert includes_against_the_rule("groups/dense.h", '#include "rows/dense.h"\n')
    assert includes_against_the_rule("common/sums.h", '#include "rows/labels.h"\n')
    assert includes_against_the_rule("driver/choose.h", '#include "simd/vector.h"\n')
    assert not includes_against_the_rule("rows/split.h", '#include "rows/labels.h"\n')
    names = {path.relative_to(PACKAGE).as_posix(): path for path in KERNELS}
    assert_none(
        offender
        for name, path in names.items()
        for offender in includes_against_the_rule(name, code_of(path))
    )


INTRINSICS = {"x86_64": "immintrin.h", "arm64": "arm_neon.h"}


def test_every_header_compiles_alone(tmp_path):
    """For the best of the compiler's tiers. Its intrinsics are precompiled, for they take long."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[-1]) is None:
        pytest.skip(f"no C++ compiler {compiler} here")
    known, machine = settings(), architecture(compiler.split()[-1])
    tier, flags = list(known.TIERS[machine].items())[-1]
    folders = [f"-I{PACKAGE}", f"-I{PACKAGE.parent}"]
    command = [*compiler.split(), *known.COMMON, *known.KERNEL, *flags, *folders]
    command += [f"-DXENTROPY_TIER={tier}", f"-DXENTROPY_TIERS=X({tier})"]
    header = tmp_path / "intrinsics.h"
    header.write_text(f"#include <{INTRINSICS[machine]}>\n")
    subprocess.run([*command, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

    def fails(path):
        plain = path in BINDINGS or path.parent.name == "driver"
        first = [] if plain else [header]
        given = [word for each in (*first, path) for word in ("-include", each)]
        check = [*command, *given, "-fsyntax-only", "-x", "c++", os.devnull]
        return subprocess.run(check, capture_output=True, text=True).stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        every = HEADERS + BINDINGS
        said = dict(zip(map(name_of, every), pool.map(fails, every), strict=True))
    assert_none(f"{name}: {error}" for name, error in said.items() if error)


# --- sizes ---


def test_kernel_files_are_short():
    sizes = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in KERNELS}
    assert_none(f"{name}: {n} lines" for name, n in sizes.items() if n >= LIMIT_OF_A_KERNEL_FILE)


CPP = """
namespace a { template <class T, int n = 3>
static inline T long_one(T (*f)(int), const char* s = "}{") noexcept {
  auto inner = [&](int x) { return x; };  // }
  const char c = '}';
  if (c) {
    return T{1'000};
  }
}
struct B : C<int> { B(int x) : x_(x) {} int operator()() const { return 1; } int x_; };
static const int table[] = {1, 2}; }
"""
CYTHON = '''
cdef inline int first(int a,
                      int b) except -1 nogil:
    """Two
    lines."""
    if a:
        return b

    return a
cdef class C:
    def second(self):
        return 1
    cdef int x
x = first(1, 2)
cdef extern from "a.h":
    int third(int)
'''


def test_functions_are_found_and_measured():
    found = functions.of_cpp(CPP)
    assert found == [("long_one", 7), ("B", 1), ("operator", 1)]
    assert functions.of_cython(CYTHON) == [("first", 6), ("second", 2)]


def test_functions_are_short():
    assert_none(
        f"{name_of(path)}: {name}, {lines} lines"
        for path in CODE
        for name, lines in functions.lengths(path)
        if lines >= LIMIT_OF_A_FUNCTION
    )


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
    assert_none(found)
