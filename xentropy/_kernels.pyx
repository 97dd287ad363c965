# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=True, embedsignature=False, freethreading_compatible=True
"""The doorway: arrays become pointers, the GIL is released, chunks go to the threads.

A call comes in here as the user wrote it. If every argument is plain (the kernels take it as it
stands, and it is clearly within its limits), the call is done, in about a microsecond for one
short row. If not, the answer is None and nothing has been written: `_check.py` then converts the
arguments, or raises their error, and the call comes again, marked as checked.

All OpenMP of the package is in this file.

Nothing here needs the GIL for its safety. What calls share is either set once, at import (tiers,
tables, NumPy's memory handler), or read and written atomically (numbers of threads, their debt, the
block of memory that pages.cpp keeps); `after_fork` is set while a child has one thread only.
"""

cimport numpy as cnp
cimport openmp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython.parallel cimport parallel, threadid
from libc.math cimport INFINITY, NAN, isfinite, isnan, log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strcmp, strcpy

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF, PyObject

import os

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    double PyFloat_AS_DOUBLE(object)
    long long PyLong_AsLongLongAndOverflow(object, int* overflow) except? -1

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

cdef extern from *:
    """
    static inline Py_ssize_t xentropy_fetch_add(Py_ssize_t* at, Py_ssize_t n) {
      return __atomic_fetch_add(at, n, __ATOMIC_RELAXED);
    }
    template <class T>
    static inline T xentropy_load(T* from) {
      T value;
      __atomic_load(from, &value, __ATOMIC_RELAXED);
      return value;
    }
    template <class T>
    static inline void xentropy_store(T* to, T value) {
      __atomic_store(to, &value, __ATOMIC_RELAXED);
    }
    """
    Py_ssize_t fetch_add "xentropy_fetch_add"(Py_ssize_t* at, Py_ssize_t n) nogil
    double load "xentropy_load"(double* source) nogil
    int load_int "xentropy_load"(int* source) nogil
    void store "xentropy_store"(double* target, double value) nogil
    void store_int "xentropy_store"(int* target, int value) nogil

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
        Layout repeat
        Layout upstream
        double upstream_all
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

    cdef struct TargetReport:
        Py_ssize_t bad_row
        double weight
        bint strange

    size_t chunk_rows(size_t rows, size_t classes)
    size_t scratch_bytes(const CrossEntropyCall& call)
    size_t scratch_bytes(const SoftmaxCall& call)
    TargetReport inspect_targets(const Tier& tier, const CrossEntropyCall& call, size_t begin,
                                 size_t end)
    double run_chunk(const Tier& tier, const CrossEntropyCall& call, size_t begin, size_t end,
                     char* scratch)
    void run_chunk(const Tier& tier, const SoftmaxCall& call, size_t begin, size_t end,
                   char* scratch)
    size_t parts_of(const CrossEntropyCall& call)
    size_t split_bytes(const CrossEntropyCall& call)
    void run_part(const Tier& tier, const CrossEntropyCall& call, Step step, size_t row,
                  size_t part, double* loss, char* scratch)
    double finish_rows(const CrossEntropyCall& call, size_t begin, size_t end, const double* loss)


# --- tiers -----------------------------------------------------------------------------

cdef const Tier* current = NULL


def tiers():
    """Names of the tiers that this machine can run, slowest first."""
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


# --- threads ---------------------------------------------------------------------------

cdef int wanted_threads = 0    # 0: what OpenMP would use, but ...
cdef int allowed_threads = 1 << 30  # ... not more than these
cdef bint after_fork = False   # this process is a child


def set_num_threads(int n):
    """Threads of the calls that do not say; 0 goes back to the default."""
    store_int(&wanted_threads, n)


def limit_threads(int n):
    """No more threads than this unless somebody asks for more."""
    store_int(&allowed_threads, n)


def get_num_threads():
    """Threads of the calls that do not say."""
    return default_threads()


cdef int default_threads() noexcept:
    if after_fork:
        return 1
    return load_int(&wanted_threads) or min(
        load_int(&allowed_threads), openmp.omp_get_max_threads()
    )


def _in_child():
    # GNU's OpenMP waits forever for threads that fork did not copy; anybody may have started
    # them, since a process has one such runtime.
    global after_fork
    after_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

# Below about 64K elements (some 20 us) a second thread costs more than it saves.
cdef size_t PARALLEL_ELEMENTS = 1 << 16

# Where others want the cores, a call that is done may have to wait for one of its threads that has
# no core: 4 ms and more on Linux, whatever the size of the call. The time that threads have cost,
# beyond what they have saved, is kept as a debt, and for so long calls that do not ask for a
# number of threads use one. It doubles when the next attempt is as late, up to AT_MOST times
# the wait: then 1 % of the time is lost. `python -m bench.contention` shows it.
cdef double LATE = 50e-6  # seconds; less is no loss
cdef double SLICE = 2e-3  # seconds; a thread that has to leave its core leaves it for longer
cdef double AT_MOST = 100
cdef double debt = 0       # seconds. Both are shared by
cdef double alone_until = 0  # all threads: read and written atomically

# So few elements (1 us) do not let go of the GIL: another Python thread would keep it for 5 ms.
cdef size_t GIL_ELEMENTS = 1 << 11


cdef struct Plan:
    Py_ssize_t rows
    Py_ssize_t per_chunk
    Py_ssize_t chunks
    int team
    bint keeps_gil


cdef size_t team_for(size_t elements, int asked) noexcept:
    """How many threads may share the work on so many elements."""
    if elements < PARALLEL_ELEMENTS or after_fork:
        return 1
    if asked > 0:
        return asked
    return 1 if in_debt() else default_threads()


cdef Plan plan(size_t rows, size_t classes, size_t elements, int asked) noexcept:
    """How a batch is cut, and how many threads share the work on so many elements."""
    cdef Plan p
    p.rows = rows
    p.per_chunk = chunk_rows(rows, classes)
    p.chunks = (rows + p.per_chunk - 1) // p.per_chunk
    p.team = <int>min(team_for(elements, asked), <size_t>p.chunks)
    p.keeps_gil = elements < GIL_ELEMENTS
    return p


# Chunk number `chunk` of a call, with scratch memory that no other thread has.
ctypedef void (*Work)(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                      char* scratch) noexcept nogil


cdef inline size_t begin(const Plan* p, Py_ssize_t chunk) noexcept nogil:
    return chunk * p.per_chunk


cdef inline size_t end(const Plan* p, Py_ssize_t chunk) noexcept nogil:
    return min(p.rows, (chunk + 1) * p.per_chunk)


# What the threads of a call share.
cdef struct Job:
    Work work
    const void* call
    const Plan* p
    void* results
    char* scratch
    size_t each           # bytes of scratch of each thread
    Py_ssize_t next       # the first chunk that nobody has taken
    Py_ssize_t brief, brief_ns  # chunks of less than SLICE, and their time
    Py_ssize_t long_ns          # the time of the others


cdef void take_chunks(Job* job, int thread) noexcept nogil:
    """One thread's part: the next chunk, as long as there is one."""
    cdef char* scratch = job.scratch + job.each * <size_t>thread
    cdef Py_ssize_t chunk = fetch_add(&job.next, 1), brief = 0
    cdef double begun = openmp.omp_get_wtime(), brief_time = 0, long_time = 0, now
    while chunk < job.p.chunks:
        job.work(job.call, job.p, chunk, job.results, scratch)
        now = openmp.omp_get_wtime()
        if now - begun < SLICE:
            brief += 1
            brief_time += now - begun
        else:
            long_time += now - begun
        begun = now
        chunk = fetch_add(&job.next, 1)
    fetch_add(&job.brief, brief)
    fetch_add(&job.brief_ns, <Py_ssize_t>(1e9 * brief_time))
    fetch_add(&job.long_ns, <Py_ssize_t>(1e9 * long_time))


cdef void share(Job* job) noexcept nogil:
    """All chunks, by the threads of the plan; the caller's is one of them."""
    cdef double begun = openmp.omp_get_wtime(), alone
    job.brief = job.brief_ns = job.long_ns = 0
    with parallel(num_threads=job.p.team):
        take_chunks(job, threadid())
    # A long chunk among brief ones has lost its core meanwhile: it counts as one of them.
    alone = 1e-9 * job.brief_ns * job.p.chunks / job.brief if job.brief else 1e-9 * job.long_ns
    account(alone - (openmp.omp_get_wtime() - begun))


cdef void account(double saved) noexcept nogil:
    """The threads of a call have saved so many seconds."""
    cdef double owed = load(&debt)
    if saved < -LATE:
        owed = min(2 * owed - saved, AT_MOST * -saved)
        store(&alone_until, openmp.omp_get_wtime() + owed)
        store(&debt, owed)
    elif owed > 0:
        store(&debt, max(0.0, owed - saved))


def _account(double saved):
    """`account`, and whether calls use one thread from now on; for the tests."""
    account(saved)
    return in_debt()


cdef inline bint in_debt() noexcept:
    cdef double until = load(&alone_until)
    return until > 0 and openmp.omp_get_wtime() < until


cdef void alone(Job* job) noexcept nogil:
    """All chunks, by the caller's thread: OpenMP would need 0.2 us for a team of one."""
    cdef Py_ssize_t chunk
    for chunk in range(job.p.chunks):
        job.work(job.call, job.p, chunk, job.results, job.scratch)


cdef void start(Work work, const void* call, const Plan* p, void* results, char* scratch,
                size_t each) noexcept:
    """Do all chunks, without the GIL unless there is little to do."""
    cdef Job job
    job.work, job.call, job.p, job.results = work, call, p, results
    job.scratch, job.each, job.next = scratch, each, 0
    if p.keeps_gil:
        alone(&job)
        return
    with nogil:
        if p.team > 1:
            share(&job)
        else:
            alone(&job)


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

# Limits of arguments; _check.py says what is wrong with those outside.
cdef int most_threads = 1024
# With a logit_scale outside, its float32 head and rest, or their exact products with logits
# where there is no fused multiply-add, would leave the normal range.
cdef double least_scale = 1e-30, largest_scale = 1e30

MOST_THREADS = most_threads
LEAST_SCALE, LARGEST_SCALE = least_scale, largest_scale

include "_arrays.pxi"
include "_exchange.pxi"
include "_results.pxi"
include "_cross_entropy.pxi"
include "_softmax.pxi"
