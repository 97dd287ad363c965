"""distillation_loss of a teacher that gives some classes of each row."""

import numpy as np
import pytest
from helpers.bad_arguments import refused
from helpers.divergences import BETAS, exact
from helpers.layouts import LAYOUTS
from helpers.support import assert_bits, assert_within, bits16, case, eps, make_logits, oracle

import xentropy as xe
from bench.accuracy import long_reference, spacing
from xentropy import reference

pytestmark = pytest.mark.usefixtures("tier")

LONG = long_reference()
SHAPES = [((13, 7), 3), ((9, 40), 1), ((9, 40), 40), ((5, 700), 20), ((3, 5003), 64)]
MISSING = ("tail", "zero", "renormalize")


def sparse(shape, k, dtype="float64", index_type="int64", seed=1):
    """The log-probabilities of the teacher's k best classes of each row, and their indices."""
    log_p = np.asarray(reference.log_softmax(make_logits(shape, "float64", seed=seed), -1))
    index = np.argsort(-log_p, axis=-1)[..., :k]
    index = np.random.default_rng(0).permuted(index, axis=-1)
    return np.take_along_axis(log_p, index, -1).astype(dtype), index.astype(index_type)


def check(x, log_probs, wanted, found, ulps):
    """Relative to the size of a loss that may be a difference, and to a row's largest entry."""
    loss, grad = found
    finite = np.isfinite(wanted[0])
    assert np.array_equal(finite, np.isfinite(loss))
    size = np.abs(wanted[0]) + 1e-3 + np.exp(log_probs.astype("f8")).sum(-1)
    assert_within(loss[finite], wanted[0][finite], (8 * eps(x.dtype) * size)[finite])
    largest = np.abs(wanted[1][finite]).max(axis=-1, keepdims=True)
    allowed = ulps * eps(x.dtype) * largest + 1e-37
    if bits16(x.dtype):
        allowed = allowed + 0.51 * spacing(wanted[1][finite], x.dtype)
    assert_within(grad[finite], wanted[1][finite], allowed)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("shape", "k"), SHAPES, ids=str)
def test_against_the_reference(dtype, shape, k, beta):
    x = make_logits(shape, dtype)
    for missing in MISSING:
        log_probs, index = sparse(shape, k)
        if missing != "renormalize":
            log_probs = log_probs - 1e-3
        options = {"beta": beta, "temperature": 1.5, "reduction": "none", "missing": missing}
        options |= {"teacher_log_probs": log_probs, "teacher_index": index}
        with case(missing):
            found = xe.distillation_loss_with_grad(x, **options)
            # The weight of the student in the mixture is what rounding leaves of 1 - beta.
            ulps = 2 / (1 - beta) if missing == "zero" and 0.9 < beta < 1 else 8
            exact = oracle(dtype).distillation_loss_with_grad(x, **options)
            check(x, log_probs, exact, found, ulps)
            assert_bits(xe.distillation_loss(x, **options), found[0])


@pytest.mark.parametrize("beta", BETAS)
def test_all_classes_are_those_of_a_whole_teacher(beta):
    x, shape = make_logits((9, 30)), (9, 30)
    log_probs, index = sparse(shape, 30)
    whole = np.empty(shape)
    np.put_along_axis(whole, index, log_probs, -1)
    for missing in MISSING:
        found = xe.distillation_loss_with_grad(
            x, teacher_log_probs=log_probs, teacher_index=index, beta=beta, missing=missing
        )
        wanted = xe.distillation_loss_with_grad(x, teacher_log_probs=whole, beta=beta)
        assert found[0] == pytest.approx(wanted[0], rel=1e-6)
        assert_within(found[1], wanted[1], 8 * eps("f4") * np.abs(wanted[1]).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("off", [1e-6, 1e-3])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_tail_where_student_and_teacher_almost_agree(dtype, off, beta):
    """And where the rest has almost nothing: in 120 digits, of k + 1 classes."""
    rng = np.random.default_rng(0)
    x = np.sort(make_logits((4, 12), dtype), axis=1)[:, ::-1].copy()
    x[1, 0] += 30
    x[2, :3] += 25
    log_p = np.asarray(LONG.log_softmax(x.astype(np.longdouble), 1))
    given = (log_p[:, :3] - off * rng.random((4, 3))).astype("f8")
    options = {"teacher_log_probs": given, "teacher_index": np.tile(np.arange(3), (4, 1))}
    loss = xe.distillation_loss(x, beta=beta, reduction="none", **options)
    rest = np.log1p(-np.exp(given).sum(axis=1))
    few = np.column_stack([log_p[:, :3], np.log(np.exp(log_p[:, 3:]).sum(axis=1))])
    wanted, _ = exact(few.astype("f8"), np.column_stack([given, rest]), beta)
    # The student's rest is a sum of exps: relatively exact, an absolute error of its logarithm, and
    # of the difference of which the loss is the square.
    assert_within(loss, wanted, 16 * eps(dtype) * (np.sqrt(wanted) + wanted) + eps(dtype) ** 2)


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_slopes(beta, missing):
    x = make_logits((4, 6), "float64", spread=1.0)
    log_probs, index = sparse((4, 6), 6 if missing != "tail" and beta == 1 else 3)
    given = {"teacher_log_probs": log_probs, "teacher_index": index, "missing": missing}
    weights = np.array([1, 0, 2, 0.5])
    for options in (
        {},
        {"reduction": "sum", "temperature": 2.0, "sample_weight": weights},
        {"sample_weight": weights, "normalizer": 3.0},
    ):
        _, grad = xe.distillation_loss_with_grad(x, beta=beta, grad_output=2, **given, **options)
        for at in np.ndindex(x.shape):
            sides = []
            for sign in (1, -1):
                moved = x.copy()
                moved[at] += sign * 1e-4
                sides.append(xe.distillation_loss(moved, beta=beta, **given, **options))
            assert abs((sides[0] - sides[1]) / 1e-4 - grad[at]) < 1e-6


def test_any_type_of_index_and_any_layout():
    x = make_logits((6, 100))
    log_probs, index = sparse((6, 100), 10)
    wanted = xe.distillation_loss_with_grad(
        x, teacher_log_probs=log_probs, teacher_index=index, beta=0.5
    )
    for kind in ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", ">i4"):
        found = xe.distillation_loss_with_grad(
            x, teacher_log_probs=log_probs, teacher_index=index.astype(kind), beta=0.5
        )
        assert found[0] == wanted[0]
        assert_bits(found[1], wanted[1])
    for name, lay in LAYOUTS.items():
        for missing in MISSING:
            options = {"beta": 0.5, "missing": missing}
            options |= {"teacher_log_probs": log_probs, "teacher_index": index}
            plain = xe.distillation_loss_with_grad(x, n_threads=1, **options)
            options |= {"teacher_log_probs": lay(log_probs), "teacher_index": lay(index)}
            laid = xe.distillation_loss_with_grad(lay(x), n_threads=3, **options)
            assert laid[0] == plain[0], name
            assert_bits(laid[1].astype("f4"), plain[1], name)


def test_axes():
    x = make_logits((2, 5, 30))
    log_probs, index = sparse((2, 5, 30), 4)
    turned = [np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, log_probs, index)]
    for missing in MISSING:
        options = {"beta": 0.3, "reduction": "none", "missing": missing}
        here = xe.distillation_loss_with_grad(
            x, teacher_log_probs=log_probs, teacher_index=index, axis=-1, **options
        )
        there = xe.distillation_loss_with_grad(
            turned[0], teacher_log_probs=turned[1], teacher_index=turned[2], **options
        )
        assert_bits(here[0], there[0])
        assert_bits(np.moveaxis(here[1], -1, 1).copy(), there[1].copy())
        row = xe.distillation_loss(
            x[1, 2], teacher_log_probs=log_probs[1, 2], teacher_index=index[1, 2], **options
        )
        assert_bits(row, here[0][1, 2])


@pytest.mark.parametrize("log_probs", [(-800, -801), (-720, -721), (-np.inf, -np.inf)])
def test_a_teacher_of_hardly_any_mass(log_probs):
    """The mixture is half of the student, whose divergence from it is log 2."""
    options = {"teacher_index": [[0, 2]], "missing": "zero", "beta": 0.5}
    loss, gradient = xe.distillation_loss_with_grad(
        np.arange(5.0)[None], teacher_log_probs=np.array([log_probs], float), **options
    )
    assert_within(loss, np.log(2) / 2, 4 * eps("float64"))
    assert np.all(np.abs(gradient) < 1e-16)


NO = -np.inf
STUDENTS = [[1, 0, 0.5, -1], [NO, 0, 0.5, -1], [1, 0, 0.5, NO], [1, 0, NO, NO], [1, NO, NO, NO]]
STUDENTS += [[NO, NO, 0.5, -1], [800, 0, 0.5, -1], [0, 1, 800, NO], [NO] * 4, [np.nan, 0, 0, 0]]
TEACHERS = np.log([[0.5, 0.25], [0.5, 1e-300], [0.25, 0.75], [1, 1e-300], [1, 1]])
TEACHERS += np.array([[0, 0], [0, NO], [0, 0], [0, NO], [NO, NO]])
TEACHERS = np.concatenate([TEACHERS, [[-800, -801], [np.nan, 0], [np.nan, NO]]])


def supports(x, log_p, missing):
    """Which classes student and teacher have, of the given two and all others; None: undefined."""
    s, t = x > NO, log_p > NO
    if missing is not None:
        s = np.append(s[:2], s[2:].any())
        t = np.append(t, missing == "tail" and np.exp(log_p).sum() < 1)
    defined = s.any() and not np.isnan(x).any() and not np.isnan(log_p).any()
    return (s, t) if defined and (t.any() or missing == "zero") else None


@pytest.mark.parametrize("missing", [None, *MISSING])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_nothing_and_all_of_a_distribution(beta, missing):
    """0 log 0 = 0, a class that only the first of two has costs inf, and no softmax is nan."""
    teachers = STUDENTS if missing is None else TEACHERS
    x = np.repeat(STUDENTS, len(teachers), axis=0)
    teacher = np.tile(teachers, (len(STUDENTS), 1))
    options = {"beta": beta, "reduction": "none", "teacher_logits": teacher}
    if missing is not None:
        del options["teacher_logits"]
        index = np.tile([0, 1], (len(x), 1))
        options |= {"teacher_log_probs": teacher, "teacher_index": index, "missing": missing}
    both = [supports(*row, missing) for row in zip(x, teacher, strict=True)]
    gone = np.array([each is None for each in both])
    infinite = np.zeros(len(x), bool)
    for row in np.flatnonzero(~gone):
        s, t = both[row]
        infinite[row] = (beta == 0 and (t & ~s).any()) or (beta == 1 and (s & ~t).any())
    for kind in ("f4", "f8"):
        found = xe.distillation_loss_with_grad(x.astype(kind), **options)
        wanted = reference.distillation_loss_with_grad(x.astype(kind), **options)
        for loss, grad in (found, wanted):
            assert np.array_equal(np.isnan(loss), gone)
            assert np.array_equal(loss == np.inf, infinite)
            no_slope = gone | (infinite & (beta == 1))
            assert np.isnan(grad[no_slope]).all()
            assert np.isfinite(grad[~no_slope]).all()
        fine, sloped = ~gone & ~infinite, ~no_slope
        size = 8 * max(eps(kind), 800 * eps("f8"))  # the reference has logarithms up to 800
        assert_within(found[0][fine], wanted[0][fine], size * (1 + np.abs(wanted[0][fine])))
        largest = np.abs(wanted[1][sloped]).max(axis=1, keepdims=True)
        assert_within(found[1][sloped], wanted[1][sloped], size * (1 + largest))


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_a_teacher_that_excludes_the_most_probable_class(beta, temperature):
    x, y = np.float32([[1.1, 0.3, -0.2, 0.1]]), np.float32([[NO, 0.1, 0.4, -0.3]])
    options = {"beta": beta, "temperature": temperature}
    loss, gradient = xe.distillation_loss_with_grad(x, y, **options)
    exact = reference.distillation_loss_with_grad(x, y, **options)
    if beta == 1:
        assert loss == exact[0] == np.inf
        return
    assert loss == pytest.approx(exact[0], rel=1e-6)
    assert_within(gradient, exact[1], 8 * eps("f4") * np.abs(exact[1]).max())


def test_the_reference_where_a_probability_underflows():
    """M is half of T where S is 0: T adds log 2 / 2 there, and S as much."""
    loss = reference.distillation_loss([[0.0, -720.0]], [[0.0, 0.0]], beta=0.5)
    assert loss == pytest.approx((np.log(4 / 3) + np.log(2) / 2 + np.log(2 / 3) / 2) / 2)


def test_rows_of_weight_0_may_hold_anything():
    x = make_logits((4, 9))
    log_probs, index = sparse((4, 9), 3)
    weights = np.array([1, 0, 1, 0])
    for missing in MISSING:
        options = {"sample_weight": weights, "missing": missing, "beta": 0.5}
        before = xe.distillation_loss_with_grad(
            x, teacher_log_probs=log_probs, teacher_index=index, **options
        )
        bad_x, bad_p, bad_i = x.copy(), log_probs.copy(), index.copy()
        bad_x[1], bad_p[1], bad_i[3] = np.nan, 5, -100
        after = xe.distillation_loss_with_grad(
            bad_x, teacher_log_probs=bad_p, teacher_index=bad_i, **options
        )
        assert before[0] == after[0]
        assert_bits(after[1], before[1])


X, P, CLASSES = np.zeros((3, 5), "f4"), np.full((3, 2), -1.0), np.array([[0, 1], [2, 3], [4, 0]])
MISTAKES = [
    ({"teacher_index": CLASSES.astype(float)}, TypeError, ["teacher_index", "integers", "float64"]),
    ({"teacher_index": CLASSES + 1}, IndexError, [r"teacher_index\[2, 0\] = 5", "5 classes"]),
    ({"teacher_index": CLASSES - 1}, IndexError, [r"teacher_index\[0, 0\] = -1"]),
    ({"teacher_index": CLASSES // 2}, ValueError, ["teacher_index", "class 0 twice", "row 0"]),
    ({"teacher_index": CLASSES[:, :1]}, ValueError, ["teacher_index", r"\(3, 1\)", r"\(3, 2\)"]),
    ({"teacher_log_probs": P[:2]}, ValueError, ["teacher_log_probs", r"\(2, 2\)"]),
    ({"teacher_log_probs": P.astype(int)}, TypeError, ["teacher_log_probs", "int64"]),
    ({"teacher_log_probs": P + 1}, ValueError, ["teacher_log_probs", "row 0", "add up to 2"]),
    ({"teacher_log_probs": np.zeros((3, 6))}, ValueError, ["teacher_log_probs", r"\(3, 6\)"]),
    ({"missing": "rest"}, ValueError, ["missing = 'rest'", "'tail'"]),
    ({"missing": None}, ValueError, ["missing = None"]),
    ({"missing": "zero", "teacher_index": None}, ValueError, ["missing", "teacher_index"]),
    (
        {"teacher_logits": X, "teacher_log_probs": None},
        ValueError,
        ["teacher_index", "teacher_log_probs"],
    ),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    call = {"logits": X, "teacher_log_probs": P, "teacher_index": CLASSES, **spoiled}
    refused(xe.distillation_loss, call, error, says)
    refused(xe.distillation_loss_with_grad, call, error, says)
