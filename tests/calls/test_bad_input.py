"""Bad input: the right error, naming argument, value and position, and nothing written."""

import inspect

import numpy as np
import pytest
from helpers.bad_arguments import NAN, refused
from helpers.bad_calls import CALLS, FUNCTIONS, X, base_call, labels
from helpers.support import make_logits

import xentropy as xe

CASES = [(function, base, case) for function, base, cases in CALLS for case in cases]


def check(function, spoiled, exception, says):
    """The same for a cross entropy with this argument spoiled."""
    arguments = {**base_call(), **spoiled}
    if function is xe.cross_entropy_with_grad and isinstance(arguments["logits"], np.ndarray):
        arguments.setdefault("out", np.full(arguments["logits"].shape, 7, "f4"))
    refused(function, arguments, exception, says)


@pytest.mark.parametrize(
    ("function", "base", "case"),
    CASES,
    ids=[f"{function.__name__} {case[0]}" for function, _, case in CASES],
)
def test_bad_argument(function, base, case):
    _, spoiled, exception, says = case
    if function in FUNCTIONS:
        check(function, spoiled, exception, says)
    else:
        refused(function, {**base, **spoiled}, exception, says)


@pytest.mark.parametrize(("function", "base", "cases"), CALLS)
def test_every_argument_is_spoiled_and_the_call_is_valid_without(function, base, cases):
    spoiled = {name for case in cases for name in case[1]}
    assert spoiled == set(inspect.signature(function).parameters)
    function(**base)
    xe.set_num_threads(None)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_labels_that_would_wrap_when_cast_are_out_of_range(dtype, function):
    """A cast to fewer bits, or to the other sign, would make them a class or -100."""
    limits, powers = np.iinfo(dtype), [2**bits for bits in (8, 16, 32, 40, 63, 64)]
    wrong = {near + power for near in (-100, 0, 3) for power in powers + [-p for p in powers]}
    for label in sorted(wrong | {4, -1, -5, int(limits.min), int(limits.max)}):
        if not limits.min <= label <= limits.max or 0 <= label < 4:
            continue
        for order in "<>":
            target = np.array([0, label, 3], np.dtype(dtype).newbyteorder(order))
            says = [rf"target\[1\] = {label} is out of range for 4 classes"]
            check(function, {"target": target}, IndexError, says)


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


@pytest.mark.parametrize("step", [-1, 1, 2, 11])
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


@pytest.mark.parametrize("function", [xe.softmax, xe.log_softmax])
def test_the_result_of_a_softmax_may_not_overlap_its_input_in_part(function):
    shared = np.ones(20, "f4")
    x, out = shared[:12].reshape(3, 4), shared[1:13].reshape(3, 4)
    refused(function, {"x": x, "axis": 1, "out": out}, ValueError, ["out overlaps x"])
    refused(function, {"x": x, "axis": 1, "out": x[::-1]}, ValueError, ["out overlaps x"])


def test_masked_arrays_are_told_what_the_call_offers():
    """Cross entropy alone can leave rows out; elsewhere masked values can only be filled."""
    masked, p = np.ma.array([[1.0, 2.0]], mask=[[False, True]]), np.array([[0.5, 0.5]])
    fill = "is a masked array; fill it"
    for loss in (xe.cross_entropy, xe.cross_entropy_with_grad):
        for arguments in ((masked, [0]), (p, np.ma.array([0])), (p, masked)):
            with pytest.raises(TypeError, match=f"{fill} or use ignore_index/sample_weight$"):
                loss(*arguments)
    functions = xe.softmax, xe.log_softmax, xe.logsumexp, xe.entropy
    others = [(function, (masked,)) for function in functions]
    others += [(xe.logsumexp, (p, None, masked))]
    others += [(xe.kl_divergence, (masked, p)), (xe.kl_divergence, (p, masked))]
    for function, arguments in others:
        with pytest.raises(TypeError, match=f"{fill}$"):
            function(*arguments)
