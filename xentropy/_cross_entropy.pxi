# One call of cross entropy, from its arguments to its result. Part of _kernels.pyx.

def compute_cross_entropy(bint with_grad, logits, target, weight, sample_weight,
                          Options options not None, grad_output=None, out=None, *,
                          bint checked=False, bint float64=False, bint float64_losses=False):
    """The loss, or with_grad (loss, gradient), of arguments as the public functions have them.

    None if an argument is not plain: it has to be converted or refused, and nothing has been
    written. Once `checked`, arguments are taken for valid and IndexError is raised for a label
    out of range. `float64`: compute in float64 whatever the dtype. `float64_losses`: the losses of
    rows whatever the reduction, not rounded to float32; it divides the gradient alone.
    """
    return computed(with_grad, logits, target, weight, sample_weight, options, grad_output, out,
                    checked, float64, float64_losses)


cdef object computed(bint with_grad, object logits, object target, object weight,
                     object sample_weight, Options options, object grad_output, object out,
                     bint checked, bint float64, bint float64_losses):
    cdef CrossEntropyCall call
    cdef CrossEntropyCall* c = &call
    cdef Settings s
    cdef cnp.ndarray gradient = None, losses = None
    # 1. The arguments.
    if not take_inputs(c, &s, logits, target, sample_weight, options, float64):
        return None
    weights = take_weight(c, weight)  # a reference: the kernels read its elements
    if ((weights is None) != (weight is None) or not take_options(c, &s, options)
            or not take_upstream(c, logits, s.class_axis, s.reduction, grad_output)):
        return None
    if not (out is None or checked or plain_out(out, logits) and disjoint(out, target)
            and disjoint(out, weight) and disjoint(out, sample_weight)
            and disjoint(out, grad_output)):
        return None
    # 2. The labels, before anything is written.
    cdef TargetReport report = inspect_for_python(c, s.threads)
    if (report.bad_row >= 0 or report.non_finite) and not checked:
        return None
    if report.bad_row >= 0:
        raise label_error(target, report.bad_row, c.terms.classes)
    c.terms.divisor = 1
    if s.reduction == kMean:
        c.terms.divisor = report.weight if isnan(s.normalizer) else s.normalizer
    # 3. Memory for the results, and the computation.
    if with_grad:
        gradient = fresh(logits) if out is None else out
        take_gradient(c, logits, gradient, s.class_axis, out is not None)
    if s.reduction == kNone or float64_losses:
        c.row_loss_float64 = c.float64 or float64_losses
        losses = empty_rows(logits, <uint64_t>1 << s.class_axis, False, c.row_loss_float64)
        c.row_loss = cnp.PyArray_DATA(losses)
    cdef double total = run_for_python(c, s.threads)
    loss = total if losses is None else unboxed(losses)
    return (loss, gradient) if with_grad else loss


cdef TargetReport inspect_for_python(const CrossEntropyCall* c, int n_threads) except *:
    cdef Memory memory
    leave_python(&memory, c.rows)
    cdef TargetReport report = inspect(c, n_threads, &memory)
    report.weight = settled(report.weight)
    back_to_python(&memory)
    return report


cdef double run_for_python(const CrossEntropyCall* c, int n_threads) except? -1:
    """The summed loss over the divisor."""
    cdef Memory memory
    leave_python(&memory, c.rows * c.terms.classes)
    cdef double total = settled(run(c, n_threads, &memory) / c.terms.divisor)
    back_to_python(&memory)
    return total


cpdef object label_error(cnp.ndarray target, Py_ssize_t row, size_t classes, str name="target"):
    """The error for label number `row` of the argument `name`."""
    place = np.unravel_index(row, (<object>target).shape)
    at = f"[{', '.join([str(i) for i in place])}]" if place else ""
    label = target[place]
    from xentropy._hints import label as label_hint

    hint = label_hint(label, classes)
    return IndexError(f"{name}{at} = {label} is out of range for {classes} classes{hint}")


cdef bint take_inputs(CrossEntropyCall* c, Settings* s, object logits, object target,
                      object sample_weight, Options options, bint float64) except -1:
    """The arrays but the class weights. False if one of them is not plain."""
    c.gradient.data = NULL
    c.row_loss = NULL
    c.row_loss_float64 = c.streamed = False
    if not plain_array(logits) or not plain_array(target):
        return False
    if not take_logits(c, logits, options.axis, &s.class_axis):
        return False
    c.float64 = float64 or c.logits.dtype == kF64
    if not take_target(c, logits, target, s.class_axis, options.ignore_index):
        return False
    return take_sample_weight(c, logits, s.class_axis, sample_weight)


cdef bint take_logits(CrossEntropyCall* c, cnp.ndarray x, object axis, int* class_axis) except -1:
    """The logits and their class axis; in one dimension the default axis 1 means 0."""
    cdef int ndim = cnp.PyArray_NDIM(x), code = code_of(x)
    if not is_float(code):
        return False
    if not plain_axis(axis, ndim, class_axis):
        if ndim != 1 or type(axis) is not int or axis != 1:
            return False
        class_axis[0] = 0
    c.terms.classes = cnp.PyArray_DIM(x, class_axis[0])
    if c.terms.classes == 0:
        return False
    c.rows = cnp.PyArray_SIZE(x) // c.terms.classes
    describe(&c.logits, x, code, <uint64_t>1 << class_axis[0])
    return True


cdef bint take_target(CrossEntropyCall* c, cnp.ndarray x, cnp.ndarray target, int class_axis,
                      object ignore_index) except -1:
    """Class indices, one per row, or class probabilities, in the logits' shape."""
    cdef int code = code_of(target)
    c.labels.data = c.probabilities.data = NULL
    c.ignore_bits = 0
    c.ignores = False
    if is_integer(code) and same_shape(target, x, class_axis):
        describe(&c.labels, target, code, 0)
        return take_ignored(c, code, ignore_index)
    if is_float(code) and same_shape(target, x, -1):
        describe(&c.probabilities, target, code, <uint64_t>1 << class_axis)
        return type(ignore_index) is int
    return False


cdef bint take_ignored(CrossEntropyCall* c, int code, object ignore_index) except -1:
    """`ignore_index` as the 64 bits of a label, if the labels' type can hold it."""
    cdef int overflow = 0, bits = 8 << (code - (kU8 if code >= kU8 else kI8))
    if type(ignore_index) is not int:
        return False
    cdef long long number = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    if overflow:
        c.ignores = code == kU64 and 0 < ignore_index < 2**64
        c.ignore_bits = <int64_t><uint64_t>ignore_index if c.ignores else 0
        return True
    c.ignore_bits = number
    if code >= kU8:
        c.ignores = number >= 0 and (bits == 64 or number >> bits == 0)
    else:  # representable if all bits from the type's highest on are equal
        c.ignores = number >> (bits - 1) == 0 or number >> (bits - 1) == -1
    return True


cdef object take_weight(CrossEntropyCall* c, object weight):
    """Class weights as contiguous float64: the array that c points into, or None."""
    c.weight = NULL
    if weight is None or not plain_array(weight) or code_of(weight) < 0:
        return None
    if cnp.PyArray_NDIM(weight) != 1 or <size_t>cnp.PyArray_SIZE(weight) != c.terms.classes:
        return None
    cdef cnp.ndarray weights = cnp.PyArray_FROMANY(
        weight, cnp.NPY_DOUBLE, 1, 1, cnp.NPY_ARRAY_CARRAY_RO | cnp.NPY_ARRAY_FORCECAST
    )
    if not all_finite(weights):
        return None
    c.weight = <const double*>cnp.PyArray_DATA(weights)
    return weights


cdef bint take_sample_weight(CrossEntropyCall* c, cnp.ndarray x, int class_axis,
                             object sample_weight) except -1:
    """Sample weights, one per row."""
    c.sample_weight.data = NULL
    if sample_weight is None:
        return True
    if not plain_array(sample_weight) or not same_shape(sample_weight, x, class_axis):
        return False
    cdef int code = code_of(sample_weight)
    if not is_float(code):
        return False
    describe(&c.sample_weight, sample_weight, code, 0)
    return True


cdef bint take_upstream(CrossEntropyCall* c, cnp.ndarray x, int class_axis, Reduction how,
                        object grad_output) except -1:
    """The upstream gradient: a number, or one per row."""
    c.upstream.data = NULL
    c.upstream_all = 1
    if grad_output is None or plain_real(grad_output, &c.upstream_all):
        return True
    if not plain_array(grad_output) or how != kNone:
        return False
    cdef int code = code_of(grad_output)
    if not is_float(code) or not same_shape(grad_output, x, class_axis):
        return False
    if cnp.PyArray_NDIM(grad_output) == 0:
        return False
    describe(&c.upstream, grad_output, code, 0)
    return True


cdef void take_gradient(CrossEntropyCall* c, cnp.ndarray x, cnp.ndarray gradient, int class_axis,
                        bint given) except *:
    """The array of the gradient, and whether it is written past the caches."""
    describe(&c.gradient, gradient, code_of(gradient), <uint64_t>1 << class_axis)
    c.streamed = past_caches(gradient, x, given)


cdef void inspect_chunk(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                        char* scratch) noexcept nogil:
    (<TargetReport*>results)[chunk] = inspect_targets(
        current[0], (<const CrossEntropyCall*>call)[0], begin(p, chunk), end(p, chunk)
    )


cdef TargetReport inspect(const CrossEntropyCall* c, int n_threads, Memory* m) noexcept nogil:
    """The report on all targets, summed in the order of chunks: bits do not depend on threads.

    It counts only if there was memory, as does the result of `run`.
    """
    cdef Plan p = plan(c.rows, c.terms.classes, c.rows, n_threads)
    cdef TargetReport total
    cdef Py_ssize_t chunk
    total.bad_row, total.weight, total.non_finite = -1, 0, False
    cdef TargetReport* report = <TargetReport*>take(m, p.chunks * sizeof(TargetReport), 0)
    if report == NULL:
        return total
    execute(inspect_chunk, c, &p, report, NULL, 0)
    for chunk in range(p.chunks):
        total.weight += report[chunk].weight
        total.non_finite |= report[chunk].non_finite
        if report[chunk].bad_row >= 0:
            total.bad_row = report[chunk].bad_row
            break
    release(m)
    return total


cdef void compute_chunk(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                        char* scratch) noexcept nogil:
    (<double*>results)[chunk] = run_chunk(
        current[0], (<const CrossEntropyCall*>call)[0], begin(p, chunk), end(p, chunk), scratch
    )


cdef double run(const CrossEntropyCall* c, int n_threads, Memory* m) noexcept nogil:
    """Returns the summed loss; writes the gradient and the rows' losses if c has arrays."""
    cdef size_t elements = c.rows * c.terms.classes
    cdef Plan p = plan(c.rows, c.terms.classes, elements, n_threads)
    p.brief = elements < BRIEF_ELEMENTS
    cdef size_t parts = parts_of(c[0]), team = team_of_a_row(c.rows, c.terms.classes, parts,
                                                             n_threads)
    if team > 1:
        return run_split(c, &p, parts, <int>team, m)
    cdef Py_ssize_t chunk
    cdef double total = 0
    cdef size_t each = workspace_bytes(current[0], c[0])
    cdef double* loss = <double*>take(m, p.chunks * sizeof(double), each * p.team)
    if loss == NULL:
        return 0
    execute(compute_chunk, c, &p, loss, m.scratch, each)
    for chunk in range(p.chunks):  # in this order: bits do not depend on threads
        total += loss[chunk]
    release(m)
    return total


# One step of a row that is split among threads.
cdef struct RowStep:
    const void* call
    char* scratch
    Py_ssize_t row
    Step step
    bint brief  # as in Plan


cdef size_t team_of_a_row(size_t rows, size_t classes, size_t parts, int asked) noexcept nogil:
    """The threads that share each row if there are fewer rows than half of them; else 1."""
    cdef size_t team = team_for(classes, asked)
    return min(team, parts) if 0 < 2 * rows <= team and 2 * rows <= parts else 1


cdef void split_rows(Work part, RowStep* s, Py_ssize_t rows, size_t parts, int team, bint caps,
                     bint stores, void* results) noexcept nogil:
    """The steps of all rows: `part` does one step of one part, for the RowStep as its call."""
    cdef Plan all_parts, whole
    all_parts.rows = all_parts.chunks = parts
    whole.rows = whole.chunks = whole.team = 1
    all_parts.per_chunk = whole.per_chunk = 1
    all_parts.team = team
    all_parts.brief = whole.brief = s.brief
    all_parts.helps = whole.helps = False  # a part is in the cache of who has computed its exps
    for s.row in range(rows):
        s.step = Step.kCap
        if caps:
            execute(part, s, &all_parts, results, NULL, 0)
        s.step = Step.kExps
        execute(part, s, &all_parts, results, NULL, 0)
        s.step = Step.kSettle
        execute(part, s, &whole, results, NULL, 0)
        s.step = Step.kGradient
        if stores:
            execute(part, s, &all_parts, results, NULL, 0)


cdef void compute_part(const void* row_step, const Plan* p, Py_ssize_t part, void* loss,
                       char* scratch) noexcept nogil:
    cdef const RowStep* s = <const RowStep*>row_step
    run_part(current[0], (<const CrossEntropyCall*>s.call)[0], s.step, s.row, part, <double*>loss,
             s.scratch)


cdef double run_split(const CrossEntropyCall* c, const Plan* p, size_t parts, int team,
                      Memory* m) noexcept nogil:
    """`run` with the same bits, for fewer rows than half the threads: each row is split."""
    cdef Py_ssize_t chunk
    cdef double total = 0
    cdef RowStep s
    cdef double* loss = <double*>take(m, c.rows * sizeof(double),
                                      split_workspace_bytes(current[0], c[0]))
    if loss == NULL:
        return 0
    s.call, s.scratch, s.brief = c, m.scratch, c.terms.classes < BRIEF_ELEMENTS
    split_rows(compute_part, &s, c.rows, parts, team, c.softcap != 0, c.gradient.data is not NULL,
               loss)
    for chunk in range(p.chunks):
        total += finish_rows(c[0], begin(p, chunk), end(p, chunk), loss)
    release(m)
    return total
