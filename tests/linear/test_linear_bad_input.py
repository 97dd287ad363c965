"""Bad input of the linear calls: the right error, and nothing written."""

import inspect

import numpy as np
import pytest
from helpers.bad_arguments import masked, outside, refused, wrong_arrays, wrong_integers
from helpers.bad_calls import COMMON, EMPTY_MEAN, GRAD_OUTPUT, readonly
from helpers.linear import NAMES, make_layer
from helpers.support import make_target

import xentropy as xe

FUNCTIONS = [xe.linear_cross_entropy, xe.linear_cross_entropy_with_grad]
X, LAYER, BIAS = make_layer(3, 5, 4)


def base_call():
    """A valid call, of three rows and four classes as that of `bad_calls`."""
    target = make_target("labels", (3, 4))
    return {"input": X.copy(), "linear_weight": LAYER, "target": target, "linear_bias": BIAS}


def shape_error(name, shape, *says):
    return f"{name} {shape}", {name: np.ones(shape, "f4")}, ValueError, [name, *says]


SWAPPED = {"input": LAYER, "linear_weight": X, "linear_bias": None}
OURS = [
    *wrong_arrays("input", X),
    *wrong_arrays("linear_weight", LAYER),
    *wrong_arrays("linear_bias", BIAS, without=["None"]),
    ("integer input", {"input": np.ones((3, 5), int)}, TypeError, ["input must be", "int64"]),
    ("boolean input", {"input": np.ones((3, 5), bool)}, TypeError, ["input must be", "bool"]),
    (
        "integer layer",
        {"linear_weight": np.ones((4, 5), "i4")},
        TypeError,
        ["weight", "int32", "swapped"],
    ),
    (
        "input and layer swapped",
        SWAPPED,
        ValueError,
        ["target", r"\(3,\), not \(4,\)", "are input and linear_weight swapped"],
    ),
    ("integer bias", {"linear_bias": np.ones(4, "i8")}, TypeError, ["linear_bias", "int64"]),
    ("input scalar", {"input": np.float32(1)}, ValueError, ["input", "scalar"]),
    shape_error("linear_weight", (4, 6), r"\(4, 6\)", r"\(classes, 5\)", r"\(3, 5\)"),
    shape_error("linear_weight", (5, 4), r"\(5, 4\)", "transposed"),
    shape_error("linear_weight", (5,), r"\(5,\)"),
    shape_error("linear_weight", (1, 4, 5), r"\(1, 4, 5\)"),
    shape_error("linear_weight", (0, 5), "classes"),
    shape_error("linear_bias", (5,), r"\(5,\)", r"\(4,\)"),
    shape_error("linear_bias", (4, 1), r"\(4, 1\)"),
    shape_error("linear_bias", (), r"\(\)"),
    shape_error("input", (3, 4), "linear_weight", r"\(classes, 4\)"),
    ("rows", {"input": np.ones((2, 5), "f4")}, ValueError, ["target", r"\(3,\)", r"\(2,\)"]),
    ("one row", {"input": np.ones(5, "f4")}, ValueError, ["target", r"\(3,\)", r"\(\)"]),
    *outside("logits_bytes", (0, -1, -(10**30))),
    *wrong_integers("logits_bytes", none=True),
]
OPTIONS = [case for case in COMMON + EMPTY_MEAN if not {"logits", "axis"} & set(case[1])]


def wrong_out(what, name, value, exception, *says):
    return f"out {what}", {"out": {name: value}}, exception, [f"out.{name}", *says]


OUT = [
    wrong_out("shape", "input", np.ones((5, 3), "f4"), ValueError, r"\(5, 3\)", r"\(3, 5\)"),
    wrong_out("rows", "linear_weight", np.ones((3, 5), "f4"), ValueError, r"\(3, 5\)"),
    wrong_out("of the bias", "linear_bias", np.ones(5, "f4"), ValueError, r"\(5,\)", r"\(4,\)"),
    wrong_out("dtype", "linear_bias", np.ones(4), TypeError, "float64", "float32"),
    wrong_out("half", "input", np.ones((3, 5), "f2"), TypeError, "float16", "float32"),
    wrong_out("integers", "input", np.ones((3, 5), "i4"), TypeError, "int32"),
    wrong_out("list", "input", X.tolist(), TypeError, "list"),
    wrong_out("masked", "input", masked(X.copy()), TypeError, "MaskedArray"),
    wrong_out("read-only", "input", readonly((3, 5)), ValueError, "read-only"),
    wrong_out(
        "itself", "input", np.broadcast_to(np.ones(5, "f4"), (3, 5)), ValueError, "read-only"
    ),
    ("out a list", {"out": [None, None, None]}, TypeError, ["out", "list"]),
    ("out an array", {"out": np.ones((3, 5), "f4")}, TypeError, ["out", "ndarray"]),
    ("out of two", {"out": (None, None)}, ValueError, ["out", "2"]),
    ("out unknown", {"out": {"weight": BIAS}}, ValueError, ["out", "weight"]),
    (
        "out not wanted",
        {"out": {"input": X.copy()}, "wanted": ("linear_bias",)},
        ValueError,
        ["out has input", "wanted are linear_bias"],
    ),
    (
        "out without bias",
        {"out": {"linear_bias": BIAS.copy()}, "linear_bias": None},
        ValueError,
        ["out has linear_bias", "no such argument"],
    ),
    ("wanted unknown", {"wanted": ("input", "bias")}, ValueError, ["wanted", "'bias'"]),
    ("wanted a word", {"wanted": "input"}, TypeError, ["wanted", "'input'"]),
    ("wanted a number", {"wanted": 2}, TypeError, ["wanted", "2"]),
    ("wanted None", {"wanted": None}, TypeError, ["wanted", "None"]),
    ("wanted of numbers", {"wanted": (1,)}, ValueError, ["wanted", "1"]),
]
CASES = [(f, case) for f in FUNCTIONS for case in OURS + OPTIONS]
CASES += [(FUNCTIONS[1], case) for case in GRAD_OUTPUT + OUT]


def with_outs(function, arguments):
    """The arguments, and arrays that must not be written, where they can be given."""
    if function is FUNCTIONS[1] and "wanted" not in arguments and "out" not in arguments:
        arguments = {**arguments, "wanted": ("input", "linear_weight")}
        arguments["out"] = np.full((3, 5), 7, "f4"), np.full((4, 5), 7, "f4"), None
    return arguments


def bytes_of(out):
    return [array.tobytes() for array in out if array is not None]


@pytest.mark.parametrize(
    ("function", "case"), CASES, ids=[f"{function.__name__} {case[0]}" for function, case in CASES]
)
def test_bad_argument(function, case):
    _, spoiled, exception, says = case
    arguments = with_outs(function, {**base_call(), **spoiled})
    out = arguments.get("out")
    before = bytes_of(out) if isinstance(out, tuple) else None
    refused(function, arguments, exception, says)
    if before is not None:
        assert bytes_of(out) == before


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_is_spoiled_and_the_call_is_valid_without(function):
    spoiled = {name for other, case in CASES if other is function for name in case[1]}
    assert spoiled >= set(inspect.signature(function).parameters)
    function(**with_outs(function, base_call()))


def test_signatures_are_those_of_cross_entropy():
    """All of its options with the same defaults, but the axis."""
    for ours, theirs in zip(FUNCTIONS, (xe.cross_entropy, xe.cross_entropy_with_grad), strict=True):
        given = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            if name not in {"axis", "logits"}:
                assert repr(given[name].default) == repr(parameter.default), name  # nan too
        keywords = [p.name for p in given.values() if p.kind is p.KEYWORD_ONLY]
        assert list(given)[:3] == ["input", "linear_weight", "target"]
        assert len(keywords) == len(given) - 3


def overlapping(name, other):
    """A call in which the gradient of `name` shares its last element with `other`."""
    arguments = {**base_call(), "reduction": "none", "grad_output": np.ones(3, "f4")}
    arguments |= {"weight": np.ones(4, "f4"), "sample_weight": np.ones(3, "f4")}
    if other == "probabilities":
        arguments["target"], other = make_target("probabilities", (3, 4)), "target"
    shape = arguments[name].shape
    outs = {n: np.empty(arguments[n].shape, "f4") for n in NAMES}
    shared = outs[other.removeprefix("out.")] if other in outs else arguments[other]
    size = int(np.prod(shape))
    whole = np.ones(size + shared.nbytes // 4 - 1, "f4")
    gradient = whole[:size].reshape(shape)
    moved = whole[size - 1 :].view(shared.dtype).reshape(shared.shape)
    moved[...] = 0
    return arguments, gradient, moved


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "other", [*NAMES, "probabilities", "weight", "sample_weight", "grad_output"]
)
def test_out_may_not_overlap_an_argument(name, other):
    arguments, gradient, moved = overlapping(name, other)
    key = "target" if other == "probabilities" else other
    arguments[key] = moved
    arguments["out"] = {name: gradient}
    refused(FUNCTIONS[1], arguments, ValueError, [rf"out\.{name} overlaps {key}"])
    whole = {name: arguments[name] for name in NAMES}
    refused(
        FUNCTIONS[1], {**arguments, "out": {name: whole[name]}}, ValueError, ["overlaps " + name]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_gradients_may_not_overlap_each_other(name, other):
    if name == other:
        return
    arguments, gradient, _ = overlapping(name, other)
    shape = arguments[other].shape
    size = int(np.prod(shape))
    whole = np.full(gradient.size + size - 1, 7, "f4")
    out = {
        name: whole[: gradient.size].reshape(gradient.shape),
        other: whole[gradient.size - 1 :].reshape(shape),
    }
    says = [rf"out\.({name}|{other}) overlaps out\.({name}|{other})"]
    refused(FUNCTIONS[1], {**base_call(), "out": out}, ValueError, says)
    assert (whole == 7).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_labels_are_checked_before_anything_is_written(function):
    """The last one of many, whatever its chunk, its weight and its dtype are."""
    x, layer, _ = make_layer(300, 5, 4)
    for dtype, label in (("i8", 4), ("i8", -1), ("u1", 255), ("u8", 2**63 + 1), ("i1", -7)):
        target = np.zeros((3, 100), dtype)
        target[2, 98] = label
        arguments = {"input": x.reshape(3, 100, 5), "linear_weight": layer, "target": target}
        arguments |= {"logits_bytes": 64, "sample_weight": np.zeros((3, 100))}
        if function is FUNCTIONS[1]:
            arguments["out"] = np.full((3, 100, 5), 7, "f4"), np.full((4, 5), 7, "f4"), None
        says = [rf"target\[2, 98\] = {label} is out of range for 4 classes"]
        refused(function, arguments, IndexError, says)
        if function is FUNCTIONS[1]:
            assert all((a == 7).all() for a in arguments["out"][:2])


def test_ignore_index_of_any_size():
    x, layer, _ = make_layer(2, 5, 4)
    for ignored, dtype in ((2**64 - 1, "u8"), (-(2**63), "i8"), (255, "u1")):
        target = np.array([1, ignored], dtype)
        loss = xe.linear_cross_entropy(x, layer, target, ignore_index=ignored)
        assert loss == xe.linear_cross_entropy(x[:1], layer, target[:1])
    for ignored in (2**64, -(10**30), 300):
        xe.linear_cross_entropy(x, layer, np.uint8([1, 2]), ignore_index=ignored)
