"""xentropy.boosting: derivatives to the last digits, layouts, the ways to call it."""

import copy
import doctest
import importlib
import pickle
import tracemalloc

import numpy as np
import pytest
from helpers.support import assert_bits, assert_ulps, make_logits

import xentropy as xe
from xentropy.boosting import multiclass_objective
from xentropy.boosting._objective import CHUNK_BYTES

KINDS = ("xgboost", "lightgbm", "exact")
# What the libraries hand over: see test_what_the_libraries_hand_over.
LAYOUTS = {"XGBoost": ("float32", "C"), "LightGBM": ("float64", "F")}


def case(rows=500, classes=5, dtype="float32", order="C", *, spread=3.0, seed=0):
    """Logits and labels as a library has them: floating labels."""
    logits = np.asarray(make_logits((rows, classes), dtype, spread=spread, seed=seed), order=order)
    labels = np.random.default_rng(seed + 1).integers(classes, size=rows).astype("float32")
    return logits, labels


def exact_derivatives(logits, labels):
    """p - [c = t], p (1 - p) and the loss in long double, with nothing subtracted from 1."""
    at = np.arange(len(labels)), labels.astype(int)
    e = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    total = e.sum(axis=1, keepdims=True)
    rest = np.stack([np.delete(e, c, axis=1).sum(axis=1) for c in range(e.shape[1])], axis=1)
    p, rest = e / total, rest / total
    grad = p.copy()
    grad[at] = -rest[at]
    return grad, p * rest, -np.log(p[at])


# --- derivatives --------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 150])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 30.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_derivatives_are_exact_in_every_tail(layout, spread, classes):
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is double here: no oracle for float64")
    logits, labels = case(600, classes, *LAYOUTS[layout], spread=spread)
    grad, hess = multiclass_objective("exact")(labels, logits)
    exact_grad, exact_hess, loss = exact_derivatives(logits, labels)
    if layout == "LightGBM":  # computed in float64, rounded once to float32
        allowed = {"gradient": 0.501, "Hessian": 0.501}
    else:
        # The gradient is good to 4 units. The Hessian has it and 1 - it: half a unit, or
        # exp(-loss), where 4 units of the loss are 4 loss units; and three roundings.
        allowed = {"gradient": 4, "Hessian": 8 + 4 * loss[:, None].astype(float)}
    normal = exact_hess > np.finfo(np.float32).tiny  # exps below it are flushed or rounded
    assert_ulps(grad[normal], exact_grad[normal].astype(float), allowed["gradient"])
    distance = np.abs(hess - exact_hess) / np.spacing(exact_hess.astype(np.float32))
    assert (distance <= allowed["Hessian"])[normal].all(), distance[normal].max()
    assert normal.mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_derivatives_are_rounded_once(kind):
    """LightGBM's own are: with another rounding it finds other trees."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is double here: no oracle for float64")
    logits, labels = case(600, 3, *LAYOUTS["LightGBM"])
    weight = np.random.default_rng(5).uniform(0.5, 2, len(labels)).astype("float32")
    grad, hess = multiclass_objective(kind)(labels, logits, weight)
    exact_grad, exact_hess, _ = exact_derivatives(logits, labels)
    factor = {"xgboost": 2, "lightgbm": 1.5, "exact": 1}[kind]
    v = weight[:, None].astype(np.longdouble)
    assert_ulps(grad, (v * exact_grad).astype(float), 0.501)
    assert_ulps(hess, (factor * v * exact_hess).astype(float), 0.501)


def test_confident_rows_right_and_wrong():
    logits = np.array([[20, 0, 0], [0, 20, 0], [0, 20, 20]], np.float32)
    grad, hess = multiclass_objective("exact")(np.zeros(3), logits)
    small = 2.0611536e-09  # exp(-20), and to seven digits exp(-20) / (1 + exp(-20))
    np.testing.assert_allclose(grad[0], [-2 * small, small, small], rtol=5e-7)  # 4 ulp
    np.testing.assert_allclose(hess[0], [2 * small, small, small], rtol=2e-6)  # 8 ulp
    # 8 + 4 loss = 88 units.
    np.testing.assert_allclose(hess[1], [small, 2 * small, small], rtol=1e-5)
    np.testing.assert_allclose(hess[2], [small / 2, 0.25, 0.25], rtol=1e-5)
    # What is written without care: 1 - p and p - 1 of a rounded p.
    p = np.exp(logits - 20) / np.exp(logits - 20).sum(axis=1, keepdims=True)
    assert p[0, 0] - 1 == 0


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_conventions(kind, weighted):
    logits, labels = case(classes=4, dtype="float64", order="F")
    weight = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 3.0], len(labels))
    given = weight.astype("float32") if weighted else None
    grad, hess = multiclass_objective(kind)(labels, logits, given)
    p = xe.softmax(logits, axis=1)
    v = weight[:, None] if weighted else 1.0
    expected = {
        "xgboost": np.maximum(2 * v * p * (1 - p), 1e-16),
        "lightgbm": 4 / 3 * v * p * (1 - p),
        "exact": v * p * (1 - p),
    }
    # Rounded once to float32, factor and product besides: two units.
    np.testing.assert_allclose(hess, expected[kind], rtol=2.5e-7)
    onehot = np.eye(4)[labels.astype(int)]
    np.testing.assert_allclose(grad, v * (p - onehot), rtol=2.5e-7, atol=1e-16)


# --- CatBoost: row by row -----------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("classes", [2, 3, 10, 150])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 30.0])
def test_catboost_derivatives_are_exact_in_every_tail(spread, classes, weight):
    """Of v ln(p_t), which it maximizes: the signs are those of -loss."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is double here: no oracle for float64")
    logits, labels = case(20, classes, "float64", spread=spread)
    exact_grad, exact_diagonal, loss = exact_derivatives(logits, labels)
    p = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    objective = multiclass_objective("catboost")
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        grad, hessian = objective.calc_ders_multi(row, float(label), weight)
        hessian = np.array(list(hessian))
        exact = np.outer(p[i], p[i])
        np.fill_diagonal(exact, -exact_diagonal[i])
        # Gradients are good to 4 units of 2.2e-16. So are the factors p, but for p at the target,
        # the exponential of a loss with that error, of 4 loss units.
        np.testing.assert_allclose(grad, (-weight * exact_grad[i]).astype(float), rtol=1e-15)
        allowed = 2.3e-16 * (16 + 8 * float(loss[i]))
        np.testing.assert_allclose(hessian, (weight * exact).astype(float), rtol=allowed)


def test_catboost_hessians_are_computed_on_demand():
    """A row of it is a list that can be sliced, as CatBoost reads it: the upper triangle."""
    objective = multiclass_objective("catboost")
    grad, hessian = objective.calc_ders_multi(np.zeros(2), 1.0, 2.0)
    assert grad == [-1.0, 1.0]
    assert next(hessian) == [-0.5, 0.5]
    assert next(hessian)[1:] == [-0.5]


def test_what_catboost_must_not_hand_over():
    objective = multiclass_objective("catboost")
    for target in (0.5, -100.0):
        with pytest.raises(ValueError, match=f"target = {target} is not a class"):
            objective.calc_ders_multi(np.zeros(3), target, 1.0)
    with pytest.raises(IndexError, match="3"):
        objective.calc_ders_multi(np.zeros(3), 3.0, 1.0)
    with pytest.raises(ValueError, match="give it classes_count"):
        objective.calc_ders_range(np.zeros(3), np.zeros(3), None)
    with pytest.raises(ValueError, match="n_threads = 0"):
        multiclass_objective("catboost", n_threads=0)


# --- layout -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_lie_as_the_logits_do(dtype, order):
    logits, labels = case(dtype=dtype, order=order)
    for result in multiclass_objective("lightgbm")(labels, logits):
        assert result.dtype == np.float32
        assert result.strides == np.asarray(logits, np.float32, order=order).strides
        # XGBoost reads any strides, LightGBM makes this of it: a view.
        assert order == "C" or np.shares_memory(result.ravel(order="F"), result)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_rows_leave_no_trace(layout):
    dtype, order = LAYOUTS[layout]
    rows = CHUNK_BYTES // (np.dtype(dtype).itemsize * 7) + 3
    logits, labels = case(2 * rows, 7, dtype, order)
    whole = multiclass_objective("exact", n_threads=2)(labels, logits)
    parts = [
        multiclass_objective("exact", n_threads=1)(labels[part], logits[part])
        for part in (slice(5), slice(5, rows), slice(rows, None))
    ]
    for got, expected in zip(whole, zip(*parts, strict=True), strict=True):
        assert_bits(got, np.concatenate(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_results_are_allocated(layout):
    logits, labels = case(60_000, 20, *LAYOUTS[layout])
    objective = multiclass_objective("xgboost")
    objective(labels, logits)
    tracemalloc.start()
    grad, hess = objective(labels, logits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The scratch of a chunk: gradient, Hessian, mask, rows that are summed again. And labels as
    # int64, their comparisons, at most 24 bytes a row.
    assert peak < grad.nbytes + hess.nbytes + 6 * CHUNK_BYTES + 24 * len(labels)


# --- the ways to call it ---------------------------------------------------------------------


class Data:
    """DMatrix and Dataset, as far as an objective sees them."""

    def __init__(self, label, weight):
        self.label, self.weight = label, weight

    def get_label(self):
        return self.label

    def get_weight(self):
        return self.weight


def test_every_way_to_call_it():
    logits, labels = case()
    weight = np.linspace(0.5, 2, len(labels), dtype="float32")
    objective = multiclass_objective("lightgbm")
    expected = objective(labels, logits, weight)
    unweighted = objective(labels, logits)
    assert (expected[0] != unweighted[0]).any()
    for got, wanted in [
        (objective(logits, Data(labels, weight)), expected),
        (objective(labels, logits, sample_weight=weight), expected),
        (objective(logits, Data(labels, None)), unweighted),
        (objective(logits, Data(labels, np.empty(0, "float32"))), unweighted),  # XGBoost
        (objective(labels.astype(int).tolist(), logits), unweighted),
    ]:
        for a, b in zip(got, wanted, strict=True):
            assert_bits(a, b)


def test_objectives_can_be_copied_and_name_themselves():
    objective = multiclass_objective("xgboost", n_threads=2)
    for twin in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert vars(twin) == vars(objective)
    assert repr(objective) == "multiclass_objective('xgboost')"
    other = pickle.loads(pickle.dumps(multiclass_objective("catboost")))
    assert repr(other) == "multiclass_objective('catboost')"


@pytest.mark.parametrize(
    ("label", "error"),
    [(bad, IndexError) for bad in (5, -1, -100, 2.0**40, np.inf, -np.inf)]
    + [(bad, ValueError) for bad in (1.5, np.nan)],
)
def test_labels_that_are_no_class(label, error):
    logits, labels = case()
    labels[7] = label
    with pytest.raises(error, match=r"labels\[7\] = "):
        multiclass_objective("exact")(labels, logits)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.zeros(3), np.zeros(3)), ValueError, r"logits have shape \(3,\).*set num_class"),
        ((np.zeros(3), np.zeros((3, 1))), ValueError, "classes >= 2.*set num_class"),
        ((np.zeros(3), np.zeros((3, 2, 2))), ValueError, r"classes >= 2\)$"),
        ((np.zeros(2), np.zeros((3, 2))), ValueError, "labels has shape"),
        ((np.zeros(3), np.zeros((3, 2), int)), TypeError, "logits must be float"),
        ((np.zeros(3), np.zeros((3, 2)), np.ones(2)), ValueError, "sample_weight has shape"),
        ((np.zeros(3), np.zeros((3, 2)), np.full(3, np.nan)), ValueError, "is not finite"),
    ],
)
def test_other_arguments_that_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        multiclass_objective("exact")(*arguments)


@pytest.mark.parametrize("module", ["_objective", "_start", "_metric"])
def test_the_examples_of_the_docstrings(module):
    module = importlib.import_module(f"xentropy.boosting.{module}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0


def test_kinds_and_threads_are_checked():
    with pytest.raises(
        ValueError, match="kind = 'softmax' is not one of xgboost, lightgbm, exact, catboost"
    ):
        multiclass_objective("softmax")
    with pytest.raises(ValueError, match="n_threads = 0"):
        multiclass_objective("exact", n_threads=0)
