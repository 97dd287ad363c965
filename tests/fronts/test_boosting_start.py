"""xentropy.boosting: the scores that the built-in objectives start from, and what is refused."""

import json

import numpy as np
import pytest

from xentropy.boosting import multiclass_base_score, multiclass_init_score

HELPERS = [multiclass_base_score, multiclass_init_score]
LABELS = np.array([2, 0, 2, 2, 3])


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64", ">i4"])
def test_the_formulas(dtype):
    weight = np.array([1, 2, 0.5, 1, 0.5])
    for given, sums in [(None, [1, 0, 3, 1, 0]), (weight, [2, 0, 2.5, 0.5, 0])]:
        frequency = np.array(sums) / np.sum(sums)
        labels = LABELS.astype(dtype)
        logs = np.log(frequency + 1e-6)
        base = multiclass_base_score(labels, 5, given)
        np.testing.assert_array_equal(base, (logs - logs.mean()).astype("float32"))
        init = multiclass_init_score(labels, 5, weight=given)
        # LightGBM's constant is a float32: 1e-15 to half a unit, 6e-8.
        np.testing.assert_allclose(init, np.log(np.maximum(frequency, 1e-15)), rtol=0, atol=6e-8)
        present = frequency > 0
        # Sums and quotient are rounded once each.
        np.testing.assert_allclose(init[present], np.log(frequency[present]), rtol=1e-15)


def test_what_they_return():
    base = multiclass_base_score(LABELS.tolist(), np.int64(4))
    assert isinstance(base, list)  # XGBoost keeps its parameters as JSON
    assert np.float32(json.loads(json.dumps(base))).tolist() == base
    init = multiclass_init_score(LABELS.tolist(), np.int64(4))
    assert (init.dtype, init.shape) == (np.float64, (4,))


@pytest.mark.parametrize("helper", HELPERS)
def test_weights_count_as_the_libraries_keep_them(helper):
    """In float32."""
    weight = np.array([0.1, 0.2, 0.3, 0.4, 0.7])
    assert list(helper(LABELS, 4, weight)) == list(helper(LABELS, 4, weight.astype("float32")))
    assert list(helper(LABELS, 4, np.ones(5, int))) == list(helper(LABELS, 4))


def weights(value, at=3):
    return np.where(np.arange(5) == at, value, 1.0)


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0, 1, 4], 4), IndexError, r"labels\[2\] = 4.0 is not a class: an integer in \[0, 4\)"),
        (([0, -1], 4), IndexError, r"labels\[1\] = -1"),
        (([0, np.inf], 4), IndexError, r"labels\[1\] = inf"),
        (([0, 0.5], 4), ValueError, r"labels\[1\] = 0.5"),
        (([np.nan], 4), ValueError, r"labels\[0\] = nan"),
        (([], 4), ValueError, "labels are empty"),
        (([[0, 1]], 4), ValueError, r"labels have shape \(1, 2\)"),
        ((1, 4), ValueError, r"labels have shape \(\)"),
        ((["a", "b"], 4), TypeError, "integers from 0 to 3, not <U1"),
        (([None, 1], 4), TypeError, "integers from 0 to 3, not object"),
        (([0, 1j], 4), TypeError, "not complex128"),
        ((LABELS, 1), ValueError, "num_class = 1 is less than 2"),
        ((LABELS, 4.0), TypeError, "num_class must be an integer"),
        ((LABELS, 4, np.ones(4)), ValueError, r"weight has shape \(4,\), not \(5,\)"),
        ((LABELS, 4, weights(np.nan)), ValueError, r"weight\[3\] = nan is not finite in float32"),
        ((LABELS, 4, weights(1e39)), ValueError, r"weight\[3\] = 1e\+39 is not finite in float32"),
        (
            (LABELS, 4, weights(-1e-9)),
            ValueError,
            r"weight\[3\] = -1e-09 is not finite in float32, or negative",
        ),
        ((LABELS, 4, np.zeros(5)), ValueError, "weight is 0 everywhere"),
        ((LABELS, 4, ["1"] * 5), TypeError, "weight must be float"),
    ],
)
def test_arguments_that_are_refused(helper, arguments, error, words):
    with pytest.raises(error, match=words):
        helper(*arguments)
