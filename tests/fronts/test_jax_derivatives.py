"""xentropy.jax in forward mode and in probabilities, against closed forms in long double."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_derivatives import (
    ALONG,
    LABELS,
    OURS,
    PROBABILITIES,
    Case,
    float64_where_asked_for,
)
from helpers.support import TARGETS, assert_bits, assert_within, eps

float64_for_float64 = pytest.fixture(float64_where_asked_for, autouse=True)


# --- forward mode ---


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    ("wrap", "shape", "axis"),
    [(jax.jit, (3, 5, 2), 1), (lambda f: f, (7, 13), -1)],
    ids=["jit", "eager"],
)
def test_jvp_and_linearize(kind, dtype, wrap, shape, axis):
    case = Case(kind, dtype, shape, axis)
    losses, along = wrap(partial(jax.jvp, case.losses))((case.logits,), (case.direction,))
    plain, linear = jax.linearize(wrap(case.losses), case.logits)
    assert_bits(losses, case.losses(case.logits))
    assert_bits(plain, losses)
    assert along.dtype == losses.dtype
    for got in (along, linear(case.direction)):
        assert_within(got, *case.along(case.direction), "jvp")


@pytest.mark.parametrize("kind", TARGETS)
def test_jacobians_of_both_modes(kind, dtype):
    case = Case(kind, dtype)
    rows, classes = case.logits.shape
    exact = np.zeros((rows, rows, classes), np.longdouble)
    exact[range(rows), range(rows)] = case.gradient()
    # Of the gradient: t is subtracted from a product that is good to 4 units.
    bound = 4 * eps(dtype) * np.maximum(1, abs(exact)) + case.rounding(exact)
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert_within(jax.jit(jacobian(case.losses))(case.logits), exact, bound, str(jacobian))


@pytest.mark.parametrize("kind", TARGETS)
def test_tails_keep_their_digits_along_a_direction(kind):
    logits, target = jnp.array([[30.0, 0.0]]), jnp.array([0])
    target = target if kind == "labels" else jax.nn.one_hot(target, 2)
    tail = np.exp(-30) / (1 + np.exp(-30))
    along = partial(jax.jvp, lambda x: OURS[kind](x, target), (logits,))
    np.testing.assert_allclose(along((jnp.array([[0.0, 1.0]]),))[1], [tail], rtol=1e-6)
    if kind == "labels":  # of probabilities, p - 1 is rounded
        np.testing.assert_allclose(along((jnp.array([[1.0, 0.0]]),))[1], [-tail], rtol=1e-6)


def test_half_precision_is_summed_in_float32():
    # 1 / 60000 is subnormal in float16, where it has an error of 2**-9: of each class the same.
    logits = jnp.zeros((1, 60000), jnp.float16)
    direction = jnp.ones((1, 60000), jnp.float16).at[0, 0].set(0)
    along = jax.jvp(lambda x: LABELS(x, jnp.array([0])), (logits,), (direction,))[1]
    assert along == jnp.float16(59999 / 60000)


# --- probabilities as variables ---


def test_derivatives_in_probabilities(dtype):
    case = Case("probabilities", dtype)
    target, direction = case.target, case.direction.astype(case.target.dtype)
    along = jax.jvp(partial(case.losses, case.logits), (target,), (direction,))[1]
    terms = -np.log(case.p) * np.longdouble(direction)
    bound = 16 * eps(dtype) * abs(terms).sum(-1) + case.rounding(terms.sum(-1))
    assert_within(along, terms.sum(-1), bound, "jvp")
    rows, classes = target.shape
    exact = np.zeros((rows, rows, classes), np.longdouble)
    exact[range(rows), range(rows)] = -np.log(case.p)
    for jacobian in (jax.jacfwd, jax.jacrev):
        got = jacobian(partial(case.losses, case.logits))(target)
        assert_within(got, exact, 16 * eps(dtype) * abs(exact) + case.rounding(exact))


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_mixed_derivatives(outer, inner, dtype):
    case = Case("probabilities", dtype, (1, 5))
    case.weights = jnp.ones(1)
    both = jax.jit(outer(inner(case.weighted, (0, 1)), (0, 1)))(case.logits, case.target)
    mixed = case.p.reshape(5, 1) - np.eye(5)
    bound = 32 * eps(dtype) + case.rounding(mixed)
    assert_within(both[0][1].reshape(5, 5), mixed, bound)
    assert_within(both[1][0].reshape(5, 5), mixed.T, bound.T)
    assert not both[1][1].any()  # the loss is linear in the target


def test_an_impossible_class_of_probability_zero():
    """Logit -inf: where its probability and direction are 0, so are the terms."""
    logits, target = jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([[0.75, 0.25, 0.0]])
    directions = jnp.array([[1.0, 2.0, 5.0]]), jnp.array([[0.5, -0.5, 0.0]])
    along = jax.jvp(PROBABILITIES, (logits, target), directions)[1]
    np.testing.assert_allclose(along, [-0.25 * 1 + 0.25 * 2], rtol=1e-6)
    product = jax.jvp(jax.grad(lambda x: PROBABILITIES(x, target)[0]), (logits,), directions[:1])
    np.testing.assert_allclose(product[1], [[-0.25, 0.25, 0.0]], rtol=1e-6)
    along = jax.jvp(lambda x: LABELS(x, jnp.array([0])), (logits,), directions[:1])[1]
    np.testing.assert_allclose(along, [0.5], rtol=1e-6)


# --- rows that do not count ---


@pytest.mark.parametrize("mode", ALONG)
@pytest.mark.parametrize("kind", TARGETS)
def test_masked_rows_may_hold_anything(mode, kind):
    case = Case(kind)
    mask = jnp.arange(7) % 3 != 1
    bad = jnp.where(mask[:, None], 0, jnp.nan)
    along = jax.jit(partial(ALONG[mode], lambda x: OURS[kind](x, case.target, where=mask)))
    clean = along(case.logits, case.direction)
    assert_bits(along(case.logits + bad, case.direction + bad), clean)
    assert not np.asarray(clean)[~np.asarray(mask)].any()


@pytest.mark.parametrize("mode", ALONG)
def test_a_label_out_of_range_has_no_derivatives(mode):
    case = Case("labels")
    target = case.target.at[2].set(13).at[4].set(-14)
    got = ALONG[mode](lambda x: LABELS(x, target), case.logits, case.direction)
    expected = ALONG[mode](lambda x: LABELS(x, case.target), case.logits, case.direction)
    assert_bits(got, expected.at[jnp.array([2, 4])].set(0))
