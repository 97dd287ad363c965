# Arrays for results. Part of _kernels.pyx.

cdef extern from "kernels/driver/pages.h" namespace "xentropy" nogil:
    bint pages_serve(size_t n_bytes)
    void* allocate_pages(size_t n_bytes)
    void free_pages(void* data)
    void release_kept_pages()
    size_t pages_size(const void* data)
    bint pages_reused(const void* data)

# NumPy's own declarations, which the .pxd of its older versions does not have.
cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void* (*malloc)(void* context, size_t size) noexcept nogil
        void* (*calloc)(void* context, size_t n, size_t each) noexcept nogil
        void* (*realloc)(void* context, void* data, size_t size) noexcept nogil
        void (*free)(void* context, void* data, size_t size) noexcept nogil

    ctypedef struct PyDataMem_Handler:
        char* name
        unsigned char version
        PyDataMemAllocator allocator

    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()

cdef bint keeps_results = os.environ.get("XENTROPY_KEEP_RESULT") != "0"

# NumPy's interface for allocators: arrays own their memory, and resize() works, as usual.


cdef void* pages_malloc(void* context, size_t size) noexcept nogil:
    return allocate_pages(size)


cdef void* pages_calloc(void* context, size_t n, size_t each) noexcept nogil:
    if each != 0 and n > <size_t>-1 // each:
        return NULL
    cdef void* data = allocate_pages(n * each)
    return NULL if data == NULL else memset(data, 0, n * each)


cdef void* pages_realloc(void* context, void* data, size_t size) noexcept nogil:
    cdef void* moved = allocate_pages(size)
    if data != NULL and moved != NULL:
        memcpy(moved, data, min(size, pages_size(data)))
        free_pages(data)
    return moved


cdef void pages_free(void* context, void* data, size_t size) noexcept nogil:
    free_pages(data)


cdef PyDataMem_Handler pages_handler
memset(&pages_handler, 0, sizeof(pages_handler))
strcpy(pages_handler.name, "xentropy_pages")
pages_handler.version = 1
pages_handler.allocator.malloc = pages_malloc
pages_handler.allocator.calloc = pages_calloc
pages_handler.allocator.realloc = pages_realloc
pages_handler.allocator.free = pages_free
cdef object pages_capsule = PyCapsule_New(&pages_handler, "mem_handler", NULL)


cdef cnp.ndarray fresh(cnp.ndarray like):
    """An uninitialised result: shape, dtype and memory order of `like`, native bytes."""
    theirs = set_pages_handler(cnp.PyArray_NBYTES(like))
    try:
        return empty_like(like)
    finally:
        if theirs is not None:
            PyDataMem_SetHandler(theirs)


def empty(tuple shape, object dtype):
    """An uninitialised array in C order and native bytes, for results that others write."""
    cdef object native = np.dtype(dtype).newbyteorder("=")
    theirs = set_pages_handler(math.prod(shape) * native.itemsize)
    try:
        return np.empty(shape, native)
    finally:
        if theirs is not None:
            PyDataMem_SetHandler(theirs)


cdef object set_pages_handler(size_t n_bytes):
    """Let NumPy allocate the next array on our pages; the handler to restore, or None.

    None if there is nothing to gain, or if the user has set an allocator.
    """
    if not keeps_results or not pages_serve(n_bytes):
        return None
    if not is_default(PyDataMem_GetHandler()):
        return None
    return PyDataMem_SetHandler(pages_capsule)


cdef bint is_default(object handler) except -1:
    cdef const char* name = (
        <PyDataMem_Handler*>PyCapsule_GetPointer(handler, "mem_handler")
    ).name
    return strcmp(name, "default_allocator") == 0


# Results of this size are written by non-temporal stores; but not into untouched pages, which the
# system zeroes on first touch, so that they are in cache.
cdef Py_ssize_t STREAM_BYTES = 4 << 20

# From this size on malloc always returns freed memory to the system, so that what it gives is
# untouched.
cdef Py_ssize_t UNTOUCHED_BYTES = 32 << 20


cdef bint past_caches(cnp.ndarray result, cnp.ndarray x, bint given) except -1:
    """Is the result to be written past the caches? Not in place, nor if it fits into them."""
    if cnp.PyArray_NBYTES(result) < STREAM_BYTES or same_memory(result, x):
        return False
    return given or not is_untouched(result)


cdef bint is_untouched(cnp.ndarray result) except -1:
    """Is a fresh result on pages that the system has yet to provide?"""
    if PyArray_HANDLER(result) == <PyObject*>pages_capsule:
        return not pages_reused(cnp.PyArray_DATA(result))
    return cnp.PyArray_NBYTES(result) >= UNTOUCHED_BYTES


cdef cnp.ndarray empty_like(cnp.ndarray like):
    cdef cnp.dtype dtype = like.descr
    if cnp.PyArray_ISBYTESWAPPED(like):
        dtype = dtype.newbyteorder("=")
    Py_INCREF(dtype)  # the next call takes the reference
    return PyArray_NewLikeArray(like, cnp.NPY_KEEPORDER, dtype, 0)


cdef cnp.ndarray empty_rows(cnp.ndarray x, uint64_t class_axes, bint keepdims, bint float64):
    """An uninitialised array for one value per row, in C order."""
    cdef cnp.npy_intp[64] shape
    cdef int d, ndim = 0
    cdef size_t n_bytes = 8 if float64 else 4
    for d in range(cnp.PyArray_NDIM(x)):
        if keepdims or not class_axes >> d & 1:
            shape[ndim] = 1 if class_axes >> d & 1 else cnp.PyArray_DIM(x, d)
            n_bytes *= shape[ndim]
            ndim += 1
    theirs = set_pages_handler(n_bytes)
    try:
        return cnp.PyArray_EMPTY(ndim, shape, cnp.NPY_DOUBLE if float64 else cnp.NPY_FLOAT, 0)
    finally:
        if theirs is not None:
            PyDataMem_SetHandler(theirs)


cdef object unboxed(cnp.ndarray array):
    """The array, or its scalar if it has no dimensions."""
    Py_INCREF(array)  # the next call takes the reference
    return cnp.PyArray_Return(array)
