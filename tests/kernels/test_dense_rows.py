"""Long rows whose every class has target mass: the most probable class is found on the way."""

import numpy as np
import pytest
from helpers.support import (
    EXACT,
    assert_bits,
    assert_options,
    assert_plain,
    make_logits,
    make_target,
)

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# A few chunks or a dozen, and a part of one; rows that start at any place of a cache line. The sums
# of the shorter rows are taken in a second pass.
CLASSES = [801, 3001]


def rising(classes, dtype):
    """Rows in which nearly every chunk, or the first alone, has a larger logit than all before."""
    steps = np.array([0, 0.01, 0.3, 4, -0.01, -4, 0.3])
    return make_logits((len(steps), classes), dtype, spread=1) + (
        steps[:, None] * (np.arange(classes) // 100)
    ).astype(dtype)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("kind", ["probabilities", "labels"])
@pytest.mark.parametrize("classes", CLASSES)
def test_the_most_probable_class_moves(classes, kind, smoothed, dtype):
    x = rising(classes, dtype)
    target = make_target(kind, x.shape, dtype=dtype)
    if kind == "labels":
        target[:4] = x[:4].argmax(axis=1) - [0, 1, 15, 16]  # in its cache line, or before it
    options = {"reduction": "none"}
    if smoothed or kind == "labels":
        options |= {"label_smoothing": 0.125, "weight": 0.5 + np.arange(classes) % 5 / 4}
    assert_options(x, target, **options)


# Rows of a few chunks, in which every exp counts, and of more than two parts.
@pytest.mark.parametrize("shape", [(400, 600), (20, 40_000)])
@pytest.mark.parametrize("dtype", EXACT)
def test_one_hot_targets_have_the_bits_of_labels(dtype, shape):
    x = make_logits(shape, dtype, spread=1)
    labels = x.argmax(axis=1)
    at = np.arange(len(x)), labels
    x[at] += np.resize([0, 5, 20, 40, 60], len(x))
    one_hot = np.zeros_like(x)
    one_hot[at] = 1
    loss, grad = xe.cross_entropy_with_grad(x, labels, reduction="none")
    again = xe.cross_entropy_with_grad(x, one_hot, reduction="none")
    assert_bits(again[0], loss, "loss")
    assert_bits(again[1], grad, "gradient")
    assert_bits(xe.cross_entropy(x, one_hot, reduction="none"), loss, "loss alone")


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("classes", CLASSES)
def test_chunks_of_impossible_classes(classes, dtype):
    x = rising(classes, dtype)
    p = make_target("probabilities", x.shape, dtype=dtype)
    for gone in (slice(0, classes // 5), slice(classes // 4, classes // 2)):
        x[:, gone], p[:, gone] = -np.inf, 0
    loss, grad = assert_plain(x, p)
    assert np.isfinite(loss).all()
    assert (grad[:, : classes // 5] == 0).all()
    p[::2, 5] = 0.25  # mass where there is no probability
    loss, _ = assert_plain(x, p)
    assert (loss[::2] == np.inf).all()
    assert np.isfinite(loss[1::2]).all()


@pytest.mark.parametrize("classes", [10, 300, *CLASSES])  # short rows too
def test_small_masses_count(classes):
    """A power of two is a factor of the loss, also where one more would make products 0."""
    x = make_logits((20, classes), "float32", spread=4)
    p = make_target("probabilities", x.shape, dtype="float32")
    small = np.float32(2.0**-100)
    loss = xe.cross_entropy(x, p, reduction="none")
    assert_bits(xe.cross_entropy(x, p * small, reduction="none"), loss * small)
