# One call of the divergence of two softmaxes, from its arguments to its result. Part of
# _kernels.pyx.

def distillation(bint with_grad, logits, teacher, double beta, bint scaled_teacher, sample_weight,
                 Options options not None, grad_output=None, out=None, few=None, *,
                 bint checked=False, bint float64_losses=False):
    """The loss, or with_grad (loss, gradient in the logits).

    `teacher` has logits, which options.logit_scale multiplies if it is a `scaled_teacher`. In its
    place `few` has what is known of some classes of each row: log-probabilities (R, k + 1), the
    last of all other classes, indices (R, k), and beta with its logarithm for each row (R, 2) or
    None. 0 <= beta <= 1. None, as of `compute_cross_entropy`, if an argument is not plain.
    `float64_losses`: compute in float64 whatever the dtype, and do not round the losses of rows.
    """
    cdef DistillationCall call
    cdef CrossEntropyCall* c = &call.rows
    cdef Settings s
    cdef cnp.ndarray gradient = None, losses = None
    if not take_two(&call, &s, logits, teacher, few, sample_weight, options, float64_losses):
        return None
    if not take_upstream(c, logits, s.class_axis, s.reduction, grad_output):
        return None
    if not (out is None or checked or plain_out(out, logits) and disjoint(out, teacher)
            and disjoint(out, sample_weight) and disjoint(out, grad_output)):
        return None
    take_beta(&call, beta, scaled_teacher)
    cdef TargetReport report = inspect_for_python(c, s.threads)
    if report.non_finite and not checked:
        return None
    if s.reduction == kMean:
        c.terms.divisor = report.weight if isnan(s.normalizer) else s.normalizer
    if with_grad:
        gradient = fresh(logits) if out is None else out
        take_gradient(c, logits, gradient, s.class_axis, out is not None)
    if s.reduction == kNone:
        c.row_loss_float64 = float64_losses or c.logits.dtype == kF64
        losses = empty_rows(logits, <uint64_t>1 << s.class_axis, False, c.row_loss_float64)
        c.row_loss = cnp.PyArray_DATA(losses)
    cdef double total = run_distillation(&call, s.threads)
    loss = total if losses is None else unboxed(losses)
    return (loss, gradient) if with_grad else loss


cdef bint take_two(DistillationCall* call, Settings* s, object logits, object teacher, object few,
                   object sample_weight, Options options, bint float64) except -1:
    """Student and teacher, the weights and the options. False if one of them is not plain."""
    cdef CrossEntropyCall* c = &call.rows
    cdef int code = -1
    c.gradient.data = c.labels.data = c.probabilities.data = NULL
    c.weight = NULL
    c.row_loss = NULL
    c.row_loss_float64 = c.streamed = c.ignores = False
    c.terms.divisor = 1
    c.ignore_bits = 0
    if not plain_array(logits) or not take_logits(c, logits, options.axis, &s.class_axis):
        return False
    if few is not None:
        take_few(call, few[0], few[1], few[2])
    else:
        if not plain_array(teacher) or not same_shape(teacher, logits, -1):
            return False
        code = code_of(teacher)
        if not is_float(code):
            return False
        describe(&call.teacher, teacher, code, <uint64_t>1 << s.class_axis)
    c.float64 = float64 or c.logits.dtype == kF64 or code == kF64
    if not take_sample_weight(c, logits, s.class_axis, sample_weight):
        return False
    return take_options(c, s, options)


cdef void take_few(DistillationCall* call, cnp.ndarray log_probs, cnp.ndarray index,
                   cnp.ndarray betas) except *:
    """What a teacher gives of each row: contiguous float64 and int64; the betas of rows, if any."""
    call.teacher.data = NULL
    call.given = cnp.PyArray_DIM(index, 1)
    call.log_probs = <const double*>cnp.PyArray_DATA(log_probs)
    call.index = <const int64_t*>cnp.PyArray_DATA(index)
    call.row_betas = NULL
    if betas is not None:
        call.row_betas = <const double*>cnp.PyArray_DATA(betas)


cdef void take_beta(DistillationCall* call, double beta, bint scaled_teacher) noexcept:
    cdef uint64_t modes = set_default_modes()
    call.beta = beta
    call.log_beta = settled(log(settled(beta))) if beta > 0 else 0
    call.teacher_scale = call.rows.terms.logit_scale if scaled_teacher else 1
    restore_modes(modes)


cdef void distillation_chunk(const void* call, const Plan* p, Py_ssize_t chunk, void* results,
                             char* scratch) noexcept nogil:
    (<double*>results)[chunk] = run_chunk(
        current[0], (<const DistillationCall*>call)[0], begin(p, chunk), end(p, chunk), scratch
    )


cdef double run_distillation(const DistillationCall* c, int n_threads) except? -1:
    """The summed loss over the divisor; writes the gradient and the rows' losses."""
    cdef size_t classes = c.rows.terms.classes, elements = c.rows.rows * classes
    cdef Plan p = plan(c.rows.rows, classes, elements, n_threads)
    cdef Memory memory
    cdef Py_ssize_t chunk
    cdef double total = 0
    cdef size_t each = workspace_bytes(current[0], c[0])
    leave_python(&memory, elements)
    cdef double* loss = <double*>take(&memory, p.chunks * sizeof(double), each * p.team)
    if loss != NULL:
        execute(distillation_chunk, c, &p, loss, memory.scratch, each)
        for chunk in range(p.chunks):  # in this order: bits do not depend on threads
            total += loss[chunk]
        release(&memory)
    total = settled(total / c.rows.terms.divisor)
    back_to_python(&memory)
    return total
