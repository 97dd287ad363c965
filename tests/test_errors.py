"""Bad input: the right error, naming argument, value and position, and nothing written."""

import re

import numpy as np
import pytest
from support import make_logits, make_target

import xentropy as xe

NAN, INF = np.nan, np.inf
BAD_NUMBERS = ("1", None, 1j, [1.0])


def base_call(shape=(3, 4)):
    """A valid call, which every case below spoils in one place."""
    return {"logits": make_logits(shape), "target": make_target("labels", shape)}


def labels(position, value, dtype="int64"):
    target = np.array([0, 1, 2], dtype)
    target[position] = value
    return {"target": target}


def strings(a):
    return np.asarray(a).astype(str)


def masked(a):
    return np.ma.masked_array(a, mask=np.zeros_like(a, bool))


X = make_logits((3, 4))
ROW = make_logits(4)
T = make_target("probabilities", (3, 4))
W = np.ones(4)
R = np.ones(3)

# (what is wrong, spoiled arguments, exception, what the message says)
COMMON = [
    # logits
    ("integer logits", {"logits": np.ones((3, 4), int)}, TypeError, ["logits", "int64"]),
    ("bool logits", {"logits": np.ones((3, 4), bool)}, TypeError, ["logits", "bool"]),
    ("complex logits", {"logits": np.ones((3, 4), complex)}, TypeError, ["logits", "complex128"]),
    ("object logits", {"logits": X.astype(object)}, TypeError, ["logits", "object"]),
    ("string logits", {"logits": strings(X)}, TypeError, ["logits"]),
    ("date logits", {"logits": np.zeros((3, 4), "M8[s]")}, TypeError, ["logits", "datetime64"]),
    ("masked logits", {"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ("no logits", {"logits": None}, TypeError, ["logits"]),
    ("0-d logits", {"logits": np.float32(1)}, ValueError, ["logits", "scalar"]),
    ("no classes", {"logits": np.ones((3, 0), "f4")}, ValueError, ["logits", r"\(3, 0\)"]),
    # labels
    ("label C", labels(1, 4), IndexError, [r"target\[1\] = 4 is out of range for 4 classes"]),
    ("label 1000", labels(2, 1000), IndexError, [r"target\[2\] = 1000 is out of range for 4"]),
    ("label -1", labels(0, -1), IndexError, [r"target\[0\] = -1 is out of range for 4 classes"]),
    ("label -5", labels(0, -5), IndexError, [r"target\[0\] = -5 "]),
    ("label 2**32", labels(1, 2**32), IndexError, [r"target\[1\] = 4294967296 "]),
    ("label 2**32 + 1", labels(1, 2**32 + 1), IndexError, [r"target\[1\] = 4294967297 "]),
    ("label 2**32 - 100", labels(1, 2**32 - 100), IndexError, [r"target\[1\] = 4294967196 "]),
    ("label 2**40", labels(1, 2**40), IndexError, [r"target\[1\] = 1099511627776 "]),
    ("label -2**63", labels(1, -(2**63)), IndexError, [r"target\[1\] = -9223372036854775808 "]),
    ("uint64 2**64 - 100", labels(1, 2**64 - 100, "u8"), IndexError, [r"\[1\] = 1844674407370955"]),
    ("uint64 2**63", labels(1, 2**63, "u8"), IndexError, [r"\[1\] = 9223372036854775808 "]),
    ("uint32 2**32 - 100", labels(1, 2**32 - 100, "u4"), IndexError, [r"\[1\] = 4294967196 "]),
    ("uint16 2**16 - 100", labels(1, 2**16 - 100, "u2"), IndexError, [r"\[1\] = 65436 "]),
    ("uint8 156", labels(1, 156, "u1"), IndexError, [r"target\[1\] = 156 "]),
    ("int8 -101", labels(1, -101, "i1"), IndexError, [r"target\[1\] = -101 "]),
    ("big-endian 7", labels(1, 7, ">i4"), IndexError, [r"target\[1\] = 7 "]),
    ("-100, not ignored", {**labels(1, -100), "ignore_index": -1}, IndexError, [r"\[1\] = -100 "]),
    ("the first of two", {"target": np.array([0, 8, 9])}, IndexError, [r"target\[1\] = 8 "]),
    ("weight 0", {**labels(1, 4), "sample_weight": [1, 0, 1]}, IndexError, [r"\[1\] = 4 "]),
    (
        "label in 2-d",
        {"logits": make_logits((2, 3, 4)), "target": np.array([[0, 0, 0, 0], [0, 0, 9, 0]])},
        IndexError,
        [r"target\[1, 2\] = 9 is out of range for 3 classes"],
    ),
    (
        "scalar label",
        {"logits": ROW, "target": 7},
        IndexError,
        [r"target = 7 is out of range for 4 classes"],
    ),
    ("too few labels", {"target": np.array([0, 1])}, ValueError, ["target", r"\(2,\)", r"\(3,\)"]),
    ("labels 2-d", {"target": np.zeros((3, 1), int)}, ValueError, ["target", r"\(3, 1\)"]),
    ("labels of C", {"target": np.zeros(4, int)}, ValueError, ["target", r"\(4,\)"]),
    ("scalar for a batch", {"target": 1}, ValueError, ["target", r"\(\)"]),
    ("float labels", {"target": np.zeros(3)}, ValueError, ["target", r"\(3,\)", r"\(3, 4\)"]),
    ("integers of shape (N, C)", {"target": np.ones((3, 4), int)}, ValueError, ["target"]),
    ("transposed target", {"target": T.T.copy()}, ValueError, ["target", r"\(4, 3\)"]),
    ("bool target", {"target": np.zeros(3, bool)}, TypeError, ["target", "bool"]),
    ("complex target", {"target": T.astype(complex)}, TypeError, ["target", "complex128"]),
    ("object target", {"target": np.array([0, 1, 2], object)}, TypeError, ["target", "object"]),
    ("string target", {"target": np.array(["0", "1", "2"])}, TypeError, ["target"]),
    ("masked target", {"target": masked(np.array([0, 1, 2]))}, TypeError, ["target", "masked"]),
    ("no target", {"target": None}, TypeError, ["target"]),
    # weights
    ("weight of C + 1", {"weight": np.ones(5)}, ValueError, ["weight", r"\(5,\)", r"\(4,\)"]),
    ("weight 2-d", {"weight": np.ones((1, 4))}, ValueError, ["weight", r"\(1, 4\)"]),
    ("scalar weight", {"weight": 2.0}, ValueError, ["weight", r"\(\)"]),
    ("weight nan", {"weight": [1, 1, NAN, 1]}, ValueError, [r"weight\[2\] = nan"]),
    ("weight inf", {"weight": [1, INF, 1, 1]}, ValueError, [r"weight\[1\] = inf"]),
    ("weight -inf", {"weight": [1, 1, 1, -INF]}, ValueError, [r"weight\[3\] = -inf"]),
    ("complex weight", {"weight": W * 1j}, TypeError, ["weight", "complex128"]),
    ("object weight", {"weight": W.astype(object)}, TypeError, ["weight", "object"]),
    ("string weight", {"weight": strings(W)}, TypeError, ["weight"]),
    ("masked weight", {"weight": masked(W)}, TypeError, ["weight", "masked"]),
    ("rows of N + 1", {"sample_weight": np.ones(4)}, ValueError, ["sample_weight", r"\(4,\)"]),
    ("rows 2-d", {"sample_weight": np.ones((3, 1))}, ValueError, ["sample_weight", r"\(3, 1\)"]),
    ("rows nan", {"sample_weight": [NAN, 1, 1]}, ValueError, [r"sample_weight\[0\] = nan"]),
    ("rows inf", {"sample_weight": [1, 1, INF]}, ValueError, [r"sample_weight\[2\] = inf"]),
    ("complex rows", {"sample_weight": R * 1j}, TypeError, ["sample_weight", "complex128"]),
    ("object rows", {"sample_weight": R.astype(object)}, TypeError, ["sample_weight", "object"]),
    ("masked rows", {"sample_weight": masked(R)}, TypeError, ["sample_weight", "masked"]),
    # choices
    ("float ignore_index", {"ignore_index": 1.5}, TypeError, ["ignore_index", "1.5|float"]),
    ("string ignore_index", {"ignore_index": "1"}, TypeError, ["ignore_index"]),
    ("no ignore_index", {"ignore_index": None}, TypeError, ["ignore_index"]),
    ("unknown reduction", {"reduction": "avg"}, ValueError, ["reduction", "avg", "mean"]),
    ("reduction None", {"reduction": None}, (TypeError, ValueError), ["reduction", "None"]),
    ("axis 2", {"axis": 2}, ValueError, ["axis", "2"]),
    ("axis -3", {"axis": -3}, ValueError, ["axis", "-3"]),
    ("axis 2 in 1-d", {"logits": ROW, "target": 1, "axis": 2}, ValueError, ["axis", "2"]),
    ("float axis", {"axis": 1.0}, TypeError, ["axis"]),
    ("axis None", {"axis": None}, TypeError, ["axis"]),
    ("no threads", {"n_threads": 0}, ValueError, ["n_threads", "0"]),
    ("-1 threads", {"n_threads": -1}, ValueError, ["n_threads", "-1"]),
    ("half a thread", {"n_threads": 0.5}, TypeError, ["n_threads"]),
    ("string threads", {"n_threads": "2"}, TypeError, ["n_threads"]),
    ("normalizer of a sum", {"normalizer": 2.0, "reduction": "sum"}, ValueError, ["normalizer"]),
    ("normalizer of none", {"normalizer": 2.0, "reduction": "none"}, ValueError, ["normalizer"]),
]

RANGES = {
    "label_smoothing": (-0.1, 1.1, -1e-9, NAN, INF),
    "z_loss": (-1.0, -1e-30, NAN, INF),
    "logit_scale": (0, 0.0, -1.0, 1e-31, 1e31, NAN, INF),
    "base": (1, 1.0, 0, 0.5, -2, NAN, INF),
    "normalizer": (0, 0.0, NAN, INF, -INF),
}
for name, values in RANGES.items():
    COMMON += [
        (f"{name} {value}", {name: value}, ValueError, [name, re.escape(f"{value:g}")])
        for value in values
    ]
    COMMON += [
        (f"{name} {value!r}", {name: value}, TypeError, [name])
        for value in BAD_NUMBERS
        if not (value is None and name in ("base", "normalizer"))
    ]


def readonly(shape=(3, 4)):
    out = np.zeros(shape, "f4")
    out.flags.writeable = False
    return out


GRAD_OUTPUT = [
    ("rows for a mean", {"grad_output": np.ones(3)}, ValueError, ["grad_output", r"\(3,\)"]),
    (
        "too few rows",
        {"grad_output": np.ones(2), "reduction": "none"},
        ValueError,
        ["grad_output", r"\(2,\)"],
    ),
    (
        "shape of the logits",
        {"grad_output": np.ones((3, 4)), "reduction": "none"},
        ValueError,
        ["grad_output", r"\(3, 4\)"],
    ),
    ("complex", {"grad_output": 1j}, TypeError, ["grad_output"]),
    ("string", {"grad_output": "1"}, TypeError, ["grad_output"]),
    (
        "object",
        {"grad_output": np.ones(3, object), "reduction": "none"},
        TypeError,
        ["grad_output", "object"],
    ),
]

OUT = [
    ("shape", {"out": np.zeros((4, 3), "f4")}, ValueError, ["out", r"\(4, 3\)", r"\(3, 4\)"]),
    ("dtype", {"out": np.zeros((3, 4))}, (TypeError, ValueError), ["out", "float64", "float32"]),
    ("half", {"out": np.zeros((3, 4), "f2")}, (TypeError, ValueError), ["out", "float16"]),
    ("integers", {"out": np.zeros((3, 4), "i4")}, TypeError, ["out", "int32"]),
    ("a list", {"out": [[0.0] * 4] * 3}, TypeError, ["out", "list"]),
    ("masked", {"out": masked(np.zeros((3, 4), "f4"))}, TypeError, ["out", "MaskedArray"]),
    ("read-only", {"out": readonly()}, ValueError, ["out", "read-only|writ"]),
    (
        "itself",
        {"out": np.lib.stride_tricks.as_strided(np.zeros(4, "f4"), (3, 4), (0, 4))},
        ValueError,
        ["out", "overlap"],
    ),
    (
        "itself, partly",
        {"out": np.lib.stride_tricks.as_strided(np.zeros(12, "f4"), (3, 4), (8, 4))},
        ValueError,
        ["out", "overlap"],
    ),
]

FUNCTIONS = [xe.cross_entropy, xe.cross_entropy_with_grad]


def check(function, arguments, exception, says):
    """The call fails as it should, and changes no byte of any array it was given."""
    arguments = {**base_call(), **arguments}
    if function is xe.cross_entropy_with_grad and isinstance(arguments["logits"], np.ndarray):
        shape = arguments["logits"].shape
        arguments.setdefault("out", np.full(shape, 7, "f4"))
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray) and not a.dtype.hasobject]
    before = [a.tobytes() for a in arrays]
    with pytest.raises(exception) as caught:
        function(**arguments)
    for pattern in says:
        assert re.search(pattern, str(caught.value)), f"{caught.value} does not say {pattern}"
    assert [a.tobytes() for a in arrays] == before, "an array was written"


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", COMMON, ids=lambda case: case[0])
def test_bad_argument(case, function):
    check(function, *case[1:])


@pytest.mark.parametrize("case", GRAD_OUTPUT, ids=lambda case: case[0])
def test_bad_grad_output(case):
    check(xe.cross_entropy_with_grad, *case[1:])


@pytest.mark.parametrize("case", OUT, ids=lambda case: case[0])
def test_bad_out(case):
    check(xe.cross_entropy_with_grad, *case[1:])


def test_the_valid_call_under_all_these_cases_is_valid():
    xe.cross_entropy(**base_call())
    xe.cross_entropy_with_grad(**base_call(), out=np.zeros((3, 4), "f4"))


# ---- overlaps: two arrays in one buffer, `step` elements apart


def overlapping(name, step):
    """A call whose `out` shares memory with the named input."""
    buffer = np.ones(64, "f4")
    out = buffer[16:28].reshape(3, 4)
    start = 16 + step
    cut = {
        "logits": lambda: buffer[start : start + 12].reshape(3, 4),
        "target": lambda: buffer[start : start + 12].reshape(3, 4),
        "labels": lambda: buffer[start : start + 3].view("i4"),
        "weight": lambda: buffer[start : start + 4],
        "sample_weight": lambda: buffer[start : start + 3],
        "grad_output": lambda: buffer[start : start + 3],
    }[name]()
    if name == "labels":
        cut[:] = 0
    arguments = {"out": out, "target" if name == "labels" else name: cut}
    if name == "grad_output":
        arguments["reduction"] = "none"
    return arguments


NAMES = ["logits", "target", "labels", "weight", "sample_weight", "grad_output"]


@pytest.mark.parametrize("step", [-1, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_out_may_not_overlap(name, step):
    says = ["out", "overlap", "target" if name == "labels" else name]
    check(xe.cross_entropy_with_grad, overlapping(name, step), ValueError, says)


@pytest.mark.parametrize("step", [-12, 12])
@pytest.mark.parametrize("name", NAMES)
def test_out_may_touch_its_neighbour(name, step):
    arguments = {**base_call(), **overlapping(name, step)}
    xe.cross_entropy_with_grad(**arguments)


@pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.T[:4, :4].T])
def test_out_may_be_the_logits_only_in_the_same_order(view):
    x = np.ones((4, 4), "f4")
    out = view(x)
    if out.strides == x.strides and out.ctypes.data == x.ctypes.data:
        out = x.T
    with pytest.raises(ValueError, match=r"out.*overlap"):
        xe.cross_entropy_with_grad(x, np.zeros(4, int), out=out)
    assert (x == 1).all()


def test_interleaved_logits_and_out_do_not_overlap():
    both = np.ones((6, 8), "f4")
    _, grad = xe.cross_entropy_with_grad(both[:, ::2], np.zeros(6, int), out=both[:, 1::2])
    assert (both[:, ::2] == 1).all()
    assert (grad[:, 0] < 0).all()


def test_a_bad_label_deep_in_a_large_batch_is_found_and_nothing_written():
    x, target = make_logits((300_001, 5)), np.zeros(300_001, "i8")
    target[271_828], target[300_000] = 5, 6
    out = np.full_like(x, 7)
    for arguments in ({"out": out}, {"out": out, "n_threads": 2}, {}):
        with pytest.raises(IndexError, match=r"target\[271828\] = 5 is out of range for 5 classes"):
            xe.cross_entropy_with_grad(x, target, **arguments)
    assert (out == 7).all()


def test_in_place_logits_survive_an_error():
    x = make_logits((3, 4))
    before = x.copy()
    with pytest.raises(IndexError):
        xe.cross_entropy_with_grad(x, [0, 1, 4], out=x)
    assert (x == before).all()


def test_unknown_and_positional_options_are_refused():
    for function in FUNCTIONS:
        with pytest.raises(TypeError):
            function(X, [0, 1, 2], None, "mean")
        with pytest.raises(TypeError, match="smoothing"):
            function(X, [0, 1, 2], smoothing=0.1)
    with pytest.raises(TypeError, match="grad_output"):
        xe.cross_entropy(X, [0, 1, 2], grad_output=1.0)


@pytest.mark.parametrize(
    "option", [{"reduction": "none"}, {"reduction": "sum"}, {"normalizer": 2.0}]
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_labels_are_checked_whatever_the_reduction(function, option):
    for label in (4, -1):
        says = [rf"target\[1\] = {label} is out of range for 4 classes"]
        check(function, {**labels(1, label), **option}, IndexError, says)


def test_a_bad_sample_weight_deep_in_a_large_batch_is_found():
    x, repeat = make_logits((200_001, 2)), np.ones(200_001, "f4")
    for at in (200_000, 150_000):
        repeat[at] = NAN
        with pytest.raises(ValueError, match=rf"sample_weight\[{at}\] = nan"):
            xe.cross_entropy(x, np.zeros(len(x), int), sample_weight=repeat)
