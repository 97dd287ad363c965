"""The bindings take plain calls as they stand and leave all others, untouched, to the checks."""

import inspect
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from helpers.bad_calls import COMMON, FUNCTIONS, GRAD_OUTPUT, OUT, base_call
from helpers.support import assert_bits, make_logits, make_target

import xentropy as xe
from xentropy import _api, _kernels, _softmax

SHAPE = (6, 5)
ROWS, CLASSES = SHAPE
X = make_logits(SHAPE)
LABELS = make_target("labels", SHAPE)
PROBABILITIES = make_target("probabilities", SHAPE)
WEIGHT = np.linspace(-0.5, 2, CLASSES)
REPEAT = np.arange(ROWS, dtype="f4")
NONE = {"reduction": "none"}


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


class Subclass(np.ndarray):
    """Could redefine anything."""


# Arguments that the bindings take, and the same in a way that the checks convert.
SPELLINGS = [
    ({}, {"target": LABELS.tolist()}),
    ({}, {"logits": X.view(Subclass)}),
    ({}, {"target": LABELS.view(Subclass)}),
    ({"target": LABELS.astype("u1")}, {"target": LABELS.astype("u1").tolist()}),
    ({"target": swapped(LABELS)}, {"target": LABELS.astype(object).tolist()}),
    ({"logits": X.astype("f2")}, {"logits": X.astype("f2").view(Subclass)}),
    ({"logits": X.astype("f8")}, {"logits": X.astype("f8").tolist()}),
    ({"logits": swapped(X)}, {"logits": swapped(X).view(Subclass)}),
    ({"logits": np.asfortranarray(X)}, {"logits": np.asfortranarray(X).view(Subclass)}),
    ({"logits": X[:, ::-1]}, {"logits": X[:, ::-1].view(Subclass)}),
    (
        {"logits": X[2], "target": LABELS[2:3].reshape(())},
        {"logits": X[2], "target": int(LABELS[2])},
    ),
    ({"target": PROBABILITIES}, {"target": PROBABILITIES.view(Subclass)}),
    ({"weight": WEIGHT}, {"weight": WEIGHT.tolist()}),
    ({"weight": WEIGHT.astype("f4")}, {"weight": WEIGHT.astype("f4").tolist()}),
    ({"weight": np.arange(CLASSES)}, {"weight": list(range(CLASSES))}),
    ({"weight": np.array([0.0, 1, 0, 1, 1])}, {"weight": np.array([0, 1, 0, 1, 1], bool)}),
    ({"sample_weight": REPEAT}, {"sample_weight": REPEAT.tolist()}),
    ({"sample_weight": REPEAT.astype("f8")}, {"sample_weight": np.arange(ROWS)}),
    ({"sample_weight": np.repeat(REPEAT, 2)[::2]}, {"sample_weight": REPEAT.tolist()}),
    ({"sample_weight": REPEAT.astype("f2")}, {"sample_weight": REPEAT.tolist()}),
    ({"sample_weight": REPEAT.astype("f8")[::-1]}, {"sample_weight": REPEAT[::-1].tolist()}),
    ({"ignore_index": 1}, {"ignore_index": np.int8(1)}),
    ({"ignore_index": 2**64}, {"ignore_index": 2**64, "target": LABELS.tolist()}),
    (NONE, {"reduction": np.str_("none")}),
    ({"reduction": "sum"}, {"reduction": np.str_("sum")}),
    ({"normalizer": 3}, {"normalizer": np.float32(3)}),
    ({"label_smoothing": 0.25}, {"label_smoothing": Fraction(1, 4)}),
    ({"label_smoothing": 1}, {"label_smoothing": np.array(1.0)}),
    ({"z_loss": 0.25}, {"z_loss": np.float16(0.25)}),
    ({"logit_scale": 0.5}, {"logit_scale": np.float64(0.5)}),
    ({"logit_scale": 1e-30}, {"logit_scale": np.float64(1e-30)}),
    ({"softcap": 30}, {"softcap": np.float32(30)}),
    ({"softcap": 1e-30, "logit_scale": 0.5}, {"softcap": Fraction(1e-30), "logit_scale": 0.5}),
    ({"base": 2}, {"base": np.int64(2)}),
    ({"axis": -1}, {"axis": np.int64(1)}),
    ({"axis": 0, "target": LABELS[:5] % 2}, {"axis": np.int64(0), "target": LABELS[:5] % 2}),
    ({"n_threads": 2}, {"n_threads": np.int64(2)}),
    ({"n_threads": 1024}, {"n_threads": np.int64(1024)}),
    (
        {"weight": WEIGHT, "sample_weight": REPEAT, "label_smoothing": 0.1, "z_loss": 1e-3},
        {
            "weight": WEIGHT,
            "sample_weight": REPEAT,
            "label_smoothing": 0.1,
            "z_loss": Fraction(1e-3),
        },
    ),
]
UPSTREAM = [
    ({"grad_output": 2.0}, {"grad_output": np.float64(2)}),
    ({"grad_output": 2}, {"grad_output": np.array([2.0])[0]}),
    ({"grad_output": math.inf}, {"grad_output": np.array(math.inf)}),
    ({"grad_output": REPEAT, **NONE}, {"grad_output": REPEAT.tolist(), **NONE}),
    ({"grad_output": REPEAT.astype("f8"), **NONE}, {"grad_output": np.arange(ROWS), **NONE}),
]
OPTIONS = _kernels.Options.NAMES


def complete(function, given):
    """All arguments of the call, as the bindings take them."""
    call = inspect.signature(function).bind(**{**base_call(SHAPE), **given})
    call.apply_defaults()
    call.arguments.pop("empty_mean")  # is not for the bindings
    arrays = [call.arguments.pop(n) for n in ("logits", "target", "weight", "sample_weight")]
    options = _kernels.make_options(**{name: call.arguments.pop(name) for name in OPTIONS})
    return (function is xe.cross_entropy_with_grad, *arrays, options, *call.arguments.values())


def assert_same(actual, expected):
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(actual, expected, strict=True):
        assert type(a) is type(b)
        assert_bits(a, b)
        assert np.shape(a) == () or a.strides == b.strides


CASES = [(f, *s) for f in FUNCTIONS for s in SPELLINGS]
CASES += [(xe.cross_entropy_with_grad, *s) for s in UPSTREAM]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_plain_calls_are_taken_and_others_are_left(case):
    function, plain, other = CASES[case]
    taken = _kernels.compute_cross_entropy(*complete(function, plain))
    assert taken is not None
    assert_same(_api.checked_cross_entropy(*complete(function, plain)), taken)
    assert_same(function(**{**base_call(SHAPE), **plain}), taken)
    if "ignore_index" not in other or other["ignore_index"] != 2**64:
        assert _kernels.compute_cross_entropy(*complete(function, other)) is None
    assert_same(function(**{**base_call(SHAPE), **other}), taken)


def test_every_option_is_among_the_plain_calls():
    options = {name for _, plain, _ in CASES for name in plain} | {"out", "empty_mean"}
    assert options == set(inspect.signature(xe.cross_entropy_with_grad).parameters)


@pytest.mark.parametrize(
    ("function", "bad"),
    [(xe.cross_entropy, COMMON), (xe.cross_entropy_with_grad, COMMON + GRAD_OUTPUT + OUT)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_calls_are_left_and_nothing_is_written(function, bad):
    for name, spoiled, *_ in bad:
        given = {**base_call(), **spoiled}
        if function is xe.cross_entropy_with_grad and isinstance(given["logits"], np.ndarray):
            given.setdefault("out", np.full_like(given["logits"], 1))
        arrays = [a for a in given.values() if isinstance(a, np.ndarray) and not a.dtype.hasobject]
        before = [a.tobytes() for a in arrays]
        assert _kernels.compute_cross_entropy(*complete(function, given)) is None, name
        assert [a.tobytes() for a in arrays] == before, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 3, -1])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(("name", "n"), [("weight", CLASSES), ("sample_weight", ROWS)])
def test_arrays_of_weights_that_are_not_finite_are_refused(name, n, dtype, position, value):
    weights = np.ones(n, dtype)
    weights[position] = value
    for function in FUNCTIONS:
        assert _kernels.compute_cross_entropy(*complete(function, {name: weights})) is None
        with pytest.raises(ValueError, match=rf"{name}\[{position % n}\] = {value} is not finite"):
            function(X, LABELS, **{name: weights})


@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("layout", ["f4", "f8", "strided f8", "two axes"])
def test_a_sample_weight_that_is_not_finite_is_found_in_any_row(layout, kind):
    rows = 600
    x = make_logits((20, CLASSES, 30))
    target = xe.softmax(x, axis=1) if kind == "probabilities" else np.ones((20, 30), int)
    if kind == "ignored":
        target[...] = -100
    weights = np.ones(2 * rows, "f4" if layout == "f4" else "f8")[:: 1 + ("strided" in layout)]
    weights = weights[:rows].reshape((30, 20) if layout == "two axes" else (20, 30))
    weights = weights.T if layout == "two axes" else weights
    out = np.ones_like(x)
    for k, row in enumerate((0, 1, 7, 254, 255, 256, 511, 512, 577, 598, 599)):
        place = np.unravel_index(row, weights.shape)
        weights[place] = (np.nan, np.inf, -np.inf)[k % 3]
        says = rf"sample_weight\[{place[0]}, {place[1]}\] = {weights[place]}"
        with pytest.raises(ValueError, match=says):
            xe.cross_entropy_with_grad(x, target, sample_weight=weights, out=out)
        weights[place] = 1e308 if weights.dtype == "f8" else 3e38
    assert (out == 1).all()
    xe.cross_entropy_with_grad(x, target, sample_weight=weights, out=out)


# Where a result may go: taken as it stands, or looked at first.
PLACES = {
    "C order": (lambda x: np.empty_like(x), True),
    "Fortran order": (lambda x: np.empty_like(x, order="F"), True),
    "in place": (lambda x: x, True),
    "strided": (lambda x: np.empty((ROWS, 2 * CLASSES), "f4")[:, ::2], False),
    "other bytes": (lambda x: np.empty_like(x, dtype=x.dtype.newbyteorder()), False),
    "subclass": (lambda x: np.empty_like(x).view(Subclass), False),
    "interleaved": (lambda x: x.base[:, 1::2], False),
}


@pytest.mark.parametrize("place", PLACES)
def test_out_in_any_place(place):
    make, plain = PLACES[place]
    x = np.zeros((ROWS, 2 * CLASSES), "f4")[:, ::2] if place == "interleaved" else X.copy()
    x[...] = X
    given = {"logits": x, "out": make(x)}
    taken = _kernels.compute_cross_entropy(*complete(xe.cross_entropy_with_grad, given))
    assert (taken is not None) == plain
    x[...] = X
    loss, grad = xe.cross_entropy_with_grad(**{**base_call(SHAPE), **given})
    assert grad is given["out"]
    expected = xe.cross_entropy_with_grad(X, base_call(SHAPE)["target"])
    assert_bits(loss, expected[0])
    assert_bits(grad.astype("f4"), expected[1])


@pytest.mark.parametrize("given", [{"axis": None}, {"axis": -1}, {"axis": 0}, {"n_threads": 2}])
@pytest.mark.parametrize("function", [xe.softmax, xe.log_softmax, xe.logsumexp, xe.entropy])
def test_softmax_family(function, given):
    plain = function(X, **given)
    others = [(X.view(Subclass), given), (X, {k: v and np.int64(v) for k, v in given.items()})]
    if given.get("axis") is not None:
        others.append((X, {"axis": (given["axis"],)}))
    for x, other in others:
        if function is not xe.entropy or other != {"axis": None}:
            assert_same(function(x, **other), plain)


def test_softmax_family_leaves_what_is_not_plain():
    taken = _kernels.normalize("softmax", X, -1, None, None)
    assert_same(_softmax._elementwise("softmax", X, -1, None, None), taken)
    for x, axis, out, n_threads in [
        (X.tolist(), -1, None, None),
        (X.view(Subclass), -1, None, None),
        (np.arange(3), -1, None, None),
        (X, 2, None, None),
        (X, 1.0, None, None),
        (X, (0, 1), None, None),
        (X, -1, np.empty(SHAPE), None),
        (X, -1, X[::-1], None),
        (X, -1, None, 0),
    ]:
        assert _kernels.normalize("softmax", x, axis, out, n_threads) is None
    for x, axis, base, n_threads in [
        (X.tolist(), -1, None, None),
        (X, 2, None, None),
        (X, -1, 1.0, None),
        (X, -1, None, 1025),
    ]:
        arguments = x, axis, False, base, 0.0, n_threads
        assert _kernels.reduce_rows("entropy", *arguments) is None


# Plain calls of the statistics, and the same in another way.
STATISTICS = [
    ({}, {"target": LABELS.tolist()}),
    ({}, {"logits": X.view(Subclass)}),
    ({"target": None}, {"target": None, "logits": X.view(Subclass)}),
    ({"target": LABELS.astype("u1")}, {"target": LABELS.astype("u1").view(Subclass)}),
    ({"logits": X.astype("f2")}, {"logits": X.astype("f2").view(Subclass)}),
    ({"logits": X.astype("f8")}, {"logits": X.astype("f8").tolist()}),
    ({"logits": swapped(X)}, {"logits": swapped(X).view(Subclass)}),
    (
        {"logits": X[2], "target": LABELS[2:3].reshape(())},
        {"logits": X[2], "target": int(LABELS[2])},
    ),
    ({"axis": 0, "target": LABELS[:5] % 2}, {"axis": np.int64(0), "target": LABELS[:5] % 2}),
    ({"ignore_index": 1}, {"ignore_index": np.int8(1)}),
    ({"logit_scale": 0.5}, {"logit_scale": Fraction(1, 2)}),
    ({"softcap": 30, "logit_scale": 2}, {"softcap": np.float32(30), "logit_scale": 2}),
    ({"n_threads": 2}, {"n_threads": np.int64(2)}),
]


def of_statistics(given):
    """All arguments as the bindings take them."""
    call = inspect.signature(xe.row_statistics).bind(**{**base_call(SHAPE), **given})
    call.apply_defaults()
    arrays = [call.arguments.pop(name) for name in ("logits", "target")]
    return *arrays, _kernels.make_options(**call.arguments, reduction="none")


@pytest.mark.parametrize("case", range(len(STATISTICS)))
def test_row_statistics(case):
    plain, other = STATISTICS[case]
    taken = _kernels.row_statistics(*of_statistics(plain))
    assert taken is not None
    assert _kernels.row_statistics(*of_statistics(other)) is None
    for given in (plain, other):
        found = xe.row_statistics(**{**base_call(SHAPE), **given})
        for value, wanted in zip(found, taken, strict=True):
            assert value is wanted is None or assert_same(value, wanted) is None


def test_every_option_is_among_the_plain_statistics():
    options = {name for plain, _ in STATISTICS for name in plain}
    assert options == set(inspect.signature(xe.row_statistics).parameters)


def test_calls_with_results_of_every_kind_leave_no_reference_behind():
    weight, out = WEIGHT.copy(), np.empty_like(X)
    watched = [X, LABELS, weight, out, X.dtype, np.dtype("f4")]
    calls = [
        lambda: xe.cross_entropy_with_grad(X, LABELS, weight, out=out),
        lambda: xe.cross_entropy_with_grad(X, LABELS, **NONE),
        lambda: xe.cross_entropy(X[0], LABELS[0:1].reshape(()), **NONE),
        lambda: xe.softmax(X, -1),
        lambda: xe.softmax(swapped(X), -1, out=None),
        lambda: xe.logsumexp(X),
        lambda: xe.logsumexp(X, -1, keepdims=True),
        lambda: xe.cross_entropy(X, LABELS.tolist()),
        lambda: xe.row_statistics(X, LABELS),
        lambda: xe.row_statistics(X),
        lambda: xe.row_statistics(X[0], LABELS[0:1].reshape(())),
        lambda: xe.row_statistics(X.view(Subclass), LABELS.tolist()),
    ]
    for call in calls:
        call()
        before = [sys.getrefcount(each) for each in watched]
        for _ in range(100):
            call()
        after = [sys.getrefcount(each) for each in watched]
        assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))
