"""xentropy.jax: Hessians in all modes, against closed forms, finite differences, optax."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_derivatives import (
    HESSIANS,
    LABELS,
    OURS,
    THEIRS,
    Case,
    float64_where_asked_for,
    with_x64,
)
from helpers.support import TARGETS, assert_within, make_logits
from jax.test_util import check_grads

float64_for_float64 = pytest.fixture(float64_where_asked_for, autouse=True)
x64 = pytest.fixture(with_x64)


# --- second derivatives ---


@pytest.mark.parametrize("mode", HESSIANS)
@pytest.mark.parametrize("kind", TARGETS)
def test_product_with_the_hessian(mode, kind, dtype):
    case = Case(kind, dtype, (3, 5, 2), 1)
    product = jax.jit(partial(HESSIANS[mode], case.weighted))(case.logits, case.direction)
    assert product.dtype == case.dtype
    assert_within(product, *case.product(case.direction), mode)


@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("kind", TARGETS)
def test_hessians_by_all_modes(kind, outer, inner):
    case = Case(kind, shape=(2, 4))
    hessian = jax.jit(outer(inner(case.weighted)))(case.logits).reshape(-1, 8)
    for unit, row in zip(np.eye(8), hessian, strict=True):
        exact, bound = case.product(unit.reshape(2, 4))
        # Some modes round twice: the gradient of another row is 0 in all of them.
        assert_within(row.reshape(2, 4), exact, 2 * bound, "row of the Hessian")


@pytest.mark.parametrize("mode", HESSIANS)
def test_hessians_of_confident_rows_keep_their_tails(mode):
    logits, target = jnp.array([[30.0, 0.0]]), jnp.array([0])
    tail = np.exp(-30) / (1 + np.exp(-30)) ** 2
    for direction, sign in (([1.0, 0.0], 1), ([0.0, 1.0], -1)):
        f = partial(lambda x, t: LABELS(x, t).sum(), t=target)
        product = HESSIANS[mode](f, logits, jnp.array([direction]))
        np.testing.assert_allclose(product, [[sign * tail, -sign * tail]], rtol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
def test_second_derivatives_of_a_function_of_the_loss(kind):
    """d2 L**2 = 2 (g g^T + L H): the upstream gradient depends on the logits."""
    case = Case(kind, shape=(1, 6))
    case.weights = jnp.ones(1)
    hessians = [
        jax.jit(outer(inner(lambda x: (case.losses(x) ** 2).sum())))(case.logits).reshape(6, 6)
        for outer in (jax.jacfwd, jax.jacrev)
        for inner in (jax.jacfwd, jax.jacrev)
    ]
    g, loss = case.gradient()[0], float(case.losses(case.logits)[0])
    rows = np.array([case.product(unit[None])[0][0] for unit in np.eye(6)])
    exact = 2 * (np.outer(g, g) + loss * rows)
    for hessian in hessians:
        assert_within(hessian, exact, 1e-6 * np.abs(exact).max())  # 16 eps of what is added


# --- against finite differences and optax ---


@pytest.mark.parametrize("kind", TARGETS)
def test_finite_differences(kind, x64):
    case = Case(kind, np.float64, (3, 4))
    arguments = (case.logits,) if kind == "labels" else (case.logits, case.target)
    # A step of 1e-4 and third derivatives of some units.
    check_grads(case.losses, arguments, order=2, modes=("fwd", "rev"), eps=1e-4, rtol=1e-5)


@pytest.mark.parametrize("where", ["rows", None])
@pytest.mark.parametrize("axis", [-1, 0, (0, 2)])
@pytest.mark.parametrize("kind", TARGETS)
def test_hessians_of_optax(kind, axis, where, x64):
    logits = jnp.asarray(make_logits((2, 3, 2), "float64"))
    axes = axis if isinstance(axis, tuple) else (axis % 3,)
    rows = tuple(n for a, n in enumerate(logits.shape) if a not in axes)
    target = jnp.asarray(np.random.default_rng(3).integers(2, size=rows))
    if kind == "probabilities":
        target = jax.nn.softmax(jnp.asarray(make_logits((2, 3, 2), "float64", seed=1)), axes)
    mask = None if where is None else jnp.arange(int(np.prod(rows))).reshape(rows) % 2 == 0
    ours, theirs = (
        jax.jit(jax.hessian(lambda x, f=f: (f(x, target, axis, mask) ** 3).sum()))(logits)
        for f in (OURS[kind], THEIRS[kind])
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", TARGETS)
def test_third_derivatives(kind, x64):
    case = Case(kind, np.float64, (2, 3))
    ours, theirs = (
        jax.jit(jax.jacrev(jax.hessian(lambda x, f=f: f(x, case.target).sum())))(case.logits)
        for f in (OURS[kind], THEIRS[kind])
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)  # 45 eps


def test_optax_tests_pass():
    """Its own file, with these functions in the place of its own."""
    pytest.importorskip("optax.losses._classification_test", reason="tests not in this optax")
    done = subprocess.run(
        [sys.executable, "-c", OPTAX_TESTS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "OK" in done.stderr.splitlines()[-1]


OPTAX_TESTS = """
import sys
from absl.testing import absltest
from optax.losses import _classification, _classification_test
import xentropy.jax
for name in xentropy.jax.__all__:
    setattr(_classification, name, getattr(xentropy.jax, name))
absltest.main(module=_classification_test, argv=["_", "-k", "SoftmaxCrossEntropy"])
"""
