"""xentropy.jax against optax, and against the kernels themselves: the same bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_derivatives import float64_where_asked_for
from helpers.jax_losses import OPTAX, OURS, PAIRS, case
from helpers.support import TARGETS, assert_bits, make_logits

import xentropy as xe
from xentropy import jax as xj
from xentropy import reference
from xentropy.jax import _primitives

float64_for_float64 = pytest.fixture(float64_where_asked_for, autouse=True)


@partial(jax.jit, static_argnums=0)
def pulled_back(function, logits, upstream):
    losses, pull = jax.vjp(function, logits)
    return losses, pull(upstream.astype(losses.dtype))[0]


# --- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(("shape", "axis"), [((17, 33), -1), ((5, 21, 4), 1)])
def test_has_the_bits_of_the_kernels(kind, dtype, shape, axis):
    logits, target, upstream = case(kind, shape, dtype, axis)
    losses, grad = pulled_back(lambda x: PAIRS[kind][0](x, target, axis), logits, upstream)
    expected_losses, expected = xe.cross_entropy_with_grad(
        np.asarray(logits),
        np.asarray(target),
        axis=axis,
        reduction="none",
        grad_output=np.asarray(upstream),
    )
    common = jnp.result_type(logits, target) if kind == "probabilities" else logits.dtype
    assert_bits(losses, np.asarray(expected_losses).astype(common), "loss")
    assert_bits(grad, expected, "gradient")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    ("shape", "axis", "where"),
    [
        ((6, 5), -1, None),
        ((9,), 0, None),
        ((2, 7, 3), 1, "rows"),
        ((2, 7, 3), 1, "rows, with an axis of one"),
        ((2, 3, 4), (0, 2), "rows, with an axis of one"),
        ((2, 3, 4), (-1, 0), "rows"),
    ],
)
def test_agrees_with_optax(kind, shape, axis, where):
    axes = axis if isinstance(axis, tuple) else (axis,)
    rows = [n for a, n in enumerate(shape) if a not in {b % len(shape) for b in axes}]
    logits, mask = jnp.asarray(make_logits(shape)), None
    if kind == "labels":
        target = jnp.asarray(np.random.default_rng(1).integers(3, size=rows))
    else:
        target = jax.nn.softmax(jnp.asarray(make_logits(shape, seed=2)), axes)
    if where is not None:
        mask = jnp.arange(int(np.prod(rows))).reshape(rows) % 3 != 1
        mask = mask if where == "rows" else jnp.expand_dims(mask, axis)
    (loss, grad), (theirs, their_grad) = (
        jax.jit(jax.value_and_grad(lambda x, f=f: f(x, target, axis, mask).sum()))(logits)
        for f in PAIRS[kind]
    )
    # optax's own error: logits up to 10 and their differences, in float32, added for 7 rows.
    np.testing.assert_allclose(loss, theirs, rtol=2e-6)
    np.testing.assert_allclose(grad, their_grad, rtol=0, atol=1e-6)
    assert loss.dtype == theirs.dtype


@pytest.mark.parametrize("kind", TARGETS)
def test_confident_rows_keep_their_tails(kind):
    logits = jnp.array([[20.0, 0.0]])
    target = jnp.array([0]) if kind == "labels" else jnp.array([[1.0, 0.0]])
    loss, grad = jax.jit(jax.value_and_grad(lambda x: PAIRS[kind][0](x, target)[0]))(logits)
    tail = 2.0611536e-09  # log1p(exp(-20)); its gradient has the same seven digits
    # Labels: 4 ulp. Probabilities: p - 1 is rounded, but p and the loss are not.
    np.testing.assert_allclose(loss, tail, rtol=5e-7)
    np.testing.assert_allclose(grad[0, 1], tail, rtol=5e-7)
    if kind == "labels":
        np.testing.assert_allclose(grad[0, 0], -tail, rtol=5e-7)
    assert PAIRS[kind][1](logits, target)[0] == 0  # if optax has got better, say so


@pytest.mark.parametrize("label_dtype", ["int8", "uint8", "int32", "uint32"])
def test_negative_labels_count_from_the_end_as_optax_has_it(label_dtype):
    logits = jnp.asarray(make_logits((6, 300)))
    last = [-1, -100, -128] if np.iinfo(label_dtype).min else [128, 254, 255]
    labels = jnp.asarray(np.array([0, 7, 127, *last], label_dtype))
    losses, grad = pulled_back(lambda x: OURS(x, labels), logits, jnp.ones(6))
    np.testing.assert_allclose(losses, OPTAX(logits, labels), rtol=2e-6)  # optax's error
    assert np.argmin(grad, axis=1).tolist() == [int(label) % 300 for label in labels]


def test_a_label_out_of_range_trains_nothing():
    for labels in (jnp.array([4, -5, 2]), jnp.array([4, 2**32 - 1, 2], jnp.uint32)):
        losses, grad = pulled_back(lambda x, t=labels: OURS(x, t), jnp.ones((3, 4)), jnp.ones(3))
        assert np.isnan(losses).tolist() == [True, True, False]
        assert (np.asarray(grad) != 0).any(axis=1).tolist() == [False, False, True]


@pytest.mark.parametrize("kind", TARGETS)
def test_masked_rows_may_hold_anything(kind):
    logits, target, upstream = case(kind)
    mask = jnp.arange(17) % 4 != 2
    spoilt = jnp.where(mask[:, None], logits, jnp.nan)
    ours = PAIRS[kind][0]
    losses, grad = pulled_back(lambda x: ours(x, target, where=mask), spoilt, upstream)
    plain, plain_grad = pulled_back(lambda x: ours(x, target), logits, upstream)
    assert_bits(losses, jnp.where(mask, plain, 0))
    assert_bits(grad, jnp.where(mask[:, None], plain_grad, 0))


def test_probability_zero_of_an_impossible_class_costs_nothing():
    loss = xj.softmax_cross_entropy(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(loss, np.log(2), rtol=2e-7)  # 2 ulp


def test_probabilities_have_a_gradient_too():
    logits, target, upstream = case("probabilities", (4, 5))
    grads = [
        jax.grad(lambda p, f=f: (f(logits, p) * upstream).sum())(target)
        for f in PAIRS["probabilities"]
    ]
    assert_bits(*grads)  # both are log_softmax times the upstream gradient
    exact = reference.cross_entropy_target_grad(
        logits, target, reduction="none", grad_output=upstream
    )
    # jax.nn.log_softmax rounds logits - lse: 4 units of the largest logit, below 16.
    np.testing.assert_allclose(grads[0], exact, rtol=2e-6, atol=4 * 16 * 2.0**-24)


# --- what is not for the kernels is optax's -------------------------------------------------

FLOATS, LABELS = jnp.ones((3, 4)), jnp.arange(3)
MASK = jnp.arange(12).reshape(3, 4) % 4 != 3
LEFT_TO_OPTAX = {
    "mask by element": ("labels", (FLOATS, LABELS, -1, MASK)),
    "mask by element of probabilities": ("probabilities", (FLOATS, FLOATS / 4, -1, MASK)),
    "labels to be broadcast": ("labels", (FLOATS, LABELS[:1])),
    "one row of probabilities": ("probabilities", (FLOATS, FLOATS[0] / 4)),
    "a dtype of eight bits": ("labels", (FLOATS.astype(jnp.float8_e4m3fn), LABELS)),
    "integer logits": ("labels", (FLOATS.astype(int), LABELS)),
    "floating labels": ("labels", (FLOATS, FLOATS[:, 0])),
    "lists": ("labels", ([[1.0, 2.0]], [0])),
    "an axis twice": ("labels", (FLOATS, LABELS, (1, -1))),
    "an axis out of range": ("labels", (FLOATS, LABELS, 2)),
    "no axis": ("labels", (FLOATS, LABELS, None)),
    "labels of another length": ("labels", (FLOATS, jnp.arange(5))),
    "a mask of another length": ("labels", (FLOATS, LABELS, -1, MASK[:2, 0])),
}


@pytest.mark.parametrize("name", LEFT_TO_OPTAX)
def test_what_is_left_to_optax(name):
    kind, arguments = LEFT_TO_OPTAX[name]
    ours, theirs = PAIRS[kind]
    try:
        expected = theirs(*arguments)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            ours(*arguments)
    else:
        assert_bits(ours(*arguments), expected)


def test_integer_probabilities_and_all_axes():
    logits = jnp.asarray(make_logits((2, 3)))
    one_hot = jax.nn.one_hot(jnp.array([2, 0]), 3, dtype=int)
    for axis in (-1, None):
        ours, theirs = (f(logits, one_hot, axis) for f in PAIRS["probabilities"])
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)  # optax's error
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("kind", TARGETS)
def test_no_rows(kind):
    logits = jnp.ones((0, 4))
    target = jnp.zeros(0, int) if kind == "labels" else logits
    losses, grad = pulled_back(lambda x: PAIRS[kind][0](x, target), logits, jnp.ones(0))
    assert losses.shape == (0,)
    assert grad.shape == (0, 4)


def test_other_platforms_get_the_formula():
    logits, target, _ = case("labels")
    step = jax.jit(jax.value_and_grad(lambda x: OURS(x, target).mean()))
    lowered = jax.export.export(step, platforms=["cuda"])(logits).mlir_module()
    assert "xentropy_" not in lowered
    assert "exponential" in lowered
    losses, grad = pulled_back(lambda x: OURS(x, target), logits, jnp.ones(17))
    formula = jax.jit(_primitives._formula, static_argnums=0)(-1, logits, target)
    np.testing.assert_allclose(formula, losses, rtol=2e-6)  # optax's error
    formula = jax.jit(_primitives._gradient_formula, static_argnums=0)
    formula = formula(-1, logits, target, jnp.ones(17))
    np.testing.assert_allclose(formula, grad, rtol=0, atol=1e-6)  # optax's error


# --- transformations ------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0, 0), (2, None), (None, 0)])
@pytest.mark.parametrize("kind", TARGETS)
def test_vmap(kind, axes):
    logits, target, _ = case(kind, (3, 6, 5))
    logits = logits[0] if axes[0] is None else jnp.moveaxis(logits, 0, axes[0])
    target = target[0] if axes[1] is None else target
    ours = PAIRS[kind][0]

    def loss(x, t):
        return ours(x, t).mean()

    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss), axes))(logits, target)
    single = jax.jit(jax.value_and_grad(loss))
    parts = [
        single(
            logits if axes[0] is None else jnp.take(logits, i, axes[0]),
            target if axes[1] is None else target[i],
        )
        for i in range(3)
    ]
    for got, expected in zip(mapped, zip(*parts, strict=True), strict=True):
        assert_bits(got, jnp.stack(expected))


def test_scan_and_checkpoint():
    logits, target, _ = case("labels", (3, 6, 5))

    @jax.jit
    @jax.grad
    def through_scan(x):
        step = jax.checkpoint(lambda total, part: (total + OURS(*part).sum(), None))
        return jax.lax.scan(step, 0.0, (x, target))[0]

    assert_bits(through_scan(logits), jax.grad(lambda x: OURS(x, target).sum())(logits))
