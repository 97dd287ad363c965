"""Results of 128 KB and more: NumPy's own arrays in every respect, on memory that is used again."""

import ctypes
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.support import assert_bits, make_logits

import xentropy as xe

# One for each shelf of pages.cpp: 0.2, 2, 8 and 38 MB.
SHAPES = (16, 2_500), (16, 32_000), (16, 125_000), (16, 600_000)
SMAPS = Path("/proc/self/smaps")
MIB = 1 << 20

linux = pytest.mark.skipif(not SMAPS.exists(), reason="pages are kept on Linux alone")


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def case(request):
    x = make_logits(request.param)
    target = np.arange(len(x))
    out = np.empty_like(x)
    xe.cross_entropy_with_grad(x, target, out=out)
    return x, target, out


def gradient(case):
    return xe.cross_entropy_with_grad(*case[:2])[1]


def test_a_fresh_result_is_an_array_like_any_other(case):
    grad = gradient(case)
    assert type(grad) is np.ndarray
    assert grad.base is None
    assert grad.flags.owndata
    assert grad.flags.writeable
    assert grad.flags.c_contiguous
    assert_bits(grad, case[2])
    own = np.empty(1)  # not on pages: NumPy's memory is in use again
    assert own.ctypes.data % (2 * MIB) != 0


def test_the_memory_of_a_freed_result_serves_the_next_of_its_size(case):
    first = gradient(case)
    second = gradient(case)
    assert not np.may_share_memory(first, second)
    place = second.ctypes.data
    del second
    third = gradient(case)
    assert third.ctypes.data == place
    assert_bits(third, case[2])
    assert_bits(first, case[2])
    probabilities = xe.softmax(case[0], axis=1)  # another taker of the same size
    assert not np.may_share_memory(probabilities, third)


def test_resize_keeps_the_elements(case):
    grad = gradient(case)
    grad.resize((len(grad) + 1, grad.shape[1]))
    assert_bits(grad[:-1], case[2])
    assert (grad[-1] == 0).all()
    grad.resize((3, 4))
    assert_bits(grad, case[2].reshape(-1)[:12].reshape(3, 4))
    assert grad.flags.owndata
    assert_bits(gradient(case), case[2])


def test_a_view_keeps_the_memory_alive(case):
    row = gradient(case)[3]
    others = [gradient(case) for _ in range(2)]
    assert not any(np.may_share_memory(row, other) for other in others)
    assert_bits(row, case[2][3])


def test_tracemalloc_sees_a_result_come_and_go(case):
    tracemalloc.start()
    try:
        grad = gradient(case)
        assert grad.nbytes <= tracemalloc.get_traced_memory()[0] <= grad.nbytes + MIB
        del grad
        assert tracemalloc.get_traced_memory()[0] <= MIB
    finally:
        tracemalloc.stop()


def test_threads_do_not_share_a_result(case):
    def run(k):
        for _ in range(5):
            grad = gradient(case)
            grad[k % 16, 5] += k
            assert grad[k % 16, 5] == case[2][k % 16, 5] + np.float32(k)
            grad[k % 16, 5] = case[2][k % 16, 5]
            assert (grad == case[2]).all()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


def test_no_memory_is_a_memory_error():
    """Logits of one element each, broadcast: the result would be larger than the address space."""
    x = np.broadcast_to(np.float32(0), (2**23, 2**24))
    with pytest.raises(MemoryError):
        xe.softmax(x, axis=1)


class Allocator(ctypes.Structure):
    """NumPy's PyDataMem_Handler, version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
    )


def set_handler(capsule):
    """NumPy's PyDataMem_SetHandler, number 304 of its table of functions."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(
        get(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p)
    )
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])(capsule)


@linux
def test_memory_of_the_users_own_kind_is_respected(case):
    libc, sizes = ctypes.CDLL(None), []
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)

    def malloc(_, size):
        sizes.append(size)
        return libc.malloc(size)

    types = dict(Allocator._fields_)
    theirs = Allocator(b"theirs", 1)
    theirs.malloc, theirs.free = (
        types["malloc"](malloc),
        types["free"](lambda _, p, __: libc.free(p)),
    )
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    name = ctypes.c_char_p(b"mem_handler")
    before = set_handler(new(ctypes.addressof(theirs), name, None))
    try:
        grad = gradient(case)
    finally:
        set_handler(before)
    assert sizes.count(grad.nbytes) == 1
    assert_bits(grad, case[2])
    del grad
    gradient(case)
    assert sizes.count(case[2].nbytes) == 1
