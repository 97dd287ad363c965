"""xentropy.boosting: the loss as a metric, as each library calls it."""

import inspect
import pickle

import numpy as np
import pytest
from helpers.support import make_logits

from xentropy import reference
from xentropy.boosting import multiclass_logloss


class Data:
    """DMatrix and Dataset, as far as a metric sees them."""

    def __init__(self, label, weight):
        self.get_label = lambda: label
        self.get_weight = lambda: weight


def case(dtype, order, rows=400, classes=7):
    logits = np.asarray(make_logits((rows, classes), dtype, spread=8.0, seed=3), order=order)
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=rows).astype("float32")
    return logits, labels, rng.choice([0.0, 0.5, 2.0], rows).astype("float32")


def mean(logits, labels, weight=None):
    logits = logits.astype("float64")
    return reference.cross_entropy(logits, labels.astype(int), sample_weight=weight)


# A few units in the last place of float64, whatever the dtype of the logits.
close = pytest.approx


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_xgboost(weighted):
    logits, labels, weight = case("float32", "C")
    metric = multiclass_logloss("xgboost")
    expected = close(mean(logits, labels, weight if weighted else None), rel=1e-14)
    none = np.empty(0, "float32")
    name, loss = metric(logits, Data(labels, weight if weighted else none))
    assert (name, loss) == ("multiclass_logloss", expected)
    options = {"sample_weight": weight} if weighted else {}
    assert metric(labels, logits, **options) == expected  # XGBClassifier
    assert metric.__name__ == name


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_lightgbm(weighted):
    logits, labels, weight = case("float64", "F")
    weight = weight if weighted else None
    metric = multiclass_logloss("lightgbm")
    expected = ("multiclass_logloss", close(mean(logits, labels, weight), rel=1e-14), False)
    assert metric(logits, Data(labels, weight)) == expected
    assert metric(labels, logits, weight) == expected  # LGBMClassifier
    assert len(inspect.signature(metric).parameters) == 3  # it asks for two, or for the weights


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_catboost_adds_up_blocks(weighted):
    logits, labels, weight = case("float64", "F")
    metric = multiclass_logloss("catboost")
    total = np.zeros(2)
    for part in (slice(150), slice(150, None)):
        columns = tuple(logits[part].T)
        total += metric.evaluate(columns, labels[part], weight[part] if weighted else None)
    expected = mean(logits, labels, weight if weighted else None)
    assert metric.get_final_error(*total) == close(expected, rel=1e-14)
    assert not metric.is_max_optimal()
    assert np.isnan(metric.get_final_error(0.0, 0.0))


def test_confident_rows_cost_what_they_cost():
    logits = np.array([[20, 0], [0, 200]], np.float32)
    loss = multiclass_logloss("xgboost")(np.zeros(2), logits)
    assert loss == (np.log1p(np.exp(-20)) + 200) / 2  # the libraries stop at ln(1e-15) = -34.5
    assert multiclass_logloss("xgboost")(np.zeros(1), logits[:1]) == close(
        2.061153620314381e-09, rel=1e-15
    )


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm", "catboost"])
def test_metrics_can_be_pickled_and_name_themselves(kind):
    metric = multiclass_logloss(kind, n_threads=2)
    assert vars(pickle.loads(pickle.dumps(metric))) == vars(metric)
    assert repr(metric) == f"multiclass_logloss({kind!r})"


@pytest.mark.parametrize(
    ("labels", "logits", "weight", "error", "words"),
    [
        ([0, 2], np.zeros((2, 2)), None, IndexError, r"labels\[1\] = 2.0 is not a class"),
        ([0, 0.5], np.zeros((2, 2)), None, ValueError, r"labels\[1\] = 0.5"),
        ([0], np.zeros((2, 2)), None, ValueError, "labels has shape"),
        ([0, 1], np.zeros(2), None, ValueError, r"logits have shape \(2,\)"),
        ([0, 1], np.zeros((2, 2)), [1.0, np.inf], ValueError, r"sample_weight\[1\] = inf"),
    ],
)
def test_arguments_that_are_refused(labels, logits, weight, error, words):
    with pytest.raises(error, match=words):
        multiclass_logloss("lightgbm")(labels, logits, weight)


def test_other_arguments_that_are_refused():
    with pytest.raises(ValueError, match="kind = 'exact' is not one of xgboost, lightgbm, catb"):
        multiclass_logloss("exact")
    with pytest.raises(ValueError, match="n_threads = 0"):
        multiclass_logloss("catboost", n_threads=0)
    with pytest.raises(IndexError, match=r"labels\[1\] = 2"):
        multiclass_logloss("catboost").evaluate([np.zeros(2)] * 2, np.array([0, 2.0]), None)
    with pytest.raises(ValueError, match="give it classes_count"):
        multiclass_logloss("catboost").evaluate([np.zeros(2)], np.zeros(2), None)
