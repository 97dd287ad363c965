"""The softcap of xentropy.jax: its losses and derivatives are those of c tanh(x / c) by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_derivatives import OURS, with_x64
from helpers.jax_derivatives import THEIRS as OPTAX
from helpers.support import TARGETS, make_logits, make_target

import xentropy.jax as xj
from xentropy import reference

CAP = 2.5

x64 = pytest.fixture(with_x64)


def inputs(kind, shape=(5, 7), dtype="float64"):
    return jnp.array(make_logits(shape, dtype)), jnp.array(make_target(kind, shape, dtype=dtype))


@pytest.mark.parametrize("kind", TARGETS)
def test_losses_and_derivatives_of_all_modes(kind, x64):
    x, t = inputs(kind)

    def ours(x):
        return OURS[kind](x, t, softcap=CAP)

    def theirs(x):
        return OPTAX[kind](CAP * jnp.tanh(x / CAP), t)

    direction = jnp.cos(jnp.arange(35.0)).reshape(5, 7)
    for of in (
        lambda f: f(x),
        lambda f: jax.jvp(f, (x,), (direction,))[1],
        lambda f: jax.grad(lambda x: (f(x) ** 2).sum())(x),
        lambda f: jax.jacfwd(f)(x),
        lambda f: jax.hessian(lambda x: (f(x) ** 2).sum())(x),
        lambda f: jax.jvp(jax.grad(lambda x: f(x).sum()), (x,), (direction,))[1],
        lambda f: jax.vmap(jax.grad(lambda x: f(x).sum()))(jnp.stack([x, 2 * x])),
        lambda f: jax.grad(
            lambda x: jax.lax.scan(lambda c, _: (c + f(c).mean(), 0), x, None, 3)[0].sum()
        )(x),
    ):
        np.testing.assert_allclose(
            jax.jit(lambda of=of: of(ours))(), of(theirs), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize("kind", TARGETS)
def test_the_slope_keeps_its_digits(kind):
    x = jnp.array([[30.0, 1.0, -25.0], [20.0, 20.0, -3.0]], jnp.float32)
    t = jnp.array([2, 1]) if kind == "labels" else jnp.eye(3)[jnp.array([2, 1])]
    grad = jax.grad(lambda x: OURS[kind](x, t, softcap=CAP).sum())(x)
    exact = reference.cross_entropy_with_grad(x, np.array([2, 1]), softcap=CAP, reduction="sum")[1]
    assert (grad != 0).all()
    np.testing.assert_allclose(grad, exact, rtol=1e-5)  # e^(-2 |x| / c): 24 times eps and more


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(kind, dtype):
    x, t = inputs(kind, dtype=dtype)
    loss = OURS[kind](x, t, softcap=CAP)
    grad = jax.grad(lambda x: OURS[kind](x, t, softcap=CAP).sum().astype("float32"))(x)
    wide = np.asarray(x, np.float64)
    exact, slope = reference.cross_entropy_with_grad(
        wide, np.asarray(t), softcap=CAP, reduction="none"
    )
    unit = float(jnp.finfo(dtype).eps)
    kept = x.dtype if kind == "labels" else jnp.result_type(x, t)
    assert (loss.dtype, grad.dtype) == (kept, x.dtype)
    np.testing.assert_allclose(np.asarray(loss, np.float64), exact, rtol=0.51 * unit)
    np.testing.assert_allclose(np.asarray(grad, np.float64), slope, rtol=unit, atol=1e-7)


def test_masked_rows_may_hold_anything():
    x, t = inputs("labels", dtype="float32")
    where = jnp.array([True, False, True, False, True])
    spoiled = jnp.where(where[:, None], x, jnp.array([jnp.nan, jnp.inf] * 3 + [1.0]))
    for each in (x, spoiled):
        grad = jax.grad(
            lambda x: xj.softmax_cross_entropy_with_integer_labels(
                x, t, where=where, softcap=CAP
            ).sum()
        )(each)
        assert (grad[~where] == 0).all()
        assert jnp.isfinite(grad).all()


def test_a_wrong_softcap_is_named():
    x, t = inputs("labels", dtype="float32")
    for wrong, error in (
        (0, ValueError),
        (-1.0, ValueError),
        ("2", TypeError),
        (x[0, 0], TypeError),
    ):
        with pytest.raises(error, match="softcap"):
            xj.softmax_cross_entropy_with_integer_labels(x, t, softcap=wrong)
    with pytest.raises(TypeError, match="softcap must be a number"):
        jax.jit(lambda c: xj.softmax_cross_entropy(x, x, softcap=c))(1.0)
