"""xentropy.boosting with the libraries' defaults: their own start, their own models."""

import inspect

import lightgbm
import numpy as np
import pytest
import xgboost

import xentropy as xe
from xentropy.boosting import (
    multiclass_base_score,
    multiclass_init_score,
    multiclass_logloss,
    multiclass_objective,
)

ROUNDS = 10
# XGBoost's margins are float32. Those of 10 rounds, and the start's, are 11 numbers below 8 whose
# sums are rounded to 2.4e-7; a leaf is a quotient of sums of gradients, good to some 1e-7.
# LightGBM rounds derivatives from float64 to float32 as ours are; where the last bits of float64
# decide it, rarely, one differs by 1.2e-7 of itself.
TOLERANCE = {"xgboost": 5e-6, "lightgbm": 1e-6}


def samples(absent=False, rows=600, seed=0):
    """Features, labels of classes of very different size that they tell of, row weights.

    `absent`: the first and the last of five classes have no row.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5))
    y = rng.choice(3, rows, p=[0.8, 0.15, 0.05])
    y[x[:, 0] + 0.5 * rng.normal(size=rows) > 1.2] = 1
    return x, y + absent, rng.uniform(0.5, 2, rows), 5 if absent else 3


absent = pytest.mark.parametrize("absent", [False, True], ids=["", "absent classes"])
weighted = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])


def start_rows(y, classes, weight, rows):
    return np.tile(multiclass_init_score(y, classes, weight), (rows, 1))


def assert_same_trees(ours, built_in, library):
    """Every row in the same leaf of every tree, and the same logits."""
    np.testing.assert_array_equal(ours[0], built_in[0])
    np.testing.assert_allclose(ours[1], built_in[1], rtol=0, atol=TOLERANCE[library])
    assert np.ptp(built_in[1], axis=0).max() > 1  # it has learnt


# --- the libraries' own interfaces --------------------------------------------------------


@weighted
@absent
def test_xgboost(absent, weighted):
    x, y, weight, classes = samples(absent)
    weight = weight if weighted else None
    data = xgboost.DMatrix(x, y, weight=weight)
    params = {"num_class": classes, "objective": "multi:softprob", "nthread": 1}
    built_in = xgboost.train(params, data, ROUNDS)
    params["base_score"] = multiclass_base_score(y, classes, weight)
    ours = xgboost.train(params, data, ROUNDS, obj=multiclass_objective("xgboost"))
    leaves = [
        (model.predict(data, pred_leaf=True), model.predict(data, output_margin=True))
        for model in (ours, built_in)
    ]
    assert_same_trees(*leaves, "xgboost")
    # A probability's error is at most half of the largest of its logits'.
    np.testing.assert_allclose(ours.predict(data), built_in.predict(data), rtol=0, atol=5e-6)


@weighted
@absent
def test_lightgbm(absent, weighted):
    x, y, weight, classes = samples(absent)
    weight = weight if weighted else None
    params = {"num_class": classes, "verbosity": -1, "num_threads": 1, "deterministic": True}
    data = lightgbm.Dataset(x, y, weight=weight)
    built_in = lightgbm.train(params | {"objective": "multiclass"}, data, ROUNDS)
    start = start_rows(y, classes, weight, len(y))
    data = lightgbm.Dataset(x, y, weight=weight, init_score=start)
    ours = lightgbm.train(params | {"objective": multiclass_objective("lightgbm")}, data, ROUNDS)
    leaves = [
        (model.predict(x, pred_leaf=True), model.predict(x, raw_score=True) + added)
        for model, added in ((ours, start), (built_in, 0))
    ]
    assert_same_trees(*leaves, "lightgbm")
    probabilities = xe.softmax(leaves[0][1], axis=1)
    np.testing.assert_allclose(probabilities, built_in.predict(x), rtol=0, atol=1e-6)


# --- in the style of scikit-learn ---------------------------------------------------------


@weighted
def test_xgb_classifier(weighted):
    x, y, weight, classes = samples()
    weight = weight if weighted else None
    score = multiclass_base_score(y, classes, weight)
    custom = {"objective": multiclass_objective("xgboost"), "base_score": score}
    ours, built_in = (
        xgboost.XGBClassifier(n_estimators=ROUNDS, n_jobs=1, **options) for options in (custom, {})
    )
    for model in (ours, built_in):
        model.fit(x, y, sample_weight=weight)
    leaves = [(model.apply(x), model.predict(x, output_margin=True)) for model in (ours, built_in)]
    assert_same_trees(*leaves, "xgboost")
    p, expected = ours.predict_proba(x), built_in.predict_proba(x)
    np.testing.assert_allclose(p, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(ours.predict(x), built_in.predict(x))


@pytest.mark.parametrize("class_weight", [None, {"b": 0.5, "z": 3.0}])
@weighted
def test_lgbm_classifier(weighted, class_weight):
    """Its labels may be strings; its class weights are factors of the rows' weights."""
    x, codes, weight, classes = samples()
    y = np.array(["b", "k", "z"])[codes]
    weight = weight if weighted else None
    options = {"n_estimators": ROUNDS, "n_jobs": 1, "verbosity": -1, "class_weight": class_weight}
    built_in = lightgbm.LGBMClassifier(**options).fit(x, y, sample_weight=weight)
    factor = 1.0 if class_weight is None else np.array([0.5, 1.0, 3.0])[codes]
    total = factor * (np.ones(len(y)) if weight is None else weight)
    start = start_rows(codes, classes, total, len(y))
    ours = lightgbm.LGBMClassifier(objective=multiclass_objective("lightgbm"), **options)
    ours.fit(x, y, sample_weight=weight, init_score=start)
    logits = ours.predict(x, raw_score=True) + start
    leaves = [
        (model.predict(x, pred_leaf=True), values)
        for model, values in ((ours, logits), (built_in, built_in.predict(x, raw_score=True)))
    ]
    assert_same_trees(*leaves, "lightgbm")
    p = xe.softmax(logits, axis=1)
    np.testing.assert_allclose(p, built_in.predict_proba(x), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours.classes_[p.argmax(axis=1)], built_in.predict(x))


def validation(x, y):
    """Arguments of LGBMClassifier.fit: a LightGBM that knows the first ones warns of the other."""
    if "eval_X" in inspect.signature(lightgbm.LGBMClassifier.fit).parameters:
        return {"eval_X": x, "eval_y": y}
    return {"eval_set": [(x, y)]}


# --- early stopping -----------------------------------------------------------------------


def assert_same_stop(ours, built_in):
    """(best iteration, losses by iteration) of both."""
    losses, expected = (np.array(curve) for _, curve in (ours, built_in))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)  # XGBoost's are of float32
    best, second = np.sort(expected)[:2]
    assert second - best > 10 * np.abs(losses - expected).max()  # no matter of rounding
    assert ours[0] == built_in[0]
    assert 0 < ours[0] < len(expected) - 1


def split(weighted):
    x, y, weight, classes = samples(rows=1200)
    weight = weight if weighted else np.ones(len(y))
    return tuple((a[:600], a[600:]) for a in (x, y, weight)), classes


@weighted
def test_xgboost_stops_where_it_did(weighted):
    (x, y, weight), classes = split(weighted)
    train, valid = (xgboost.DMatrix(*a[:2], weight=a[2]) for a in zip(x, y, weight, strict=True))
    params = {"num_class": classes, "nthread": 1, "objective": "multi:softprob"}
    score = multiclass_base_score(y[0], classes, weight[0])
    stops = []
    for own, options in [
        ({"eval_metric": "mlogloss"}, {}),
        (
            {"base_score": score, "disable_default_eval_metric": True},
            {
                "obj": multiclass_objective("xgboost"),
                "custom_metric": multiclass_logloss("xgboost"),
            },
        ),
        (  # its own metric knows by the objective's name what a custom one predicts
            {"base_score": score, "eval_metric": "mlogloss"},
            {"obj": multiclass_objective("xgboost")},
        ),
    ]:
        curves = {}
        model = xgboost.train(
            params | own,
            train,
            200,
            evals=[(valid, "valid")],
            evals_result=curves,
            early_stopping_rounds=10,
            verbose_eval=False,
            **options,
        )
        (curve,) = curves["valid"].values()
        stops.append((model.best_iteration, curve))
    assert_same_stop(stops[1], stops[0])
    assert_same_stop(stops[2], stops[0])


@weighted
def test_xgb_classifier_stops_where_it_did(weighted):
    (x, y, weight), classes = split(weighted)
    custom = {
        "objective": multiclass_objective("xgboost"),
        "base_score": multiclass_base_score(y[0], classes, weight[0]),
        "eval_metric": multiclass_logloss("xgboost"),
        "disable_default_eval_metric": True,
    }
    stops = []
    for options in (custom, {"eval_metric": "mlogloss"}):
        model = xgboost.XGBClassifier(
            n_estimators=200, n_jobs=1, early_stopping_rounds=10, **options
        )
        model.fit(
            x[0],
            y[0],
            sample_weight=weight[0],
            eval_set=[(x[1], y[1])],
            sample_weight_eval_set=[weight[1]],
            verbose=False,
        )
        (curve,) = model.evals_result()["validation_0"].values()
        stops.append((model.best_iteration, curve))
    assert_same_stop(*stops)


@weighted
def test_lightgbm_stops_where_it_did(weighted):
    (x, y, weight), classes = split(weighted)
    params = {"num_class": classes, "verbosity": -1, "num_threads": 1, "learning_rate": 0.3}
    custom = {"objective": multiclass_objective("lightgbm")}
    stops = []
    for objective, feval in (
        (custom, multiclass_logloss("lightgbm")),
        ({"objective": "multiclass"}, None),
    ):
        starts = [start_rows(y[0], classes, weight[0], len(rows)) if feval else None for rows in y]
        train, valid = (
            lightgbm.Dataset(features, labels, weight=row_weights, init_score=start)
            for features, labels, row_weights, start in zip(x, y, weight, starts, strict=True)
        )
        curves = {}
        stop = [lightgbm.early_stopping(10, verbose=False), lightgbm.record_evaluation(curves)]
        model = lightgbm.train(
            params | objective, train, 200, valid_sets=[valid], feval=feval, callbacks=stop
        )
        (curve,) = curves["valid_0"].values()
        stops.append((model.best_iteration - 1, curve))
    assert_same_stop(*stops)


@weighted
def test_lgbm_classifier_stops_where_it_did(weighted):
    (x, y, weight), classes = split(weighted)
    start, start_of_valid = (start_rows(y[0], classes, weight[0], len(rows)) for rows in y)
    custom = {"objective": multiclass_objective("lightgbm"), "metric": "None"}
    given = {
        "init_score": start,
        "eval_init_score": [start_of_valid],
        "eval_metric": multiclass_logloss("lightgbm"),
    }
    stops = []
    for options, fit in ((custom, given), ({}, {})):
        model = lightgbm.LGBMClassifier(
            n_estimators=200, n_jobs=1, verbosity=-1, learning_rate=0.3, **options
        )
        model.fit(
            x[0],
            y[0],
            sample_weight=weight[0],
            **validation(x[1], y[1]),
            eval_sample_weight=[weight[1]],
            callbacks=[lightgbm.early_stopping(10, verbose=False)],
            **fit,
        )
        (curve,) = model.evals_result_["valid_0"].values()
        stops.append((model.best_iteration_ - 1, curve))
    assert_same_stop(*stops)
