# The calls of XLA, by its foreign function interface: xentropy.jax on XLA's memory. Part of
# _kernels.pyx.
#
# XLA calls a handler on any of its threads, also while Python starts another thread, handles a
# signal, or shuts down. So nothing below needs the interpreter: no object, no GIL, no allocator of
# Python.
#
# The name of a target stands for its interface, and is part of every program that `jax.export` has
# saved. An interface that changes gets another name, and the old one stays for those programs.

cdef extern from "xla_check.h" namespace "xentropy::xla" nogil:
    ctypedef struct XlaBuffers "xentropy::xla::Buffers":
        pass

    ctypedef struct XlaAttributes "xentropy::xla::Attributes":
        pass

    ctypedef struct XlaFrame "xentropy::xla::Frame":
        XlaBuffers arguments
        XlaBuffers results
        XlaAttributes attributes

    ctypedef struct XlaError "xentropy::xla::Error":
        pass

    ctypedef struct Refusal "xentropy::xla::Refusal":
        pass

    ctypedef struct XlaArray "xentropy::xla::Array":
        char* data
        int dtype
        int64_t rank
        const int64_t* shape
        size_t bytes

    bint answer_version(const XlaFrame* frame)
    XlaError* error_of(const XlaFrame* frame, const char* name, const Refusal* why)
    bint check_frame(const XlaFrame* frame, int64_t arguments, Refusal* why)
    bint take_axis(const XlaAttributes& attributes, int64_t* axis, Refusal* why)
    bint take_array(const XlaBuffers& all, int64_t number, XlaArray* array, Refusal* why)
    bint check_axis(const XlaArray& logits, int64_t* axis, Refusal* why)
    bint check_float(const char* name, const XlaArray& array, Refusal* why)
    bint check_shape(const char* name, const XlaArray& array, const XlaArray& like, int64_t without,
                     Refusal* why)
    bint check_result(const XlaArray& result, int dtype, Refusal* why)
    bint check_overlap(const char* name, const XlaArray& result, const XlaArray& argument,
                       bint in_place, Refusal* why)
    bint refuse_label(const XlaArray& target, size_t row, size_t classes, Refusal* why)
    bint refuse_memory(size_t n_bytes, Refusal* why)
    size_t item_bytes(int dtype)


cdef int64_t IGNORED_LABEL = -1


cdef struct Operands:
    int64_t axis
    XlaArray logits, target, upstream, result


def xla_handlers():
    """The handlers for `jax.ffi.register_ffi_target` by the names of their targets, as capsules.

    xentropy_losses(logits, target) -> one loss a row: float32, float64 of float64 logits.
    xentropy_gradient(logits, target, upstream) -> the gradient in the logits, times the upstream
    gradient of its row. Both with the attribute axis: int64. Logits, probabilities and upstream
    are of any of the four floating types, labels int32, where -1 is ignored.
    """
    return {
        "xentropy_losses": PyCapsule_New(<void*>xla_losses, NULL, NULL),
        "xentropy_gradient": PyCapsule_New(<void*>xla_gradient, NULL, NULL),
    }


cdef XlaError* xla_losses(const XlaFrame* frame) noexcept nogil:
    return handle(frame, "xentropy_losses", False)


cdef XlaError* xla_gradient(const XlaFrame* frame) noexcept nogil:
    return handle(frame, "xentropy_gradient", True)


cdef XlaError* handle(const XlaFrame* frame, const char* name, bint with_gradient) noexcept nogil:
    """Do what the frame asks for. NULL, or an error that XLA owns."""
    cdef Operands o
    cdef CrossEntropyCall call
    cdef Refusal why
    if answer_version(frame):
        return NULL
    if take_operands(&o, frame, with_gradient, &why):
        if o.logits.bytes == 0:  # no rows
            return NULL
        take_call(&call, &o, with_gradient)
        if compute(&call, o.target, &why):
            return NULL
    return error_of(frame, name, &why)


cdef bint take_operands(Operands* o, const XlaFrame* frame, bint with_gradient,
                        Refusal* why) noexcept nogil:
    """The arrays and the class axis of a call, checked but for the values of labels."""
    if not (check_frame(frame, 3 if with_gradient else 2, why)
            and take_axis(frame.attributes, &o.axis, why)
            and take_array(frame.arguments, 0, &o.logits, why)
            and take_array(frame.arguments, 1, &o.target, why)
            and take_array(frame.results, 0, &o.result, why)
            and check_float("logits", o.logits, why)
            and check_axis(o.logits, &o.axis, why)):
        return False
    cdef bint labels = o.target.dtype == kI32
    if not (labels or check_float("target", o.target, why)):
        return False
    if not check_shape("target", o.target, o.logits, o.axis if labels else -1, why):
        return False
    cdef int dtype = o.logits.dtype if with_gradient or o.logits.dtype == kF64 else kF32
    if not (check_result(o.result, dtype, why)
            and check_shape("the result", o.result, o.logits, -1 if with_gradient else o.axis, why)
            and check_overlap("logits", o.result, o.logits, with_gradient, why)
            and check_overlap("target", o.result, o.target, False, why)):
        return False
    return not with_gradient or (
        take_array(frame.arguments, 2, &o.upstream, why)
        and check_float("upstream", o.upstream, why)
        and check_shape("upstream", o.upstream, o.logits, o.axis, why)
        and check_overlap("upstream", o.result, o.upstream, False, why)
    )


cdef void take_call(CrossEntropyCall* c, const Operands* o, bint with_gradient) noexcept nogil:
    """The call of the kernels: the options are the defaults, reduction and ignored label apart."""
    c.terms.classes = o.logits.shape[o.axis]
    c.terms.label_smoothing = c.terms.z_loss = c.softcap = 0
    c.terms.logit_scale = c.terms.unit = c.terms.divisor = c.upstream_all = 1
    c.rows = o.logits.bytes // item_bytes(o.logits.dtype) // c.terms.classes
    c.float64 = c.row_loss_float64 = o.logits.dtype == kF64
    c.gradient.data = c.labels.data = c.probabilities.data = c.sample_weight.data = NULL
    c.upstream.data = NULL
    c.weight = NULL
    c.row_loss = NULL
    c.ignore_bits = IGNORED_LABEL
    c.ignores = o.target.dtype == kI32
    c.streamed = False
    describe_dense(&c.logits, o.logits, o.axis)
    if o.target.dtype == kI32:
        describe_dense(&c.labels, o.target, -1)
    else:
        describe_dense(&c.probabilities, o.target, o.axis)
    if with_gradient:
        describe_dense(&c.gradient, o.result, o.axis)
        describe_dense(&c.upstream, o.upstream, -1)
        c.streamed = o.result.bytes >= <size_t>STREAM_BYTES and o.result.data != o.logits.data
    else:
        c.row_loss = o.result.data


cdef void describe_dense(Layout* layout, XlaArray array, int64_t class_axis) noexcept nogil:
    """`describe` for an array in C order; class_axis -1: all dimensions are rows."""
    cdef int64_t d
    cdef Py_ssize_t stride = array.bytes
    layout.data = array.data
    layout.dtype = <DType>array.dtype
    layout.swapped = False
    layout.rows.ndim = layout.classes.ndim = 0
    layout.rows.nearest = layout.classes.nearest = FAR
    for d in range(array.rank):
        stride //= array.shape[d]
        append_axis(
            &layout.classes if d == class_axis else &layout.rows, array.shape[d], stride
        )


cdef bint compute(const CrossEntropyCall* c, XlaArray target, Refusal* why) noexcept nogil:
    """The labels, before anything is written; then the losses or the gradient."""
    cdef uint64_t modes = set_default_modes()
    cdef bint done = compute_in_default_modes(c, target, why)
    restore_modes(modes)
    return done


cdef bint compute_in_default_modes(const CrossEntropyCall* c, XlaArray target,
                                   Refusal* why) noexcept nogil:
    cdef Memory memory
    memory.allocate, memory.deallocate, memory.lacking = malloc, free, 0
    cdef TargetReport report = inspect(c, 0, &memory)
    if memory.lacking == 0:
        if report.bad_row >= 0:
            return refuse_label(target, report.bad_row, c.terms.classes, why)
        run(c, 0, &memory)
    return memory.lacking == 0 or refuse_memory(memory.lacking, why)
