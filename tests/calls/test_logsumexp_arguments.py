"""logsumexp: axes, dtypes, names and places of arguments as in SciPy, layouts, masks."""

import numpy as np
import pytest
from helpers.signed_sums import EPS, INF, NAN, parts
from helpers.support import assert_bits, assert_within, make_logits
from scipy import special

import xentropy as xe
from xentropy import reference


@pytest.mark.parametrize("axis", [None, 0, -1, 1, (0, 1), (-1, 0), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((3, 5, 4), (3, 5, 4)),
        ((3, 5, 4), ()),
        ((3, 5, 4), (4,)),
        ((3, 5, 4), (5, 1)),
        ((4,), (3, 5, 4)),
        ((3, 1, 4), (5, 1)),
        ((), (3, 5, 4)),
    ],
)
def test_axes_and_broadcasting(shape, weights, axis, keepdims):
    x = make_logits(shape, "float64") * np.ones(())
    for b in (make_logits(weights, "float64", seed=1), np.abs(make_logits(weights, "float64"))):
        for scale in (1, 1 + 0.5j):
            given = scale * x, axis, b
            actual = xe.logsumexp(*given, keepdims, True)
            for each, exact, theirs in zip(
                actual,
                reference.logsumexp(*given, keepdims=keepdims, return_sign=True),
                special.logsumexp(*given, keepdims, True),
                strict=True,
            ):
                assert each.shape == exact.shape == theirs.shape
                assert each.dtype == theirs.dtype
                assert_within(parts(each), parts(exact), 1e-12)  # no row cancels much
                assert type(each) is type(theirs)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), ()], ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (0, 0), (2, 0, 3)], ids=str)
def test_no_elements(shape, axis):
    if axis in (1, (0, 1)) and len(shape) < 2:
        return
    x = np.zeros(shape)
    expected = np.sum(x, axis)
    for keepdims in (False, True):
        for terms, b in ((x, None), (x, x), (x, -1.0), (x + 0j, None), (x, 1j)):
            log, sign = xe.logsumexp(terms, axis, b, keepdims, return_sign=True)
            assert log.shape == sign.shape == np.sum(x, axis, keepdims=keepdims).shape
            assert np.all(log == -INF)
            assert np.all(sign == 0)
            assert np.all(xe.logsumexp(terms, axis, b, keepdims) == -INF)
    assert xe.logsumexp(x, axis).shape == expected.shape


def test_no_axis_is_the_logarithm_of_every_term():
    x, b = make_logits((3, 4), "float64"), make_logits((3, 4), "float64", seed=1)
    assert_bits(xe.logsumexp(x, ()), x)
    log, sign = xe.logsumexp(x, (), b, return_sign=True)
    assert_within(log, x + np.log(np.abs(b)), 4 * EPS * 16)
    assert_bits(sign, np.sign(b))


def test_scalars():
    for x in (3, 3.0, np.float64(3), np.array(3.0), True + 2, 3 + 0j, np.complex64(3)):
        for axis in (None, 0, -1, ()):
            for b in (None, 1, np.ones(())):
                result = xe.logsumexp(x, axis, b)
                assert result == 3
                assert isinstance(result, np.generic)
        assert xe.logsumexp(x, b=-1, return_sign=True) == (3, -1)
    for axis in (1, -2, (0, 0)):
        with pytest.raises(ValueError, match="axis"):
            xe.logsumexp(3.0, axis)


def test_arguments_have_the_places_and_names_of_scipy():
    x, b = make_logits((3, 4), "float64"), make_logits((3, 4), "float64", seed=1)
    by_place = xe.logsumexp(x, 1, b, True, True)
    by_name = xe.logsumexp(a=x, axis=1, b=b, keepdims=True, return_sign=True)
    for each, same in zip(by_place, by_name, strict=True):
        assert_bits(each, same)
        assert each.shape == (3, 1)
    assert_bits(xe.logsumexp(a=x, axis=1), xe.logsumexp(x, 1))
    with pytest.raises(TypeError, match="x and a"):
        xe.logsumexp(x, a=x)
    with pytest.raises(TypeError, match="x must be"):
        xe.logsumexp()


TYPES = ["bool", "int8", "int16", "int64", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("x_type", TYPES)
@pytest.mark.parametrize("b_type", TYPES)
def test_dtypes_are_those_of_scipy(x_type, b_type):
    x, b = np.array([2, 1]).astype(x_type), np.array([1, 1]).astype(b_type)
    for order in ("=", ">"):
        given = x.astype(x.dtype.newbyteorder(order)), None, b.astype(b.dtype.newbyteorder(order))
        for ours, theirs in (
            (xe.logsumexp(*given, return_sign=True)[0], xe.logsumexp(*given).real),
            (xe.logsumexp(*given, return_sign=True)[1], xe.logsumexp(*given) * 0 + 1),
            (xe.logsumexp(*given), special.logsumexp(x, b=b)),
            (xe.logsumexp(given[0]), special.logsumexp(x)),
            (xe.logsumexp(given[0], b=2), special.logsumexp(x, b=2)),
            (xe.logsumexp(given[0], b=-2.5), special.logsumexp(x, b=-2.5)),
            (xe.logsumexp(given[0], b=1j), special.logsumexp(x, b=1j)),
            (xe.logsumexp(1.0, b=given[2]), special.logsumexp(1.0, b=b)),
        ):
            assert ours.dtype == theirs.dtype
            assert_within(ours.real, theirs.real, 1e-6)


def test_sixteen_bits_are_summed_to_float32(dtype):
    for b in (None, -1, np.ones(2, dtype)):
        for result in xe.logsumexp(np.zeros(2, dtype), b=b, return_sign=True):
            assert result.dtype == ("float64" if dtype == np.float64 else "float32")
    assert xe.logsumexp(np.zeros(2, dtype), b=1j).dtype == (
        "complex128" if dtype == np.float64 else "complex64"
    )


@pytest.mark.usefixtures("tier")
def test_the_sign_of_a_plain_sum_and_weights_of_1_change_nothing(dtype):
    x = make_logits((7, 33), dtype).copy()
    x[1], x[2, 3], x[3, 4] = -INF, INF, NAN
    plain = xe.logsumexp(x, 1)
    log, sign = xe.logsumexp(x, 1, return_sign=True)
    assert_bits(log, plain)
    assert_bits(sign, np.array([1, 0, 1, NAN, 1, 1, 1], plain.dtype))
    weighted = xe.logsumexp(x, 1, np.ones(33, dtype))
    assert_bits(weighted, xe.logsumexp(x.astype("f8"), 1).astype(plain.dtype))


def test_layouts_and_subclasses():
    x, b = make_logits((6, 5, 4), "float64"), make_logits((6, 5, 4), "float64", seed=1)
    for axis in (0, 1, (0, 2), None):
        expected = xe.logsumexp(x, axis, b, return_sign=True)
        for lay_out in (np.asfortranarray, lambda a: a[::-1][::-1], lambda a: a.view(np.memmap)):
            given = lay_out(x), axis, lay_out(b)
            for each, same in zip(xe.logsumexp(*given, return_sign=True), expected, strict=True):
                assert type(each) in (np.ndarray, np.float64)
                assert_within(each, same, 1e-13)


def test_weights_of_0_are_a_mask():
    """What SciPy's documentation recommends for masked arrays, which are refused."""
    masked = np.ma.array([np.log(2), NAN, np.log(3)], mask=[False, True, False])
    log = xe.logsumexp(masked.data, b=~masked.mask)
    assert_within(log, np.log(5), 2 * EPS)
    for arguments in ({"x": masked}, {"x": [1.0, 2, 3], "b": masked}):
        with pytest.raises(TypeError, match="masked"):
            xe.logsumexp(**arguments)
