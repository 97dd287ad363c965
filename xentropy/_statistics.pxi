# One call of the statistics of rows, from its arguments to its results. Part of _kernels.pyx.

def row_statistics(logits, target, Options options not None, *, bint checked=False,
                   bint float64=False):
    """The fields of `RowStatistics`, in order; loss and rank are None without a target.

    None, as of `compute_cross_entropy`, if an argument is not plain. `float64`: not narrowed,
    whatever the arithmetic type.
    """
    cdef StatisticsCall call
    cdef CrossEntropyCall* c = &call.rows
    cdef Settings s
    cdef TargetReport report
    call.index.data = call.log_prob.data = NULL
    if not take_ranked(c, &s, logits, target, options):
        return None
    if target is not None:
        report = inspect_for_python(c, s.threads)
        if report.bad_row >= 0 and not checked:
            return None
        if report.bad_row >= 0:
            raise label_error(target, report.bad_row, c.terms.classes)
    call.float64 = float64 or c.float64
    cdef uint64_t axes = <uint64_t>1 << s.class_axis
    cdef list numbers = [empty_rows(logits, axes, False, call.float64) for _ in range(5)]
    cdef list classes = [empty_classes(numbers[0]) for _ in range(2)]
    lse, loss, entropy, max_log_prob, sum_squares = numbers
    call.lse = cnp.PyArray_DATA(lse)
    call.loss = cnp.PyArray_DATA(loss)
    call.entropy = cnp.PyArray_DATA(entropy)
    call.max_log_prob = cnp.PyArray_DATA(max_log_prob)
    call.sum_squares = cnp.PyArray_DATA(sum_squares)
    call.argmax = <int64_t*>cnp.PyArray_DATA(classes[0])
    call.rank = <int64_t*>cnp.PyArray_DATA(classes[1])
    if c.rows:
        run_statistics(&call, s.threads)
    lse, loss, entropy, max_log_prob, sum_squares = [unboxed(each) for each in numbers]
    argmax, rank = [unboxed(each) for each in classes]
    if target is None:
        loss = rank = None
    return lse, loss, entropy, argmax, max_log_prob, rank, sum_squares


cdef cnp.ndarray empty_classes(cnp.ndarray like):
    """An uninitialised array of class indices, in the shape of `like`."""
    return empty((<object>like).shape, np.int64)


cdef bint take_ranked(CrossEntropyCall* c, Settings* s, object logits, object target,
                      Options options) except -1:
    """The logits, and class indices or no target. False if an argument is not plain."""
    c.gradient.data = c.labels.data = c.probabilities.data = NULL
    c.sample_weight.data = c.upstream.data = NULL
    c.weight = NULL
    c.row_loss = NULL
    c.row_loss_float64 = c.streamed = c.ignores = False
    c.upstream_all = c.terms.divisor = 1
    c.ignore_bits = 0
    if not plain_array(logits) or not take_logits(c, logits, options.axis, &s.class_axis):
        return False
    c.float64 = c.logits.dtype == kF64
    if target is None:
        return type(options.ignore_index) is int and take_options(c, s, options)
    if not plain_array(target) or not is_integer(code_of(target)):
        return False
    if not take_target(c, logits, target, s.class_axis, options.ignore_index):
        return False
    return take_options(c, s, options)


cdef void statistics_chunk(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                           char* scratch) noexcept nogil:
    run_chunk(current[0], (<const StatisticsCall*>call)[0], begin(p, chunk), end(p, chunk), scratch)


cdef void statistics_part(const void* row_step, const Plan* p, Py_ssize_t part, void* results,
                          char* scratch) noexcept nogil:
    cdef const RowStep* s = <const RowStep*>row_step
    run_part(current[0], (<const StatisticsCall*>s.call)[0], s.step, s.row, part, s.scratch)


cdef int run_statistics(const StatisticsCall* c, int n_threads) except -1:
    cdef size_t rows = c.rows.rows, classes = c.rows.terms.classes, parts = parts_of(c[0])
    cdef size_t team = team_of_a_row(rows, classes, parts, n_threads)
    if team == 1:
        return run_in_chunks(statistics_chunk, c, &c.rows, workspace_bytes(current[0], c[0]),
                             n_threads)
    cdef RowStep s
    cdef Memory memory
    leave_python(&memory, rows * classes)
    if take(&memory, 0, split_workspace_bytes(current[0], c[0])) != NULL:
        s.call, s.scratch, s.brief = c, memory.scratch, classes < BRIEF_ELEMENTS
        split_rows(statistics_part, &s, rows, parts, <int>team, False, False, NULL)
        release(&memory)
    return back_to_python(&memory)


cdef int run_in_chunks(Work chunk, const void* call, const CrossEntropyCall* c, size_t each,
                       int n_threads) except -1:
    """Call `chunk` for all chunks of the rows of c; `each` thread has so many bytes of scratch."""
    cdef size_t elements = c.rows * c.terms.classes
    cdef Plan p = plan(c.rows, c.terms.classes, elements, n_threads)
    cdef Memory memory
    leave_python(&memory, elements)
    if take(&memory, 0, each * p.team) != NULL:
        execute(chunk, call, &p, NULL, memory.scratch, each)
        release(&memory)
    return back_to_python(&memory)
