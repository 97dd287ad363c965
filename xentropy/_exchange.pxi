# Tensors of other frameworks as arrays: DLPack's C exchange API. Part of _kernels.pyx.
#
# A type of tensors has a table of C functions in `__dlpack_c_exchange_api__`. One of them describes
# a tensor without taking ownership, which takes 0.2 us with the array around it; PyTorch's own
# .numpy() takes 1 us, and a step on 32 x 10 logits makes three arrays.

cdef struct DLTensor:
    char* data
    int32_t device_type, device_id, ndim
    uint8_t type_code, bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides  # in elements
    uint64_t byte_offset

# DLPackExchangeAPI
cdef struct Exchange:
    uint32_t major, minor  # of DLPack; a minor version only adds codes of types and devices
    void* prev_api
    void* managed_tensor_allocator
    void* managed_tensor_from_py_object_no_sync
    void* managed_tensor_to_py_object_no_sync
    int (*dltensor_from_py_object_no_sync)(void* tensor, DLTensor* out) except -1  # may be NULL
    void* current_work_stream

cdef enum:
    DL_MAJOR = 1
    DL_CPU = 1
    DL_FLOAT = 2
    MOST_DIMENSIONS = 32


def exchanged(tuple tensors, object exchange, dict dtypes):
    """Arrays on the memory of tensors, with a reference to them; None stays None.

    None for all if one of them cannot be had in this way. `exchange` is the table of their
    type; `dtypes` maps the tensors' types to NumPy's.
    """
    cdef Exchange* table = <Exchange*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
    cdef list arrays = []
    if table.major != DL_MAJOR or table.dltensor_from_py_object_no_sync == NULL:
        return None
    for tensor in tensors:
        array = None
        if tensor is not None:
            dtype = dtypes.get(tensor.dtype)
            if dtype is None or tensor.is_neg():  # the memory has the negated values
                return None
            array = exchanged_one(tensor, table, dtype)
            if array is None:
                return None
        arrays.append(array)
    return tuple(arrays)


cdef object exchanged_one(object tensor, Exchange* table, cnp.dtype dtype):
    """The array on the memory of one tensor, or None."""
    cdef DLTensor t
    cdef cnp.npy_intp[MOST_DIMENSIONS] shape, strides
    cdef cnp.ndarray array
    cdef int d
    if not describe_tensor(tensor, table, &t) or t.bits * t.lanes != 8 * dtype.itemsize:
        return None
    for d in range(t.ndim):
        shape[d], strides[d] = t.shape[d], t.strides[d] * dtype.itemsize
    Py_INCREF(dtype)  # the next call takes the reference
    array = PyArray_NewFromDescr(
        cnp.ndarray, dtype, t.ndim, shape, strides, t.data + t.byte_offset,
        cnp.NPY_ARRAY_WRITEABLE, None,
    )
    cnp.set_array_base(array, tensor)
    return array


cdef bint describe_tensor(object tensor, Exchange* table, DLTensor* t):
    """Can the memory of this tensor be had? *t says where it is."""
    try:
        table.dltensor_from_py_object_no_sync(<void*>tensor, t)
    except Exception:  # sparse, or without memory
        return False
    if t.data == NULL or t.device_type != DL_CPU or t.ndim > MOST_DIMENSIONS:
        return False
    return t.strides != NULL or t.ndim == 0  # before DLPack 1.2: contiguous


cdef void* place_of(object tensor, object exchange, int* bits):
    """Where the one number of a tensor of float32 or float64 is, and its size; NULL if it has none.

    Torch's own .item() takes 2 us, of the 35 of a step on 32 x 10 logits.
    """
    cdef DLTensor t
    cdef Exchange* table
    if exchange is None:
        return NULL
    table = <Exchange*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
    if table.major != DL_MAJOR or table.dltensor_from_py_object_no_sync == NULL:
        return NULL
    if tensor.is_neg() or not describe_tensor(tensor, table, &t) or t.ndim or t.lanes != 1:
        return NULL
    if t.type_code != DL_FLOAT or (t.bits != 32 and t.bits != 64):
        return NULL
    bits[0] = t.bits
    return t.data + t.byte_offset


def number_of(tensor, exchange):
    """The number in a tensor of shape () and type float32 or float64; None if it cannot be had."""
    cdef int bits
    cdef void* place = place_of(tensor, exchange, &bits)
    if place == NULL:
        return None
    return (<float*>place)[0] if bits == 32 else (<double*>place)[0]


def put_number(tensor, exchange, double value):
    """Store a number there, rounded, inf where it is too large; False if it cannot be done."""
    cdef int bits
    cdef void* place = place_of(tensor, exchange, &bits)
    if place == NULL:
        return False
    if bits == 32:
        (<float*>place)[0] = <float>value
    else:
        (<double*>place)[0] = value
    return True
