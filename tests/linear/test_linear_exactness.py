"""How exact linear cross entropy is: scales from 0.01 to 100, confident rows, 16 bits."""

import mpmath
import numpy as np
import pytest
from helpers.finite_differences import STEP
from helpers.linear import NAMES, allowed_errors, make_layer, make_linear_target, rounded
from helpers.support import (
    EXACT,
    HALVES,
    TARGETS,
    assert_ulps,
    assert_within,
    eps,
    oracle,
    plain,
    wide,
)

import xentropy as xe
from xentropy import reference

ROWS, FEATURES, CLASSES = 70, 48, 300
LOGITS_BYTES = 32 * CLASSES * 4  # three chunks


def scaled(scale, dtype):
    """A layer whose logits have a spread of `scale`, all of it from the weight and the bias."""
    return make_layer(ROWS, FEATURES, CLASSES, dtype, spread=scale)


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_every_entry_at_any_scale(dtype, kind, scale):
    """Each entry within what float arithmetic of these terms, in any order, may lose."""
    x, layer, bias = scaled(scale, dtype)
    target = make_linear_target(kind, ROWS, CLASSES, dtype)
    options = {"linear_bias": bias, "reduction": "none"}
    loss, grads = xe.linear_cross_entropy_with_grad(
        x, layer, target, logits_bytes=LOGITS_BYTES, **options
    )
    exact, exact_grads = reference.linear_cross_entropy_with_grad(x, layer, target, **options)
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    loss_off, off = allowed_errors(x, layer, target, arithmetic, **options)
    assert_within(loss, exact, rounded(loss_off, exact, loss.dtype), "loss")
    for name, grad, exact_grad, bound in zip(NAMES, grads, exact_grads, off, strict=True):
        assert_within(grad, exact_grad, rounded(bound, exact_grad, dtype), name)


# ---- confident rows: nothing but the rounding of the logits stands between them and the truth


def confident(dtype, margin):
    """A layer of one-hot inputs, whose logits are the weights: no product rounds anything."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0.0, 1.0, (CLASSES, 16))
    target = rng.integers(0, CLASSES, 16)
    logits[target, np.arange(16)] = margin + np.linspace(0, 5, 16)
    return np.eye(16).astype(dtype), logits.astype(dtype), target


@pytest.mark.parametrize("margin", [10.0, 20.0, 40.0, 80.0])
@pytest.mark.parametrize("stored", EXACT)
def test_tails_of_confident_rows_are_exact(stored, margin):
    """Losses down to 1e-35 and slopes of their size, to units in the last place."""
    x, layer, target = confident(stored, margin)
    loss, grads = xe.linear_cross_entropy_with_grad(x, layer, target, reduction="none")
    exact, exact_grad = oracle(stored).cross_entropy_with_grad(layer.T, target, reduction="none")
    assert 0 < loss.max() < 400 * np.exp(3 - margin)
    assert_ulps(loss, exact, plain(stored))
    assert_ulps(grads.linear_weight, exact_grad.T, plain(stored))
    with mpmath.workdps(60):  # and the oracle is right
        row = [mpmath.mpf(float(v)) for v in layer[:, 0]]
        tail = mpmath.fsum(mpmath.exp(v - row[target[0]]) for v in row) - 1
        by_digits = float(mpmath.log1p(tail))
    assert_within(loss[0], by_digits, plain(stored) * eps(stored) * by_digits)


@pytest.mark.parametrize("stored", EXACT)
def test_losses_are_exact_for_the_logits_as_the_product_rounds_them(stored):
    """Trained layers: the loss of the logits that BLAS returns is exact to the last places."""
    x, layer, _ = make_layer(ROWS, FEATURES, CLASSES, stored)
    target = make_linear_target("labels", ROWS, CLASSES)
    x += 8 * layer[target] / np.linalg.norm(layer[target], axis=1, keepdims=True)
    logits = np.matmul(x, layer.T)  # the product of one chunk, in the same shape
    loss = xe.linear_cross_entropy(x, layer, target, reduction="none")
    exact = oracle(stored).cross_entropy(logits, target, reduction="none")
    assert exact.min() < 1e-6
    assert_ulps(loss, exact, plain(stored))
    total = xe.linear_cross_entropy(x, layer, target, reduction="sum")
    # rows are added in float64, not yet rounded: their relative error, and one rounding a row
    relative = plain(stored) * eps(stored) + ROWS * 2.0**-53
    assert_within(total, exact.sum(), relative * exact.sum())


def test_reduced_losses_do_not_round_rows_to_float32():
    """As of `cross_entropy` of the same logits: both add float64 rows, in different orders."""
    x, layer, _ = make_layer(ROWS, FEATURES, CLASSES)
    target = make_linear_target("labels", ROWS, CLASSES)
    theirs = xe.cross_entropy(np.matmul(x, layer.T), target)
    assert_within(xe.linear_cross_entropy(x, layer, target), theirs, ROWS * 2.0**-53 * theirs)


# ---- 16 bits


@pytest.mark.parametrize("stored", HALVES)
def test_16_bit_gradients_are_rounded_once(stored):
    """Half a unit in the last place, and what float32 arithmetic loses: whatever the chunks are."""
    x, layer, bias = scaled(3.0, stored)
    target = make_linear_target("labels", ROWS, CLASSES)
    wide32 = [a.astype(np.float32) for a in (x, layer, bias)]
    for held in (1, 8, ROWS):
        options = {"logits_bytes": held * CLASSES * 4}
        _, halves = xe.linear_cross_entropy_with_grad(x, layer, target, linear_bias=bias, **options)
        _, singles = xe.linear_cross_entropy_with_grad(
            *wide32[:2], target, linear_bias=wide32[2], **options
        )
        _, off = allowed_errors(x, layer, target, np.float32, linear_bias=bias)
        for name, half, single, bound in zip(NAMES, halves, singles, off, strict=True):
            assert_within(
                half, single.astype(wide(half.dtype)), rounded(2 * bound, single, stored), name
            )


# ---- slopes


@pytest.mark.parametrize("kind", TARGETS)
def test_gradients_are_slopes(kind):
    """Central differences: their error is STEP**2 / 6 times the third derivative, below 10."""
    x, layer, bias = make_layer(4, 3, 5, "float64", spread=1.0)
    target = make_linear_target(kind, 4, 5, "float64")
    parts = [x, layer, bias]
    tolerance = 10 * STEP**2 / 6 + 100 * 2.0**-52 / STEP
    _, grads = xe.linear_cross_entropy_with_grad(
        x, layer, target, linear_bias=bias, label_smoothing=0.1, z_loss=0.01
    )
    for k, part in enumerate(parts):
        for at in np.ndindex(part.shape):
            both = []
            for step in (STEP, -STEP):
                moved = [p.copy() for p in parts]
                moved[k][at] += step
                both.append(
                    xe.linear_cross_entropy(
                        *moved[:2], target, linear_bias=moved[2], label_smoothing=0.1, z_loss=0.01
                    )
                )
            slope = (both[0] - both[1]) / (2 * STEP)
            assert_within(grads[k][at], slope, tolerance, f"{NAMES[k]} {at}")
