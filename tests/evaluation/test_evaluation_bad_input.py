"""Bad input: the error names the argument, the value and its place, and nothing is counted."""

import numpy as np
import pytest
from helpers.evaluations import batch, bits, counted, given

import xentropy as xe

X, T = np.zeros((3, 4), np.float32), [0, 1, 2]

UPDATES = [
    ({"target": [0, 4, 0]}, IndexError, r"target\[1\] = 4 is out of range for 4 classes"),
    ({"target": [0, 1, -1]}, IndexError, r"target\[2\] = -1 .*ignore_index=-1"),
    ({"target": np.zeros((3, 4))}, TypeError, "target must be integers .class indices."),
    ({"target": [0, 1]}, ValueError, r"target has shape \(2,\), not \(3,\)"),
    ({"target": ["a", "b", "c"]}, TypeError, "target must be integers"),
    ({"logits": np.zeros((3, 4), int)}, TypeError, "logits must be float16"),
    ({"logits": np.zeros((3, 0))}, ValueError, "no classes"),
    ({"sample_weight": [1, -2.5, 1]}, ValueError, r"sample_weight\[1\] = -2.5 is negative"),
    ({"sample_weight": [1, np.nan, 1]}, ValueError, r"sample_weight\[1\] = nan is not finite"),
    ({"sample_weight": [1, 1]}, ValueError, "sample_weight has shape"),
    ({"group": [0.5, 1, 2]}, TypeError, "group must be integers or strings, not float64"),
    ({"group": [1, 2]}, ValueError, r"group has shape \(2,\), not \(3,\)"),
    ({"group": object()}, TypeError, "group must be integers or strings"),
    ({"axis": 2}, ValueError, "axis = 2 is out of range"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer"),
    ({"logit_scale": -1}, ValueError, "logit_scale = -1.0"),
    ({"softcap": 0}, ValueError, "softcap = 0.0"),
    ({"n_threads": 0}, ValueError, "n_threads = 0"),
]
OF_ONE = [
    ({"bytes": [1, 2.5, 3]}, TypeError, "bytes must be integers, not float64"),
    ({"bytes": [1, -2, 3]}, ValueError, r"bytes\[1\] = -2 is negative"),
    ({"bytes": -7}, ValueError, "bytes = -7 is negative"),
    ({"bytes": [1, 2]}, ValueError, "bytes has shape"),
]
OF_TWO = [
    ({"base_logits": X[:2]}, ValueError, r"base_logits has shape \(2, 4\), not \(3, 4\)"),
    ({"base_logits": X.astype(int)}, TypeError, "base_logits must be float16"),
]
CASES = [(xe.Evaluation, *case) for case in UPDATES + OF_ONE]
CASES += [(xe.PairedEvaluation, *case) for case in UPDATES + OF_TWO]


@pytest.mark.parametrize(("kind", "wrong", "error", "says"), CASES)
def test_updates(kind, wrong, error, says):
    evaluation = kind()
    arguments = given(kind, {"logits": X, "base_logits": X, "target": T})
    with pytest.raises(error, match=says):
        evaluation.update(**arguments | wrong)
    assert bits(evaluation.result()) == bits(kind().result())


@pytest.mark.parametrize("name", ["group", "bytes"])
def test_given_in_every_update_or_in_none(name):
    with_it, without = counted(xe.Evaluation, batch()), batch()
    without.pop(name)
    before = bits(with_it.result())
    with pytest.raises(ValueError, match=f"this update has no {name}, and what was counted"):
        with_it.update(**given(xe.Evaluation, without))
    with pytest.raises(ValueError, match=f"other has no {name}"):
        with_it.merge(counted(xe.Evaluation, without))
    assert bits(with_it.result()) == before
    with pytest.raises(ValueError, match=f"this update has {name}, and .* had not"):
        counted(xe.Evaluation, without).update(**given(xe.Evaluation, batch()))


def test_merges_of_what_does_not_go_together():
    evaluation = xe.Evaluation()
    with pytest.raises(TypeError, match="other must be of type Evaluation, not 3"):
        evaluation.merge(3)
    with pytest.raises(TypeError, match="other must be of type Evaluation"):
        evaluation.merge(xe.PairedEvaluation())
    with pytest.raises(ValueError, match=r"other has top = \(1,\), and this one \(1, 5\)"):
        evaluation.merge(xe.Evaluation(top=[1]))
    with pytest.raises(ValueError, match="other has bins = 3, and this one 15"):
        evaluation.merge(xe.Evaluation(bins=3))


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"top": 5}, TypeError, "top must be a sequence of integers, not 5"),
        ({"top": "15"}, TypeError, "top must be a sequence"),
        ({"top": (1, 0)}, ValueError, r"top\[1\] = 0 is less than 1"),
        ({"top": (1.5,)}, TypeError, r"top\[0\] must be an integer"),
        ({"bins": 0}, ValueError, "bins = 0 is less than 1"),
        ({"bins": 2.0}, TypeError, "bins must be an integer"),
    ],
)
def test_settings(settings, error, says):
    with pytest.raises(error, match=says):
        xe.Evaluation(**settings)
