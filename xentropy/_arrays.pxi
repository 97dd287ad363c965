# Arguments as the kernels take them: arrays become layouts; which arguments are plain, that is,
# need neither a conversion nor an error. Part of _kernels.pyx.

# --- memory ----------------------------------------------------------------------------

cdef enum:
    STACK_BYTES = 1 << 15  # up to here a call's workspace is on the stack: that of short rows


# Scratch of a call, and where it comes from. Python's allocator shows it to tracemalloc, for which
# it may acquire the GIL: what must not wait for Python takes malloc.
cdef struct Memory:
    PyThreadState* python  # of the thread that has released the GIL, or NULL
    uint64_t modes         # the caller's floating-point modes
    void* (*allocate)(size_t n_bytes) noexcept nogil
    void (*deallocate)(void* data) noexcept nogil
    size_t lacking  # the bytes that could not be had, or 0
    char* scratch   # starts at a cache line
    char* raw
    char[STACK_BYTES + 64] small


cdef inline char* cache_line(char* memory) noexcept nogil:
    """The address rounded up to a cache line."""
    return memory + (64 - <size_t>memory % 64) % 64


cdef void* take(Memory* m, size_t results, size_t scratch) noexcept nogil:
    """Memory for so many bytes of results, followed by scratch; to be released. NULL: none."""
    results = (results + 63) // 64 * 64
    m.raw = NULL
    cdef char* start = m.small
    if results + scratch > STACK_BYTES:
        m.raw = start = <char*>m.allocate(results + scratch + 64)
        if start == NULL:
            release_kept_pages()
            m.raw = start = <char*>m.allocate(results + scratch + 64)
        if start == NULL:
            m.lacking = results + scratch
            return NULL
    m.scratch = cache_line(start) + results
    return cache_line(start)


cdef inline void release(Memory* m) noexcept nogil:
    m.deallocate(m.raw)


# Up to so many elements (1 us) a call keeps the GIL: another Python thread would hold a released
# one for 5 ms.
cdef size_t GIL_ELEMENTS = 1 << 11


cdef inline void leave_python(Memory* m, size_t elements) noexcept:
    """Begin work on so many elements in the default modes, without the GIL unless it is short."""
    m.allocate, m.deallocate, m.lacking = PyMem_RawMalloc, PyMem_RawFree, 0
    m.python = NULL
    if elements >= GIL_ELEMENTS:
        m.python = PyEval_SaveThread()
    m.modes = set_default_modes()


cdef inline int back_to_python(Memory* m) except -1:
    """End it; MemoryError if memory was lacking."""
    restore_modes(m.modes)
    if m.python != NULL:
        PyEval_RestoreThread(m.python)
    if m.lacking:
        raise MemoryError(f"no memory for {m.lacking} bytes of scratch")
    return 0


# --- arrays to layouts -----------------------------------------------------------------

cdef Py_ssize_t FAR = <Py_ssize_t>1 << 62  # larger than any stride

cdef dict DTYPES = {
    "float16": kF16, "bfloat16": kBF16, "float32": kF32, "float64": kF64,
    "int8": kI8, "int16": kI16, "int32": kI32, "int64": kI64,
    "uint8": kU8, "uint16": kU16, "uint32": kU32, "uint64": kU64,
}
cdef dict CODES = {}  # the same by dtype: to make its name takes 1 us
cdef int[32] CODE_OF_TYPE  # the same by NumPy's type number
for _number in range(32):
    CODE_OF_TYPE[_number] = -1
for _letter in "bBhHiIlLqQefd":
    CODE_OF_TYPE[np.dtype(_letter).num] = DTYPES[np.dtype(_letter).name]


cdef int code_of(cnp.ndarray array) except -2:
    """The kernels' code of the dtype, in either byte order; -1 if they do not support it."""
    cdef int number = cnp.PyArray_TYPE(array)
    if 0 <= number < 32:
        return CODE_OF_TYPE[number]
    dtype = array.descr
    code = CODES.get(dtype)
    if code is None:
        code = CODES[dtype] = DTYPES.get(dtype.name, -1)
    return code


cdef inline bint is_float(int code) noexcept nogil:
    return kF16 <= code <= kF64


cdef inline bint is_integer(int code) noexcept:
    return kI8 <= code <= kU64


cdef void append_axis(Axes* axes, Py_ssize_t length, Py_ssize_t stride) noexcept nogil:
    """Append an inner dimension, merged with the one before if both are one stride apart."""
    cdef int last = axes.ndim - 1
    # abs() of a Py_ssize_t would go through a Python object: some 20 ns.
    axes.nearest = min(axes.nearest, stride if stride >= 0 else -stride)
    if length == 1:
        return
    if last >= 0 and axes.stride[last] == length * stride:
        axes.shape[last] *= length
        axes.stride[last] = stride
        return
    axes.shape[axes.ndim] = length
    axes.stride[axes.ndim] = stride
    axes.ndim += 1


cdef void describe(Layout* layout, cnp.ndarray array, int code, uint64_t class_axes) noexcept:
    """Fill in `layout`. Dimensions whose bit is set in `class_axes` are classes, others rows."""
    cdef int d
    layout.data = <char*>cnp.PyArray_DATA(array)
    layout.dtype = <DType>code
    layout.swapped = cnp.PyArray_ISBYTESWAPPED(array)
    layout.rows.ndim = layout.classes.ndim = 0
    layout.rows.nearest = layout.classes.nearest = FAR
    for d in range(cnp.PyArray_NDIM(array)):
        append_axis(
            &layout.classes if class_axes >> d & 1 else &layout.rows,
            cnp.PyArray_DIM(array, d), cnp.PyArray_STRIDE(array, d),
        )


# --- what is plain ---------------------------------------------------------------------

cdef inline bint plain_array(object value) noexcept:
    """An array, but of no subclass: that could be masked."""
    return cnp.PyArray_CheckExact(value)


cdef long long kExact = 1 << 53  # integers up to here are doubles


cdef bint plain_real(object value, double* number) noexcept:
    """A float, or an int (but no bool) that is exact as a double."""
    if type(value) is float:
        number[0] = PyFloat_AS_DOUBLE(value)
        return True
    cdef long long integer
    if plain_integer(value, &integer) and -kExact <= integer <= kExact:
        number[0] = <double>integer
        return True
    return False


cdef bint plain_integer(object value, long long* number) noexcept:
    """An int of 64 bits that is no bool."""
    cdef int overflow = 0
    if type(value) is not int:
        return False
    number[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    return overflow == 0


cdef bint plain_threads(object value, int* number) noexcept:
    """A number of threads; 0 for None."""
    cdef long long integer = 0
    if value is not None and not (plain_integer(value, &integer) and 1 <= integer <= most_threads):
        return False
    number[0] = <int>integer
    return True


cdef bint plain_unit(object base, double* unit) noexcept:
    """1 / log(base): one nat in the unit of the result; None is e."""
    cdef double number
    unit[0] = 1
    if base is None:
        return True
    if not plain_real(base, &number) or not 1 < number < INFINITY:
        return False
    cdef uint64_t modes = set_default_modes()
    unit[0] = settled(1 / log(settled(number)))
    restore_modes(modes)
    return True


cdef bint plain_axis(object value, int ndim, int* axis) noexcept:
    """An axis as a number >= 0."""
    cdef long long number
    if not plain_integer(value, &number) or not -ndim <= number < ndim:
        return False
    axis[0] = <int>number + (ndim if number < 0 else 0)
    return True


cdef bint same_shape(cnp.ndarray a, cnp.ndarray b, int without) noexcept:
    """Is the shape of a that of b less dimension `without` (-1: none)?"""
    cdef int d, at = 0
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b) - (without >= 0):
        return False
    for d in range(cnp.PyArray_NDIM(b)):
        if d == without:
            continue
        if cnp.PyArray_DIM(a, at) != cnp.PyArray_DIM(b, d):
            return False
        at += 1
    return True


cdef bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Do two arrays of one shape and dtype have their elements at the same addresses?"""
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and memcmp(
        cnp.PyArray_STRIDES(a), cnp.PyArray_STRIDES(b), cnp.PyArray_NDIM(a) * sizeof(Py_ssize_t)
    ) == 0


cdef void extent(cnp.ndarray a, size_t* low, size_t* high) noexcept:
    """The address range [low, high) of its elements."""
    cdef int d
    cdef Py_ssize_t reach
    low[0] = high[0] = <size_t>cnp.PyArray_DATA(a)
    for d in range(cnp.PyArray_NDIM(a)):
        reach = (cnp.PyArray_DIM(a, d) - 1) * cnp.PyArray_STRIDE(a, d)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(a)


cdef bint disjoint(cnp.ndarray a, object b) noexcept:
    """Do the address ranges of two arrays not overlap? True if b is no array."""
    cdef size_t low, high, other_low, other_high
    if not isinstance(b, cnp.ndarray):
        return True
    extent(a, &low, &high)
    extent(b, &other_low, &other_high)
    return high <= other_low or other_high <= low


cdef bint plain_out(object out, cnp.ndarray like) noexcept:
    """Dense and writeable, shape and dtype of `like`; `like` itself or disjoint from it."""
    if not plain_array(out):
        return False
    cdef cnp.ndarray a = out
    cdef bint dense = cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a)
    if not (dense and cnp.PyArray_ISWRITEABLE(a) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(like)):
        return False
    if cnp.PyArray_ISBYTESWAPPED(a) != cnp.PyArray_ISBYTESWAPPED(like):
        return False
    return same_shape(a, like, -1) and (same_memory(a, like) or disjoint(a, like))


cdef bint all_finite(cnp.ndarray a) noexcept:
    """Are all elements of a contiguous float64 array finite?"""
    cdef Py_ssize_t i
    cdef bint non_finite = False
    cdef const double* v = <const double*>cnp.PyArray_DATA(a)
    for i in range(cnp.PyArray_SIZE(a)):
        non_finite |= v[i] - v[i] != 0  # nan - nan and inf - inf are nan
    return not non_finite
