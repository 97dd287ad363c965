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
    try:
        table.dltensor_from_py_object_no_sync(<void*>tensor, &t)
    except Exception:  # sparse, or without memory
        return None
    if t.data == NULL or t.device_type != DL_CPU or t.ndim > MOST_DIMENSIONS:
        return None
    if t.strides == NULL and t.ndim:  # before DLPack 1.2: contiguous
        return None
    if t.bits * t.lanes != 8 * dtype.itemsize:
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
