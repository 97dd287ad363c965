"""logsumexp of complex numbers: sums, angles, infinities."""

import mpmath
import numpy as np
import pytest
from helpers.signed_sums import EPS, INF, NAN, ROWS, exact_sum, parts
from helpers.support import assert_bits, assert_within, case, eps, make_logits
from hypothesis import assume, example, given

import xentropy as xe


def complex_rows(rows, classes, dtype="complex128"):
    x, y, b, c = (make_logits((rows, classes), "float64", seed=seed) for seed in range(4))
    return (x + 3j * y).astype(dtype), (b + 1j * c).astype(dtype)


@pytest.mark.parametrize("classes", [1, 2, 5, 17])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_sums(classes, dtype):
    x, b = complex_rows(6, classes, dtype)
    unit = EPS if dtype == "complex128" else eps("float32")
    for terms, weights in ((x, None), (x, b), (x.real, b), (x, b.real)):
        result = xe.logsumexp(terms, 1, weights)
        log, phase = xe.logsumexp(terms, 1, weights, return_sign=True)
        assert result.dtype == phase.dtype == dtype
        assert_bits(log, result.real)
        for row in range(len(x)):
            with case(f"row {row}"):
                w = np.ones(classes) if weights is None else weights[row]
                exact, exact_phase, condition = exact_sum(terms[row], w)
                size = float(abs(exact)) + np.max(np.abs(terms[row].real)) + condition
                assert abs(log[row] - float(exact)) <= 2 * unit * size
                assert abs(phase[row] - complex(exact_phase)) <= 4 * unit * condition
                angle = float(mpmath.arg(exact_phase))
                assert abs(np.exp(1j * (result[row].imag - angle)) - 1) <= 4 * unit * (
                    condition + 4
                )


@given(ROWS)
@example([(25.0, 1e-10)])  # its term is the largest, and so 25 is added to the logarithm
def test_equal_complex_terms_cancel_exactly(row):
    x, b = np.array(row).T
    x = x + 1j * b
    log, phase = xe.logsumexp(np.r_[x, 2j, x], b=np.r_[b, 3j, -b], return_sign=True)
    exact = 3j * np.exp(2j)
    assume(not (x == 2j).any())
    # As for every sum, units are those of the largest |x|.
    assert abs(log - np.log(3)) <= 2 * EPS * max(1, np.max(np.abs(x.real)))
    assert abs(phase - exact / 3) <= 2 * EPS


def test_angles_are_in_the_principal_range():
    x, b = complex_rows(300, 3)
    result = xe.logsumexp(20 * x, 1, b)
    assert (np.abs(result.imag) <= np.pi).all()
    assert np.max(np.abs(result.imag)) > 3
    _, phase = xe.logsumexp(20 * x, 1, b, return_sign=True)
    assert_within(parts(np.exp(1j * result.imag)), parts(phase), 8 * EPS)
    for minus in (-1, complex(-1, -0.0), complex(-1, 0.0)):  # on the cut: pi, never -pi
        for one in (0, complex(0, -0.0), complex(0, 0.0)):
            assert xe.logsumexp([one + 0j], b=minus) == 1j * np.pi
    assert xe.logsumexp([0, 2.0**-60 * 1j]).imag == 2.0**-61


def test_complex_infinities():
    infinite = np.array([complex(INF, angle) for angle in (0.0, 0.5, 2.5, -2.5, -0.5)])
    for x in infinite:
        for others in ([], [800 + 1j], [complex(-INF, 2), complex(-INF, INF)]):
            log, phase = xe.logsumexp([x, *others], return_sign=True)
            assert log == INF
            assert_within(np.angle(phase), np.angle(np.exp(x)), EPS)
            assert xe.logsumexp([x, *others]) == np.log(np.exp(x))
    assert np.isnan(xe.logsumexp([INF, complex(INF, 2.5)]).imag)
    assert xe.logsumexp([complex(-INF, 2), complex(-INF, INF)]) == -INF
    assert xe.logsumexp([NAN + 1j, INF, 1j], b=[0, 0, 1]) == 1j
    assert np.isnan(xe.logsumexp([NAN + 1j, 1j]))
    assert xe.logsumexp([0, 0j], b=[-INF, 1], return_sign=True) == (INF, -1)
