"""What the bits of a linear cross entropy depend on, and how it is cut into chunks."""

import numpy as np
import pytest
from helpers.linear import NAMES, allowed_errors, make_layer, make_linear_target
from helpers.support import HALVES, TARGETS, assert_bits, assert_within, case

import xentropy as xe
from xentropy._linear import _plan

ROWS, FEATURES, CLASSES = 1500, 8, 4000
# A chunk's most rows, whatever logits_bytes allows.
ENOUGH = _plan.chunk_rows(10**9, FEATURES, CLASSES, 4, 1 << 60)


def assert_same(actual, expected, what=""):
    """Loss and gradients, bit for bit."""
    with case(what):
        assert_bits(actual[0], expected[0], "loss")
        for name, a, b in zip(NAMES, actual[1], expected[1], strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                assert_bits(a, b, name)


def problem(kind="labels", dtype="float32", rows=ROWS):
    x, layer, bias = make_layer(rows, FEATURES, CLASSES, dtype)
    target = make_linear_target(kind, rows, CLASSES)
    sample_weight = np.arange(rows) % 5 / 2
    options = {"linear_bias": bias, "sample_weight": sample_weight, "label_smoothing": 0.1}
    return (x, layer, target), options


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_any_number_of_threads_gives_the_same_bits(stored, kind, reduction):
    arrays, options = problem(kind, stored, 200)
    options |= {"reduction": reduction, "logits_bytes": 64 * CLASSES * 4}
    expected = xe.linear_cross_entropy_with_grad(*arrays, n_threads=1, **options)
    for n in (2, 3, 7):
        answer = xe.linear_cross_entropy_with_grad(*arrays, n_threads=n, **options)
        assert_same(answer, expected, n)


def test_any_logits_bytes_that_hold_a_full_chunk_give_the_same_bits():
    """So does the default, which holds it for this number of classes, and a second call."""
    arrays, options = problem()
    assert ENOUGH < ROWS
    expected = xe.linear_cross_entropy_with_grad(*arrays, **options)
    for logits_bytes in (ENOUGH * CLASSES * 4, ENOUGH * CLASSES * 4 + 1, 1 << 60, 10**30, None):
        answer = xe.linear_cross_entropy_with_grad(*arrays, logits_bytes=logits_bytes, **options)
        assert_same(answer, expected, logits_bytes)


def test_smaller_logits_bytes_change_no_more_than_the_order_of_additions():
    arrays, options = problem(rows=120)
    expected = xe.linear_cross_entropy_with_grad(*arrays, **options)
    loss_off, off = allowed_errors(*arrays, np.float32, **options)
    for rows in (1, 7, 50, 119):
        answer = xe.linear_cross_entropy_with_grad(
            *arrays, logits_bytes=rows * CLASSES * 4, **options
        )
        assert_within(answer[0], expected[0], 2 * loss_off, rows)
        for name, a, b, bound in zip(NAMES, answer[1], expected[1], off, strict=True):
            assert_within(a, b, 2 * bound, (rows, name))


@pytest.mark.parametrize("stored", ["float32", *HALVES])
def test_where_the_results_go_changes_no_bit(stored):
    (x, layer, target), options = problem(dtype=stored, rows=90)
    options["logits_bytes"] = 40 * CLASSES * 4
    expected = xe.linear_cross_entropy_with_grad(x, layer, target, **options)
    outs = tuple(np.full(a.shape, 7, stored) for a in (x, layer, options["linear_bias"]))
    assert_same(
        xe.linear_cross_entropy_with_grad(x, layer, target, out=outs, **options), expected, "out"
    )
    assert xe.linear_cross_entropy(x, layer, target, **options) == expected[0]


# ---- the plan


def test_chunks_fit_and_are_of_equal_size():
    """They fit into logits_bytes from one row on, and none is much smaller than the others."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        rows, features, classes = (int(2 ** rng.uniform(0, most)) for most in (20, 14, 18))
        itemsize, logits_bytes = int(rng.choice([4, 8])), int(2 ** rng.uniform(0, 34))
        each = _plan.chunk_rows(rows, features, classes, itemsize, logits_bytes)
        assert 1 <= each <= rows
        assert each == 1 or each * classes * itemsize <= logits_bytes
        chunks = -(-rows // each)
        last = rows - (chunks - 1) * each
        assert last >= each - chunks * _plan.ROW_BLOCK
        fewer = _plan.chunk_rows(rows, features, classes, itemsize, logits_bytes // 2)
        assert fewer <= each + _plan.ROW_BLOCK


def test_chunks_have_rows_enough_for_the_rate_of_products():
    """Where the buffer holds them: half of what is enough, and all rows if there are fewer."""
    for rows in (1, 100, 513, 1024, 1025, 8192, 100_000):
        for classes in (10, 1000, 50_257, 128_256):
            each = _plan.chunk_rows(rows, 768, classes, 4, 1 << 40)
            assert each >= min(rows, _plan.ENOUGH_ROWS // 2)
    assert _plan.chunk_rows(8192, 2048, 128_256, 4, _plan.LOGITS_BYTES) >= 500
