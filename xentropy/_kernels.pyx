# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=True, embedsignature=False, freethreading_compatible=True
"""The bindings: arrays become pointers, the GIL is released, chunks go to the threads.

The public functions pass their arguments on as the user wrote them. An argument is plain if the
kernels can use it without conversion and it is clearly within its limits. A call whose arguments
are all plain is done here, in about a microsecond for one short row. For any other call the result
is None and nothing has been written: `_check/` then converts the arguments, or raises their
error, and the call is repeated, marked as checked.

Thread safety does not depend on the GIL. Shared state is either set once, at import (tiers,
tables, NumPy's memory handler), or read and written atomically (numbers of threads, their debt, the
blocks of memory that pages.cpp keeps); `after_fork` is set while a child has one thread only.
"""

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport INFINITY, NAN, isfinite, isnan, log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strcmp, strcpy

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF, PyObject

import math
import os

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    double PyFloat_AS_DOUBLE(object)
    long long PyLong_AsLongLongAndOverflow(object, int* overflow) except? -1
    ctypedef struct PyThreadState
    PyThreadState* PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState*)

cdef extern from "numpy/arrayobject.h":
    PyObject* PyArray_HANDLER(cnp.ndarray)
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, cnp.dtype, int)
    cnp.ndarray PyArray_NewFromDescr(
        type, cnp.dtype, int, cnp.npy_intp*, cnp.npy_intp*, void*, int, object
    )

cdef extern from *:
    """
    #if defined(__clang__)
    #define XENTROPY_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define XENTROPY_COMPILER "GCC " __VERSION__
    #else
    #define XENTROPY_COMPILER "unknown"
    #endif
    #if defined(__clang__)
    #define XENTROPY_OPENMP "libomp"
    #else
    #define XENTROPY_OPENMP "libgomp"
    #endif
    """
    const char* XENTROPY_COMPILER
    const char* XENTROPY_OPENMP
    int _OPENMP

cdef extern from "kernels/driver/layout.h" namespace "xentropy" nogil:
    ctypedef enum DType:
        kF16, kBF16, kF32, kF64, kI8, kI16, kI32, kI64, kU8, kU16, kU32, kU64

    cdef struct Axes:
        int ndim
        Py_ssize_t* shape
        Py_ssize_t* stride
        Py_ssize_t nearest

    cdef struct Layout:
        char* data
        DType dtype
        bint swapped
        Axes rows
        Axes classes

cdef extern from "kernels/tiers.h" namespace "xentropy" nogil:
    cdef struct Tier:
        const char* name

    int tier_count()
    const Tier& tier_at(int index)
    bint tier_supported(int index)

cdef extern from "kernels/tier.h" namespace "xentropy" nogil:
    cdef enum class Step:
        kCap
        kExps
        kSettle
        kGradient

cdef extern from "kernels/driver/calls.h" namespace "xentropy" nogil:
    cdef struct Terms:
        size_t classes
        double label_smoothing
        double z_loss
        double logit_scale
        double unit
        double divisor

    cdef struct CrossEntropyCall:
        Terms terms
        size_t rows
        Layout logits
        Layout gradient
        Layout labels
        Layout probabilities
        const double* weight
        Layout sample_weight
        Layout upstream
        double upstream_all
        double softcap
        int64_t ignore_bits
        bint ignores
        bint streamed
        bint float64
        void* row_loss
        bint row_loss_float64

    ctypedef enum Result "xentropy::Result":
        kSoftmax "xentropy::Result::kSoftmax"
        kLogSoftmax "xentropy::Result::kLogSoftmax"
        kLogSumExp "xentropy::Result::kLogSumExp"
        kEntropy "xentropy::Result::kEntropy"
        kTargetEntropy "xentropy::Result::kTargetEntropy"

    cdef struct SoftmaxCall:
        Result what
        size_t rows
        size_t classes
        Layout x
        Layout out
        void* values
        double unit
        bint streamed
        bint float64

    cdef struct StatisticsCall:
        CrossEntropyCall rows
        bint float64
        void* lse
        void* loss
        void* entropy
        void* max_log_prob
        void* sum_squares
        int64_t* argmax
        int64_t* rank
        Layout index
        Layout log_prob

    cdef struct LogProbGradientCall:
        CrossEntropyCall rows
        Layout index
        Layout log_prob
        Layout on_log_prob
        Layout lse
        Layout entropy
        Layout on_entropy
        Layout on_lse
        const double* on_logits

    cdef struct DistillationCall:
        CrossEntropyCall rows
        Layout teacher
        double teacher_scale
        size_t given
        const double* log_probs
        const int64_t* index
        double beta
        double log_beta
        const double* row_betas

    cdef struct TargetReport:
        Py_ssize_t bad_row
        double weight
        bint non_finite

    size_t chunk_rows(size_t rows, size_t classes)
    size_t workspace_bytes(const Tier& tier, const CrossEntropyCall& call)
    size_t workspace_bytes(const Tier& tier, const SoftmaxCall& call)
    size_t workspace_bytes(const Tier& tier, const StatisticsCall& call)
    size_t workspace_bytes(const Tier& tier, const DistillationCall& call)
    size_t workspace_bytes(const Tier& tier, const LogProbGradientCall& call)
    TargetReport inspect_targets(const Tier& tier, const CrossEntropyCall& call, size_t begin,
                                 size_t end)
    double run_chunk(const Tier& tier, const CrossEntropyCall& call, size_t begin, size_t end,
                     char* scratch)
    double run_chunk(const Tier& tier, const DistillationCall& call, size_t begin, size_t end,
                     char* scratch)
    void run_chunk(const Tier& tier, const SoftmaxCall& call, size_t begin, size_t end,
                   char* scratch)
    void run_chunk(const Tier& tier, const StatisticsCall& call, size_t begin, size_t end,
                   char* scratch)
    void run_chunk(const Tier& tier, const LogProbGradientCall& call, size_t begin, size_t end,
                   char* scratch)
    size_t parts_of(const CrossEntropyCall& call)
    size_t split_workspace_bytes(const Tier& tier, const CrossEntropyCall& call)
    void run_part(const Tier& tier, const CrossEntropyCall& call, Step step, size_t row,
                  size_t part, double* loss, char* scratch)
    double finish_rows(const CrossEntropyCall& call, size_t begin, size_t end, const double* loss)
    size_t parts_of(const StatisticsCall& call)
    size_t split_workspace_bytes(const Tier& tier, const StatisticsCall& call)
    void run_part(const Tier& tier, const StatisticsCall& call, Step step, size_t row,
                  size_t part, char* scratch)


# --- tiers -----------------------------------------------------------------------------

cdef const Tier* current = NULL


def tiers():
    """Names of the instruction-set tiers that this machine can run, slowest first."""
    return tuple(
        tier_at(i).name.decode() for i in range(tier_count()) if tier_supported(i)
    )


def tier():
    """Name of the tier in use."""
    return current.name.decode()


def use_tier(str name):
    """Switch to the tier `name`; returns the name of the one in use before.

    For import and tests: no other thread may be in a call.
    """
    global current
    cdef int i
    before = None if current is NULL else tier()
    for i in range(tier_count()):
        if tier_at(i).name.decode() == name and tier_supported(i):
            current = &tier_at(i)
            return before
    raise ValueError(
        f"tier {name!r} is not available on this machine; available: {', '.join(tiers())}"
    )


def _start_tier():
    available = tiers()
    if not available:
        raise ImportError("xentropy needs a CPU with SSE4.2 (x86-64-v2) or a 64-bit ARM CPU")
    forced = os.environ.get("XENTROPY_TIER")
    if forced and forced not in available:
        raise RuntimeError(
            f"XENTROPY_TIER={forced} is not available on this machine; "
            f"available: {', '.join(available)}"
        )
    use_tier(forced or available[len(available) - 1])


_start_tier()


include "_threads.pxi"


def config():
    """What `show_config` prints."""
    return {
        "tier": tier(),
        "tiers": tiers(),
        "compiler": (<bytes>XENTROPY_COMPILER).decode(),
        "openmp": f"{(<bytes>XENTROPY_OPENMP).decode()} ({_OPENMP})",
        "threads": get_num_threads(),
    }


# --- calls -----------------------------------------------------------------------------

# Limits of arguments; _check/_options.py has the errors.
cdef int most_threads = 1024
# With a logit_scale outside, its float32 head and rest, or their exact products with logits
# where there is no fused multiply-add, would leave the normal range.
cdef double least_scale = 1e-30, largest_scale = 1e30  # of softcap too

MOST_THREADS = most_threads
LEAST_SCALE, LARGEST_SCALE = least_scale, largest_scale

include "_arrays.pxi"
include "_exchange.pxi"
include "_results.pxi"
include "_options.pxi"
include "_suspicion.pxi"
include "_cross_entropy.pxi"
include "_public.pxi"
include "_softmax.pxi"
include "_statistics.pxi"
include "_distillation.pxi"
include "_log_probs.pxi"
include "_xla.pxi"
