"""Derivatives of xentropy.jax: modes of differentiation, closed forms in long double.

With p = softmax(x), t the row's target and S its sum: gradient S p - t, Hessian
S (diag(p) - p p^T); in t, -log p; in both, d2 / dx_i dt_j = p_i - (i == j).
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

from xentropy import jax as xj

from .support import bits16, eps, make_logits, make_target


def float64_where_asked_for(request):
    """JAX makes float32 of float64 unless told not to."""
    wide = "dtype" in request.fixturenames and request.getfixturevalue("dtype") == np.float64
    with jax.enable_x64(wide):
        yield


OURS = {
    "labels": xj.softmax_cross_entropy_with_integer_labels,
    "probabilities": xj.softmax_cross_entropy,
}
LABELS, PROBABILITIES = OURS.values()
THEIRS = {
    "labels": optax.softmax_cross_entropy_with_integer_labels,
    "probabilities": optax.softmax_cross_entropy,
}


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


HESSIANS = {
    "jvp of grad": lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,))[1],
    "grad of jvp": lambda f, x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
    "vjp of grad": lambda f, x, v: jax.vjp(jax.grad(f), x)[1](v)[0],
    "linearized grad": lambda f, x, v: jax.linearize(jax.grad(f), x)[1](v),
    "transposed": lambda f, x, v: jax.linear_transpose(jax.linearize(jax.grad(f), x)[1], x)(v)[0],
}

ALONG = {
    "jvp": lambda f, x, v: jax.jvp(f, (x,), (v,))[1],
    "linearize": lambda f, x, v: jax.linearize(f, x)[1](v),
    **{
        mode: lambda f, x, v, of=of: of(lambda x: f(x).sum(), x, v) for mode, of in HESSIANS.items()
    },
}


def with_x64():
    with jax.enable_x64(True):
        yield
