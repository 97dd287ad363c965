"""xentropy.boosting where models are selected: folds, grids, named classes, two classes."""

import pickle

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn import datasets
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xentropy.boosting import (
    multiclass_base_score,
    multiclass_init_score,
    multiclass_logloss,
    multiclass_objective,
)

NAMES = np.array(["setosa", "versicolor", "virginica"])
ROUNDS = 5
LEAST_ACCURACY = 0.9  # a third is chance; a model that has learnt anything has 0.93 and more


@pytest.fixture(scope="module")
def iris():
    return datasets.load_iris(return_X_y=True)


def test_the_folds_of_xgboost_start_as_the_built_in_objective_does(iris):
    data = xgboost.DMatrix(*iris)
    params = {"num_class": 3, "objective": "multi:softprob", "nthread": 1}

    def start(train, test, params):
        return train, test, {**params, "base_score": multiclass_base_score(train.get_label(), 3)}

    given = {"num_boost_round": ROUNDS, "nfold": 3, "seed": 0, "as_pandas": False}
    expected = xgboost.cv(params, data, **given)
    own = {"obj": multiclass_objective("xgboost"), "custom_metric": multiclass_logloss("xgboost")}
    ours = xgboost.cv(params, data, fpreproc=start, **own, **given)
    # The tolerances of test_boosting_defaults.py; XGBoost prints metrics of one's own to 1e-6.
    for name, losses in expected.items():
        np.testing.assert_allclose(ours[name], losses, rtol=0, atol=5e-6)
        again = ours[name.replace("mlogloss", "multiclass_logloss")]
        np.testing.assert_allclose(again, losses, rtol=0, atol=6e-6)


def test_the_folds_of_lightgbm_start_as_the_built_in_objective_does(iris):
    def start(train, test, params):
        scores = multiclass_init_score(train.construct().get_label(), 3)
        for data in (train, test):
            data.construct().set_init_score(np.tile(scores, (data.num_data(), 1)))
        return train, test, params

    def cv(objective, **own):
        params = {"num_class": 3, "objective": objective, "verbosity": -1, "num_threads": 1}
        result = lightgbm.cv(params, lightgbm.Dataset(*iris), ROUNDS, nfold=3, seed=0, **own)
        return [result[name] for name in sorted(result)]  # mean, stdv

    own = {"feval": multiclass_logloss("lightgbm"), "fpreproc": start}
    ours = cv(multiclass_objective("lightgbm"), **own)
    np.testing.assert_allclose(ours, cv("multiclass"), rtol=0, atol=1e-6)


def classes(model, x):
    """The classes that an LGBMClassifier with a custom objective predicts; no start was given."""
    return model.classes_[model.predict(x, raw_score=True).argmax(axis=1)]


def accuracy(model, x, y):
    return np.mean(classes(model, x) == y)


def classifier(**given):
    objective = multiclass_objective("lightgbm")
    return lightgbm.LGBMClassifier(
        objective=objective, n_estimators=ROUNDS, verbosity=-1, n_jobs=1, **given
    )


def test_grids_of_lgbm_classifiers_with_named_classes(iris):
    x, y = iris[0], NAMES[iris[1]]
    grid = {
        "num_leaves": [3, 7],
        "objective": [multiclass_objective(k) for k in ("lightgbm", "exact")],
    }
    search = GridSearchCV(classifier(), grid, cv=3, scoring=accuracy, error_score="raise")
    assert search.fit(x, y).best_score_ > LEAST_ACCURACY
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(x, y)
    with pytest.warns(UserWarning, match="Returning raw scores"):  # as the docstring says
        raw = pipeline.predict(x)
    assert raw.shape == (len(x), 3)
    assert np.mean(pipeline.classes_[raw.argmax(axis=1)] == y) > LEAST_ACCURACY
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict(x, raw_score=True), raw)


def test_two_classes(iris):
    """Both libraries take two classes for binary ones, with one score, unless they are told."""
    two = iris[1] < 2
    x, y = iris[0][two], iris[1][two]
    model = classifier(num_class=2, metric="None").fit(x, NAMES[y])
    assert accuracy(model, x, NAMES[y]) > LEAST_ACCURACY
    objective = multiclass_objective("xgboost")
    xgb = xgboost.XGBClassifier(objective=objective, n_estimators=ROUNDS, num_class=2).fit(x, y)
    assert np.mean(xgb.predict_proba(x).argmax(axis=1) == y) > LEAST_ACCURACY
    for untold in (classifier(), xgboost.XGBClassifier(objective=objective, n_estimators=ROUNDS)):
        with pytest.raises(ValueError, match="one score a row; set num_class"):
            untold.fit(x, y)


def test_random_forests_of_xgboost(iris):
    x, y = iris
    given = {"n_estimators": ROUNDS, "random_state": 0, "n_jobs": 1}
    score = multiclass_base_score(y, 3)
    ours = xgboost.XGBRFClassifier(
        objective=multiclass_objective("xgboost"), base_score=score, **given
    ).fit(x, y)
    expected = xgboost.XGBRFClassifier(**given).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours.predict_proba(x), expected, rtol=0, atol=5e-6)
