"""Log-probabilities of a linear layer's output: numbers, gradients, memory, errors."""

import tracemalloc

import numpy as np
import pytest
from helpers.bad_arguments import masked, refused
from helpers.layouts import every_second
from helpers.linear import make_layer
from helpers.support import assert_bits, eps, wide_of

import xentropy as xe
from xentropy import reference
from xentropy._linear import _plan

NAMES = ("input", "linear_weight", "linear_bias")


def make(rows=40, features=16, classes=90, dtype="float32", k=None, seed=3):
    """(input, linear_weight, linear_bias), classes, and upstream gradients of both numbers."""
    rng = np.random.default_rng(seed)
    index = rng.integers(classes, size=rows if k is None else (rows, k))
    upstream = rng.integers(-64, 65, index.shape) / 64, rng.integers(-64, 65, rows) / 64
    return make_layer(rows, features, classes, dtype), index, upstream


def both(layer, index, upstream, out=None, wanted=NAMES, **options):
    """The numbers and the gradients."""
    x, weight, bias = layer
    found = xe.linear_selected_log_probs(x, weight, index, linear_bias=bias, **options)
    saved = found.lse, found.log_prob, found.entropy
    options |= {"linear_bias": bias, "out": out, "wanted": wanted}
    return found, xe.linear_selected_log_probs_grad(x, weight, index, *saved, *upstream, **options)


def assert_close(layer, index, upstream, **options):
    """Near the reference: a product's rounding moves logits, and by it everything else."""
    x, weight, bias = layer
    plain = {k: v for k, v in options.items() if k not in ("logits_bytes", "n_threads")}
    plain["linear_bias"] = bias
    exact = reference.linear_selected_log_probs(x, weight, index, **plain)
    slopes = reference.linear_selected_log_probs_grad(x, weight, index, *upstream, **plain)
    found, grads = both(layer, index, upstream, **options)
    step = eps(x.dtype) * (x.shape[-1] + 20)
    for value, of in zip(found, exact, strict=True):
        np.testing.assert_allclose(value, of, rtol=20 * step, atol=20 * step)
    own = 0 if x.dtype.itemsize > 2 else float(np.finfo("f2").eps if x.dtype == "f2" else 2**-7)
    for gradient, of in zip(grads, slopes, strict=True):
        assert gradient.dtype == x.dtype
        size = np.abs(of).max()
        np.testing.assert_allclose(gradient.astype("f8"), of, rtol=own, atol=40 * step * size)
    return found, grads


@pytest.mark.parametrize("k", [None, 1, 3])
def test_the_numbers_and_gradients_are_those_of_the_reference(dtype, k):
    layer, index, upstream = make(dtype=dtype, k=k)
    index[3], index[7:9] = -100, -100
    for options in ({}, {"logit_scale": 0.7}, {"softcap": 4.0}, {"logits_bytes": 7 * 90 * 4}):
        found, grads = assert_close(layer, index, upstream, **options)
        assert found.log_prob.dtype == found.entropy.dtype == wide_of(layer[0])
        assert found.lse.dtype == np.float64
        assert not grads.input[[3, 7, 8]].astype("f4").any()


def test_with_upstream_gradient_minus_1_it_is_that_of_the_loss():
    layer, index, _ = make(classes=1000)
    found, grads = both(layer, index, (-1.0, None))
    loss, expected = xe.linear_cross_entropy_with_grad(
        layer[0], layer[1], index, linear_bias=layer[2], reduction="none", grad_output=np.ones(40)
    )
    np.testing.assert_allclose(found.log_prob, -loss, rtol=1e-5)
    for gradient, of in zip(grads, expected, strict=True):
        np.testing.assert_allclose(gradient, of, rtol=1e-4, atol=1e-5)


def test_rows_without_a_class_are_in_no_product():
    layer, index, upstream = make()
    index[::2] = -100
    layer[0][::2] = np.nan
    found, grads = both(layer, index, upstream)
    assert not found.log_prob[::2].any()
    assert not grads.input[::2].any()
    assert np.isfinite(grads.linear_weight).all()
    assert np.isfinite(found.entropy).all()


def test_shapes_of_input_and_what_is_wanted():
    layer, index, upstream = make(rows=12, k=2)
    whole = both(layer, index, upstream)
    folded = (layer[0].reshape(3, 4, -1), *layer[1:])
    found, grads = both(
        folded, index.reshape(3, 4, 2), (upstream[0].reshape(3, 4, 2), upstream[1].reshape(3, 4))
    )
    assert_bits(found.log_prob.reshape(12, 2), whole[0].log_prob)
    assert_bits(grads.input.reshape(12, -1), whole[1].input)
    frozen = both(layer, index, upstream, wanted=("input",))[1]
    assert frozen.linear_weight is frozen.linear_bias is None
    assert_bits(frozen.input, whole[1].input)
    one = xe.linear_selected_log_probs(layer[0][0], layer[1], index[0], linear_bias=layer[2])
    assert one.log_prob.shape == (2,)
    np.testing.assert_allclose(one.log_prob, whole[0].log_prob[0], rtol=1e-5)


def test_places_threads_and_chunks_change_no_bit():
    layer, index, upstream = make(rows=100, classes=500)
    plain = both(layer, index, upstream)
    out = {name: every_second(np.zeros_like(a)) for name, a in zip(NAMES, layer, strict=True)}
    placed = both(layer, index, upstream, out=out, n_threads=3)
    for name in NAMES:
        assert getattr(placed[1], name) is out[name]
        assert_bits(out[name], getattr(plain[1], name))
    for name in plain[0]._fields:
        assert_bits(getattr(placed[0], name), getattr(plain[0], name))


def test_memory_is_a_buffer_whatever_the_rows():
    classes, rows = 8000, 3000
    layer, index, upstream = make(rows, 4, classes)
    buffer = 64 * classes * 4
    out = tuple(np.empty_like(a) for a in layer)
    assert _plan.chunk_rows(rows, 4, classes, 4, buffer) <= 64

    def call():
        both(layer, index, upstream, out=out, logits_bytes=buffer)

    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < buffer + (4 << 20) + 100 * rows


X, W, Y = np.zeros((3, 4), "f4"), np.zeros((5, 4), "f4"), np.array([0, 1, 2])
ONE = np.ones(3, "f4")
CALL = {"input": X, "linear_weight": W, "index": Y}
SAVED = dict.fromkeys(("lse", "log_prob", "entropy", "grad_log_prob", "grad_entropy"), ONE)
MISTAKES = [
    ({"input": masked(X)}, TypeError, ["input", "masked"]),
    ({"linear_weight": W.T}, ValueError, ["linear_weight", "transposed"]),
    ({"linear_bias": ONE}, ValueError, ["linear_bias", r"\(5,\)"]),
    ({"index": Y[:2]}, ValueError, ["index", r"\(2,\)", r"\(3,\)"]),
    ({"index": X}, TypeError, ["index", "integers"]),
    ({"index": np.array([0, 5, 0])}, IndexError, [r"index\[1\] = 5", "5 classes"]),
    ({"index": np.array([[0, 1], [0, -1], [1, 1]])}, IndexError, [r"index\[1, 1\] = -1"]),
    ({"logit_scale": 0}, ValueError, ["logit_scale"]),
    ({"logits_bytes": 0}, ValueError, ["logits_bytes"]),
]
GRADIENT = [
    *(({name: ONE[:2]}, ValueError, [name, r"\(2,\)"]) for name in SAVED),
    ({"wanted": ("weight",)}, ValueError, ["wanted", "'weight'"]),
    ({"out": (X, W, ONE)}, ValueError, ["linear_bias"]),
    ({"out": {"input": X[:2]}}, ValueError, ["input", r"\(2, 4\)"]),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    refused(xe.linear_selected_log_probs, {**CALL, **spoiled}, error, says)
    several = np.ndim(spoiled.get("index")) == 2 and {"log_prob": np.ones((3, 2))}
    refused(
        xe.linear_selected_log_probs_grad,
        {**CALL, **SAVED, **(several or {}), **spoiled, "grad_log_prob": 1.0},
        error,
        says,
    )


@pytest.mark.parametrize(("spoiled", "error", "says"), GRADIENT)
def test_mistakes_of_the_gradient(spoiled, error, says):
    call = {**CALL, **SAVED, **spoiled}
    held = {k: v for k, v in call.items() if k != "out"}
    with pytest.raises(error, match=".*".join(says)):
        xe.linear_selected_log_probs_grad(**held, **({"out": call["out"]} if "out" in call else {}))
