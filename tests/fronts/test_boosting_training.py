"""xentropy.boosting in training: the models that XGBoost and LightGBM make by themselves."""

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn import datasets

import xentropy as xe
from xentropy.boosting import multiclass_objective


@pytest.fixture(scope="module")
def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return x[::2], y[::2], np.random.default_rng(0).uniform(0.5, 2, len(y))[::2]


def xgboost_margins(data, params, objective=None):
    x, y, weight = data
    matrix = xgboost.DMatrix(x, y, weight=weight)
    params = {"num_class": 10, "base_score": 0.5, "nthread": 1, "max_depth": 4} | params
    booster = xgboost.train(params, matrix, 10, obj=objective)
    return booster.predict(matrix, output_margin=True)


def lightgbm_margins(data, objective):
    x, y, weight = data
    params = {"num_class": 10, "num_threads": 1, "verbosity": -1, "deterministic": True}
    # A custom objective cannot start from the classes' frequencies.
    params |= {"boost_from_average": False, "force_col_wise": True, "objective": objective}
    booster = lightgbm.train(params, lightgbm.Dataset(x, y, weight=weight), 10)
    return booster.predict(x, raw_score=True)


def assert_same_model(ours, built_in, y):
    """The same trees, whose leaves differ by the rounding of float32 sums: 10 rounds of leaves
    of size 1, each a quotient of sums of 900 gradients, all rounded to a few units of 6e-8."""
    np.testing.assert_allclose(ours, built_in, rtol=0, atol=1e-5)
    losses = [xe.cross_entropy(np.ascontiguousarray(m), y) for m in (ours, built_in)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0] < 0.5  # it has learnt: ln(10) is 2.3


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_xgboost_reaches_the_model_of_its_own_objective(digits, weighted):
    x, y, weight = digits
    data = x, y, weight if weighted else None
    ours = xgboost_margins(data, {}, multiclass_objective("xgboost"))
    assert_same_model(ours, xgboost_margins(data, {"objective": "multi:softprob"}), y)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_lightgbm_reaches_the_model_of_its_own_objective(digits, weighted):
    x, y, weight = digits
    data = x, y, weight if weighted else None
    ours = lightgbm_margins(data, multiclass_objective("lightgbm"))
    assert_same_model(ours, lightgbm_margins(data, "multiclass"), y)


def test_the_exact_hessian_learns_too(digits):
    """Half of XGBoost's: steps twice as long."""
    margins = xgboost_margins(digits, {}, multiclass_objective("exact"))
    assert xe.cross_entropy(np.ascontiguousarray(margins), digits[1]) < 0.35


def test_what_the_libraries_hand_over(digits):
    seen = []

    def watch(logits, data):
        seen.append((logits.dtype.name, logits.shape, logits.flags.c_contiguous))
        return multiclass_objective("exact")(logits, data)

    xgboost_margins(digits, {}, watch)
    lightgbm_margins(digits, watch)
    rows = len(digits[1])
    assert set(seen) == {("float32", (rows, 10), True), ("float64", (rows, 10), False)}


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_classifiers_in_the_style_of_scikit_learn(digits, library):
    make = xgboost.XGBClassifier if library == "xgboost" else lightgbm.LGBMClassifier
    options = {} if library == "xgboost" else {"verbosity": -1}
    x, y, weight = digits
    fits = []
    for sample_weight in (None, weight):
        objective = multiclass_objective(library)
        model = make(objective=objective, n_estimators=3, n_jobs=1, max_depth=4, **options)
        model.fit(x, y, sample_weight=sample_weight)
        margin = {"output_margin": True} if library == "xgboost" else {"raw_score": True}
        fits.append(model.predict(x, **margin))
        assert (fits[-1].argmax(axis=1) == y).mean() > 0.8
    assert (fits[0] != fits[1]).any()
