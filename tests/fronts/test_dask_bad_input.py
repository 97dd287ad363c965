"""Errors of xentropy.dask name argument, value and the place in the whole array."""

import re
import subprocess
import sys
import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from helpers.evaluations import bits

import xentropy.dask as xd

CALLS = [xd.cross_entropy, xd.cross_entropy_with_grad, xd.row_statistics, xd.evaluate]
LOSSES = CALLS[:2]
X = da.zeros((30, 4), chunks=(7, 4))
T = np.zeros(30, np.int64)
P = np.full((30, 4), 0.25)


@pytest.fixture(autouse=True)
def scheduler():
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def computed(call, *arguments, **options):
    """What a call returns, computed, errors of its tasks included."""
    return dask.compute(call(*arguments, **options))


def but(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lazily", [False, True])
def test_labels_out_of_range(call, lazily):
    target = but(T, 23, 4)
    if lazily:
        target = da.from_array(target, chunks=11)
    says = re.escape("target[23] = 4 is out of range for 4 classes; they are counted from 0")
    with pytest.raises(IndexError, match=f"^{says}$"):
        computed(call, X, target)
    with pytest.raises(IndexError, match=re.escape("target[29] = -1 is out of range")):
        computed(call, X, but(T, 29, -1))


def test_labels_of_rows_in_two_dimensions():
    x = da.zeros((6, 4, 5), chunks=(2, 4, 3))
    with pytest.raises(IndexError, match=r"^target\[5, 4\] = 9 is out of range"):
        xd.cross_entropy(x, but(np.zeros((6, 5), int), (5, 4), 9)).compute()


@pytest.mark.parametrize("call", LOSSES)
@pytest.mark.parametrize("target", [T, P])
def test_values_that_are_not_finite(call, target):
    for wrong in np.nan, np.inf:
        with pytest.raises(ValueError, match=rf"^sample_weight\[22\] = {wrong} is not finite"):
            computed(call, X, target, sample_weight=but(np.ones(30), 22, wrong))
    weight = np.array([1, 2, np.nan, 3])
    for each in weight, da.from_array(weight, chunks=2):  # of classes: its own places
        with pytest.raises(ValueError, match=r"^weight\[2\] = nan is not finite"):
            computed(call, X, target, each)


def test_values_of_evaluations():
    with pytest.raises(ValueError, match=r"^sample_weight\[22\] = -1.0 is negative"):
        computed(xd.evaluate, X, T, sample_weight=but(np.ones(30), 22, -1))
    with pytest.raises(ValueError, match=r"^bytes\[22\] = -1 is negative"):
        computed(xd.evaluate, X, T, bytes=but(T, 22, -1))


AT_ONCE = [
    (CALLS, (np.zeros((3, 4)), T), {}, TypeError, "logits must be a dask array, not ndarray"),
    (CALLS, (da.zeros((30, 4), dtype=int), T), {}, TypeError, "logits must be float16"),
    (CALLS, (da.zeros((30, 0)), T), {}, ValueError, "no classes along axis 1"),
    (CALLS, (X, dask.delayed(T)), {}, TypeError, "of dask or NumPy, not a Delayed"),
    (CALLS, (da.zeros(()), T), {}, ValueError, "must have a class axis"),
    (CALLS, (X, T[:29]), {}, ValueError, r"target has shape \(29,\), not \(30,\)"),
    (CALLS, (X, da.zeros(29, dtype=int)), {}, ValueError, r"target has shape \(29,\), not \(30,\)"),
    (CALLS, (X, T.astype(float)), {}, ValueError, r"integers: give target.astype\(np.int64\)"),
    (CALLS, (X, np.eye(4, dtype=int)[T]), {}, ValueError, "class probabilities must be floating"),
    (CALLS, (X, T), {"axis": 2}, ValueError, "axis = 2 is out of range"),
    (CALLS, (X, T), {"axis": 0.5}, TypeError, "axis must be an integer"),
    (CALLS, (X, T), {"ignore_index": 0.5}, TypeError, "ignore_index must be an integer"),
    (CALLS, (X, T), {"logit_scale": -1}, ValueError, "logit_scale = -1.0"),
    (CALLS, (X, T), {"softcap": 0}, ValueError, "softcap = 0.0"),
    (CALLS, (X, T), {"n_threads": 0}, ValueError, "n_threads = 0"),
    (LOSSES, (X, T), {"reduction": "max"}, ValueError, "reduction = 'max'"),
    (LOSSES, (X, T), {"label_smoothing": 2}, ValueError, "label_smoothing = 2"),
    (LOSSES, (X, T), {"normalizer": 0}, ValueError, "normalizer = 0"),
    (LOSSES, (X, T), {"normalizer": np.inf}, ValueError, "normalizer = inf must be finite"),
    (LOSSES, (X, T), {"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer goes with"),
    (LOSSES, (X, T), {"empty_mean": 0, "reduction": "sum"}, ValueError, "empty_mean goes with"),
    (LOSSES, (X, T), {"weight": np.ones(3)}, ValueError, r"weight has shape \(3,\)"),
    (LOSSES, (X, T), {"weight": da.ones(30)}, ValueError, "one per row is sample_weight"),
    (LOSSES, (X, T), {"sample_weight": np.ones(4)}, ValueError, "one per class is weight"),
    (LOSSES, (X, T), {"sample_weight": np.array(["a"])}, TypeError, "sample_weight must be float"),
    (LOSSES[1:], (X, T), {"grad_output": np.ones(30)}, ValueError, "the loss is a scalar"),
    (
        *(LOSSES[1:], (X, T), {"grad_output": da.ones(29), "reduction": "none"}),
        *(ValueError, r"grad_output has shape \(29,\), not \(30,\)"),
    ),
    (CALLS[2:], (X, P), {}, TypeError, "target must be integers .class indices., not float64"),
    (CALLS[3:], (X, T), {"group": T[:3]}, ValueError, r"group has shape \(3,\), not \(30,\)"),
    (CALLS[3:], (X, T), {"group": P[:, 0]}, TypeError, "group must be integers or strings"),
    (CALLS[3:], (X, T), {"bytes": -7}, ValueError, "bytes = -7 is negative"),
    (CALLS[3:], (X, T), {"bytes": 7, "group": T}, ValueError, "bytes = 7 is one number for rows"),
    (CALLS[3:], (X, T), {"top": 5}, TypeError, "top must be a sequence"),
    (CALLS[3:], (X, T), {"bins": 0}, ValueError, "bins = 0 is less than 1"),
]


@pytest.mark.parametrize(
    ("call", "arguments", "options", "error", "says"),
    [(call, *case) for calls, *case in AT_ONCE for call in calls],
)
def test_what_shapes_dtypes_and_options_tell(call, arguments, options, error, says):
    """Without a task."""
    with pytest.raises(error, match=says), dask.config.set(scheduler=no_tasks):
        call(*arguments, **options)


def no_tasks(*_, **__):
    raise AssertionError("a task has been run")


def test_chunks_of_unknown_sizes():
    x = X[X[:, 0] == 0]
    with pytest.raises(ValueError, match=r"logits has chunks of unknown sizes; logits.compute_ch"):
        xd.cross_entropy(x, T)
    known = x.compute_chunk_sizes()
    with pytest.raises(ValueError, match="target has chunks of unknown sizes"):
        xd.cross_entropy(known, x[:, 0].astype(int)[x[:, 0] == 0])
    assert xd.cross_entropy(known, T).compute() > 0


# --- chunks along the class axis ---


@pytest.mark.parametrize("call", CALLS)
def test_a_class_axis_in_chunks(call):
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(30, 8)), rng.integers(8, size=30)
    with pytest.warns(da.PerformanceWarning) as warned:
        split = call(da.from_array(logits, chunks=(10, 3)), target)
    says = "logits has 3 chunks along its class axis 1: all of it, 1.88 kiB, is copied into"
    assert [str(each.message).startswith(says) for each in warned] == [True]
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = call(da.from_array(logits, chunks=(10, 8)), target)
    found, expected = dask.compute(split, whole)
    if call is xd.evaluate:
        found, expected = bits(found.result()), bits(expected.result())
    for ours, theirs in zip(found, expected, strict=True) if call in CALLS[1:3] else []:
        assert np.array_equal(ours, theirs)
    if call not in CALLS[1:3]:
        assert found == expected


def test_probabilities_in_chunks_along_the_class_axis():
    with pytest.warns(da.PerformanceWarning, match="target has 2 chunks along its class axis 1"):
        loss = xd.cross_entropy(X, da.from_array(P, chunks=(30, 2)))
    assert np.isclose(loss.compute(), np.log(4))


def test_chunks_of_whole_rows_are_no_larger_than_the_parts_were():
    with pytest.warns(da.PerformanceWarning):
        grad = xd.cross_entropy_with_grad(da.zeros((64, 1000), chunks=(64, 100)), [0] * 64)[1]
    assert max(grad.chunks[0]) * 1000 <= 64 * 100


# --- without dask ---

ABSENT = """
import sys
sys.modules["dask"] = None
import xentropy
try:
    import xentropy.dask
except ImportError as error:
    assert 'pip install "xentropy-cpu[dask]"' in str(error), error
else:
    raise SystemExit("imported")
"""


def test_without_dask_the_error_says_what_to_install():
    subprocess.run([sys.executable, "-c", ABSENT], check=True, timeout=300)


def test_the_core_does_not_import_dask():
    code = "import sys, xentropy; xentropy.Evaluation(); assert 'dask' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
