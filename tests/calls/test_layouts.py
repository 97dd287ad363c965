"""Every memory layout and class axis gives the exact answer, and writes nothing else."""

import itertools

import numpy as np
import pytest
from helpers.layouts import FILLER, LAYOUTS, WRITABLE, surroundings
from helpers.support import TARGETS, assert_options, assert_plain, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# Row, group and column kernels; axes first, inside and last; row axes that cannot be merged.
CASES = [
    ((5, 7), 1),
    ((5, 7), 0),
    ((37, 10), -1),
    ((3, 600), 1),
    ((600, 3), 0),
    ((130, 20), 0),
    ((3, 5, 4), 1),
    ((3, 5, 4), 2),
    ((3, 5, 4), 0),
    ((2, 21, 9, 11), 1),
    ((2, 3, 300, 2), 2),
    ((2, 3, 4, 33), -1),
    ((2, 4, 130, 3), -2),
]


@pytest.mark.parametrize("kind", TARGETS)
def test_logits(dtype, kind):
    for (shape, axis), layout in itertools.product(CASES, LAYOUTS):
        x = LAYOUTS[layout](make_logits(shape, dtype))
        target = make_target(kind, shape, axis, dtype=dtype)
        assert_plain(x, target, axis=axis, what=f"{shape} axis {axis}, {layout}")


@pytest.mark.parametrize("kind", TARGETS)
def test_target(dtype, kind):
    for (shape, axis), layout in itertools.product(CASES, LAYOUTS):
        target = make_target(kind, shape, axis, dtype=dtype)
        if target.ndim < 2 and "axis 1" in layout:
            continue  # one label a row: there is no axis 1
        target = LAYOUTS[layout](target)
        what = f"{shape} axis {axis}, {layout}"
        assert_plain(make_logits(shape, dtype), target, axis=axis, what=what)


def test_out(dtype):
    for (shape, axis), layout in itertools.product(CASES, WRITABLE):
        out = LAYOUTS[layout](np.zeros(shape, dtype))
        around = surroundings(out)
        x, target = make_logits(shape, dtype), make_target("labels", shape, axis)
        what = f"{shape} axis {axis}, {layout}"
        _, grad = assert_plain(x, target, axis=axis, out=out, what=what)
        assert grad is out
        assert (around() == FILLER).all(), f"{what}: wrote between the elements of out"


@pytest.mark.parametrize("kind", TARGETS)
def test_in_place(dtype, kind):
    for (shape, axis), layout in itertools.product(CASES, WRITABLE):
        values = make_logits(shape, dtype)
        target = make_target(kind, shape, axis, dtype=dtype)
        x = LAYOUTS[layout](values)
        around = surroundings(x)
        loss, grad = xe.cross_entropy_with_grad(x, target, axis=axis, out=x)
        apart = xe.cross_entropy_with_grad(LAYOUTS[layout](values), target, axis=axis)
        what = f"{shape} axis {axis}, {layout}"
        assert loss == apart[0], what
        assert grad is x
        np.testing.assert_array_equal(grad, apart[1], err_msg=what)
        assert (around() == FILLER).all(), f"{what}: wrote between the elements"


@pytest.mark.parametrize("stretched", [0, 1])
@pytest.mark.parametrize("shape", [(5, 7), (40, 300), (3, 130, 50)])
def test_broadcast_inputs(dtype, shape, stretched):
    small = list(shape)
    small[stretched] = 1
    x = np.broadcast_to(make_logits(small, dtype), shape)
    assert_plain(x, make_target("labels", shape), what="labels")
    t = np.broadcast_to(make_target("probabilities", small, 1, dtype=dtype), shape)
    assert_plain(make_logits(shape, dtype), t, what="probabilities")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8", "uint64"])
def test_weights_and_upstream_gradients(kind):
    rng, shapes = np.random.default_rng(0), ((9, 6), (4, 300), (7, 5, 4), (3, 6, 2, 70))
    for shape, layout in itertools.product(shapes, LAYOUTS):
        rows = np.delete(shape, 1)
        weight = rng.integers(1, 5, (shape[1], 1)).astype(kind)
        options = {"weight": LAYOUTS[layout](weight)[:, 0], "reduction": "none"}
        if len(rows) > 1 or "axis 1" not in layout:
            for name in ("sample_weight", "grad_output"):
                options[name] = LAYOUTS[layout](rng.integers(0, 5, rows).astype(kind))
        x = make_logits(shape)
        assert_options(x, make_target("labels", shape), what=f"{shape}, {layout}", **options)


@pytest.mark.parametrize("other", ["float16", "float32", "float64", ">f2", ">f4", ">f8"])
def test_probabilities_of_another_type_than_the_logits(dtype, other):
    for shape in ((9, 6), (4, 300), (2, 5, 33)):
        target = make_target("probabilities", shape).astype(other)
        assert_options(make_logits(shape, dtype), target, what=str(shape))


def test_row_axes_that_cannot_be_merged():
    whole = make_logits((6, 8, 10, 12))
    for cut in (np.s_[:, :, ::2, 1:], np.s_[::3, ::-1, 2:7, ::-2], np.s_[1:5, ::2, :, :5]):
        for axis in range(4):
            x = whole[cut]
            assert_plain(x, make_target("labels", x.shape, axis), axis=axis, what=str(cut))


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_transposed_logits_and_transposed_out(dtype, axes):
    x = make_logits((4, 33, 18), dtype).transpose(axes)
    for axis in range(3):
        target = make_target("labels", x.shape, axis)
        assert_plain(x, target, axis=axis, what="fresh out")
        out = np.zeros((x.shape[2], x.shape[0], x.shape[1]), dtype).transpose(1, 2, 0)
        assert_plain(x, target, axis=axis, out=out, what="transposed out")


def test_memory_mapped_logits(tmp_path, dtype):
    values = make_logits((50, 70), dtype)
    (tmp_path / "logits").write_bytes(values.tobytes())
    x = np.memmap(tmp_path / "logits", dtype, "r", shape=(50, 70))
    assert_plain(x, make_target("labels", x.shape))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("axis", [0, -1, 1])
def test_one_row_of_logits(dtype, kind, axis):
    for classes in (1, 2, 10, 300, 5000):
        x = make_logits(classes, dtype)
        target = make_target(kind, x.shape, 0, dtype=dtype)
        for each in (target, int(target)) if kind == "labels" else (target,):
            for reduction in ("none", "mean"):
                assert_plain(x, each, axis=axis, reduction=reduction, what=str(classes))


def test_lists_are_float64():
    loss, grad = assert_plain([[1.0, 2.0, 3.0], [0.5, 0.0, -2.0]], [2, 1])
    assert loss.dtype == grad.dtype == np.float64
    assert_plain([1.0, 2.0, 3.0], 2)
    assert_plain([[0.0, 1.0]], [[0.25, 0.75]])


def test_the_sum_of_the_weights_does_not_depend_on_the_layout():
    """It divides the mean. Targets and weights in runs of 7 rows, of 77, and in one."""
    x = np.zeros((90, 5, 11, 7))
    for seed in range(10):  # the order of a sum shows in every other one
        rng = np.random.default_rng(seed)
        target, repeat = rng.integers(0, 5, (90, 11, 7)), rng.uniform(0.1, 3, (90, 11, 7))
        losses = set()
        for shape in ((90, 11, 7), (90, 11, 8), (90, 12, 7)):
            labels = np.zeros(shape, int)[:, :11, :7]
            labels[...] = target
            losses.add(xe.cross_entropy(x, labels, sample_weight=repeat))
        assert len(losses) == 1
