# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=True, embedsignature=False
"""The doorway: arrays become pointers, the GIL is released, chunks go to the threads.

Nothing is checked here; `_check.py` has done so. All OpenMP of the package is in this file.
"""

cimport numpy as cnp
cimport openmp
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t

import os

import numpy as np

cnp.import_array()

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

cdef extern from "kernels/layout.h" namespace "xentropy" nogil:
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

cdef extern from "kernels/driver.h" namespace "xentropy" nogil:
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
        bint float64

    cdef struct TargetReport:
        Py_ssize_t bad_row
        double weight

    size_t chunk_rows(size_t rows, size_t classes)
    size_t scratch_bytes(const CrossEntropyCall& call)
    size_t scratch_bytes(const SoftmaxCall& call)
    TargetReport inspect_targets(const CrossEntropyCall& call, size_t begin, size_t end)
    double run_chunk(const Tier& tier, const CrossEntropyCall& call, size_t begin, size_t end,
                     char* scratch)
    void run_chunk(const Tier& tier, const SoftmaxCall& call, size_t begin, size_t end,
                   char* scratch)


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
    """Switch to the tier `name`; returns the name of the one in use before."""
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

cdef int wanted_threads = 0   # 0: what OpenMP would use
cdef bint after_fork = False  # this process is a child


def set_num_threads(int n):
    """Threads of the calls that do not say; 0 goes back to OpenMP's default."""
    global wanted_threads
    wanted_threads = n


def get_num_threads():
    """Threads of the calls that do not say."""
    if after_fork:
        return 1
    return wanted_threads or openmp.omp_get_max_threads()


def _in_child():
    # GNU's OpenMP waits forever for threads that fork did not copy; anybody may have started
    # them, since a process has one such runtime.
    global after_fork
    after_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

# Below about 64K elements (some 20 us) a second thread costs more than it saves.
cdef size_t PARALLEL_ELEMENTS = 1 << 16


cdef struct Plan:
    Py_ssize_t rows
    Py_ssize_t per_chunk
    Py_ssize_t chunks
    int team


cdef Plan plan(size_t rows, size_t classes, size_t elements, int asked):
    """How a batch is cut, and how many threads share the work on so many elements."""
    cdef Plan p
    cdef size_t team = asked if asked > 0 else get_num_threads()
    p.rows = rows
    p.per_chunk = chunk_rows(rows, classes)
    p.chunks = (rows + p.per_chunk - 1) // p.per_chunk
    if after_fork or elements < PARALLEL_ELEMENTS:
        team = 1
    p.team = <int>min(team, <size_t>p.chunks)
    return p


cdef size_t chunk_end(Plan p, Py_ssize_t chunk) noexcept nogil:
    return min(p.rows, (chunk + 1) * p.per_chunk)


def config():
    """What `show_config` prints."""
    return {
        "tier": tier(),
        "tiers": tiers(),
        "compiler": (<bytes>XENTROPY_COMPILER).decode(),
        "openmp": f"{(<bytes>XENTROPY_OPENMP).decode()} ({_OPENMP})",
        "threads": get_num_threads(),
    }


# --- arrays to layouts -----------------------------------------------------------------

cdef Py_ssize_t FAR = <Py_ssize_t>1 << 62  # farther apart than any two elements

cdef dict DTYPES = {
    "float16": kF16, "bfloat16": kBF16, "float32": kF32, "float64": kF64,
    "int8": kI8, "int16": kI16, "int32": kI32, "int64": kI64,
    "uint8": kU8, "uint16": kU16, "uint32": kU32, "uint64": kU64,
}
cdef dict CODES = {}  # the same by dtype, whose name takes 1 us to make


cdef void append_axis(Axes* axes, Py_ssize_t length, Py_ssize_t stride) noexcept:
    """Add an inner dimension, merged with the one before where the two are one."""
    cdef int last = axes.ndim - 1
    axes.nearest = min(axes.nearest, abs(stride))
    if length == 1:
        return
    if last >= 0 and axes.stride[last] == length * stride:
        axes.shape[last] *= length
        axes.stride[last] = stride
        return
    axes.shape[axes.ndim] = length
    axes.stride[axes.ndim] = stride
    axes.ndim += 1


cdef int describe(Layout* layout, cnp.ndarray array, tuple class_axes) except -1:
    """Fill in `layout`; the dimensions in `class_axes` are classes, the others rows."""
    cdef int d
    layout.data = <char*>cnp.PyArray_DATA(array)
    dtype = array.dtype
    code = CODES.get(dtype)
    if code is None:
        code = CODES[dtype] = DTYPES[dtype.name]
    layout.dtype = <DType><int>code
    layout.swapped = not dtype.isnative
    layout.rows.ndim = layout.classes.ndim = 0
    layout.rows.nearest = layout.classes.nearest = FAR
    for d in range(array.ndim):
        append_axis(
            &layout.classes if d in class_axes else &layout.rows,
            array.shape[d], array.strides[d],
        )
    return 0


cdef cnp.ndarray aligned_scratch(size_t n_bytes):
    """Memory that starts at a cache line, as an array that owns it."""
    cdef cnp.ndarray raw = np.empty(n_bytes + 64, np.uint8)
    start = -<size_t>cnp.PyArray_DATA(raw) % 64
    return raw[start:start + n_bytes]


# --- cross entropy ---------------------------------------------------------------------

cdef class CrossEntropy:
    """One call of cross entropy: the inputs, then `inspect` and `run`.

    The arithmetic type is float64 or float32. `labels` (integers, one a row) or
    `probabilities` (as logits) is None; so may be
    `weight` (contiguous float64) and `repeat` (sample weights, one a row).
    """

    cdef CrossEntropyCall call
    cdef tuple inputs
    cdef tuple class_axes

    def __init__(self, cnp.ndarray logits, int axis, labels, probabilities, weight, repeat, *,
                 bint float64, ignore_bits, double label_smoothing, double z_loss,
                 double logit_scale, double unit):
        cdef CrossEntropyCall* c = &self.call
        self.inputs = (logits, labels, probabilities, weight, repeat)
        self.class_axes = (axis,)
        c.terms.classes = logits.shape[axis]
        c.terms.label_smoothing = label_smoothing
        c.terms.z_loss = z_loss
        c.terms.logit_scale = logit_scale
        c.terms.unit = unit
        c.rows = logits.size // logits.shape[axis]
        c.float64 = float64
        c.ignores = ignore_bits is not None
        c.ignore_bits = ignore_bits if c.ignores else 0
        describe(&c.logits, logits, self.class_axes)
        if labels is not None:
            describe(&c.labels, labels, ())
        if probabilities is not None:
            describe(&c.probabilities, probabilities, self.class_axes)
        if weight is not None:
            c.weight = <const double*>cnp.PyArray_DATA(<cnp.ndarray>weight)
        if repeat is not None:
            describe(&c.repeat, repeat, ())

    def inspect(self, int n_threads):
        """(first row whose label is out of range or -1, summed weight of the rows)."""
        cdef CrossEntropyCall* c = &self.call
        cdef Plan p = plan(c.rows, c.terms.classes, c.rows, n_threads)
        cdef Py_ssize_t chunk
        cdef cnp.ndarray weights = np.empty(p.chunks), bad_rows = np.empty(p.chunks, np.intp)
        cdef double* weight = <double*>cnp.PyArray_DATA(weights)
        cdef Py_ssize_t* bad_row = <Py_ssize_t*>cnp.PyArray_DATA(bad_rows)
        cdef TargetReport report
        for chunk in prange(p.chunks, nogil=True, num_threads=p.team, schedule="dynamic",
                            use_threads_if=p.team > 1):
            report = inspect_targets(c[0], chunk * p.per_chunk, chunk_end(p, chunk))
            weight[chunk] = report.weight
            bad_row[chunk] = report.bad_row
        bad = bad_rows[bad_rows >= 0]
        return (int(bad[0]) if bad.size else -1), sequential_sum(weight, p.chunks)

    def run(self, gradient, row_loss, upstream, double upstream_all, double divisor,
            bint streamed, int n_threads):
        """Sum of the losses; fills `gradient` and `row_loss` where they are not None.

        Upstream gradient is `upstream` (one a row, or None) times `upstream_all` / `divisor`.
        """
        cdef CrossEntropyCall* c = &self.call
        cdef Plan p = plan(c.rows, c.terms.classes, c.rows * c.terms.classes, n_threads)
        cdef Py_ssize_t chunk
        c.gradient.data = c.upstream.data = NULL
        c.row_loss = NULL
        if gradient is not None:
            describe(&c.gradient, gradient, self.class_axes)
        if upstream is not None:
            describe(&c.upstream, upstream, ())
        if row_loss is not None:
            c.row_loss = cnp.PyArray_DATA(<cnp.ndarray>row_loss)
            c.row_loss_float64 = row_loss.dtype.itemsize == 8
        c.upstream_all = upstream_all
        c.terms.divisor = divisor
        c.streamed = streamed
        cdef size_t each = scratch_bytes(c[0])
        cdef cnp.ndarray scratch = aligned_scratch(each * p.team), sums = np.empty(p.chunks)
        cdef char* memory = <char*>cnp.PyArray_DATA(scratch)
        cdef double* loss = <double*>cnp.PyArray_DATA(sums)
        for chunk in prange(p.chunks, nogil=True, num_threads=p.team, schedule="dynamic",
                            use_threads_if=p.team > 1):
            loss[chunk] = run_chunk(
                current[0], c[0], chunk * p.per_chunk, chunk_end(p, chunk),
                memory + each * <size_t>threadid(),
            )
        return sequential_sum(loss, p.chunks)


cdef double sequential_sum(const double* values, Py_ssize_t n) noexcept:
    """The sum in order: the same bits for any number of threads."""
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += values[i]
    return total


# --- softmax family --------------------------------------------------------------------

cdef dict RESULTS = {
    "softmax": kSoftmax,
    "log_softmax": kLogSoftmax,
    "logsumexp": kLogSumExp,
    "entropy": kEntropy,
    "target_entropy": kTargetEntropy,
}


def normalize(str what, cnp.ndarray x, tuple class_axes, out, values, *, bint float64,
              double unit, int n_threads):
    """softmax or log_softmax of x into `out`, or a reduction, times `unit`, into `values`
    (in the arithmetic type): logsumexp, entropy, or target_entropy, where x is probabilities.
    """
    cdef SoftmaxCall call
    cdef SoftmaxCall* c = &call
    cdef Py_ssize_t chunk, classes = 1
    for d in class_axes:
        classes *= x.shape[d]
    c.what = <Result><int>RESULTS[what]
    c.classes = classes
    c.rows = x.size // classes
    c.float64 = float64
    c.unit = unit
    describe(&c.x, x, class_axes)
    c.out.data = NULL
    c.values = NULL
    if out is not None:
        describe(&c.out, out, class_axes)
    if values is not None:
        c.values = cnp.PyArray_DATA(<cnp.ndarray>values)
    cdef Plan p = plan(c.rows, classes, x.size, n_threads)
    cdef size_t each = scratch_bytes(c[0])
    cdef cnp.ndarray scratch = aligned_scratch(each * p.team)
    cdef char* memory = <char*>cnp.PyArray_DATA(scratch)
    for chunk in prange(p.chunks, nogil=True, num_threads=p.team, schedule="dynamic",
                        use_threads_if=p.team > 1):
        run_chunk(current[0], c[0], chunk * p.per_chunk, chunk_end(p, chunk),
                  memory + each * <size_t>threadid())
