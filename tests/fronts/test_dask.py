"""xentropy.dask: what NumPy's calls compute, bit for bit, whatever the chunks."""

import math
from fractions import Fraction

import dask
import dask.array as da
import numpy as np
import pytest
from helpers.dask_chunks import CHUNKS, CLASSES, ROWS, cut, problem
from helpers.evaluations import batch, bits, counted
from hypothesis import given, settings
from hypothesis import strategies as st

import xentropy as xe
import xentropy.dask as xd

ALL_OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 1e-3,
    "logit_scale": 0.7,
    "softcap": 20.0,
    "base": 2,
    "ignore_index": -100,
}


@pytest.fixture(autouse=True)
def scheduler():
    with dask.config.set(scheduler="threads", num_workers=4):
        yield


def same(found, expected):
    """Equal bits, dtype and shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def exact_mean(losses, weights):
    """By arithmetic of fractions."""
    total = sum(Fraction(float(each)) for each in losses)
    return float(total / sum(Fraction(float(each)) for each in weights))


# --- rows ---


@pytest.mark.parametrize("sizes", CHUNKS)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("options", [{}, ALL_OPTIONS])
def test_rows(dtype, sizes, probabilities, options):
    logits, target, weights = problem(dtype, probabilities=probabilities)
    upstream = np.linspace(-1, 1, ROWS)
    call = {**options, **weights, "reduction": "none"}
    loss, grad = xe.cross_entropy_with_grad(logits, target, grad_output=upstream, **call)
    ours = xd.cross_entropy_with_grad(cut(logits, sizes), target, grad_output=upstream, **call)
    assert ours[0].chunks == (sizes,)
    assert ours[1].chunks == (sizes, (CLASSES,))
    assert ours[1].dtype == logits.dtype
    for found, expected in zip(dask.compute(*ours), (loss, grad), strict=True):
        same(found, expected)
    same(xd.cross_entropy(cut(logits, sizes), target, **call), loss)


@pytest.mark.parametrize("sizes", CHUNKS)
@pytest.mark.parametrize("with_target", [False, True])
def test_statistics_of_rows(dtype, sizes, with_target):
    logits, target, _ = problem(dtype)
    target = target if with_target else None
    expected = xe.row_statistics(logits, target, softcap=20.0, logit_scale=0.5)
    found = xd.row_statistics(cut(logits, sizes), target, softcap=20.0, logit_scale=0.5)
    for name, value in expected._asdict().items():
        ours = getattr(found, name)
        if value is None:
            assert ours is None
        else:
            assert ours.dtype == value.dtype
            same(ours, value)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_more_axes(axis):
    """Rows in two dimensions, both of them chunked; the places are those of labels."""
    rng = np.random.default_rng(1)
    shape = [6, 5]
    shape.insert(axis % 3, CLASSES)
    logits = rng.normal(size=shape).astype(np.float32)
    target = rng.integers(CLASSES, size=(6, 5))
    chunks = [(2, 3, 1), (4, 1)]
    chunks.insert(axis % 3, (CLASSES,))
    x = da.from_array(logits, chunks=tuple(chunks))
    call = {"axis": axis, "reduction": "none"}
    loss, grad = dask.compute(*xd.cross_entropy_with_grad(x, target, **call))
    expected = xe.cross_entropy_with_grad(logits, target, **call)
    same(loss, expected[0])
    same(grad, expected[1])
    mean, grad = dask.compute(*xd.cross_entropy_with_grad(x, target, axis=axis))
    assert math.isclose(mean, xe.cross_entropy(logits, target, axis=axis), rel_tol=1e-14)
    same(grad, xe.cross_entropy_with_grad(logits, target, axis=axis)[1])
    evaluation = xd.evaluate(x, target, axis=axis).compute()
    expected = xe.Evaluation()
    expected.update(logits, target, axis=axis)
    assert bits(evaluation.result()) == bits(expected.result())


def test_blocks_in_any_memory_layout():
    """The last bits of a row are those in C order."""
    logits, target, weights = problem()
    expected = xe.cross_entropy_with_grad(logits, target, reduction="none", **weights)
    x = cut(logits, CHUNKS[2]).map_blocks(np.asfortranarray)
    found = dask.compute(*xd.cross_entropy_with_grad(x, target, reduction="none", **weights))
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)


def test_a_single_row():
    logits = np.array([20.0, 0.0], np.float32)
    x = da.from_array(logits, chunks=2)
    loss, grad = dask.compute(*xd.cross_entropy_with_grad(x, 0))
    expected = xe.cross_entropy_with_grad(logits, 0)
    same(loss, np.float64(expected[0]))
    same(grad, expected[1])
    assert xd.row_statistics(x, 0).rank.compute() == 0
    assert xd.evaluate(x, 0).compute().result().tokens == 1


# --- one number ---


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_and_mean_are_exact(probabilities, weighted):
    """In float64, whose losses of rows are known, against fractions."""
    logits, target, weights = problem(np.float64, probabilities=probabilities)
    weights = weights if weighted else {}
    each = xe.cross_entropy(logits, target, reduction="none", **weights)
    of_rows = np.ones(ROWS)
    if not probabilities:
        of_rows = of_rows * (target != -100)
    if weighted:
        of_rows = of_rows * weights["sample_weight"].astype(np.float64)
        if not probabilities:
            of_rows = of_rows * weights["weight"][np.maximum(target, 0)]
    for sizes in CHUNKS:
        x = cut(logits, sizes)
        same(xd.cross_entropy(x, target, **weights), exact_mean(each, of_rows))
        total = xd.cross_entropy(x, target, reduction="sum", **weights)
        same(total, math.fsum(each))
        scaled = xd.cross_entropy(x, target, normalizer=37.0, **weights)
        same(scaled, exact_mean(each, [37.0]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("probabilities", [False, True])
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, ROWS - 1)), seed=st.integers(0, 5))
def test_any_chunks(reduction, probabilities, cuts, seed):
    logits, target, weights = problem(probabilities=probabilities, seed=seed)
    call = {"reduction": reduction, **ALL_OPTIONS, **weights}
    edges = [0, *sorted(cuts), ROWS]
    x = cut(logits, tuple(np.diff(edges).tolist()))
    whole = xd.cross_entropy_with_grad(cut(logits, (ROWS,)), target, **call)
    found = xd.cross_entropy_with_grad(x, cut(target, (23, 37)), **call)
    with dask.config.set(scheduler="synchronous"):
        (loss, grad), expected = dask.compute(*found), dask.compute(*whole)
        same(xd.cross_entropy(x, target, **call), loss)
    same(loss, expected[0])
    same(grad, expected[1])
    numpy_loss, numpy_grad = xe.cross_entropy_with_grad(logits, target, **call)
    # Sums of 60 numbers in float64: at most 60 roundings apart, also of the divisor.
    assert math.isclose(loss, numpy_loss, rel_tol=60 * 2**-52)
    np.testing.assert_array_max_ulp(grad, numpy_grad, maxulp=1)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("options", [{}, {"normalizer": 37.0}, {"reduction": "sum"}])
def test_gradients_without_weights_have_the_bits_of_numpys_call(dtype, probabilities, options):
    logits, target, _ = problem(dtype, probabilities=probabilities)
    grad = xe.cross_entropy_with_grad(logits, target, grad_output=-0.3, **options)[1]
    for sizes in CHUNKS:
        x = cut(logits, sizes)
        same(xd.cross_entropy_with_grad(x, target, grad_output=-0.3, **options)[1], grad)


def test_means_over_no_row_and_weights_that_cancel():
    logits = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 0.5]], np.float32)
    x, nothing = cut(logits, (2, 1)), np.full(3, -100)
    for options in {}, {"empty_mean": 0.0}, {"normalizer": 2.0}, {"reduction": "sum"}:
        loss, grad = dask.compute(*xd.cross_entropy_with_grad(x, nothing, **options))
        expected = xe.cross_entropy_with_grad(logits, nothing, **options)
        assert np.array_equal(loss, expected[0], equal_nan=True)
        same(grad, expected[1])
    nan = np.full((3, 2), np.nan, np.float32)
    cancel = {"sample_weight": np.array([1.0, -1.0, 0.0])}
    assert math.isnan(xd.cross_entropy(cut(nan, (2, 1)), [0, 1, 0], **cancel).compute())
    for upstream in 1.0, 0.0, -2.0:
        call = {**cancel, "grad_output": upstream}
        loss, grad = dask.compute(*xd.cross_entropy_with_grad(x, [0, 1, 0], **call))
        expected = xe.cross_entropy_with_grad(logits, [0, 1, 0], **call)
        assert np.array_equal(loss, expected[0], equal_nan=True)
        assert np.array_equal(grad, expected[1], equal_nan=True)


def test_a_divisor_that_overflows():
    """Means of infinities: nothing is raised, and the loss is that of one process."""
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    call = {"weight": np.full(2, 1e200), "sample_weight": np.full(2, 1e200)}
    loss, grad = dask.compute(*xd.cross_entropy_with_grad(cut(logits, (1, 1)), [0, 1], **call))
    assert np.array_equal(loss, xe.cross_entropy(logits, [0, 1], **call), equal_nan=True)
    assert not np.isinf(grad).any()


def test_infinite_losses():
    logits = np.array([[0.0, -np.inf], [1.0, 2.0], [np.nan, 0.0]], np.float32)
    x = cut(logits, (1, 1, 1))
    assert xd.cross_entropy(x[:2], [1, 1]).compute() == math.inf
    assert math.isnan(xd.cross_entropy(x, [1, 1, 1]).compute())
    assert math.isfinite(xd.cross_entropy(x, [0, 1, -100]).compute())


def test_no_rows():
    x = da.zeros((0, 3), chunks=(0, 3))
    assert math.isnan(xd.cross_entropy(x, []).compute())
    assert xd.cross_entropy(x, [], reduction="none").compute().shape == (0,)
    assert xd.evaluate(x, []).compute().result().tokens == 0


# --- evaluations ---


@pytest.mark.parametrize("sizes", CHUNKS)
def test_evaluation(sizes):
    arguments = batch(ROWS, CLASSES)
    expected = bits(counted(xe.Evaluation, arguments).result())
    arguments.pop("base_logits")
    logits = cut(arguments.pop("logits"), sizes)
    assert bits(xd.evaluate(logits, **arguments).compute().result()) == expected
    lazily = {name: cut(value, (41, 19)) for name, value in arguments.items()}
    assert bits(xd.evaluate(logits, **lazily).compute().result()) == expected


def test_evaluation_with_single_values():
    logits, target, _ = problem()
    call = {"group": "a", "bytes": 321, "logit_scale": 0.5}
    whole = xe.Evaluation(top=(1, 3), bins=4)
    whole.update(logits, target, **call)
    found = xd.evaluate(cut(logits, CHUNKS[2]), target, top=(1, 3), bins=4, **call).compute()
    assert bits(found.result()) == bits(whole.result())
    other = xe.Evaluation(top=(1, 3), bins=4)
    other.update(logits, target, group="b", bytes=3)
    assert found.merge(other).result().groups == 2


def test_an_evaluation_that_is_computed_twice():
    """Merges do not change what another task holds."""
    logits, target, _ = problem()
    first = xd.evaluate(cut(logits, (30, 30)).persist(), target, bytes=7)
    assert bits(first.compute().result()) == bits(first.compute().result())


def test_groups_as_objects():
    logits, target, _ = problem()
    names = np.array(["a", "b"], object)[np.arange(ROWS) % 2]
    found = xd.evaluate(cut(logits, CHUNKS[2]), target, group=names).compute()
    assert found.result().groups == 2
