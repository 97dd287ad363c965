# One call of the softmax family, from its arguments to its result. Part of _kernels.pyx.

cdef dict RESULTS = {
    "softmax": kSoftmax,
    "log_softmax": kLogSoftmax,
    "logsumexp": kLogSumExp,
    "entropy": kEntropy,
    "target_entropy": kTargetEntropy,
}


def normalize(str what, x, axis, out, n_threads, *, bint checked=False):
    """softmax or log_softmax: a result like x, or `out`.

    None, as of `compute_cross_entropy`, if an argument is not plain. Once `checked`, axis is a
    tuple.
    """
    cdef SoftmaxCall call
    cdef cnp.ndarray result
    cdef uint64_t class_axes = 0
    cdef int threads
    if not plain_array(x) or not take_x(&call, what, x, axis, checked, &class_axes):
        return None
    if not plain_threads(n_threads, &threads):
        return None
    if not (checked or out is None or plain_out(out, x)):
        return None
    result = fresh(x) if out is None else out
    describe(&call.out, result, code_of(result), class_axes)
    call.streamed = past_caches(result, x, out is not None)
    call.float64 = call.x.dtype == kF64
    if call.rows * call.classes:
        run_softmax(&call, threads)
    return unboxed(result) if out is None else out


def reduce_rows(str what, x, axis, bint keepdims, base, double empty, n_threads, *,
                bint checked=False, bint float64=False):
    """One value per row: logsumexp, entropy, or target_entropy of probabilities x.

    In the unit that `base` gives; `empty` for rows without elements. None, as of
    `cross_entropy`, if an argument is not plain. Once `checked`, axis is a tuple. `float64`:
    compute in float64 whatever the dtype.
    """
    cdef SoftmaxCall call
    cdef uint64_t class_axes = 0
    cdef int threads, class_axis
    cdef cnp.ndarray values
    if not plain_array(x) or not take_x(&call, what, x, axis, checked, &class_axes):
        return None
    if not plain_threads(n_threads, &threads) or not plain_unit(base, &call.unit):
        return None
    if call.what == kEntropy and plain_axis(axis, cnp.PyArray_NDIM(x), &class_axis):
        suspect_logits(x, class_axis, checked)
    call.float64 = float64 or call.x.dtype == kF64
    values = empty_rows(x, class_axes, keepdims, call.float64)
    call.values = cnp.PyArray_DATA(values)
    if call.rows * call.classes:
        run_softmax(&call, threads)
    else:
        values.fill(empty)
    return values if keepdims else unboxed(values)


cdef bint take_x(SoftmaxCall* c, str what, cnp.ndarray x, object axis, bint checked,
                 uint64_t* class_axes) except -1:
    """The array, which of its dimensions are classes, and the function."""
    cdef int d, ndim = cnp.PyArray_NDIM(x), code = code_of(x)
    if not is_float(code):
        return False
    class_axes[0] = 0
    if axis is None:
        for d in range(ndim):
            class_axes[0] |= <uint64_t>1 << d
    elif checked:
        for d in axis:
            class_axes[0] |= <uint64_t>1 << d
    elif plain_axis(axis, ndim, &d):
        class_axes[0] = <uint64_t>1 << d
    else:
        return False
    describe(&c.x, x, code, class_axes[0])
    c.what = <Result><int>RESULTS[what]
    c.classes = 1
    for d in range(ndim):
        if class_axes[0] >> d & 1:
            c.classes *= cnp.PyArray_DIM(x, d)
    c.rows = cnp.PyArray_SIZE(x) // c.classes if c.classes else 0
    c.out.data = NULL
    c.values = NULL
    c.streamed = False
    c.unit = 1
    return True


cdef void normalize_chunk(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                          char* scratch) noexcept nogil:
    run_chunk(current[0], (<const SoftmaxCall*>call)[0], begin(p, chunk), end(p, chunk), scratch)


cdef int run_softmax(const SoftmaxCall* c, int n_threads) except -1:
    cdef Plan p = plan(c.rows, c.classes, c.rows * c.classes, n_threads)
    cdef Memory memory
    cdef size_t each = workspace_bytes(current[0], c[0])
    leave_python(&memory, c.rows * c.classes)
    if take(&memory, 0, each * p.team) != NULL:
        execute(normalize_chunk, c, &p, NULL, memory.scratch, each)
        release(&memory)
    return back_to_python(&memory)
