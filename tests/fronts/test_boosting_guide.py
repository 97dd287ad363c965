"""The examples of the guide to boosting, as they stand there: models of the built-in objectives."""

import re
from pathlib import Path

import catboost
import lightgbm
import numpy as np
import xgboost

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "boosting.md"


def test_the_models_are_those_of_the_built_in_objectives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # CatBoost writes files
    n = {}
    for example in re.findall(r"(?s)```python\n(.*?)```", GUIDE.read_text(encoding="utf-8")):
        exec(example, n)
        check_the_model(n)
    assert "model" in n


def check_the_model(n):
    """The model of the last example, if it made one; n are the names of all examples so far.

    The tolerances are those of test_boosting_defaults.py and test_boosting_catboost.py.
    """
    if "model" in n:
        given = {"iterations": n["rounds"], "learning_rate": 0.1, "verbose": False}
        built_in = catboost.CatBoostClassifier(loss_function="MultiClass", **given)
        p, expected = (m.predict_proba(n["x"]) for m in (n["model"], built_in.fit(n["x"], n["y"])))
        np.testing.assert_allclose(p, expected, rtol=0, atol=1e-12)
    elif "probabilities" in n:
        built_in = lightgbm.train(
            {"num_class": 3, "objective": "multiclass", "verbosity": -1},
            lightgbm.Dataset(n["x"], n["y"], weight=n["weight"]),
            n["rounds"],
            valid_sets=[lightgbm.Dataset(n["x_valid"], n["y_valid"])],
            callbacks=[lightgbm.early_stopping(10, verbose=False)],
        )
        assert n["booster"].best_iteration == built_in.best_iteration
        np.testing.assert_allclose(n["probabilities"], built_in.predict(n["x"]), rtol=0, atol=1e-6)
    elif "booster" in n:
        params = {"num_class": 3, "objective": "multi:softprob"}
        built_in = xgboost.train(params, n["data"], num_boost_round=n["rounds"])
        p = n["booster"].predict(n["data"])
        np.testing.assert_allclose(p, built_in.predict(n["data"]), rtol=0, atol=5e-6)
