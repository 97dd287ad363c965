"""Rows, classes and arrays of more than 2**31 elements."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.support import TARGETS, assert_bits, bfloat16, make_logits, make_target

import xentropy as xe

on_every_tier = pytest.mark.usefixtures("tier")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")


def far_apart(values, axis):
    """A copy whose first and last element along `axis` are 2**31 elements apart.

    What is between them takes no memory, because nobody touches it.
    """
    strides = [values.itemsize] * 2
    strides[axis] *= 2**31 // (values.shape[axis] - 1) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, strides[axis] * values.shape[axis], flags=flags)
    array = np.ndarray(values.shape, values.dtype, memory, strides=strides)
    array[...] = values
    return array


@linux
@on_every_tier
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((33, 1000), 0), ((33, 10), 0), ((33, 10), 1), ((64, 33), 1)]
)
def test_rows_and_classes_2_31_elements_apart(dtype, shape, axis, kind):
    """Of every kernel, with its gradient as far apart; as if they were adjacent."""
    x = np.array(make_logits(shape, dtype), order="CF"[axis])
    target = make_target(kind, shape)
    far, out = far_apart(x, axis), far_apart(np.empty_like(x), axis)
    far_target = far_apart(target, axis) if target.ndim == 2 else target
    expected = xe.cross_entropy_with_grad(x, target, reduction="none")
    loss, _ = xe.cross_entropy_with_grad(far, far_target, out=out, reduction="none")
    assert_bits(loss, expected[0], "loss")
    assert_bits(out, expected[1], "gradient")
    assert_bits(xe.softmax(far, axis=1, out=out), xe.softmax(x, axis=1), "softmax")
    if target.ndim == 1:
        alike = zip(xe.row_statistics(far, target), xe.row_statistics(x, target), strict=True)
        for found, wanted in alike:
            assert_bits(found, wanted, "statistics")


HUGE = 65_600, 32_769  # and whole chunks of rows beyond 2**32 bytes


def need_memory(n_bytes):
    info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(info["MemAvailable"].split()[0]) << 10
    if available < n_bytes:
        pytest.skip(f"needs {n_bytes >> 30} GB of memory, {available >> 30} are available")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
def test_more_than_2_31_elements(order):
    """The same 1000 rows again and again: each must be answered as if it were alone."""
    rows, classes = HUGE
    need_memory(rows * classes * 2 + (2 << 30))
    part, labels = make_logits((1000, classes), bfloat16), make_target("labels", (1000, classes))
    expected = xe.cross_entropy_with_grad(np.array(part, order=order), labels, reduction="none")
    x, target = np.empty(HUGE, bfloat16, order), np.resize(labels, rows)
    for n in range(0, rows, 1000):
        x[n : n + 1000] = part[: rows - n]
    loss = xe.cross_entropy(x, target, reduction="none")
    assert_bits(loss, np.resize(expected[0], rows))
    total, _ = xe.cross_entropy_with_grad(x, target, out=x, reduction="sum")
    assert total == pytest.approx(loss.sum(dtype=np.float64), rel=1e-6)  # rounded to float32
    for n in range(0, rows, 1000):
        assert_bits(x[n : n + 1000], expected[1][: rows - n], f"rows from {n}")


@pytest.mark.slow
def test_more_than_2_31_rows():
    """Of two classes, in no memory: they are all one row, and only the last label is no 0."""
    row = np.array([[1.0, -1.0]], np.float32)
    half = 2**30 + 3
    x, target = np.broadcast_to(row, (2, half, 2)), np.zeros((2, half), np.int8)
    target[1, -1] = 1
    first, last = (xe.cross_entropy(row, [label]) for label in (0, 1))
    assert xe.cross_entropy(x, target, axis=2, ignore_index=0) == last
    total = xe.cross_entropy(x, target, axis=2, reduction="sum")
    assert total == pytest.approx((2 * half - 1) * first + last, rel=1e-9)  # 2**31 additions
    target[1, -1] = 2
    with pytest.raises(IndexError, match=rf"target\[1, {half - 1}\] = 2 "):
        xe.cross_entropy(x, target, axis=2)
