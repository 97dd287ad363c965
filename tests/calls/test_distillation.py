"""distillation_loss: loss and gradient against 120 digits, the reference, slopes, libraries."""

import numpy as np
import pytest
import scipy.special
from helpers.divergences import BETAS, LOSS, assert_gradient, assert_loss, exact, pair
from helpers.support import EXACT, assert_bits, assert_within, make_logits, oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# Rows of 2 to 320 classes (192 in float64) are computed a row a lane.
SHAPES = [(37, 1), (37, 2), (19, 5), (20, 17), (18, 100), (7, 320), (7, 321), (7, 1000), (3, 5003)]


def assert_exact(x, y, beta, temperature=1.0):
    """Both to the last places, against 120 digits."""
    loss, grad = xe.distillation_loss_with_grad(
        x, y, beta=beta, temperature=temperature, reduction="none"
    )
    exact_loss, exact_grad = exact(x, y, beta, temperature)
    assert_loss(loss, exact_loss, x.dtype)
    assert_gradient(grad, exact_grad, x.dtype)
    assert (np.asarray(loss) >= 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(dtype, shape, beta):
    for spread in (0.1, 3.0):
        x, y = pair(shape, dtype, spread)
        for temperature in (1.0, 0.7, 4):
            options = {"beta": beta, "temperature": temperature, "reduction": "none"}
            loss, grad = xe.distillation_loss_with_grad(x, y, **options)
            exact_loss, exact_grad = oracle(dtype).distillation_loss_with_grad(x, y, **options)
            noise = 20 * np.finfo(exact_grad.dtype).eps  # the reference's own rounding
            assert_loss(loss, exact_loss, dtype, noise)
            assert_gradient(grad, exact_grad, dtype, noise=noise)
            assert_bits(xe.distillation_loss(x, y, **options), loss)
            assert grad.dtype == dtype


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("classes", [2, 7, 60])
def test_in_many_digits(dtype, beta, classes):
    for spread in (0.5, 4.0):
        x, y = pair((4, classes), dtype, spread)
        assert_exact(x, y, beta)
        assert_exact(x, y, beta, 2.5)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("off", [1e-6, 1e-4, 1e-3, 0.1])
def test_student_and_teacher_almost_agree(dtype, beta, off):
    """The loss is the square of a small difference, and as exact as any other."""
    rng = np.random.default_rng(0)
    for classes in (3, 40):
        x = make_logits((4, classes), dtype)
        y = (x + off * rng.normal(size=x.shape)).astype(dtype)
        y[1] += np.dtype(dtype).type(100)  # no softmax sees it
        x[2] *= 0.01
        y[2] = (x[2] + off * rng.normal(size=classes)).astype(dtype)
        assert_exact(x, y, beta)


@pytest.mark.parametrize("beta", BETAS)
def test_of_equal_logits_the_loss_is_0(dtype, beta):
    for shape in SHAPES:
        x = make_logits(shape, dtype)
        loss, grad = xe.distillation_loss_with_grad(x, x.copy(), beta=beta, reduction="none")
        assert not loss.any()
        assert not grad.astype("f4").any()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("margin", [10, 30, 50, 80])
def test_confident_rows(dtype, beta, margin):
    """The same class, another one, or one of the two sure of nothing."""
    for classes in (2, 5, 33):
        x, y = pair((4, classes), dtype, 1.0)
        x, y = x.copy(), y.copy()
        x[0, 1] += margin
        y[0, 1] += margin
        x[1, 1] += margin
        y[1, 0] += margin
        x[2, classes - 1] += margin
        y[3, classes - 1] += margin
        assert_exact(x, y, beta)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", BETAS)
def test_probabilities_that_underflow(dtype, beta):
    for far in (100, 200, 800, 5000):
        x = np.array([[0, 1, -far], [0, 1, 2], [0, 0, -far], [0, -far, 1]], dtype)
        y = np.array([[1, 0, 2], [0, 1, -far], [1, 0, -far], [0, 0, -far]], dtype)
        assert_exact(x, y, beta)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", [1e-40, 1e-300, 5e-324])
def test_betas_that_underflow(dtype, beta):
    x, y = np.array([[0, -200, -800, -np.inf]] * 2, dtype), np.zeros((2, 4), dtype)
    for classes in (4, 400):  # the others are impossible for both
        others = np.full((2, classes - 4), -np.inf, dtype)
        pair = np.hstack([x, others]), np.hstack([y, others])
        loss, grad = xe.distillation_loss_with_grad(*pair, beta=beta, reduction="none")
        assert_within(loss, np.zeros(2), 1e-36)
        assert_within(grad, np.zeros(grad.shape), 1e-36)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("offset", [1e3, 1e6, 1e30])
def test_large_logits(dtype, beta, offset):
    """What all logits of a row have in common is no matter, however large."""
    steps = np.random.default_rng(0).integers(-3, 4, (2, 5, 9))
    steps = steps * np.spacing(np.dtype(dtype).type(offset))
    x, y = (offset + steps[0]).astype(dtype), (-offset + steps[1]).astype(dtype)
    assert_exact(x, y, beta)
    for temperature in (1, 3):
        assert_exact(x, (offset + steps[1]).astype(dtype), beta, temperature)


FINITE = st.floats(-40, 40, width=32)  # beyond a margin of 87, float32 probabilities underflow


@pytest.mark.parametrize("beta", BETAS)
@given(
    both=st.integers(2, 12).flatmap(lambda n: arrays.arrays(np.float32, (2, n), elements=FINITE))
)
def test_any_row(beta, both):
    """Whatever the logits are."""
    x, y = both[:1], both[1:]
    assert_exact(x, y, beta)
    assert_exact(3 * x.astype("f8"), 3 * y.astype("f8"), beta)


@pytest.mark.parametrize("dtype", EXACT)
def test_excluded_classes(dtype):
    """0 log 0 = 0; a class that only one of them has costs what the formula says."""
    x, y = pair((4, 50), dtype)
    x, y = x.copy(), y.copy()
    x[:, 3] = y[:, 3] = -np.inf  # by both
    x[1, 7] = -np.inf
    y[2, 7] = -np.inf
    y[3, np.argmax(x[3])] = -np.inf
    for beta in BETAS:
        loss, grad = xe.distillation_loss_with_grad(x, y, beta=beta, reduction="none")
        exact_loss, exact_grad = exact(x, y, beta)
        assert_loss(loss, exact_loss, dtype)
        fine = np.isfinite(exact_loss) | (beta == 0)
        assert_gradient(grad[fine], exact_grad[fine], dtype)
        assert np.isinf(loss).tolist() == [False, beta == 0, beta == 1, beta == 1]
        assert np.isnan(grad[~fine]).all()
        assert not grad[fine][:, 3].any()


def test_rows_without_a_softmax_answer_for_themselves(dtype):
    for shape in ((9, 6), (9, 400)):
        clean, y = pair(shape, dtype)
        x, y = clean.copy(), y.copy()
        x[1, 2], x[2, 0], x[3] = np.nan, np.inf, -np.inf
        y[4, 3], y[5, 1], y[6] = np.nan, np.inf, -np.inf
        for beta in BETAS:
            loss, grad = xe.distillation_loss_with_grad(x, y, beta=beta, reduction="none")
            gone = np.isin(np.arange(9), range(1, 7))
            assert np.isnan(loss[gone]).all()
            assert np.isnan(grad[gone].astype("f4")).all()
            alone, own = xe.distillation_loss_with_grad(
                clean[~gone], y[~gone], beta=beta, reduction="none"
            )
            assert_bits(loss[~gone], alone)
            assert_bits(grad[~gone], own)


@pytest.mark.parametrize("beta", BETAS)
def test_slopes(beta):
    """Central differences, in the student and in the teacher, under every option."""
    x, y = pair((6, 5), "float64", 1.0)
    step = 1e-4
    for options in (
        {},
        {"reduction": "sum", "temperature": 2.0},
        {"sample_weight": np.array([1, 0, 2, 0.5, 3, -1.0]), "grad_output": -1.5},
        {"reduction": "none", "grad_output": np.array([1, -2, 0.5, 0, 4, 1.0])},
        {"normalizer": 2.5},
        {"axis": 0},
    ):
        plain = {k: v for k, v in options.items() if k != "grad_output"}
        if options.get("axis") == 0:
            x, y = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)
        upstream = options.get("grad_output", 1.0)
        found = xe.distillation_loss_with_grad(x, y, beta=beta, teacher_grad=True, **options)
        for which, grad in enumerate(found[1:]):
            for at in np.ndindex(x.shape):
                sides = []
                for sign in (1, -1):
                    moved = [x.copy(), y.copy()]
                    moved[which][at] += sign * step
                    sides.append(xe.distillation_loss(*moved, beta=beta, **plain))
                slope = np.sum(upstream * (sides[0] - sides[1])) / (2 * step)
                assert abs(slope - grad[at]) < 1e-7  # step^2 times a third derivative of about 1


def test_the_loss_is_symmetric(dtype):
    x, y = pair((11, 70), dtype)
    for beta in (0.0, 0.25, 0.5, 1.0):
        here = xe.distillation_loss(x, y, beta=beta, reduction="none")
        there = xe.distillation_loss(y, x, beta=1 - beta, reduction="none")
        assert_within(here, there, 4 * LOSS["float32"] * there)


def test_other_libraries_agree():
    x, y = pair((30, 40), "float64")
    s, t = (scipy.special.softmax(a, axis=1) for a in (x, y))
    forward = scipy.special.rel_entr(t, s).sum(axis=1)
    reverse = scipy.special.rel_entr(s, t).sum(axis=1)
    assert_within(xe.distillation_loss(x, y, reduction="none"), forward, 1e-12)
    assert_within(xe.distillation_loss(x, y, beta=1, reduction="none"), reverse, 1e-12)
    m = (s + t) / 2
    both = (scipy.special.rel_entr(s, m) + scipy.special.rel_entr(t, m)).sum(axis=1) / 2
    assert_within(xe.distillation_loss(x, y, beta=0.5, reduction="none"), both, 1e-12)
