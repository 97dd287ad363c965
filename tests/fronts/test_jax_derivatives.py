"""xentropy.jax in every mode of differentiation, against closed forms in long double.

With p = softmax(x), t the row's target and S its sum: gradient S p - t, Hessian
S (diag(p) - p p^T); in t, -log p; in both, d2 / dx_i dt_j = p_i - (i == j).
"""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from helpers.support import (
    TARGETS,
    assert_bits,
    assert_within,
    bits16,
    eps,
    make_logits,
    make_target,
)
from jax.test_util import check_grads

from xentropy import jax as xj

OURS = {
    "labels": xj.softmax_cross_entropy_with_integer_labels,
    "probabilities": xj.softmax_cross_entropy,
}
LABELS, PROBABILITIES = OURS.values()
THEIRS = {
    "labels": optax.softmax_cross_entropy_with_integer_labels,
    "probabilities": optax.softmax_cross_entropy,
}


@pytest.fixture(autouse=True)
def float64_where_asked_for(request):
    wide = "dtype" in request.fixturenames and request.getfixturevalue("dtype") == np.float64
    with jax.enable_x64(wide):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class Case:
    """Logits, target, a direction and row weights; what the derivatives are, in long double."""

    def __init__(self, kind, dtype="float32", shape=(7, 13), axis=-1):
        self.axis = axis = axis % len(shape)
        self.dtype = np.dtype(dtype)
        logits, target = make_logits(shape, dtype), make_target(kind, shape, axis, dtype=dtype)
        self.logits, self.target = jnp.asarray(logits), jnp.asarray(target)
        self.direction = jnp.asarray(make_logits(shape, dtype, seed=7))
        rows = shape[:axis] + shape[axis + 1 :]
        # Powers of two: a product with them rounds nothing.
        weights = np.random.default_rng(5).choice([-2.0, 0.25, 1.0], size=rows)
        self.weights = jnp.asarray(weights.astype(dtype))
        x = np.asarray(logits, np.float64).astype(np.longdouble)
        p = np.exp(x - x.max(axis, keepdims=True))
        self.p = p / p.sum(axis, keepdims=True)
        one_hot = np.expand_dims(target, axis) == np.arange(shape[axis]).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
        self.t = one_hot.astype(np.longdouble) if kind == "labels" else np.longdouble(target)
        self.total = self.t.sum(axis, keepdims=True)

    def losses(self, logits, target=None):
        ours = OURS["labels" if self.target.dtype.kind == "i" else "probabilities"]
        return ours(logits, self.target if target is None else target, self.axis)

    def weighted(self, logits, target=None):
        return (self.losses(logits, target) * self.weights).sum()

    def gradient(self):
        return self.total * self.p - self.t

    def product(self, direction):
        """Of the Hessian of the weighted sum, and a bound of its rounding errors."""
        v, p = np.longdouble(np.asarray(direction, np.float64)), self.p
        scale = self.total * np.expand_dims(
            np.longdouble(np.asarray(self.weights, float)), self.axis
        )
        exact = scale * p * (v - (p * v).sum(self.axis, keepdims=True))
        # x - max(x) is up to 20 and rounded: exp's relative error is 10 eps and a few more.
        terms = abs(scale) * p * (abs(v) + (p * abs(v)).sum(self.axis, keepdims=True))
        return exact, 32 * eps(self.dtype) * terms + self.rounding(exact)

    def along(self, direction):
        """The derivatives of the losses along a direction, and a bound."""
        terms = self.gradient() * np.longdouble(np.asarray(direction, np.float64))
        exact, classes = terms.sum(self.axis), terms.shape[self.axis]
        bound = (4 + classes) * eps(self.dtype) * abs(terms).sum(self.axis)
        return exact, bound + self.rounding(exact)

    def rounding(self, exact):
        """16-bit results are rounded once more, to half a unit in the last place."""
        if not bits16(self.dtype):
            return np.zeros(exact.shape)
        limits = ml_dtypes.finfo(self.dtype)
        return 0.51 * (float(limits.eps) * abs(exact) + float(limits.smallest_subnormal))


# --- forward mode ---------------------------------------------------------------------------


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


# --- second derivatives ---------------------------------------------------------------------

HESSIANS = {
    "jvp of grad": lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,))[1],
    "grad of jvp": lambda f, x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
    "vjp of grad": lambda f, x, v: jax.vjp(jax.grad(f), x)[1](v)[0],
    "linearized grad": lambda f, x, v: jax.linearize(jax.grad(f), x)[1](v),
    "transposed": lambda f, x, v: jax.linear_transpose(jax.linearize(jax.grad(f), x)[1], x)(v)[0],
}


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


# --- probabilities as variables -------------------------------------------------------------


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


# --- against finite differences and optax ---------------------------------------------------


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


# --- rows that do not count -----------------------------------------------------------------

ALONG = {
    "jvp": lambda f, x, v: jax.jvp(f, (x,), (v,))[1],
    "linearize": lambda f, x, v: jax.linearize(f, x)[1](v),
    **{
        mode: lambda f, x, v, of=of: of(lambda x: f(x).sum(), x, v) for mode, of in HESSIANS.items()
    },
}


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


# --- what the derivatives cost --------------------------------------------------------------


def kernels(function, *arguments):
    """The compiled calls of the kernels: names and first operands, sorted."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="xentropy_' in line]
    return sorted(
        (
            line.split('target="xentropy_')[1].split('"')[0],
            line.split("constraints={")[1].split("{")[0],
        )
        for line in calls
    )


LOSS, GRADIENT = ("losses", "f32[7,13]"), ("gradient", "f32[7,13]")


@pytest.mark.parametrize("kind", TARGETS)
def test_calls_of_the_kernels(kind):
    case = Case(kind)
    x, v = case.logits, case.direction
    count = {
        "loss": (case.losses, [LOSS]),
        "grad": (jax.grad(case.weighted), [GRADIENT]),
        "value_and_grad": (jax.value_and_grad(case.weighted), [GRADIENT, LOSS]),
        "vmapped": (jax.vmap(jax.value_and_grad(lambda x, t, w: OURS[kind](x, t) * w)), None),
        "checkpoint": (jax.value_and_grad(jax.checkpoint(case.weighted)), [GRADIENT, LOSS]),
        "jvp": (lambda x: jax.jvp(case.losses, (x,), (v,)), [GRADIENT, LOSS]),
        "jacfwd": (jax.jacfwd(case.losses), [GRADIENT]),
        "linearize": (lambda x: jax.vmap(jax.linearize(case.losses, x)[1])(v[None]), [GRADIENT]),
        "jvp of grad": (lambda x: jax.jvp(jax.grad(case.weighted), (x,), (v,)), [GRADIENT]),
    }
    assert kernels(jax.hessian(case.weighted), x) == []
    for name, (function, expected) in count.items():
        arguments = (x, case.target, case.weights) if expected is None else (x,)
        assert kernels(function, *arguments) == (expected or sorted([GRADIENT, LOSS])), name


def test_a_gradient_in_probabilities_alone_calls_no_kernel():
    case = Case("probabilities")
    assert kernels(jax.grad(case.weighted, 1), case.logits, case.target) == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_reverse_mode_saves_the_arguments_alone(kind, wrap):
    """12 bytes an element: no second array of this size is kept, not even a copy."""
    case = Case(kind)
    pull = jax.vjp(wrap(case.losses), case.logits)[1]
    arguments = {x.unsafe_buffer_pointer() for x in (case.logits, case.target)}
    saved = [x for x in jax.tree.leaves(pull) if np.shape(x) == case.logits.shape]
    assert len(saved) == len(arguments) - (kind == "labels")
    assert {x.unsafe_buffer_pointer() for x in saved} <= arguments


@pytest.mark.parametrize("kind", TARGETS)
def test_other_platforms_get_the_formula(kind):
    case = Case(kind)
    for mode in ALONG.values():
        step = jax.jit(lambda x, mode=mode: mode(case.losses, x, case.direction))
        lowered = jax.export.export(step, platforms=["cuda"])(case.logits).mlir_module()
        assert "xentropy_" not in lowered


# --- transformations ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["jvp", "jvp of grad", "grad of jvp"])
@pytest.mark.parametrize("axes", [(0, 0, 0), (2, None, None), (None, 0, None), (None, None, 1)])
@pytest.mark.parametrize("kind", TARGETS)
def test_vmap(mode, axes, kind):
    case = Case(kind, shape=(3, 6, 5))
    arguments = [
        x[0] if axis is None else jnp.moveaxis(x, 0, axis)
        for x, axis in zip((case.logits, case.target, case.direction), axes, strict=True)
    ]

    def along(x, t, v):
        return ALONG[mode](lambda x: OURS[kind](x, t), x, v)

    def part(i):
        return [
            x if axis is None else jnp.take(x, i, axis)
            for x, axis in zip(arguments, axes, strict=True)
        ]

    mapped = jax.jit(jax.vmap(along, axes))(*arguments)
    single = jnp.stack([jax.jit(along)(*part(i)) for i in range(3)])
    # Sums of five terms, in another order.
    np.testing.assert_allclose(mapped, single, rtol=0, atol=8 * 2.0**-23 * np.abs(single).max())


@pytest.mark.parametrize("mode", ["jvp", "jvp of grad", "grad of jvp"])
@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
@pytest.mark.parametrize("kind", TARGETS)
def test_modes_around_vmap(mode, axes, kind):
    """Of logits that are the same for all targets, JAX adds up the cotangents."""
    case = Case(kind, shape=(3, 6, 5))
    x = case.logits if axes[0] == 0 else case.logits[0]
    ours, theirs = (
        jax.jit(partial(ALONG[mode], lambda x, f=f: jax.vmap(f, axes)(x, case.target)))(x, 0.5 * x)
        for f in (OURS[kind], THEIRS[kind])
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # optax's error


@pytest.mark.parametrize("mode", HESSIANS)
@pytest.mark.parametrize("kind", TARGETS)
def test_scan_and_checkpoint(mode, kind):
    case = Case(kind, shape=(3, 6, 5))

    def total(x):
        step = jax.checkpoint(lambda sum_, part: (sum_ + OURS[kind](*part).sum(), None))
        return jax.lax.scan(step, 0.0, (x, case.target))[0]

    scanned, plain = (
        jax.jit(partial(HESSIANS[mode], f))(case.logits, case.direction)
        for f in (total, lambda x: OURS[kind](x, case.target).sum())
    )
    np.testing.assert_allclose(scanned, plain, rtol=0, atol=1e-6)  # as test_vmap


@pytest.mark.parametrize("kind", TARGETS)
def test_the_transpose_of_the_transpose(kind):
    case = Case(kind)
    along = jax.linearize(case.losses, case.logits)[1]
    back = jax.linear_transpose(along, case.logits)
    forth = jax.linear_transpose(lambda u: back(u)[0], case.weights)
    assert_bits(back(case.weights)[0], jax.grad(case.weighted)(case.logits))
    assert_bits(forth(case.direction)[0], along(case.direction))


@pytest.mark.parametrize("mode", ALONG)
@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_is_promoted_implicitly(mode, kind):
    case = Case(kind, "bfloat16")
    along = jax.jit(partial(ALONG[mode], case.losses))
    case.target = case.target.astype(jnp.int32 if kind == "labels" else jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        along(case.logits, case.direction)


def test_label_tangents_and_no_jit():
    case = Case("labels")
    none = np.zeros(case.target.shape, jax.dtypes.float0)
    expected = jax.jvp(case.losses, (case.logits,), (case.direction,))[1]
    operands = (case.logits, case.target), (case.direction, none)
    assert_bits(jax.jvp(case.losses, *operands)[1], expected)
    with jax.disable_jit():  # sums in another order
        np.testing.assert_allclose(jax.jvp(case.losses, *operands)[1], expected, rtol=1e-6)


def test_sharded_and_replicated_operands():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, optax, xentropy.jax
from jax.sharding import Mesh, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("batch",))
split, whole = PartitionSpec("batch"), PartitionSpec()
x, labels = np.random.default_rng(0).normal(size=(8, 5)).astype("float32"), np.arange(8) % 5
for name, target in (
    ("softmax_cross_entropy_with_integer_labels", labels),
    ("softmax_cross_entropy", np.eye(5, dtype="float32")[labels]),
):
    def modes(f, t):
        def grad(x):
            return jax.grad(lambda x: f(x, t).sum())(x)
        return {
            "grad": grad,
            "jvp": lambda x: jax.jvp(lambda x: f(x, t), (x,), (jnp.sin(x),))[1],
            "jvp of grad": lambda x: jax.jvp(grad, (x,), (jnp.sin(x),))[1],
        }
    for mode in modes(optax.softmax_cross_entropy, labels):
        for x_spec, t_spec in ((split, split), (whole, split), (split, whole)):
            if x_spec == whole and mode == "jvp of grad":
                continue  # adds up over the mesh, as the gradient does
            got, expected = (
                jax.jit(jax.shard_map(
                    lambda x, t: modes(getattr(module, name), t)[mode](x), mesh=mesh,
                    in_specs=(x_spec, t_spec),
                    out_specs=x_spec if mode != "jvp" else split,
                ))(x[:4] if x_spec == whole else x, target[:4] if t_spec == whole else target)
                for module in (xentropy.jax, optax)
            )
            np.testing.assert_allclose(got, expected, atol=2e-6, err_msg=f"{name} {mode}")
print("right")
"""
