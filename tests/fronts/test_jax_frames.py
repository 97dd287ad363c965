"""The handlers of XLA at its interface: what they answer and compute. JAX takes no part."""

import ctypes
import shutil
import subprocess
import threading

import jax
import numpy as np
import pytest
from helpers import xla_frames
from helpers.support import DTYPES, TARGETS, assert_bits

import xentropy as xe

# --- what they compute ---


LAYOUTS = [
    ((6, 5), -1),
    ((6, 5), 0),
    ((4, 7, 3), 1),
    ((9,), 0),
    ((1, 1, 9), 2),
    ((3, 1, 2), 1),
    ((2, 40_000), -1),
    ((3000, 400), -1),  # 4.8 MB of float32: past the caches
    ((1, 3, 1) * 13, 1),
    ((1,) * 70 + (3, 2), -2),  # more dimensions than NumPy has
]


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", TARGETS)
def test_bits_of_the_public_calls(kind, dtype, shape, axis):
    short = shape[-30:] if len(shape) > 64 else shape
    logits, target, upstream = xla_frames.operands(kind, short, dtype, axis)
    options = {"axis": axis, "reduction": "none"}
    expected = xe.cross_entropy_with_grad(logits, target, grad_output=upstream, **options)
    losses_call, losses = xla_frames.losses(logits, target, axis)
    gradient_call, gradient = xla_frames.gradient(logits, target, upstream, axis)
    for call in (losses_call, gradient_call):
        for buffer in (*call.arguments, *call.results):
            more = len(shape) - len(short)
            dims = [1] * more + buffer.shape[: buffer.rank]
            buffer.shape, buffer.rank = (ctypes.c_int64 * len(dims))(*dims), len(dims)
        assert call.run() is None
    assert_bits(losses, expected[0], "loss")
    assert_bits(gradient, expected[1], "gradient")


@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("upstream_dtype", DTYPES)
def test_mixed_floating_types(dtype, target_dtype, upstream_dtype):
    logits, target, upstream = xla_frames.operands("probabilities", dtype=dtype)
    target, upstream = target.astype(target_dtype), upstream.astype(upstream_dtype)
    call, gradient = xla_frames.gradient(logits, target, upstream)
    assert call.run() is None
    expected = xe.cross_entropy_with_grad(logits, target, reduction="none", grad_output=upstream)
    assert_bits(gradient, expected[1])


def test_a_row_with_label_minus_one_is_ignored():
    logits, target, upstream = xla_frames.operands()
    target[2], logits[2] = -1, np.nan
    for call, result in (
        xla_frames.losses(logits, target),
        xla_frames.gradient(logits, target, upstream),
    ):
        assert call.run() is None
        assert (result[2] == 0).all()
        assert np.isfinite(result).all()


def test_the_gradient_in_the_place_of_the_logits():
    logits, target, upstream = xla_frames.operands(shape=(3000, 400))
    expected = xe.cross_entropy_with_grad(logits, target, reduction="none", grad_output=upstream)
    call, _ = xla_frames.gradient(logits, target, upstream)
    call.results[0].data = call.arguments[0].data
    assert call.run() is None
    assert_bits(logits, expected[1])


@pytest.mark.parametrize("kind", TARGETS)
def test_no_rows_have_no_memory(kind):
    logits, target, upstream = xla_frames.operands(kind)
    logits, target, upstream = logits[:0], target[:0], upstream[:0]
    for call, _ in (
        xla_frames.losses(logits, target),
        xla_frames.gradient(logits, target, upstream),
    ):
        for buffer in (*call.arguments, *call.results):
            buffer.data = None
        assert call.run() is None


def test_on_threads_of_another_library_and_without_the_gil():
    """XLA's threads are not Python's, and `ctypes` releases the GIL as XLA does."""
    logits, target, _ = xla_frames.operands(shape=(500, 300))
    expected = xe.cross_entropy(logits, target, reduction="none")
    wrong = []

    def call():
        for _ in range(50):
            one, result = xla_frames.losses(logits, target)
            if one.run() is not None or (result != expected).any():
                wrong.append(result)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os, sys, time
import numpy as np
import xentropy as xe
from helpers import xla_frames
xe.set_num_threads(2)
logits = np.random.default_rng(0).normal(size=(3000, 200)).astype(np.float32)
target = (np.arange(3000) % 200).astype(np.int32)

def computed():
    call, result = xla_frames.losses(logits, target)
    assert call.run() is None
    return result

before = computed()
child = os.fork()
if child == 0:
    os._exit(0 if (computed() == before).all() else 3)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
assert status == 0, status
"""


def test_a_forked_child_computes_on_one_thread():
    xla_frames.run(FORKED)


# --- the version ---


@pytest.mark.parametrize("name", ["xentropy_losses", "xentropy_gradient"])
@pytest.mark.parametrize(("minor", "answer"), [(None, 1), (0, 0), (1, 1), (3, 3), (7, 7)])
def test_the_version_that_is_asked_for(name, minor, answer):
    """Any minor version; early ones have no table of functions in the frame. And no traits."""
    metadata = xla_frames.Metadata(size=36, version=xla_frames.Version(24, None, 9, 9), traits=9)
    extension = xla_frames.Extension(32, xla_frames.METADATA, None, ctypes.addressof(metadata))
    frame = xla_frames.Frame(size=168, extensions=ctypes.pointer(extension))
    if minor is not None:
        api = xla_frames.Api(size=192, version=xla_frames.Version(24, None, 0, minor))
        frame.api = ctypes.pointer(api)
    assert xla_frames.handler(name)(ctypes.byref(frame)) is None
    assert (metadata.version.major, metadata.version.minor) == (0, answer)
    assert metadata.traits == 0


def test_a_question_in_a_structure_too_small_is_left_without_an_answer():
    metadata = xla_frames.Metadata(size=32, traits=9)
    extension = xla_frames.Extension(32, xla_frames.METADATA, None, ctypes.addressof(metadata))
    frame = xla_frames.Frame(size=168, extensions=ctypes.pointer(extension))
    assert xla_frames.handler("xentropy_losses")(ctypes.byref(frame)) is None
    assert metadata.traits == 9


def test_another_extension_of_a_call_does_not_pass_for_the_question():
    call, result = xla_frames.losses(*xla_frames.operands()[:2])
    extension = xla_frames.Extension(32, 77, None, None)
    call.frame.extensions = ctypes.pointer(extension)
    assert call.run() is None
    assert np.isfinite(result).all()


SAME = """
#include <xla/ffi/api/c_api.h>
#include "xla_ffi.h"
using namespace xentropy::xla;
#define SAME(ours, mine, theirs, its) \\
  static_assert(offsetof(ours, mine) == offsetof(theirs, its) && \\
                sizeof(ours::mine) == sizeof(theirs::its), "")
SAME(Extension, kind, XLA_FFI_Extension_Base, type);
SAME(Extension, next, XLA_FFI_Extension_Base, next);
SAME(Version, major_version, XLA_FFI_Api_Version, major_version);
SAME(Version, minor_version, XLA_FFI_Api_Version, minor_version);
SAME(Metadata, version, XLA_FFI_Metadata, api_version);
SAME(Metadata, traits, XLA_FFI_Metadata, traits);
SAME(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);
SAME(ErrorArguments, message, XLA_FFI_Error_Create_Args, message);
SAME(ErrorArguments, code, XLA_FFI_Error_Create_Args, errc);
SAME(Api, version, XLA_FFI_Api, api_version);
SAME(Api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME(Buffer, type, XLA_FFI_Buffer, dtype);
SAME(Buffer, data, XLA_FFI_Buffer, data);
SAME(Buffer, rank, XLA_FFI_Buffer, rank);
SAME(Buffer, shape, XLA_FFI_Buffer, dims);
SAME(Buffers, count, XLA_FFI_Args, size);
SAME(Buffers, kinds, XLA_FFI_Args, types);
SAME(Buffers, items, XLA_FFI_Args, args);
SAME(Buffers, items, XLA_FFI_Rets, rets);
SAME(Name, start, XLA_FFI_ByteSpan, ptr);
SAME(Name, length, XLA_FFI_ByteSpan, len);
SAME(Scalar, type, XLA_FFI_Scalar, dtype);
SAME(Scalar, value, XLA_FFI_Scalar, value);
SAME(Attributes, count, XLA_FFI_Attrs, size);
SAME(Attributes, kinds, XLA_FFI_Attrs, types);
SAME(Attributes, names, XLA_FFI_Attrs, names);
SAME(Attributes, items, XLA_FFI_Attrs, attrs);
SAME(Frame, api, XLA_FFI_CallFrame, api);
SAME(Frame, stage, XLA_FFI_CallFrame, stage);
SAME(Frame, arguments, XLA_FFI_CallFrame, args);
SAME(Frame, results, XLA_FFI_CallFrame, rets);
SAME(Frame, attributes, XLA_FFI_CallFrame, attrs);
static_assert(kMajor == XLA_FFI_API_MAJOR, "");
static_assert(int(kMetadata) == XLA_FFI_Extension_Metadata, "");
static_assert(int(kExecute) == XLA_FFI_ExecutionStage_EXECUTE, "");
static_assert(int(kIsBuffer) == XLA_FFI_ArgType_BUFFER, "");
static_assert(int(kIsBuffer) == XLA_FFI_RetType_BUFFER, "");
static_assert(int(kIsScalar) == XLA_FFI_AttrType_SCALAR, "");
static_assert(int(kTypeS32) == XLA_FFI_DataType_S32, "");
static_assert(int(kTypeS64) == XLA_FFI_DataType_S64, "");
static_assert(int(kTypeF16) == XLA_FFI_DataType_F16, "");
static_assert(int(kTypeBF16) == XLA_FFI_DataType_BF16, "");
static_assert(int(kTypeF32) == XLA_FFI_DataType_F32, "");
static_assert(int(kTypeF64) == XLA_FFI_DataType_F64, "");
static_assert(int(kInvalidArgument) == XLA_FFI_Error_Code_INVALID_ARGUMENT, "");
static_assert(int(kResourceExhausted) == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "");
static_assert(int(kOutOfRange) == XLA_FFI_Error_Code_OUT_OF_RANGE, "");
"""


def test_the_declarations_are_those_of_the_installed_jaxlib(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    source = tmp_path / "same.cpp"
    source.write_text(SAME)
    command = [
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        f"-I{jax.ffi.include_dir()}",
        f"-I{xla_frames.ROOT}",
    ]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
