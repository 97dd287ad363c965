"""What newcomers do wrong: errors that name the remedy, and warnings of what is hardly meant."""

import numpy as np
import pytest
from helpers.support import make_logits, make_target

import xentropy as xe
from xentropy import reference

X = make_logits((4, 3), "float64")
Y = np.array([0, 1, 2, 0])
P = np.asarray(make_target("probabilities", (4, 3), dtype="float64"))
IMAGES = np.zeros((2, 5, 3))
REMEDIES = [
    ((IMAGES, np.zeros((2, 5), int)), {}, "axis=-1 if the 3 classes"),
    ((X.T, Y), {}, "axis=0 if the 3 classes"),
    ((X, Y - 1), {}, "ignore_index=-1 leaves out"),
    ((X, Y + 1), {}, "counted from 0"),
    ((X[:, :1], [0, 0, 1, 0]), {}, "two classes need two logits"),
    ((None, Y), {}, "logits must be .*, not None"),
    ((X, None), {}, "target must be .*, not None$"),
    ((X, np.array([0, np.nan, 1, 2])), {}, r"target\[1\] = nan has to become ignore_index"),
    ((X, Y.astype(float)), {}, r"give target.astype\(np.int64\)"),
    ((X, Y[:, None].astype(float)), {}, r"give target\[:, 0\].astype"),
    ((X, Y[:, None]), {}, r"give target\[:, 0\]"),
    ((X, np.eye(3, dtype=int)[Y]), {}, r"give target.astype\(np.float32\)"),
    ((X, np.eye(3, dtype=bool)[Y]), {}, r"give target.astype\(np.float32\)"),
    ((X, Y > 0), {}, r"target.astype\(np.int64\)"),
    ((X[:, 0], Y), {}, r"shape \(4,\) are a single row; two classes need two logits"),
    ((X[0], [0, 1, 0]), {}, r"must be floating: give target.astype\(np.float32\)"),
    ((Y, X), {}, "float32 or float64, not int64 .*swapped.*if not, give logits.astype"),
    ((X.astype(object), Y), {}, r"not object; logits.astype\(np.float32\)"),
    ((X.astype(str), Y), {}, r"not <U32; logits.astype\(np.float32\)"),
    ((X, Y), {"reduction": None}, "None is not one of 'none', 'sum', 'mean'"),
    ((X, Y), {"reduction": "batchmean"}, "'mean' is over the rows"),
    ((X, ["a", "b", "c", "a"]), {}, r"np.unique\(target"),
    ((X, Y, {0: 1.0, 1: 2.0, 2: 1.0}), {}, r"a dict; .*weight\[c\] for c"),
    ((X, Y, "balanced"), {}, "compute_class_weight"),
    ((X, Y, np.ones(4)), {}, "one per row is sample_weight"),
    ((X, Y), {"sample_weight": np.ones(3)}, "one per class is weight"),
    ((X, Y), {"sample_weight": np.ones((4, 1))}, r"give sample_weight\[:, 0\]"),
    ((X, Y), {"sample_weight": np.ones((1, 4))}, r"give sample_weight\[0\]"),
    (([[1.0, 2.0], [3.0]], [0, 1]), {}, "parts of different lengths"),
    ((np.array([X[0], X[1][:2]], object), [0, 1]), {}, r"np.stack\(logits\)"),
]


@pytest.mark.parametrize(("arguments", "options", "says"), REMEDIES, ids=[r[2] for r in REMEDIES])
def test_the_error_names_the_remedy(arguments, options, says):
    for function in (xe.cross_entropy, xe.cross_entropy_with_grad):
        with pytest.raises((TypeError, ValueError, IndexError), match=says):
            function(*arguments, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_logits_that_are_probabilities_are_said(dtype):
    p = P.astype(dtype)
    with pytest.warns(UserWarning, match="logits are probabilities") as said:
        xe.entropy(p)
    assert said[0].filename == __file__
    with pytest.warns(UserWarning, match="logits are probabilities"):
        xe.entropy(np.ascontiguousarray(p.T), axis=0)
    with pytest.warns(UserWarning, match="logits are probabilities"):
        xe.kl_divergence(p, p)

    for unusual in (P.tolist(), np.asfortranarray(P), P.astype(">f8"), P[::-1]):
        with pytest.warns(UserWarning, match="logits are probabilities"):
            xe.entropy(unusual)


@pytest.mark.parametrize(
    "p", [[[0.7, 0.2, 0.1]], [[0.25, 0.75], [0.5, 0.5]], [[0.33, 0.56, 0.12]] * 16], ids=len
)
def test_few_rows_must_be_exact_and_many_may_be_rounded(p):
    with pytest.warns(UserWarning, match="logits are probabilities"):
        xe.entropy(np.array(p, "f4"))


NOTHING_SAID = {
    "logits": X,
    "zeros": np.zeros((4, 3)),
    "equal": np.full((4, 2), 0.5),
    "one hot": np.eye(3)[Y],
    "equal and one hot": np.array([[0.5, 0.5], [1, 0], [0, 1], [0.5, 0.5]]),
    "two of three": np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]),
    "scaled": P * 0.9,
    "one class": P[:, :1],
    "the first row alone": np.vstack([P[:1], X[1:]]),
    "all rows but the last": np.vstack([P[:3], X[:1] + 1]),
    "one rounded row": np.array([[0.501, 0.5]]),
    "one row of 16 bits": np.array([[0.3, 0.7]], "f2") + np.float16(0.001),
    "two rows of a net": np.array([[0.43, 0.56], [0.12, 0.89]]),
    "none": np.zeros((0, 3)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NOTHING_SAID)
def test_logits_that_could_be_meant_are_not(name):
    logits = NOTHING_SAID[name]
    xe.entropy(logits)
    xe.entropy(logits.tolist() if logits.size else logits)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (2, 2), (4, 2)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_small_batches_of_a_net_are_not(dtype, shape):
    """Three thousand of them: their sums are close to 1 by chance, never all of them."""
    rng = np.random.default_rng(3)
    for logits in rng.normal(0.4, 0.2, (3000, *shape)).astype(dtype):
        xe.entropy(logits)


def test_a_divergence_of_negative_probabilities_is_refused():
    negative = P.copy()
    negative[2, 1] = -0.25
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=r"target\[2, 1\] = -0.25 is negative"):
            xe.kl_divergence(negative, X, reduction=reduction)
    with pytest.raises(ValueError, match="are target and logits swapped"):
        xe.kl_divergence(X, P)
    bad = X.copy()
    bad[1, 1] = np.nan
    assert np.isnan(xe.kl_divergence(P, bad))


def test_the_divergence_knows_other_libraries_targets():
    for labels in (Y, np.eye(3, dtype=int)[Y]):
        with pytest.raises(TypeError, match=r"cross_entropy, for one-hot rows target\.astype"):
            xe.kl_divergence(labels, X)
    with pytest.raises(ValueError, match=r"negative.*log-probabilities\? give exp\(target\)"):
        xe.kl_divergence(np.log(P + 0.1) - 1, X)
    with pytest.raises(ValueError, match=r"negative.*swapped"):  # the order of torch's kl_div
        xe.kl_divergence(np.log(P + 0.1) - 1, P)


def test_target_masses_far_from_1_are_said():
    for wrong in (P * 100, P * 0.4):
        with pytest.warns(UserWarning, match="not to 1, in the first row; divide"):
            xe.kl_divergence(wrong, X)
    for fine in (P * 0.9, P * 0, P):
        xe.kl_divergence(fine, X)


EMPTY = [
    ({"target": np.full(4, -100)}, {}),
    ({"target": Y}, {"sample_weight": np.zeros(4)}),
    ({"target": P}, {"sample_weight": np.zeros(4)}),
    ({"target": np.array([0, -100, 1, -100])}, {"sample_weight": np.array([0.0, 1, 0, 1])}),
]


@pytest.mark.parametrize(("target", "options"), EMPTY)
def test_the_mean_over_no_row_is_what_one_wants(target, options):
    assert np.isnan(xe.cross_entropy(X, **target, **options))
    for module in (xe, reference):
        loss, grad = module.cross_entropy_with_grad(X, **target, **options, empty_mean=0)
        assert (loss, type(loss)) == (0.0, float)
        assert (grad == 0).all()
        assert module.cross_entropy(X, **target, **options, empty_mean=-1.5) == -1.5
    assert xe.cross_entropy(X, **target, **options, empty_mean=5, normalizer=2.0) == 0


def test_a_mean_over_rows_is_not_changed():
    assert xe.cross_entropy(X, Y, empty_mean=0) == xe.cross_entropy(X, Y)
    assert np.isnan(xe.cross_entropy(np.full((4, 3), np.nan), Y, empty_mean=0))
    assert xe.cross_entropy(X[:0], Y[:0], empty_mean=0) == 0
