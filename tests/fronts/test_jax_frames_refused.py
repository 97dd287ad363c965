"""The handlers of XLA at its interface: what they refuse, and how. JAX takes no part."""

import ctypes
import sys

import numpy as np
import pytest
from helpers import xla_frames

import xentropy as xe
from xentropy import _kernels

INVALID_ARGUMENT, OUT_OF_RANGE = 3, 11


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
    logits, target, upstream = xla_frames.operands()
    call, result = xla_frames.gradient(logits, target, upstream)
    apply(call)
    code, text = call.run()
    assert code == INVALID_ARGUMENT
    assert text.startswith("xentropy_gradient: ")
    assert words in text
    assert np.isnan(result).all(), "written all the same"


def test_without_functions_for_an_error_nothing_happens():
    call, result = xla_frames.losses(*xla_frames.operands()[:2])
    call.frame.api = None
    assert call.run() is None
    call, result = xla_frames.losses(*xla_frames.operands()[:2])
    call.api.make_error, call.frame.stage = xla_frames.MAKE_ERROR(), 0
    assert call.run() is None
    assert np.isnan(result).all()


def test_losses_may_not_be_written_onto_the_logits():
    call, _ = xla_frames.losses(*xla_frames.operands()[:2])
    onto(0)(call)
    assert call.run() == (
        INVALID_ARGUMENT,
        "xentropy_losses: ValueError: the result overlaps logits",
    )


def test_losses_of_float64_logits_are_float64():
    logits, target, _ = xla_frames.operands(dtype="float64")
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
    logits, target, upstream = xla_frames.operands(shape=shape, axis=axis)
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
    logits, target, _ = xla_frames.operands()
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
    said = xla_frames.run(NO_MEMORY)
    assert said.startswith("8 xentropy_losses: MemoryError: no memory for ")
    assert said.endswith(" bytes of scratch\n")


def test_handlers_of_one_process_have_one_address():
    """JAX refuses another one under the same name."""
    first, again = (
        [xla_frames._pointer(h, None) for h in _kernels.xla_handlers().values()] for _ in range(2)
    )
    assert first == again
