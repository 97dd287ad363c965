"""The memory bandwidth of this machine, from a small probe (ceiling.cpp) as one more peer."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

from .cells import aligned
from .peers import Way

# By mode: the ceiling that counts for it.
OF_MODE = {"loss": "read", "fresh": "copy", "out": "copy", "in place": "update"}
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-Wno-psabi", "-shared", "-fPIC"]


def compiled():
    """The probe as a ctypes library."""
    source = Path(__file__).with_name("ceiling.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ceiling.so"
        try:
            subprocess.run(["c++", *FLAGS, str(source), "-o", str(library)], check=True)
        except FileNotFoundError:
            raise RuntimeError("the bandwidth probe needs a C++ compiler by the name c++") from None
        probe = ctypes.CDLL(str(library))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    probe.ceiling_read.argtypes = [pointer, size, number]
    probe.ceiling_read.restype = ctypes.c_float
    probe.ceiling_copy.argtypes = [pointer, pointer, size, number]
    probe.ceiling_copy.restype = None
    probe.ceiling_update.argtypes = [pointer, size, number]
    probe.ceiling_update.restype = None
    return probe


def probes(threads):
    """As a peer: from logits to the ways to move as many bytes, by kind.

    The logits must start at a cache line; what follows their last whole line is left out.
    """
    probe = compiled()

    def prepare(logits):
        out, floats = aligned(logits.shape, logits.dtype), logits.nbytes // 4
        out[...] = logits

        def read():
            return probe.ceiling_read(logits.ctypes.data, floats, threads)

        def copy():
            return probe.ceiling_copy(logits.ctypes.data, out.ctypes.data, floats, threads)

        def update():
            return probe.ceiling_update(out.ctypes.data, floats, threads)

        return {"read": Way(read), "copy": Way(copy), "update": Way(update)}

    return prepare
