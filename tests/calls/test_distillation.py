"""distillation_loss: loss and gradient against 120 digits, the reference, slopes, other calls."""

import numpy as np
import pytest
import scipy.special
from helpers.bad_calls import masked, refused
from helpers.divergences import BETAS, exact
from helpers.layouts import LAYOUTS, WRITABLE, surroundings
from helpers.short_rows import wild
from helpers.support import (
    EXACT,
    assert_bits,
    assert_within,
    bits16,
    case,
    eps,
    make_logits,
    oracle,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import xentropy as xe
from bench.accuracy import long_reference, spacing
from xentropy import reference

pytestmark = pytest.mark.usefixtures("tier")

# Of the loss, relative: see the terms in common/divergence.h, whose exps, quotients and logarithms
# cancel by up to a factor of 7 where |d| is just above 1.
LOSS = {"float32": 1e-6, "float64": 1e-14}
ULPS = 8  # of a gradient, in units of the last place of its row's largest entry
# Rows of 2 to 320 classes (192 in float64) are computed a row a lane.
SHAPES = [(37, 1), (37, 2), (19, 5), (20, 17), (18, 100), (7, 320), (7, 321), (7, 1000), (3, 5003)]
LONG = long_reference()


def assert_gradient(grad, wanted, dtype, ulps=ULPS, noise=0.0):
    """Off by so many ulps of the row's largest entry; 16-bit entries are rounded once more."""
    largest = np.abs(wanted).max(axis=-1, keepdims=True)
    allowed = ulps * eps(dtype) * largest + np.finfo(np.float32).tiny + noise
    if bits16(dtype):
        allowed = allowed + 0.51 * spacing(wanted, dtype)
    assert_within(grad, wanted, allowed, "gradient")


def assert_loss(loss, wanted, dtype, noise=0.0):
    kind = "float64" if np.dtype(dtype) == np.float64 else "float32"
    # A KL below the square of the smallest number is 0.
    assert_within(loss, wanted, LOSS[kind] * np.abs(wanted) + np.finfo(kind).tiny + noise, "loss")


def assert_exact(x, y, beta, temperature=1.0):
    """Both to the last places, against 120 digits."""
    loss, grad = xe.distillation_loss_with_grad(
        x, y, beta=beta, temperature=temperature, reduction="none"
    )
    exact_loss, exact_grad = exact(x, y, beta, temperature)
    assert_loss(loss, exact_loss, x.dtype)
    assert_gradient(grad, exact_grad, x.dtype)
    assert (np.asarray(loss) >= 0).all()


def pair(shape, dtype, spread=3.0):
    return make_logits(shape, dtype, spread=spread), make_logits(
        shape, dtype, seed=1, spread=spread
    )


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


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_kl_divergence_of_two_matrices_of_logits(dtype, reduction):
    x, y = pair((20, 40), dtype)
    options = {"reduction": reduction, "base": 2}
    found = xe.kl_divergence(y, x, target_logits=True, **options)
    wanted = reference.kl_divergence(y, x, target_logits=True, **options)
    assert_loss(found, wanted, "float32")
    t = xe.softmax(y.astype("f8"), 1)
    assert_within(found, reference.kl_divergence(t, x, **options), 1e-6 * np.abs(wanted))
    close = (x.astype("f8") + 1e-5 * y.astype("f8")).astype("f8")
    assert xe.kl_divergence(close, x.astype("f8"), target_logits=True) > 0
    turned = xe.kl_divergence(y.T, x.T, axis=0, target_logits=True, **options)
    assert_bits(turned, found)


def test_mistakes_of_kl_divergence():
    x = np.zeros((3, 4), "f4")
    call = {"target": x[:, :2], "logits": x, "target_logits": True}
    refused(xe.kl_divergence, call, ValueError, ["target", r"\(3, 2\)", "logits"])
    call = {"target": x, "logits": x, "target_logits": "yes"}
    refused(xe.kl_divergence, call, TypeError, ["target_logits"])
    call = {"target": x, "logits": x, "target_logits": True, "base": 1}
    refused(xe.kl_divergence, call, ValueError, ["base = 1"])


def test_weights_and_reductions(dtype):
    x, y = pair((12, 30), dtype)
    rows = xe.distillation_loss(x, y, reduction="none").astype("f8")
    weights = np.arange(12) % 4 / 2
    mean = xe.distillation_loss(x, y, sample_weight=weights)
    assert mean == pytest.approx((rows * weights).sum() / weights.sum(), rel=1e-6)
    assert xe.distillation_loss(x, y, reduction="sum") == pytest.approx(rows.sum(), rel=1e-6)
    assert xe.distillation_loss(x, y, normalizer=7) == pytest.approx(rows.sum() / 7, rel=1e-6)
    mask = weights > 0
    masked_mean = xe.distillation_loss(x, y, sample_weight=mask)
    assert masked_mean == pytest.approx(rows[mask].mean(), rel=1e-6)


def test_rows_of_weight_0_are_not_read(dtype):
    for shape in ((6, 9), (6, 700)):
        x, y = pair(shape, dtype)
        x, y = x.copy(), y.copy()
        weights = np.array([1, 0, 2, 0, 1, 0.5])
        before = xe.distillation_loss_with_grad(x, y, sample_weight=weights)
        x[1], y[3] = np.nan, np.inf
        after = xe.distillation_loss_with_grad(x, y, sample_weight=weights)
        assert before[0] == after[0]
        assert_bits(after[1], before[1])
        assert not after[1][[1, 3]].astype("f4").any()


def test_no_row():
    x = np.zeros((0, 3), "f4")
    assert np.isnan(xe.distillation_loss(x, x))
    assert xe.distillation_loss(x, x, empty_mean=0) == 0
    assert xe.distillation_loss(x, x, reduction="none").shape == (0,)
    x = np.zeros((2, 3))
    loss, grad = xe.distillation_loss_with_grad(x, x, sample_weight=[0, 0], empty_mean=0)
    assert loss == 0
    assert not grad.any()
    assert np.isnan(xe.distillation_loss(np.full((2, 3), np.nan), x, empty_mean=0))


def test_a_teacher_of_log_probabilities(dtype):
    x, y = pair((9, 40), dtype)
    wide = "f8" if dtype == np.float64 else "f4"
    log_probs = xe.log_softmax(y.astype(wide), 1)
    for beta in BETAS:
        options = {"beta": beta, "temperature": 2.0, "reduction": "none"}
        found = xe.distillation_loss_with_grad(x, teacher_log_probs=log_probs, **options)
        wanted = reference.distillation_loss_with_grad(x, teacher_log_probs=log_probs, **options)
        assert_loss(found[0], wanted[0], "float32")
        assert_gradient(found[1], wanted[1], dtype if bits16(dtype) else "float32")


@pytest.mark.parametrize(("shape", "axis"), [((5, 33, 4), 1), ((3, 4, 400), 2), ((350, 20), 0)])
def test_layouts_and_threads_change_no_bit(dtype, shape, axis):
    x, y = pair(shape, dtype)
    weights = np.random.default_rng(0).integers(0, 3, np.delete(shape, axis))
    rows = [np.ascontiguousarray(np.moveaxis(a, axis, -1)).reshape(-1, shape[axis]) for a in (x, y)]
    for beta in (0.0, 0.3, 1.0):
        options = {"beta": beta, "temperature": 1.5, "reduction": "sum"}
        plain = xe.distillation_loss_with_grad(*rows, sample_weight=weights.ravel(), **options)
        options |= {"axis": axis, "n_threads": 2, "sample_weight": weights}
        for layout, lay in LAYOUTS.items():
            with case(layout):
                assert_laid_out(x, y, lay, layout in WRITABLE, plain, options)


def assert_laid_out(x, y, lay, writable, plain, options):
    """Fresh, given and in place: the loss and the bits of the gradient of plain rows."""
    laid = xe.distillation_loss_with_grad(lay(x), lay(y), **options)
    assert laid[0] == plain[0]
    moved = np.moveaxis(laid[1], options["axis"], -1).reshape(plain[1].shape)
    assert_bits(moved.astype(x.dtype), plain[1])
    if not writable:
        return
    out = lay(x)
    around = surroundings(out)
    before = around()
    xe.distillation_loss_with_grad(x, y, out=out, **options)
    assert_bits(out.astype(x.dtype), laid[1].astype(x.dtype))
    assert np.array_equal(around(), before)
    own = lay(x)
    xe.distillation_loss_with_grad(own, lay(y), out=own, **options)
    assert_bits(own.astype(x.dtype), laid[1].astype(x.dtype))


def test_threads_and_neighbours_change_no_bit(dtype):
    x, y = pair((1200, 130), dtype)
    alone = xe.distillation_loss_with_grad(x, y, beta=0.5, reduction="none", n_threads=1)
    team = xe.distillation_loss_with_grad(x, y, beta=0.5, reduction="none", n_threads=3)
    assert_bits(team[0], alone[0])
    assert_bits(team[1], alone[1])
    total = xe.distillation_loss(x, y, n_threads=1), xe.distillation_loss(x, y, n_threads=3)
    assert total[0] == total[1]
    for r in (0, 1, 17, 1199):
        one = xe.distillation_loss_with_grad(x[r], y[r], beta=0.5, reduction="none")
        assert_bits(one[0], alone[0][r])
        assert_bits(one[1], alone[1][r])


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", [2, 3, 8, 17, 150])
def test_rows_of_any_kind_share_a_vector(dtype, classes):
    """Rows that are ignored or computed one by one, among others; gradients of adjacent rows."""
    x, y = (wild((67, classes), dtype, seed) for seed in range(2))
    weights = np.random.default_rng(0).integers(0, 4, 67) / 2
    for beta in (0.0, 0.5, 1.0):
        options = {"beta": beta, "reduction": "none"}
        loss, grad = xe.distillation_loss_with_grad(x, y, sample_weight=weights, **options)
        assert_bits(xe.distillation_loss(x, y, sample_weight=weights, **options), loss)
        for r in range(67):
            one = xe.distillation_loss_with_grad(
                x[r : r + 1], y[r : r + 1], sample_weight=weights[r : r + 1], **options
            )
            assert_bits(one[0], loss[r : r + 1])
            assert_bits(one[1], grad[r : r + 1])
        assert not grad[weights == 0].astype("f4").any()
        own = x.copy()
        xe.distillation_loss_with_grad(own, y, sample_weight=weights, out=own, **options)
        assert_bits(own, grad)


def test_different_types_meet():
    x, y = pair((5, 30), "float32")
    found = xe.distillation_loss_with_grad(x, y.astype("f8"), reduction="none")
    wanted = LONG.distillation_loss_with_grad(x, y, reduction="none")
    assert found[0].dtype == found[1].dtype == np.float32
    assert_gradient(found[1], wanted[1], "float32", ulps=1)
    half = xe.distillation_loss(x, y.astype("f2"))
    assert half == xe.distillation_loss(x, y.astype("f2").astype("f4"))


X, Y, R = np.zeros((3, 4), "f4"), np.ones((3, 4), "f4"), np.ones(3)
MISTAKES = [
    ({"teacher_logits": None}, TypeError, ["teacher_logits", "teacher_log_probs", "none"]),
    ({"teacher_log_probs": Y}, TypeError, ["teacher_logits", "teacher_log_probs", "both"]),
    ({"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ({"teacher_logits": masked(X)}, TypeError, ["teacher_logits", "masked"]),
    ({"logits": X.astype(int)}, TypeError, ["logits", "int64"]),
    ({"teacher_logits": X.astype(int)}, TypeError, ["teacher_logits", "int64"]),
    ({"logits": X[:, :0]}, ValueError, ["no classes"]),
    ({"teacher_logits": Y[:2]}, ValueError, ["teacher_logits", r"\(2, 4\)", r"\(3, 4\)"]),
    ({"teacher_logits": np.ones((3, 6), "f4")}, ValueError, [r"give teacher_logits\[:, :4\]"]),
    ({"teacher_logits": Y[:, :2]}, ValueError, ["teacher_logits", r"give logits\[:, :2\]"]),
    ({"beta": -0.1}, ValueError, ["beta = -0.1", r"\[0, 1\]"]),
    ({"beta": 1.5}, ValueError, ["beta = 1.5"]),
    ({"beta": np.nan}, ValueError, ["beta = nan"]),
    ({"beta": "a"}, TypeError, ["beta"]),
    ({"temperature": 0}, ValueError, ["temperature = 0"]),
    ({"temperature": -1}, ValueError, ["temperature = -1"]),
    ({"temperature": None}, TypeError, ["temperature"]),
    ({"axis": 2}, ValueError, ["axis = 2"]),
    ({"sample_weight": R[:2]}, ValueError, ["sample_weight", r"\(2,\)"]),
    ({"sample_weight": np.array([1, np.nan, 1])}, ValueError, [r"sample_weight\[1\] = nan"]),
    ({"reduction": "batchmean"}, ValueError, ["reduction", "rows"]),
    ({"normalizer": 0}, ValueError, ["normalizer"]),
    ({"empty_mean": 0, "reduction": "sum"}, ValueError, ["empty_mean"]),
    ({"n_threads": 0}, ValueError, ["n_threads"]),
]
OF_GRADIENT = [
    ({"grad_output": R}, ValueError, ["grad_output", "scalar"]),
    ({"out": np.zeros((3, 4))}, TypeError, ["out", "float64", "float32"]),
    ({"out": Y, "teacher_logits": Y}, ValueError, ["out overlaps teacher_logits"]),
    ({"out": X[::-1]}, ValueError, ["out overlaps logits"]),
    ({"teacher_grad": 3}, TypeError, ["teacher_grad"]),
    (
        {"teacher_grad": True, "teacher_logits": None, "teacher_log_probs": Y},
        ValueError,
        ["teacher_grad", "log-probabilities|teacher_log_probs"],
    ),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    for function in (xe.distillation_loss, xe.distillation_loss_with_grad):
        refused(function, {"logits": X, "teacher_logits": Y, **spoiled}, error, says)


@pytest.mark.parametrize(("spoiled", "error", "says"), OF_GRADIENT)
def test_mistakes_of_the_gradient(spoiled, error, says):
    call = {"logits": X, "teacher_logits": Y, **spoiled}
    refused(xe.distillation_loss_with_grad, call, error, says)
