"""Bad calls by function: what is wrong, the spoiled arguments, the error, what its message says.

Each spoils a valid call in one place.
"""

import re

import numpy as np

import xentropy as xe

from .bad_arguments import (
    INF,
    NAN,
    masked,
    outside,
    wrong_arrays,
    wrong_integers,
    wrong_names,
    wrong_numbers,
)
from .support import make_logits, make_target

FUNCTIONS = [xe.cross_entropy, xe.cross_entropy_with_grad]


def base_call(shape=(3, 4)):
    """A valid call, which every case below spoils in one place."""
    return {"logits": make_logits(shape), "target": make_target("labels", shape)}


def labels(position, value, dtype="int64"):
    target = np.array([0, 1, 2], dtype)
    target[position] = value
    return {"target": target}


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
    (
        "no labels, complex",
        {"logits": np.ones((0, 4), "f4"), "target": np.zeros(0, complex)},
        TypeError,
        ["target", "complex128"],
    ),
    ("bool target", {"target": np.zeros(3, bool)}, TypeError, ["target", "bool"]),
    # weights
    ("weight of C + 1", {"weight": np.ones(5)}, ValueError, ["weight", r"\(5,\)", r"\(4,\)"]),
    ("weight 2-d", {"weight": np.ones((1, 4))}, ValueError, ["weight", r"\(1, 4\)"]),
    ("scalar weight", {"weight": 2.0}, ValueError, ["weight", r"\(\)"]),
    ("weight nan", {"weight": [1, 1, NAN, 1]}, ValueError, [r"weight\[2\] = nan"]),
    ("weight inf", {"weight": [1, INF, 1, 1]}, ValueError, [r"weight\[1\] = inf"]),
    ("weight -inf", {"weight": [1, 1, 1, -INF]}, ValueError, [r"weight\[3\] = -inf"]),
    ("rows of N + 1", {"sample_weight": np.ones(4)}, ValueError, ["sample_weight", r"\(4,\)"]),
    ("rows 2-d", {"sample_weight": np.ones((3, 1))}, ValueError, ["sample_weight", r"\(3, 1\)"]),
    ("rows nan", {"sample_weight": [NAN, 1, 1]}, ValueError, [r"sample_weight\[0\] = nan"]),
    ("rows inf", {"sample_weight": [1, 1, INF]}, ValueError, [r"sample_weight\[2\] = inf"]),
    # choices
    ("axis 2 in 1-d", {"logits": ROW, "target": 1, "axis": 2}, ValueError, ["axis", "2"]),
    ("normalizer of a sum", {"normalizer": 2.0, "reduction": "sum"}, ValueError, ["normalizer"]),
    (
        "softcap by a scale",
        {"softcap": 1e20, "logit_scale": 1e-20},
        ValueError,
        ["softcap", "logit_scale", r"1e\+40"],
    ),
    ("normalizer of none", {"normalizer": 2.0, "reduction": "none"}, ValueError, ["normalizer"]),
]

RANGES = {
    "label_smoothing": (-0.1, 1.1, -1e-9, NAN, INF),
    "z_loss": (-1.0, -1e-30, NAN, INF),
    "logit_scale": (0, 0.0, -1.0, 1e-31, 1e31, NAN, INF),
    "softcap": (0, 0.0, -1.0, 1e-31, 1e31, NAN, INF),
    "base": (1, 1.0, 0, 0.5, -2, NAN, INF),
    "normalizer": (0, 0.0, NAN, INF, -INF),
}
NONE_ALLOWED = "softcap", "base", "normalizer"
for option, values in RANGES.items():
    COMMON += outside(option, values) + wrong_numbers(option, none=option in NONE_ALLOWED)
AXES = (2, -3, 2**31, 2**64, -(10**30))
THREADS = (0, -1, 1025, 2**31 + 1, 2**32 + 1, 2**64 + 1, -(10**30))
COMMON += outside("axis", AXES) + wrong_integers("axis")
COMMON += outside("n_threads", THREADS) + wrong_integers("n_threads", none=True)
COMMON += wrong_integers("ignore_index") + wrong_names("reduction")
COMMON += wrong_arrays("logits", X) + wrong_arrays("target", T)
COMMON += wrong_arrays("target", np.array([0, 1, 2]))
COMMON += wrong_arrays("weight", W, without=["None"])
COMMON += wrong_arrays("sample_weight", R, without=["None"])

EMPTY_MEAN = wrong_numbers("empty_mean")
EMPTY_MEAN += [
    ("of a sum", {"empty_mean": 0.0, "reduction": "sum"}, ValueError, ["empty_mean", "'sum'"])
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
]

GRAD_OUTPUT += wrong_arrays("grad_output", np.ones(3), without=["None"], reduction="none")
GRAD_OUTPUT += wrong_arrays("grad_output", np.array(1.0), without=["None", "masked in part"])

OUT = [
    ("shape", {"out": np.zeros((4, 3), "f4")}, ValueError, ["out", r"\(4, 3\)", r"\(3, 4\)"]),
    ("dtype", {"out": np.zeros((3, 4))}, TypeError, ["out", "float64", "float32"]),
    ("half", {"out": np.zeros((3, 4), "f2")}, TypeError, ["out", "float16"]),
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


# ---- the softmax family and the others, by function

SOFTMAX = wrong_arrays("x", X) + wrong_integers("axis", none=True) + outside("axis", AXES)
SOFTMAX += outside("n_threads", THREADS) + wrong_integers("n_threads", none=True)
SOFTMAX += [
    (f"axis {axis}", {"axis": axis}, ValueError, ["axis", says])
    for axis, says in [
        ((0, 2), "axis = 2 "),
        ((-3,), "axis = -3 "),
        ((0, 10**30), f"axis = {10**30} "),
        ((0, 0), "0 twice"),
        ((1, -1), "1 twice"),
    ]
]
SOFTMAX += [("axis (0, 1.0)", {"axis": (0, 1.0)}, TypeError, ["axis", "1.0"])]
FLAGS = [
    (f"{name} {value!r}", {name: value}, TypeError, [name, re.escape(repr(value))])
    for name in ("keepdims", "return_sign")
    for value in ("yes", None, 2, 0.5, [], np.ones(2), np.timedelta64(1, "s"))
]
SUM = wrong_arrays("b", X, without=["None", "complex"])
SUM += [
    ("b of another shape", {"b": np.ones(3)}, ValueError, ["b", r"\(3,\)", r"\(3, 4\)"]),
    ("axis of neither", {"b": X[None], "axis": 3}, ValueError, ["axis = 3 ", r"\(1, 3, 4\)"]),
    ("x and a", {"a": X}, TypeError, ["x and a"]),
]
SUM += [case for case in SOFTMAX if case[0] != "x: complex"]
BASE = outside("base", RANGES["base"]) + wrong_numbers("base", none=True)
LOGITS = [("0-d", {"logits": np.float32(1)}, ValueError, ["axis|scalar"])]
LOGITS += wrong_arrays("logits", X) + outside("axis", AXES) + wrong_integers("axis", none=True)
LOGITS += outside("n_threads", THREADS) + wrong_integers("n_threads", none=True)
KL = [
    ("integer target", {"target": np.zeros((3, 4), int)}, TypeError, ["target", "int64"]),
    ("flag", {"target_logits": "yes"}, TypeError, ["target_logits"]),
    ("labels", {"target": np.zeros(3, int)}, TypeError, ["target", "int64"]),
    ("integer logits", {"logits": np.zeros((3, 4), int)}, TypeError, ["logits", "int64"]),
    ("transposed", {"target": T.T}, ValueError, ["target", r"\(4, 3\)", r"\(3, 4\)"]),
    ("one row", {"target": T[0]}, ValueError, ["target", r"\(4,\)"]),
    ("no classes", {"logits": np.ones((3, 0)), "target": np.ones((3, 0))}, ValueError, ["classes"]),
    ("axis None", {"axis": None}, TypeError, ["axis"]),
]
KL += wrong_arrays("target", T) + LOGITS + BASE + wrong_names("reduction")
# The cases of the cross entropy but for class probabilities, and no target is none of them.
RANKED = {"logits", "target", "axis", "ignore_index", "logit_scale", "softcap", "n_threads"}
PROBABILITIES_ALONE = {
    *("float labels", "integers of shape (N, C)", "transposed target", "no labels, complex")
}
STATISTICS = [
    case
    for case in COMMON
    if case[1].keys() <= RANKED and case[0] not in PROBABILITIES_ALONE | {"target: None"}
]
STATISTICS += [
    ("probabilities", {"target": T}, TypeError, ["target", "integers", "float32"]),
    ("ignore_index without a target", {"target": None, "ignore_index": "a"}, TypeError, ["ignore"]),
]
N = outside("n", THREADS) + wrong_integers("n", none=True)

# (function, a valid call of it, what spoils it)
CALLS = [
    (xe.cross_entropy, base_call(), COMMON + EMPTY_MEAN),
    (xe.cross_entropy_with_grad, base_call(), COMMON + EMPTY_MEAN + GRAD_OUTPUT + OUT),
    (xe.softmax, {"x": X, "axis": 1}, SOFTMAX + OUT),
    (xe.log_softmax, {"x": X, "axis": 1}, SOFTMAX + OUT),
    (xe.logsumexp, {"x": X, "axis": 1}, SUM + FLAGS),
    (xe.entropy, {"logits": X}, LOGITS + BASE),
    (xe.kl_divergence, {"target": T, "logits": X}, KL),
    (xe.row_statistics, base_call(), STATISTICS),
    (xe.set_num_threads, {"n": 1}, N),
]
