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
    DL_INT = 0
    DL_FLOAT = 2
    DL_BFLOAT = 4
    MOST_DIMENSIONS = 32


# Gradients smaller than this are allocated by the framework: a tensor made of an array takes 2 us
# more. Larger ones are allocated here: the memory of a freed result is used again (_results.pxi).
SMALL_BYTES = 1 << 20
cdef Py_ssize_t small_bytes = SMALL_BYTES


@cython.final
cdef class Tensors:
    """The tensors of a framework: their memory, and calls of the kernels on it.

    A method returns None if the memory of a tensor cannot be had, or as the function that it calls.
    """
    cdef Exchange* table  # or NULL
    cdef set types
    cdef object bfloat16, empty_like, from_array

    def __init__(self, set types not None, exchange, bfloat16, empty_like, from_array):
        """`types`: theirs; `exchange`: their table, or None; `bfloat16`: NumPy's dtype, or None.

        `empty_like` makes a tensor like another, `from_array` one on the memory of an array.
        """
        self.table = NULL
        if exchange is not None:
            self.table = <Exchange*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
            if self.table.major != DL_MAJOR or self.table.dltensor_from_py_object_no_sync == NULL:
                self.table = NULL
        self.types, self.bfloat16 = types, bfloat16
        self.empty_like, self.from_array = empty_like, from_array

    def on_cpu(self, tuple tensors):
        """Are they of these types themselves, no subclasses, and on the CPU, or None?"""
        for tensor in tensors:
            if tensor is not None and not (type(tensor) in self.types and tensor.is_cpu):
                return False
        return True

    def arrays(self, tuple tensors):
        """Arrays on their memory, with a reference to them; None stays None."""
        cdef list arrays = []
        for tensor in tensors:
            array = self.array(tensor)
            if array is None and tensor is not None:
                return None
            arrays.append(array)
        return tuple(arrays)

    cdef cnp.ndarray array(self, object tensor, bint fresh=False):
        """The array on the memory of one tensor, or None. `fresh`: no view."""
        cdef DLTensor t
        cdef cnp.npy_intp[MOST_DIMENSIONS] shape, strides
        cdef cnp.ndarray array
        cdef cnp.dtype dtype
        cdef int d
        if tensor is None or self.table == NULL or not describe_tensor(tensor, self.table, &t):
            return None
        dtype = self.bfloat16 if t.type_code == DL_BFLOAT else dtype_of(&t)
        if dtype is None or not (fresh or is_plain(tensor, &t)):
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

    cpdef object cross_entropy(self, bint with_grad, tuple tensors, Options options,
                               object grad_output, object out, bint checked):
        """`compute_cross_entropy` of logits, target, weight, sample_weight; a tensor as gradient.

        `grad_output` is a number or an array.
        """
        logits, target, weight, sample_weight = tensors
        cdef cnp.ndarray x = self.array(logits), y = self.array(target)
        cdef cnp.ndarray w = self.array(weight), v = self.array(sample_weight)
        if (x is None or y is None or (w is None) != (weight is None)
                or (v is None) != (sample_weight is None)):
            return None
        cdef bint fresh = (with_grad and out is None and cnp.PyArray_NBYTES(x) < small_bytes
                           and cnp.PyArray_IS_C_CONTIGUOUS(x))
        if fresh:
            out = self.empty_like(logits)
        cdef cnp.ndarray place = self.array(out, fresh)
        if (place is None) != (out is None):
            return None
        result = computed(with_grad, x, y, w, v, options, grad_output, place, checked, False, False)
        if result is None or not with_grad:
            return result
        loss, gradient = result
        return loss, self.from_array(gradient) if out is None else out

    def one_loss(self, bint with_grad, tuple tensors, Options options not None, like):
        """The same with the loss, a number, as a tensor like this one."""
        if like is None or reduction_of(options.reduction) == kNone:
            return None
        result = self.cross_entropy(with_grad, tensors, options, None, None, False)
        if result is None:
            return None
        loss, gradient = result if with_grad else (result, None)
        place = self.empty_like(like)
        if not self.put(place, loss):
            return None
        return (place, gradient) if with_grad else place

    def number(self, tensor):
        """The number in a tensor of shape () and type float32 or float64."""
        cdef int bits
        cdef void* place = NULL if tensor.is_neg() else self.place_of(tensor, &bits)
        if place == NULL:
            return None
        return (<float*>place)[0] if bits == 32 else (<double*>place)[0]

    cpdef bint put(self, tensor, double value):
        """Store a number in a fresh one, rounded, inf where it is too large; False: not done."""
        cdef int bits
        cdef void* place = self.place_of(tensor, &bits)
        if place == NULL:
            return False
        if bits == 32:
            (<float*>place)[0] = <float>value
        else:
            (<double*>place)[0] = value
        return True

    cdef void* place_of(self, object tensor, int* bits):
        """Where the number of such a tensor is, and its size; or NULL.

        Torch's own .item() takes 2 us, of the 35 of a step on 32 x 10 logits.
        """
        cdef DLTensor t
        if self.table == NULL or not describe_tensor(tensor, self.table, &t):
            return NULL
        if t.ndim or t.lanes != 1 or t.type_code != DL_FLOAT or (t.bits != 32 and t.bits != 64):
            return NULL
        bits[0] = t.bits
        return t.data + t.byte_offset


cdef cnp.dtype dtype_of(const DLTensor* t):
    """NumPy's own dtype of this tensor's elements, or None."""
    cdef int number = -1
    if t.lanes != 1:
        return None
    if t.type_code == DL_INT and t.bits == 64:
        number = cnp.NPY_INT64
    elif t.type_code == DL_FLOAT and t.bits in (16, 32, 64):
        number = (cnp.NPY_FLOAT16 if t.bits == 16 else cnp.NPY_FLOAT32 if t.bits == 32
                  else cnp.NPY_FLOAT64)
    return None if number < 0 else cnp.PyArray_DescrFromType(number)


cdef bint is_plain(object tensor, const DLTensor* t):
    """Are its values those in memory, and not their negatives?

    Integers are: in torch only the imaginary part of a conjugate is a negated view. To ask costs
    a change of the GIL's holder.
    """
    return t.type_code == DL_INT or not tensor.is_neg()


cdef bint describe_tensor(object tensor, Exchange* table, DLTensor* t):
    """Can the memory of this tensor be had? *t says where it is."""
    try:
        table.dltensor_from_py_object_no_sync(<void*>tensor, t)
    except Exception:  # sparse, or without memory
        return False
    if t.data == NULL or t.device_type != DL_CPU or t.ndim > MOST_DIMENSIONS:
        return False
    return t.strides != NULL or t.ndim == 0  # before DLPack 1.2: contiguous
