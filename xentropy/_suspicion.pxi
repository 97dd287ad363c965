# Arguments that are allowed, but hardly meant. Part of _kernels.pyx.

cdef inline bint in_unit_interval(const char* at, int code) noexcept nogil:
    """Is the number in [0, 1]? Floating numbers without a sign have the order of their bits."""
    cdef uint16_t half
    cdef uint32_t single
    cdef uint64_t double_
    if code == kF32:
        memcpy(&single, at, 4)
        return single <= 0x3F800000
    if code == kF64:
        memcpy(&double_, at, 8)
        return double_ <= <uint64_t>0x3FF << 52
    memcpy(&half, at, 2)
    return half <= (0x3C00 if code == kF16 else 0x3F80)


cdef int suspect_logits(cnp.ndarray logits, int class_axis, bint checked) except -1:
    """A warning if the logits are probabilities.

    Whoever gives probabilities gives them in every row, so the first one tells which calls to look
    at; and of logits the first number or two, which are negative or above 1. That is all the cost.
    """
    cdef Py_ssize_t i, classes = cnp.PyArray_DIM(logits, class_axis)
    cdef Py_ssize_t step = cnp.PyArray_STRIDE(logits, class_axis)
    cdef const char* row = <const char*>cnp.PyArray_DATA(logits)
    cdef int code = code_of(logits)
    if checked or classes < 2 or cnp.PyArray_SIZE(logits) == 0:
        return 0
    if cnp.PyArray_ISBYTESWAPPED(logits):
        classes = 0  # NumPy reads them
    for i in range(classes):
        if not in_unit_interval(row + i * step, code):
            return 0
    from xentropy import _suspicion

    _suspicion.logits(logits, class_axis)
    return 0
