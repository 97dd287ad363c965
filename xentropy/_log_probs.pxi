# Calls of selected log-probabilities and of their gradient. Part of _kernels.pyx.

def selected_log_probs(logits, index, Options options not None, *, bint checked=False):
    """log_prob, entropy and lse, in float64 whatever the dtype of the logits.

    None, as of `compute_cross_entropy`, if an argument is not plain.
    """
    cdef StatisticsCall call
    cdef CrossEntropyCall* c = &call.rows
    cdef Settings s
    memset(&call, 0, sizeof(call))
    if not take_ranked(c, &s, logits, None, options):
        return None
    if not take_index(c, &call.index, logits, index, s.class_axis, options.ignore_index):
        return None
    if not index_in_range(c, index, s.threads, checked):
        return None
    cdef uint64_t axes = <uint64_t>1 << s.class_axis
    cdef cnp.ndarray lse = empty_rows(logits, axes, False, True)
    cdef cnp.ndarray entropy = empty_rows(logits, axes, False, True)
    cdef cnp.ndarray log_prob = cnp.PyArray_EMPTY(
        cnp.PyArray_NDIM(index), cnp.PyArray_DIMS(index), cnp.NPY_DOUBLE, 0
    )
    describe(&call.log_prob, log_prob, kF64, index_axes(logits, index, s.class_axis))
    call.lse, call.entropy = cnp.PyArray_DATA(lse), cnp.PyArray_DATA(entropy)
    if c.rows:
        run_statistics(&call, s.threads)
    return unboxed(log_prob), unboxed(entropy), unboxed(lse)


def selected_log_probs_grad(logits, index, lse, log_prob, entropy, grad_log_prob, grad_entropy,
                            Options options not None, out=None, *, grad_lse=None,
                            cnp.ndarray grad_logits=None, bint checked=False):
    """The gradient in the logits: a new array, or `out`; None as above.

    `grad_lse`: the upstream gradient of the lse. Where it is not 0 a row is read even if all its
    classes are left out. `grad_logits`: that of all (scaled, capped) logits but the selected ones,
    contiguous float64 in rows; added before the gradient is multiplied by the slope of the softcap.
    """
    cdef LogProbGradientCall call
    cdef CrossEntropyCall* c = &call.rows
    cdef Settings s
    memset(&call, 0, sizeof(call))
    if not take_ranked(c, &s, logits, None, options):
        return None
    cdef int axis = s.class_axis
    if not take_index(c, &call.index, logits, index, axis, options.ignore_index):
        return None
    if not (take_floats(&call.lse, lse, logits, axis, 0)
            and take_floats(&call.entropy, entropy, logits, axis, 0)
            and (grad_entropy is None
                 or take_floats(&call.on_entropy, grad_entropy, logits, axis, 0))
            and (grad_lse is None or take_floats(&call.on_lse, grad_lse, logits, axis, 0))):
        return None
    cdef uint64_t axes = index_axes(logits, index, axis)
    if not (take_floats(&call.log_prob, log_prob, index, -1, axes)
            and take_floats(&call.on_log_prob, grad_log_prob, index, -1, axes)):
        return None
    if not (out is None or checked or plain_out(out, logits) and disjoint(out, index)
            and disjoint(out, lse) and disjoint(out, log_prob) and disjoint(out, entropy)
            and disjoint(out, grad_log_prob) and disjoint(out, grad_entropy)):
        return None
    if not index_in_range(c, index, s.threads, checked):
        return None
    if grad_logits is not None:
        call.on_logits = <const double*>cnp.PyArray_DATA(grad_logits)
    cdef cnp.ndarray gradient = fresh(logits) if out is None else out
    take_gradient(c, logits, gradient, axis, out is not None)
    if c.rows:
        run_in_chunks(log_prob_gradient_chunk, &call, c, workspace_bytes(current[0], call),
                      s.threads)
    return unboxed(gradient) if out is None else out


cdef uint64_t index_axes(cnp.ndarray x, cnp.ndarray index, int class_axis) noexcept:
    """The axis of an index with several classes a row, as a bit; 0: one class a row."""
    return (cnp.PyArray_NDIM(index) == cnp.PyArray_NDIM(x)) * <uint64_t>1 << class_axis


cdef bint take_index(CrossEntropyCall* c, Layout* layout, cnp.ndarray x, object index,
                     int class_axis, object ignore_index) except -1:
    """Classes, one a row, or k along the class axis. False if they are not plain."""
    cdef int d, code
    if not plain_array(index):
        return False
    code = code_of(index)
    if not is_integer(code):
        return False
    if cnp.PyArray_NDIM(index) != cnp.PyArray_NDIM(x):
        if not same_shape(index, x, class_axis):
            return False
    else:
        for d in range(cnp.PyArray_NDIM(x)):
            if d != class_axis and cnp.PyArray_DIM(index, d) != cnp.PyArray_DIM(x, d):
                return False
        if cnp.PyArray_DIM(index, class_axis) == 0:
            return False
    describe(layout, index, code, index_axes(x, index, class_axis))
    return take_ignored(c, code, ignore_index)


cdef bint index_in_range(const CrossEntropyCall* c, cnp.ndarray index, int n_threads,
                         bint checked) except -1:
    """Are all classes in range? Once `checked`, IndexError if they are not."""
    cdef CrossEntropyCall every = c[0]  # each class as a row of its own
    describe(&every.labels, index, code_of(index), 0)
    every.rows = cnp.PyArray_SIZE(index)
    cdef TargetReport report = inspect_for_python(&every, n_threads)
    if report.bad_row >= 0 and checked:
        raise label_error(index, report.bad_row, c.terms.classes, "index")
    return report.bad_row < 0


cdef bint take_floats(Layout* layout, object array, cnp.ndarray like, int without,
                      uint64_t axes) except -1:
    """Floating numbers in the shape of `like` less dimension `without` (-1: none)."""
    if not plain_array(array) or not same_shape(array, like, without):
        return False
    cdef int code = code_of(array)
    if not is_float(code):
        return False
    describe(layout, array, code, axes)
    return True


cdef void log_prob_gradient_chunk(const void* call, const Plan* p, Py_ssize_t chunk,
                                  void* results, char* scratch) noexcept nogil:
    run_chunk(current[0], (<const LogProbGradientCall*>call)[0], begin(p, chunk), end(p, chunk),
              scratch)
