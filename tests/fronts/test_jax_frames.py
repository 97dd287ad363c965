"""The handlers of XLA at its interface: what they answer, compute, refuse. JAX takes no part."""

import ctypes
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from helpers import xla_frames
from helpers.processes import run
from helpers.support import DTYPES, TARGETS, assert_bits, make_logits, make_target

import xentropy as xe
from xentropy import _kernels

INVALID_ARGUMENT, OUT_OF_RANGE = 3, 11
ROOT = xe.__path__[0]


def case(kind="labels", shape=(6, 5), dtype="float32", axis=-1):
    logits = make_logits(shape, dtype)
    target = np.asarray(make_target(kind, shape, axis % len(shape), dtype=dtype))
    target = target.astype(np.int32) if kind == "labels" else target
    rows = np.delete(shape, axis)
    upstream = np.random.default_rng(5).choice([-2.0, 0.25, 1.0], size=rows).astype(dtype)
    return logits, target, upstream


# --- what they compute ----------------------------------------------------------------------

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
    logits, target, upstream = case(kind, short, dtype, axis)
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
    logits, target, upstream = case("probabilities", dtype=dtype)
    target, upstream = target.astype(target_dtype), upstream.astype(upstream_dtype)
    call, gradient = xla_frames.gradient(logits, target, upstream)
    assert call.run() is None
    expected = xe.cross_entropy_with_grad(logits, target, reduction="none", grad_output=upstream)
    assert_bits(gradient, expected[1])


def test_a_row_with_label_minus_one_is_ignored():
    logits, target, upstream = case()
    target[2], logits[2] = -1, np.nan
    for call, result in (
        xla_frames.losses(logits, target),
        xla_frames.gradient(logits, target, upstream),
    ):
        assert call.run() is None
        assert (result[2] == 0).all()
        assert np.isfinite(result).all()


def test_the_gradient_in_the_place_of_the_logits():
    logits, target, upstream = case(shape=(3000, 400))
    expected = xe.cross_entropy_with_grad(logits, target, reduction="none", grad_output=upstream)
    call, _ = xla_frames.gradient(logits, target, upstream)
    call.results[0].data = call.arguments[0].data
    assert call.run() is None
    assert_bits(logits, expected[1])


@pytest.mark.parametrize("kind", TARGETS)
def test_no_rows_have_no_memory(kind):
    logits, target, upstream = case(kind)
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
    logits, target, _ = case(shape=(500, 300))
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
    run(FORKED, PYTHONPATH=f"{ROOT}/../tests:{ROOT}/..")


# --- the version ----------------------------------------------------------------------------


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
    call, result = xla_frames.losses(*case()[:2])
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
    command = ["c++", "-std=c++17", "-fsyntax-only", f"-I{jax.ffi.include_dir()}", f"-I{ROOT}"]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what they refuse -----------------------------------------------------------------------


def change(path, value):
    """A change of a call: `path` as Python would write it after "call."."""

    def apply(call):
        *where, last = path.split(".")
        owner = call
        for name in where:
            owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
        setattr(owner, last, value)

    return apply


def kinds(which, value):
    def apply(call):
        getattr(call.frame, which).kinds[0] = value

    return apply


def shape(which, number, dims):
    def apply(call):
        buffer = getattr(call, which)[number]
        buffer.shape, buffer.rank = (ctypes.c_int64 * len(dims))(*dims), len(dims)

    return apply


def no_item(which):
    def apply(call):
        getattr(call.frame, which).items[0] = None

    return apply


def onto(number):
    def apply(call):
        call.results[0].data = call.arguments[number].data

    return apply


def shifted(call):
    call.results[0].data = call.arguments[0].data + 8


def scalar_type(call):
    call.scalar.type = 4


BAD = {
    "another major version": (change("api.version.major", 1), "version 1 of XLA's interface"),
    "a table without functions": (change("api.size", 48), "version 0 of XLA's interface"),
    "a frame too small": (change("frame.size", 160), "smaller than that of its version 0.0"),
    "a frame of size 0": (change("frame.size", 0), "smaller"),
    "arguments too small": (change("frame.arguments.size", 32), "smaller"),
    "results too small": (change("frame.results.size", 0), "smaller"),
    "attributes too small": (change("frame.attributes.size", 40), "smaller"),
    "another stage": (change("frame.stage", 2), "called at stage 2, not to execute"),
    "no arguments": (change("frame.arguments.count", 0), "takes 3 arguments for 1 result, not 0"),
    "an argument more": (change("frame.arguments.count", 4), "not 4 for 1"),
    "a negative count": (change("frame.arguments.count", -1), "not -1 for 1"),
    "no result": (change("frame.results.count", 0), "not 3 for 0"),
    "no attribute": (change("frame.attributes.count", 0), "takes one attribute, axis: int64"),
    "two attributes": (change("frame.attributes.count", 2), "takes one attribute"),
    "another attribute": (change("name.start", b"axes"), "takes one attribute"),
    "a longer attribute": (change("name.length", 5), "takes one attribute"),
    "an attribute that is an array": (kinds("attributes", 1), "takes one attribute"),
    "an attribute of another type": (scalar_type, "takes one attribute"),
    "an argument that is no array": (kinds("arguments", 7), "argument or result 0 is no array"),
    "a result that is no array": (kinds("results", 7), "argument or result 0 is no array"),
    "an argument that is not there": (no_item("arguments"), "argument or result 0 is no array"),
    "a buffer too small": (change("arguments.1.size", 40), "argument or result 1 is no array"),
    "a negative rank": (change("arguments.0.rank", -1), "argument or result 0 is no array"),
    "no shape": (change("arguments.2.shape", None), "argument or result 2 is no array"),
    "no memory": (change("arguments.0.data", None), "argument or result 0 has no memory"),
    "no memory for the result": (change("results.0.data", None), "has no memory"),
    "a negative length": (shape("arguments", 0, (-6, 5)), "has length -6"),
    "a size beyond all memory": (shape("arguments", 0, (1 << 40, 1 << 40)), "has length 1099511"),
    "an axis out of range": (change("axis.value", 2), "axis = 2 is out of range for logits of"),
    "an axis below": (change("axis.value", -3), "axis = -3 is out of range"),
    "a scalar": (shape("arguments", 0, ()), "axis = -1 is out of range for logits of shape ()"),
    "no classes": (shape("arguments", 0, (6, 0)), "shape (6, 0) has no classes along axis 1"),
    "logits of integers": (change("arguments.0.type", 4), "logits must be float16, bfloat16"),
    "logits of an unknown type": (change("arguments.0.type", 99), "not XLA's type 99"),
    "labels of 64 bits": (change("arguments.1.type", 5), "target must be float16"),
    "upstream of integers": (change("arguments.2.type", 4), "upstream must be float16"),
    "a result of another type": (change("results.0.type", 12), "result must be float32"),
    "labels of another length": (
        shape("arguments", 1, (5,)),
        "target has shape (5,), not (6,)",
    ),
    "labels of another rank": (shape("arguments", 1, (6, 1)), "shape (6, 1), not (6,)"),
    "upstream of another shape": (shape("arguments", 2, ()), "upstream has shape (), not (6,)"),
    "a result of another shape": (shape("results", 0, (5, 6)), "the result has shape (5, 6)"),
    "a result on the labels": (onto(1), "the result overlaps target"),
    "a result on the upstream gradient": (onto(2), "the result overlaps upstream"),
    "a result that is half on the logits": (shifted, "the result overlaps logits"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_call_is_refused(name):
    apply, words = BAD[name]
    logits, target, upstream = case()
    call, result = xla_frames.gradient(logits, target, upstream)
    apply(call)
    code, text = call.run()
    assert code == INVALID_ARGUMENT
    assert text.startswith("xentropy_gradient: ")
    assert words in text
    assert np.isnan(result).all(), "written all the same"


def test_without_functions_for_an_error_nothing_happens():
    call, result = xla_frames.losses(*case()[:2])
    call.frame.api = None
    assert call.run() is None
    call, result = xla_frames.losses(*case()[:2])
    call.api.make_error, call.frame.stage = xla_frames.MAKE_ERROR(), 0
    assert call.run() is None
    assert np.isnan(result).all()


def test_losses_may_not_be_written_onto_the_logits():
    call, _ = xla_frames.losses(*case()[:2])
    onto(0)(call)
    assert call.run() == (
        INVALID_ARGUMENT,
        "xentropy_losses: ValueError: the result overlaps logits",
    )


def test_losses_of_float64_logits_are_float64():
    logits, target, _ = case(dtype="float64")
    call, _ = xla_frames.losses(logits, target)
    call.results[0].type = 11
    assert call.run() == (
        INVALID_ARGUMENT,
        "xentropy_losses: TypeError: the result must be float64, not XLA's type 11",
    )


@pytest.mark.parametrize(
    ("shape", "axis", "place", "says"),
    [
        ((6, 5), -1, (3,), "target[3] = 7 is out of range for 5 classes"),
        ((2, 5, 3), 1, (1, 2), "target[1, 2] = 5 is out of range for 5 classes; they are counted"),
        ((5,), 0, (), "target = -7 is out of range for 5 classes; ignore_index=-7 leaves out the"),
        ((6, 1), -1, (0,), "target[0] = 1 is out of range for 1 classes; two classes need two"),
    ],
)
def test_a_label_out_of_range_is_named_before_anything_is_written(shape, axis, place, says):
    logits, target, upstream = case(shape=shape, axis=axis)
    target[place] = int(says.split(" = ")[1].split()[0])
    with pytest.raises(IndexError) as raised:
        xe.cross_entropy(logits, target, axis=axis)
    expected = f"IndexError: {raised.value}"  # XLA's text is that of the public call
    assert says in expected
    call, result = xla_frames.losses(logits, target, axis)
    assert call.run() == (OUT_OF_RANGE, f"xentropy_losses: {expected}")
    assert np.isnan(result).all()
    call, result = xla_frames.gradient(logits, target, upstream, axis)
    assert call.run() == (OUT_OF_RANGE, f"xentropy_gradient: {expected}")
    assert np.isnan(result).all()


def test_a_text_that_is_too_long_is_cut_off():
    logits, target, _ = case()
    call, _ = xla_frames.losses(logits, target)
    shape("arguments", 1, (1 << 30, *(1,) * 400))(call)
    _, text = call.run()
    assert "target has shape (1073741824, 1, 1" in text
    assert len(text) < 640


NO_MEMORY = """
import ctypes, resource
import numpy as np
from helpers import xla_frames
logits, target = np.zeros((6, 1), np.float32), np.zeros(6, np.int32)
call, result = xla_frames.losses(logits, target)
rows = 1 << 45  # whose chunks' reports take gigabytes; nothing of these arrays is read
for buffer, dims in zip((*call.arguments, *call.results), ((rows, 1), (rows,), (rows,))):
    buffer.shape = (ctypes.c_int64 * len(dims))(*dims)
call.results[0].data += 1 << 55  # beside the others
call.arguments[1].data += 1 << 56
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
print(*call.run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")
def test_lack_of_memory_is_an_error():
    said = run(NO_MEMORY, PYTHONPATH=f"{ROOT}/../tests:{ROOT}/..")
    assert said.startswith("8 xentropy_losses: MemoryError: no memory for ")
    assert said.endswith(" bytes of scratch\n")


def test_handlers_of_one_process_have_one_address():
    """JAX refuses another one under the same name."""
    first, again = (
        [xla_frames._pointer(h, None) for h in _kernels.xla_handlers().values()] for _ in range(2)
    )
    assert first == again
