"""xentropy.boosting in CatBoost: the models of its MultiClass."""

import catboost
import numpy as np
import pytest

import xentropy as xe
from xentropy.boosting import multiclass_logloss, multiclass_objective

weighted = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])


def samples(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5))
    y = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    y[x[:, 0] + 0.5 * rng.normal(size=rows) > 1] = 1
    return x, y, rng.uniform(0.5, 2, rows)


def classifier(custom, **options):
    """With CatBoost's defaults for MultiClass; only the learning rate is not left to it.

    One thread: a call of Python has the lock of the interpreter anyhow.
    """
    own = {"loss_function": "MultiClass"}
    if custom:
        own = {"loss_function": multiclass_objective("catboost"), "eval_metric": "MultiClass"}
    fixed = {"bootstrap_type": "Bayesian", "learning_rate": 0.3, "random_seed": 0}
    quiet = {"verbose": False, "allow_writing_files": False, "thread_count": 1}
    return catboost.CatBoostClassifier(**{"iterations": 10} | quiet | fixed | own | options)


def logits(model, x):
    return model.predict(x, prediction_type="RawFormulaVal")


@weighted
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"leaf_estimation_method": "Gradient"},
        {"leaf_estimation_method": "Newton", "leaf_estimation_iterations": 3},
        {"boosting_type": "Ordered"},
        {"bootstrap_type": "No"},
    ],
    ids=str,
)
def test_the_model_is_that_of_multiclass(options, weighted):
    x, y, weight = samples()
    ours, built_in = (
        classifier(custom, **options).fit(x, y, sample_weight=weight if weighted else None)
        for custom in (True, False)
    )
    # All in float64: 10 rounds of quotients of 400 terms, good to some 1e-16 each.
    np.testing.assert_allclose(logits(ours, x), logits(built_in, x), rtol=0, atol=1e-12)
    p = ours.predict_proba(x)
    np.testing.assert_allclose(p, built_in.predict_proba(x), rtol=0, atol=1e-12)
    assert xe.cross_entropy(logits(ours, x), y) < 0.9  # it has learnt: ln(3) is 1.1


def test_what_it_chooses_for_multiclass_can_be_given():
    """The learning rate is the only default that has to be read from a model."""
    x, y, _ = samples()
    built_in = catboost.CatBoostClassifier(
        iterations=10, loss_function="MultiClass", random_seed=0, verbose=False,
        allow_writing_files=False, thread_count=1,
    ).fit(x, y)  # fmt: skip
    rate = built_in.get_all_params()["learning_rate"]
    ours = classifier(True, learning_rate=rate).fit(x, y)
    np.testing.assert_allclose(logits(ours, x), logits(built_in, x), rtol=0, atol=1e-12)


def test_labels_of_any_kind_and_two_classes():
    x, y, _ = samples()
    names = np.array(["b", "k", "z"])[y]
    ours, built_in = (classifier(custom).fit(x, names) for custom in (True, False))
    np.testing.assert_array_equal(ours.predict(x), built_in.predict(x))
    ours, built_in = (classifier(custom).fit(x, y == 1) for custom in (True, False))
    p = ours.predict_proba(x)
    np.testing.assert_allclose(p, built_in.predict_proba(x), rtol=0, atol=1e-12)


@weighted
@pytest.mark.parametrize("metric", ["MultiClass", "ours"])
def test_it_stops_where_it_did(metric, weighted):
    x, y, weight = samples(600)
    weight = weight if weighted else np.ones(len(y))
    train, valid = (
        catboost.Pool(x[part], y[part], weight=weight[part])
        for part in (slice(300), slice(300, None))
    )
    own = {"eval_metric": metric}
    if metric == "ours":
        own = {"eval_metric": multiclass_logloss("catboost"), "classes_count": 3}
    stops = []
    for model in (classifier(True, iterations=60, **own), classifier(False, iterations=60)):
        model.fit(train, eval_set=valid, early_stopping_rounds=10)
        (curve,) = model.evals_result_["validation"].values()
        stops.append((model.best_iteration_, np.array(curve)))
    (ours, losses), (built_in, expected) = stops
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert 0 < ours == built_in < len(expected) - 1


def test_a_model_of_unknown_classes_is_refused_clearly():
    x, y, _ = samples(50)
    model = classifier(True, eval_metric=multiclass_logloss("catboost"))
    with pytest.raises(catboost.CatBoostError, match="give it classes_count"):
        model.fit(x, y)
