"""The README's examples of boosting, as they stand there: the models of the built-in objectives."""

import re
from pathlib import Path

import catboost
import lightgbm
import numpy as np
import xgboost

import xentropy as xe

README = Path(__file__).resolve().parents[2] / "README.md"
ROUNDS = 10


def examples():
    section = re.search(r"(?s)\n### XGBoost, .*?\n##", README.read_text(encoding="utf-8")).group()
    return re.findall(r"(?s)```python\n(.*?)```", section)


def names():
    """What the examples take as given."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = np.where(x[:, 0] > 0.5, 1, rng.choice(3, 300, p=[0.8, 0.15, 0.05]))
    weight = rng.uniform(0.5, 2, 200)
    given = {"x": x[:200], "y": y[:200], "x_valid": x[200:], "y_valid": y[200:], "weight": weight}
    libraries = {"xgboost": xgboost, "lightgbm": lightgbm, "catboost": catboost}
    return {"np": np, "xe": xe, "rounds": ROUNDS} | libraries | given


def test_the_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # CatBoost writes files
    n = names()
    first, second, third = examples()
    exec(first, n)
    built_in = xgboost.train(
        {"num_class": 3, "objective": "multi:softprob"}, n["data"], num_boost_round=ROUNDS
    )
    # The tolerances are those of test_boosting_defaults.py and test_boosting_catboost.py.
    p = n["booster"].predict(n["data"])
    np.testing.assert_allclose(p, built_in.predict(n["data"]), rtol=0, atol=5e-6)

    exec(second, n)
    built_in = lightgbm.train(
        {"num_class": 3, "objective": "multiclass"},
        lightgbm.Dataset(n["x"], n["y"], weight=n["weight"]),
        ROUNDS,
        valid_sets=[lightgbm.Dataset(n["x_valid"], n["y_valid"])],
        callbacks=[lightgbm.early_stopping(10)],
    )
    assert n["booster"].best_iteration == built_in.best_iteration
    np.testing.assert_allclose(n["probabilities"], built_in.predict(n["x"]), rtol=0, atol=1e-6)

    exec(third, n)
    given = {"iterations": ROUNDS, "learning_rate": 0.1, "loss_function": "MultiClass"}
    models = n["model"], catboost.CatBoostClassifier(**given)
    p, expected = (model.fit(n["x"], n["y"]).predict_proba(n["x"]) for model in models)
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-12)
