"""Python functions as handlers of XLA's foreign function interface (FFI), with nothing to compile.

XLA calls a handler with a frame that holds the addresses of arguments and results. Its C
declaration, xla/ffi/api/c_api.h, comes with jaxlib, and a build of this package must not need
jaxlib; the fields that a handler reads are therefore declared here again, for `ctypes`. Both sides
check them: XLA asks a handler for its version when it is registered, and each structure begins
with its size.

A call has an overhead of some 15 us: `ctypes` acquires the GIL and makes each array, a view of
XLA's memory, in Python. Nothing is copied.
"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import jax
import ml_dtypes
import numpy as np

MAJOR = 0  # of the interface; a minor version only appends to the structures
EARLY_MINOR = 1  # of jaxlib 0.5 to 0.7, whose frames do not carry it
METADATA = 1  # XLA_FFI_Extension_Metadata: a frame by which XLA asks for the version
INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

# XLA_FFI_DataType, of the dtypes that the kernels support.
DTYPES = {
    4: np.dtype(np.int32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    16: np.dtype(ml_dtypes.bfloat16),
}

# Every structure starts with its size and a list of extensions.
HEAD: list[Any] = [("struct_size", c_size_t), ("extensions", c_void_p)]


class Version(Structure):
    """XLA_FFI_Api_Version."""

    _fields_ = [*HEAD, ("major", c_int), ("minor", c_int)]


class Metadata(Structure):
    """XLA_FFI_Metadata, up to the version."""

    _fields_ = [("struct_size", c_size_t), ("version", Version)]


class Extension(Structure):
    """XLA_FFI_Metadata_Extension."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(Metadata)),
    ]


class ErrorArguments(Structure):
    """XLA_FFI_Error_Create_Args."""

    _fields_ = [*HEAD, ("message", c_char_p), ("code", c_int)]


class Api(Structure):
    """XLA_FFI_Api, up to its first function."""

    _fields_ = [
        *HEAD,
        ("version", Version),
        ("internal", c_void_p),
        ("error", ctypes.CFUNCTYPE(c_void_p, POINTER(ErrorArguments))),
    ]


class Buffer(Structure):
    """XLA_FFI_Buffer: a dense array in C order."""

    _fields_ = [
        *HEAD,
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("shape", POINTER(c_int64)),
    ]


class Buffers(Structure):
    """XLA_FFI_Args and XLA_FFI_Rets."""

    _fields_ = [*HEAD, ("size", c_int64), ("types", c_void_p), ("items", POINTER(POINTER(Buffer)))]


class Scalar(Structure):
    """XLA_FFI_Scalar: an attribute that is one number, here always an int64."""

    _fields_ = [("dtype", c_int), ("value", POINTER(c_int64))]


class Attributes(Structure):
    """XLA_FFI_Attrs, sorted by name."""

    _fields_ = [
        *HEAD,
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("items", POINTER(POINTER(Scalar))),
    ]


class Frame(Structure):
    """XLA_FFI_CallFrame, up to the attributes."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("extensions", POINTER(Extension)),
        ("api", POINTER(Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", Buffers),
        ("results", Buffers),
        ("attributes", Attributes),
    ]


HANDLER = ctypes.CFUNCTYPE(c_void_p, POINTER(Frame))
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, (c_void_p, c_size_t, c_int)
READ, WRITE = 0x100, 0x200
_registered: list[Any] = []  # XLA keeps their addresses for as long as the process lives


def register(name, function):
    """Let `jax.ffi.ffi_call(name, ...)(*arguments, attribute=int64)` on a CPU call `function`.

    Its parameters are the attribute, a list of read-only arrays, and a list of arrays for the
    results. JAX raises its exceptions, with their text, as `JaxRuntimeError` or `ValueError`.
    """

    def handle(pointer):
        frame = pointer.contents
        if frame.extensions:
            return _tell_version(frame)
        try:
            function(*_opened(frame))
        except BaseException as error:  # the callers are C++
            return _failed(frame, f"{name}: {type(error).__name__}: {error}")
        return None

    handler = HANDLER(handle)
    address = ctypes.cast(handler, c_void_p).value
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(address), platform="cpu")
    _registered.append(handler)


def _tell_version(frame):
    """Fill in the version of the interface that the handler is for: any minor of our major."""
    extension = frame.extensions.contents
    if extension.type == METADATA:
        version = extension.metadata.contents.version
        version.major = MAJOR
        version.minor = frame.api.contents.version.minor if frame.api else EARLY_MINOR


def _opened(frame):
    """The attribute, the arguments and the results of a call."""
    parts = frame, frame.arguments, frame.results, frame.attributes
    if any(part.struct_size < ctypes.sizeof(type(part)) for part in parts):
        raise RuntimeError("XLA's call frame is smaller than that of its version 0.0")
    attribute = frame.attributes.items[0].contents.value[0]
    return attribute, _arrays(frame.arguments, READ), _arrays(frame.results, WRITE)


def _arrays(buffers, access):
    return [_array(buffers.items[i].contents, access) for i in range(buffers.size)]


def _array(buffer, access):
    """A view of a buffer."""
    shape, dtype = buffer.shape[: buffer.rank], DTYPES[buffer.dtype]
    size = dtype.itemsize
    for length in shape:
        size *= length
    return np.ndarray(shape, dtype, _memory(buffer.data, size, access))


def _failed(frame, message):
    """An error of XLA with this text; XLA owns it."""
    size = ctypes.sizeof(ErrorArguments)
    arguments = ErrorArguments(size, None, message.encode(), INTERNAL)
    return frame.api.contents.error(ctypes.byref(arguments))
