"""softmax, log_softmax, logsumexp, entropy and kl_divergence."""

import numpy as np
import pytest
from helpers.layouts import LAYOUTS, WRITABLE
from helpers.support import (
    assert_bits,
    assert_ulps,
    assert_within,
    case,
    eps,
    gradient_ulps,
    make_logits,
    make_target,
    oracle,
    plain,
)
from scipy import special

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

AXES = [None, 0, 1, 2, -1, -2, (0, 1), (1, 2), (0, 2), (2, 0), (0, -1), (0, 1, 2)]
MAPS = ("softmax", "log_softmax")
LENGTHS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 127, 129, 255, 256, 257, 300, 1000, 1025]


def assert_map(name, x, axis, what="", **options):
    """softmax or log_softmax, to 4 ulp; 16-bit answers rounded once."""
    actual = getattr(xe, name)(x, axis, **options)
    dtype = np.asarray(x).dtype.newbyteorder("=")
    assert actual.dtype.newbyteorder("=") == dtype
    assert_ulps(actual, getattr(oracle(dtype), name)(x, axis), gradient_ulps(dtype), what)
    return actual


def assert_lse(x, axis, what="", **options):
    """max + log(sum) cancels near 0: exact relative to the largest |x|, or to the result."""
    actual = xe.logsumexp(x, axis, **options)
    exact = oracle(x.dtype).logsumexp(x, axis, **options)
    wide = "float64" if x.dtype.newbyteorder("=") == np.float64 else "float32"
    assert actual.dtype == wide
    size = np.max(np.abs(x.astype(np.float64)), initial=0.0, where=np.isfinite(x.astype(float)))
    with np.errstate(invalid="ignore"):
        assert_within(actual, exact, plain(x.dtype) * eps(x.dtype) * (np.abs(exact) + size), what)
    return actual


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 37, 130), (4, 3, 300)], ids=str)
def test_axes_and_layouts(dtype, shape, axis):
    for layout, lay_out in LAYOUTS.items():
        x = lay_out(make_logits(shape, dtype))
        for name in MAPS:
            assert_map(name, x, axis, f"{name}, {layout}")
        for keepdims in (False, True):
            assert_lse(x, axis, layout, keepdims=keepdims)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_every_length(dtype, rows):
    for classes in LENGTHS:
        x = make_logits((rows, classes), dtype)
        for each, axis in ((x, 1), (x.T.copy(), 0)):
            for name in MAPS:
                assert_map(name, each, axis, f"{name} {classes}")
            assert_lse(each, axis, str(classes))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 33, 70)], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2)], ids=str)
def test_out_and_in_place(dtype, axis, shape, name):
    for layout in WRITABLE:
        values = make_logits(shape, dtype)
        out = LAYOUTS[layout](np.zeros(shape, dtype))
        assert assert_map(name, values, axis, layout, out=out) is out
        x = LAYOUTS[layout](values)
        fresh = getattr(xe, name)(x, axis)
        assert getattr(xe, name)(x, axis, out=x) is x
        assert_bits(x.astype(dtype), fresh.astype(dtype), layout)


@pytest.mark.parametrize("margin", [1.0, 8.0, 20.0, 40.0, 80.0])
def test_log_softmax_keeps_the_tail_of_a_certain_class(dtype, margin):
    for shape in ((5, 2), (3, 100), (2, 300), (2, 5000)):
        x = np.zeros(shape, dtype)
        x[:, shape[1] // 2] = margin
        assert_map("log_softmax", x, 1)
        assert_map("softmax", x, 1)


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_agrees_with_scipy(axis, function):
    x = make_logits((3, 5, 4), "float64")
    theirs = getattr(special, function)(x, axis)
    # scipy subtracts, then takes logarithms: a few units of |x| < 16
    assert_within(getattr(xe, function)(x, axis), theirs, 64 * eps("float64"))


@pytest.mark.parametrize("integer", ["bool", "int8", "uint8", "int64", "uint64"])
def test_integers_become_float64(integer):
    x = np.array([[1, 0, 3, 2], [0, 0, 1, 9]]).astype(integer)
    for function in (xe.softmax, xe.log_softmax, xe.logsumexp):
        assert_bits(function(x, 1), function(x.astype(float), 1))
    assert_bits(xe.entropy(x), xe.entropy(x.astype(float)))
    assert_bits(xe.softmax([[1, 2], [3, 4]], 1), xe.softmax(np.array([[1.0, 2], [3, 4]]), 1))


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_one_row(dtype, axis):
    for classes in (1, 2, 10, 300):
        x = make_logits(classes, dtype)
        for name in MAPS:
            assert_map(name, x, axis)
        assert assert_lse(x, axis).shape == ()
        assert assert_lse(x, axis, keepdims=True).shape == (1,)


def test_a_single_number():
    for x in (np.float32(3), np.float64(-2), 5.0, np.array(7.0)):
        assert xe.softmax(x) == 1
        assert xe.log_softmax(x) == 0
        assert xe.logsumexp(x) == float(x)
        assert np.ndim(xe.softmax(x)) == 0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0, 3), (2, 3, 0, 5)])
def test_no_rows(dtype, shape):
    x = np.zeros(shape, dtype)
    for name in MAPS:
        assert getattr(xe, name)(x, -1).shape == shape
    for rows in (xe.logsumexp(x, -1), xe.entropy(x)):
        assert rows.shape == shape[:-1]
    assert xe.logsumexp(x, -1, keepdims=True).shape == (*shape[:-1], 1)


ROWS = {
    "-inf": [0.0, -np.inf, 1.0, 2.0],
    "one finite": [-np.inf, -np.inf, 3.0, -np.inf],
    "all -inf": [-np.inf] * 4,
    "+inf": [0.0, np.inf, 1.0, 2.0],
    "two +inf": [np.inf, np.inf, 1.0, 2.0],
    "nan": [0.0, np.nan, 1.0, 2.0],
    "+inf and nan": [np.inf, np.nan, 1.0, 2.0],
    "large": [1e4, 9e3, -1e4, 0.0],
}


@pytest.mark.parametrize("repeat", [1, 9, 75, 400])
def test_special_rows(dtype, repeat):
    for what, values in ROWS.items():
        x = make_logits((7, 4 * repeat), dtype)
        x[[0, 3, 6]] = np.tile(values, repeat)
        for each, axis in ((x, 1), (x.T.copy(), 0)):
            with case(what):
                for name in MAPS:
                    assert_map(name, each, axis, name)
                assert_lse(each, axis)
                assert_entropy(each, axis=axis)


# Beyond it no k serves without the maximum; float16 has no such numbers.
FAR = {"float16": 6e4, "bfloat16": 2.0**22, "float32": 2.0**22, "float64": 2.0**34}


def far_rows(classes, dtype):
    """Rows to be done from their maximum, and rows of nan, each beside rows that are not."""
    far = FAR[dtype.name]
    x = make_logits((40, classes), "float64")
    x[3] += far
    x[7] -= far
    x[11, -1] = far  # not among the logits from which k is guessed
    x[14, -1] = 200.0
    x[17, 0] = -far
    x[20:37] += far
    x[24], x[25, :-1], x[27, 0], x[28, :-1] = np.nan, -np.inf, np.nan, -np.inf
    x[38] *= float(np.finfo(dtype).max if dtype.kind == "f" else 3e38) / np.abs(x[38]).max() / 2
    return x.astype(dtype)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 10, 33, 190, 320, 321, 1000, 2049])
def test_rows_far_from_zero(dtype, classes):
    x = far_rows(classes, dtype)
    for name in MAPS:
        function = getattr(xe, name)
        whole = assert_map(name, x, 1)
        in_place, alone = x.copy(), x.copy()
        function(in_place, 1, out=in_place)
        assert_bits(in_place, whole, name)
        for row, expected in zip(alone, whole, strict=True):
            assert_bits(function(row), expected, name)
            assert_bits(function(row, out=row), expected, name)
    assert_lse(x, 1)
    assert_entropy(x)
    for function in (xe.logsumexp, xe.entropy):
        alone = np.array([function(row, axis=-1) for row in x], function(x, axis=-1).dtype)
        assert_bits(alone, function(x, axis=-1))


def assert_entropy(x, **options):
    """A sum of nonnegative terms p * -log p: each is good to 2 * plain units."""
    actual = xe.entropy(x, **options)
    exact = oracle(x.dtype).entropy(x, **options)
    assert np.asarray(actual).dtype == ("float64" if x.dtype == np.float64 else "float32")
    assert_ulps(actual, exact, 2 * plain(x.dtype))


@pytest.mark.parametrize("base", [None, 2, 10.0])
def test_entropy(dtype, base):
    for shape in ((7, 2), (5, 10), (3, 300), (2, 5000), (3, 5, 40)):
        for spread in (0.1, 3.0, 30.0):
            x = make_logits(shape, dtype, spread=spread)
            for axis in range(-1, len(shape)):
                assert_entropy(x, axis=axis, base=base)


@pytest.mark.parametrize("margin", [1.0, 10.0, 20.0, 60.0])
def test_entropy_keeps_the_tail_of_a_certain_class(dtype, margin):
    x = np.zeros((3, 10), dtype)
    x[:, 4] = margin
    assert_entropy(x)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("base", [None, 2])
def test_kl_divergence(dtype, base, reduction):
    options = {"reduction": reduction, "base": base}
    for shape, axis in (((7, 2), 1), ((5, 10), 1), ((3, 300), 1), ((4, 5, 40), 1), ((6, 9), 0)):
        for layout in LAYOUTS.values():
            x = layout(make_logits(shape, dtype))
            t = layout(make_target("probabilities", shape, axis, dtype=dtype))
            actual = xe.kl_divergence(t, x, axis=axis, **options)
            wide = np.float64 if dtype == np.float64 else np.float32
            assert isinstance(actual, float) if reduction != "none" else actual.dtype == wide
            # log t - log p cancels: relative to t (|log t| + |log p|), in bits if base = 2
            with np.errstate(divide="ignore", invalid="ignore"):
                wide_t = t.astype(np.float64)
                logs = np.where(wide_t > 0, np.abs(np.log(wide_t)), 0)
            size = wide_t * (logs + np.abs(oracle("float32").log_softmax(x, axis)))
            size = size.sum(axis) * (1.5 if base else 1)
            size = (
                size if reduction == "none" else size.sum() / (size.size ** (reduction == "mean"))
            )
            exact = oracle(dtype).kl_divergence(t, x, axis=axis, **options)
            assert_within(actual, exact, 2 * plain(dtype) * eps(dtype) * size, f"{shape}")


def test_kl_divergence_ignores_impossible_classes():
    x = np.array([[0.0, -np.inf, 1.0]])
    assert np.isfinite(xe.kl_divergence(np.array([[0.5, 0.0, 0.5]]), x))
    assert xe.kl_divergence(np.array([[0.5, 0.1, 0.4]]), x) == np.inf


def test_one_row_of_kl_divergence_and_entropy():
    x, t = make_logits(5, "float64"), make_target("probabilities", (5,), dtype="float64")
    exact = oracle("float64")
    assert_within(xe.kl_divergence(t, x), exact.kl_divergence(t, x), 1e-15)
    assert_within(xe.entropy(x), exact.entropy(x), 1e-15)


def test_large_arrays_use_threads_and_change_no_bit(dtype):
    for shape in ((70_001, 3), (300, 1000), (1, 300_001), (2, 21, 4000)):
        x = make_logits(shape, dtype)
        answers = []
        try:
            for threads in (1, 3):
                xe.set_num_threads(threads)
                answers.append([xe.softmax(x, 1), xe.log_softmax(x, 1), xe.logsumexp(x, 1)])
        finally:
            xe.set_num_threads(None)
        for one, many in zip(*answers, strict=True):
            assert_bits(many, one, str(shape))
        assert_map("softmax", x[:100], 1)
