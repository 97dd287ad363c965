"""How often a call asks for the processor time of its threads: a brief one never does.

The system takes 1 us to tell it. It is asked through `clock_gettime`, which is counted here.
"""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.processes import run

COUNTED = """
#include <dlfcn.h>
#include <time.h>

extern "C" {

long asked = 0;

int clock_gettime(clockid_t clock, timespec* t) noexcept {
  typedef int Real(clockid_t, timespec*);
  static Real* const real = reinterpret_cast<Real*>(dlsym(RTLD_NEXT, "clock_gettime"));
  if (clock == CLOCK_THREAD_CPUTIME_ID) __atomic_fetch_add(&asked, 1, __ATOMIC_RELAXED);
  return real(clock, t);
}
}
"""
PROGRAM = """
import ctypes
import numpy as np
import xentropy as xe
from xentropy import _kernels

asked = ctypes.c_long.in_dll(ctypes.CDLL(None), "asked")

def counted(call, rows, classes):
    arguments = np.zeros((rows, classes), np.float32), np.zeros(rows, int)
    _kernels._forget_debt()  # or the call might have one thread, which does not ask
    before = asked.value
    call(*arguments, n_threads=4)
    return asked.value - before

calls = xe.cross_entropy, xe.cross_entropy_with_grad, xe.row_statistics
for shape in {shapes}:
    print(*(counted(call, *shape) for call in calls))
"""
# (rows, classes), and which of the calls ask. A single row is split among the threads.
SHAPES = {
    (1, 200_000): [False, False, False],
    (1, 300_000): [True, True, True],
    (20, 10_000): [False, False, True],
    (30, 10_000): [True, True, True],
}


@pytest.mark.skipif(sys.platform != "linux", reason="puts a function in front of the system's")
def test_a_brief_call_does_not_ask_for_processor_time(tmp_path):
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[-1]) is None:
        pytest.skip(f"no C++ compiler {compiler[-1]} here")
    source, library = tmp_path / "counted.cpp", tmp_path / "counted.so"
    source.write_text(COUNTED)
    command = [*compiler, "-shared", "-fPIC", str(source), "-ldl", "-o", str(library)]
    subprocess.run(command, check=True)
    said = run(PROGRAM.format(shapes=list(SHAPES)), LD_PRELOAD=str(library))
    asked = [[int(n) > 0 for n in line.split()] for line in said.splitlines()]
    assert asked == list(SHAPES.values()), said
