"""Vocabulary-parallel loss: the mathematics of shards, against the specification."""

import numpy as np
import pytest
from helpers.shards import TERMS, assert_as_reference, in_shards
from helpers.support import TARGETS, assert_bits, make_logits, make_target

from xentropy import reference

SHARDS = {
    "one": ([0], [11]),
    "two": ([0, 5], [5, 6]),
    "three, in another order": ([7, 0, 2], [4, 2, 5]),
    "of one class": (list(range(11)), [1] * 11),
}


def arguments(shape, dtype, kind, terms):
    """Logits, target and options of a call; every fourth label is ignored."""
    options, rng = dict(terms), np.random.default_rng(3)
    axis = 0 if len(shape) == 1 else options.get("axis", 1) % len(shape)
    rows = shape[:axis] + shape[axis + 1 :]
    target = make_target(kind, shape, options.get("axis", 1), dtype=dtype).copy()
    if kind == "labels" and target.ndim:
        target.reshape(-1)[::4] = -100
    if options.pop("weight", False):
        options["weight"] = rng.uniform(0.1, 2, shape[axis])
        options["weight"][3] = 0
    if options.pop("sample_weight", False):
        options["sample_weight"] = rng.uniform(0.1, 2, rows)
        if rows:
            options["sample_weight"].reshape(-1)[1] = 0
    upstream = 0.7
    if options.get("reduction") == "none":
        upstream = rng.uniform(-1, 1, rows)
    return make_logits(shape, dtype), target, upstream, options


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("terms", TERMS)
def test_every_option(terms, kind, dtype):
    logits, target, upstream, options = arguments((9, 11), dtype, kind, TERMS[terms])
    for first, sizes in SHARDS.values():
        found = in_shards(logits, target, first, sizes, upstream, **options)
        assert_as_reference(found, logits, target, upstream, **options)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(("shape", "axis"), [((11,), 1), ((4, 3, 11), -1), ((3, 11, 2, 2), 1)])
@pytest.mark.parametrize("terms", ["none", "all"])
def test_every_shape(shape, axis, kind, terms):
    terms = {**TERMS[terms], "axis": axis}
    logits, target, upstream, options = arguments(shape, np.float32, kind, terms)
    found = in_shards(logits, target, [6, 0], [5, 6], upstream, **options)
    assert_as_reference(found, logits, target, upstream, **options)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("terms", ["plain", "smoothing"])
def test_bits_do_not_depend_on_the_ranks(kind, terms):
    terms = {**TERMS[terms], "reduction": "none"}
    logits, target, upstream, options = arguments((90, 11), np.float64, kind, terms)
    first, sizes = np.array([0, 2, 7, 8]), np.array([2, 5, 1, 3])
    expected = in_shards(logits, target, first, sizes, upstream, **options)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        found = in_shards(logits, target, first[order], sizes[order], upstream, **options)
        for a, b in zip(found, expected, strict=True):
            assert_bits(a, b)


@pytest.mark.parametrize("gap", [20.0, 40.0, 90.0])
@pytest.mark.parametrize("label", [0, 3, 6])
def test_tails_are_exact(label, gap):
    """Of a row that is almost certain, wherever the label, the largest logit and the rest are."""
    logits = np.linspace(-0.5, 0.5, 7)[None]
    for certain in (0, 3, 6):
        x = logits.copy()
        x[0, certain] = gap
        x = x.astype(np.float32)
        for terms in ({}, {"z_loss": 1e-20}):
            found = in_shards(x, np.array([label]), [0, 3], [3, 4], **terms)
            exact = reference.cross_entropy_with_grad(x.astype(np.float64), [label], **terms)
            for a, b in zip(found, exact, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("gap", [20.0, 40.0, 90.0])
def test_tails_are_exact_where_all_classes_have_masses(gap):
    """q = (1, 0, ...) at the most probable class: Q p - q is what all others have together."""
    x, t = np.zeros((1, 7), np.float32), np.zeros((1, 7), np.float32)
    x[0, 4], t[0, 4] = gap, 1
    loss, gradient = in_shards(x, t, [0, 3], [3, 4])
    exact = reference.cross_entropy_with_grad(x.astype(np.float64), t)
    np.testing.assert_allclose(loss, exact[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, exact[1], rtol=2e-6, atol=1e-37)


SPECIAL = {
    "masked shard": [-np.inf, -np.inf, 1, 2, 3],
    "label in a masked shard": [1, 2, -np.inf, -np.inf, -np.inf],
    "nothing": [-np.inf] * 5,
    "+inf": [0, np.inf, 1, 2, 3],
    "nan": [0, 1, 2, np.nan, 3],
    "far": [-1e30, -2e30, 0, 1, 1e30],
    "large": [1e3, 1e3, 0, 1e3, 1e3],
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("terms", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("row", SPECIAL)
def test_infinite_and_missing_numbers(row, terms, kind):
    x = np.array([SPECIAL[row], [1.0, 2, 3, 4, 5]], np.float64)
    target = np.array([4, 0])
    if kind == "probabilities":
        target = np.array([[0, 0, 0, 0.5, 0.5], [0.2] * 5])
    found = in_shards(x, target, [0, 2], [2, 3], reduction="none", **terms)
    with np.errstate(all="ignore"):
        exact = reference.cross_entropy_with_grad(x, target, reduction="none", **terms)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)  # p has |lse| 2**-53


def test_rows_that_are_not_read():
    x = np.full((3, 4), np.nan)
    x[1] = 0
    for kind, target in {"labels": np.array([-100, 3, 1]), "dense": np.full((3, 4), 0.25)}.items():
        weight = np.array([0.0, 1, 0])
        loss, gradient = in_shards(x, target, [0, 1], [1, 3], sample_weight=weight)
        assert loss == pytest.approx(np.log(4)), kind
        assert not gradient[[0, 2]].any(), kind
        assert np.isfinite(gradient).all(), kind


@pytest.mark.parametrize("empty_mean", [np.nan, 0.0])
def test_mean_over_no_row(empty_mean):
    for rows in (0, 2):
        x, target = np.zeros((rows, 4)), np.full(rows, -100)
        loss, gradient = in_shards(x, target, [0, 1], [1, 3], empty_mean=empty_mean)
        assert_bits(np.float64(loss), np.float64(empty_mean))
        assert not gradient.any()
        assert in_shards(x, target, [0, 1], [1, 3], reduction="sum")[0] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_labels_of_every_type(dtype):
    x, target = make_logits((3, 5), "float64"), np.array([4, 0, 3])
    found = in_shards(x, target.astype(dtype), [0, 2], [2, 3], ignore_index=3)
    for a, b in zip(found, in_shards(x, target, [0, 2], [2, 3], ignore_index=3), strict=True):
        assert_bits(a, b)
    with pytest.raises(IndexError, match="out of range for 5 classes"):
        in_shards(x, np.array([4, 5, 0], dtype), [0, 2], [2, 3])


MISTAKES = {
    "starts at class 3, not 2": ([0, 3], [2, 3]),
    "starts at class 1, not 2": ([0, 1], [2, 3]),
    "starts at class 1, not 0": ([1, 3], [2, 2]),
    r"\[0, 2\), \[3, 6\)": ([0, 3], [2, 3]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_shards_that_are_no_range(message):
    with pytest.raises(ValueError, match=message):
        in_shards(np.zeros((1, 6)), np.array([0]), *MISTAKES[message])
