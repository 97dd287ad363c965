"""Calls of XLA's handlers as XLA makes them, or would not: frames that a test can change first.

Its C structures are declared here once more, for `ctypes`: all of what XLA passes.
"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p

import ml_dtypes
import numpy as np

import xentropy as xe
from xentropy import _kernels

from . import processes
from .support import make_logits, make_target

ROOT = xe.__path__[0]
TYPES = {
    np.dtype(np.int32): 4,
    np.dtype(np.int64): 5,
    np.dtype(np.float16): 10,
    np.dtype(np.float32): 11,
    np.dtype(np.float64): 12,
    np.dtype(ml_dtypes.bfloat16): 16,
}
EXECUTE, BUFFER, SCALAR, METADATA = 3, 1, 3, 1
HEAD = [("size", c_size_t), ("extensions", c_void_p)]


class Version(Structure):
    _fields_ = [*HEAD, ("major", c_int), ("minor", c_int)]


class Metadata(Structure):
    _fields_ = [("size", c_size_t), ("version", Version), ("traits", c_uint32)]


class Extension(Structure):
    _fields_ = [("size", c_size_t), ("kind", c_int), ("next", c_void_p), ("metadata", c_void_p)]


class ErrorArguments(Structure):
    _fields_ = [*HEAD, ("message", c_char_p), ("code", c_int)]


MAKE_ERROR = ctypes.CFUNCTYPE(c_void_p, POINTER(ErrorArguments))


class Api(Structure):
    _fields_ = [*HEAD, ("version", Version), ("internal", c_void_p), ("make_error", MAKE_ERROR)]


class Buffer(Structure):
    _fields_ = [
        *HEAD,
        ("type", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("shape", POINTER(c_int64)),
    ]


class Buffers(Structure):
    _fields_ = [*HEAD, ("count", c_int64), ("kinds", POINTER(c_int)), ("items", POINTER(c_void_p))]


class Name(Structure):
    _fields_ = [("start", c_char_p), ("length", c_size_t)]


class Scalar(Structure):
    _fields_ = [("type", c_int), ("value", POINTER(c_int64))]


class Attributes(Structure):
    _fields_ = [
        *HEAD,
        ("count", c_int64),
        ("kinds", POINTER(c_int)),
        ("names", POINTER(POINTER(Name))),
        ("items", POINTER(POINTER(Scalar))),
    ]


class Frame(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("extensions", POINTER(Extension)),
        ("api", POINTER(Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", Buffers),
        ("results", Buffers),
        ("attributes", Attributes),
        ("future", c_void_p),
    ]


HANDLER = ctypes.CFUNCTYPE(c_void_p, POINTER(Frame))
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)


def handler(name):
    """The handler of a target, to be called with a frame."""
    return HANDLER(_pointer(_kernels.xla_handlers()[name], None))


class Call:
    """A call of a target with NumPy's arrays in C order; all of it can be changed before `run`."""

    def __init__(self, name, arguments, result, axis=-1):
        self.handler = handler(name)
        self.errors = []
        self.make_error = MAKE_ERROR(self._make_error)  # kept, as all that the frame points to
        size = ctypes.sizeof
        version = Version(size(Version), None, 0, 3)
        self.api = Api(size(Api), None, version, None, self.make_error)
        self.arguments = [self.buffer(array) for array in arguments]
        self.results = [self.buffer(result)]
        self.name = Name(b"axis", 4)
        self.axis = c_int64(axis)
        self.scalar = Scalar(TYPES[np.dtype(np.int64)], ctypes.pointer(self.axis))
        self.attribute_kinds = (c_int * 1)(SCALAR)
        self.frame = Frame(
            size=Frame.future.offset,
            api=ctypes.pointer(self.api),
            stage=EXECUTE,
            arguments=self.buffers(self.arguments),
            results=self.buffers(self.results),
            attributes=Attributes(
                size(Attributes),
                None,
                1,
                self.attribute_kinds,
                (POINTER(Name) * 1)(ctypes.pointer(self.name)),
                (POINTER(Scalar) * 1)(ctypes.pointer(self.scalar)),
            ),
        )

    def buffer(self, array):
        shape = (c_int64 * array.ndim)(*array.shape)
        return Buffer(
            ctypes.sizeof(Buffer), None, TYPES[array.dtype], array.ctypes.data, array.ndim, shape
        )

    def buffers(self, items):
        kinds = (c_int * len(items))(*[BUFFER] * len(items))
        addresses = (c_void_p * len(items))(*map(ctypes.addressof, items))
        return Buffers(ctypes.sizeof(Buffers), None, len(items), kinds, addresses)

    def _make_error(self, pointer):
        made = pointer.contents
        self.errors.append((made.code, made.message.decode()))
        return 0x5EED  # for XLA an object, for the handler an address

    def run(self):
        """None, or the error: its code and its text."""
        returned = self.handler(ctypes.byref(self.frame))
        assert bool(returned) == bool(self.errors)
        return self.errors.pop() if self.errors else None


def losses(logits, target, axis=-1):
    """A call of xentropy_losses, and the array for its result."""
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    rows = np.delete(logits.shape, axis)
    result = np.full(rows, np.nan, dtype)
    return Call("xentropy_losses", (logits, target), result, axis), result


def gradient(logits, target, upstream, axis=-1):
    """The same of xentropy_gradient."""
    result = np.full_like(logits, np.nan)
    return Call("xentropy_gradient", (logits, target, upstream), result, axis), result


def operands(kind="labels", shape=(6, 5), dtype="float32", axis=-1):
    """Logits, target and upstream gradient."""
    logits = make_logits(shape, dtype)
    target = np.asarray(make_target(kind, shape, axis % len(shape), dtype=dtype))
    target = target.astype(np.int32) if kind == "labels" else target
    rows = np.delete(shape, axis)
    upstream = np.random.default_rng(5).choice([-2.0, 0.25, 1.0], size=rows).astype(dtype)
    return logits, target, upstream


def run(code):
    """What a process of its own prints, which finds these modules and xentropy."""
    return processes.run(code, PYTHONPATH=f"{ROOT}/../tests:{ROOT}/..")
