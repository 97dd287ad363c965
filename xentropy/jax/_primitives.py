"""The losses of rows and their gradient as functions of XLA, with their derivatives."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_derivatives import SymbolicZero

from .._kernels import xla_handlers
from ._linear import linear

IGNORED = -1  # the label of a row that does not count


def is_kind(value, kind):
    """Is it an array with a dtype of this kind?"""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(axis, logits, target):
    """One loss a row, float32 (float64 for float64 logits); target: labels or probabilities."""
    return _on_cpu("xentropy_losses", _formula, axis, logits, target)


@partial(losses.defjvp, symbolic_zeros=True)
def _losses_jvp(axis, primals, tangents):
    logits, target = primals

    def in_logits(tangent):
        functions = partial(_along, axis), partial(_gradient, axis)
        return linear(*functions, (logits, target), tangent)

    def in_target(tangent):  # in which the loss is linear
        functions = partial(losses, axis), partial(_target_gradient, axis, target.dtype)
        return linear(*functions, (logits,), tangent)

    return losses(axis, logits, target), _total(tangents, in_logits, in_target)


def _along(axis, logits, target, direction):
    """The derivative along a direction: the gradient's product with it, row by row."""
    logits, target = _wide(logits), _wide(target)
    ones = jnp.ones_like(jax.lax.index_in_dim(logits, 0, axis, keepdims=False))
    return (_gradient(axis, logits, target, ones) * direction).sum(axis)


def _target_gradient(axis, dtype, logits, upstream):
    """reference.cross_entropy_target_grad."""
    log_p = jax.nn.log_softmax(_wide(logits), axis)
    return (-jnp.expand_dims(upstream, axis) * log_p).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(axis, logits, target, upstream):
    """The gradient in the logits, times the upstream gradient of its row."""
    return _on_cpu("xentropy_gradient", _gradient_formula, axis, logits, target, upstream)


@partial(_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(axis, primals, tangents):
    logits, target, upstream = primals

    def in_logits(tangent):  # a Hessian is its own transpose
        product = partial(_hessian_product, axis)
        return linear(product, product, primals, tangent)

    def in_target(tangent):  # upstream (p sum(target) - target)
        tangent = _wide(tangent)
        p = jax.nn.softmax(_wide(logits), axis)
        change = p * tangent.sum(axis, keepdims=True) - tangent
        return (jnp.expand_dims(upstream, axis) * change).astype(logits.dtype)

    def in_upstream(tangent):
        functions = partial(_gradient, axis), partial(_along, axis)
        return linear(*functions, (logits, target), tangent)

    return _gradient(axis, *primals), _total(tangents, in_logits, in_target, in_upstream)


def _hessian_product(axis, logits, target, upstream, direction):
    """Of each row, upstream sum(target) (diag(p) - p p^T) direction."""
    x, v = _wide(logits), _wide(direction)
    p = jax.nn.softmax(x, axis)
    # The Hessian of equal numbers is 0. Relative to that of the largest logit, the directions
    # have a mean that keeps its digits where p is almost 1.
    v = v - jnp.take_along_axis(v, jnp.argmax(x, axis, keepdims=True), axis)
    product = p * (v - (p * v).sum(axis, keepdims=True)) * jnp.expand_dims(upstream, axis)
    if is_kind(target, jnp.integer):  # a row that does not count may hold anything
        product = jnp.where(jnp.expand_dims(target, axis) == IGNORED, 0, product)
    else:
        product = product * _wide(target).sum(axis, keepdims=True)
    return product.astype(logits.dtype)


def _total(tangents, *derivatives):
    """The sum of the derivatives, without those whose tangent is known to be 0."""
    pairs = zip(derivatives, tangents, strict=False)  # labels have neither
    return reduce(jnp.add, (of(t) for of, t in pairs if type(t) is not SymbolicZero))


def _wide(array):
    """float32 of a half precision type: products and sums are not rounded to it."""
    return (
        array.astype(jnp.promote_types(array.dtype, jnp.float32))
        if is_kind(array, jnp.floating)
        else array
    )


# --- the kernels, and optax on other devices ------------------------------------------------


def _on_cpu(name, formula, axis, *operands):
    """The kernel if the computation runs on a CPU, else the formula."""
    formula = partial(formula, axis)
    # The formula determines the result's type, and over which axes of a mesh it varies.
    result = jax.eval_shape(formula, *operands)
    kernel = jax.ffi.ffi_call(name, result, vmap_method="broadcast_all")
    return jax.lax.platform_dependent(
        *operands, cpu=partial(kernel, axis=np.int64(axis)), default=formula
    )


def _formula(axis, logits, target):
    loss = optax.softmax_cross_entropy
    if is_kind(target, jnp.integer):
        loss = optax.softmax_cross_entropy_with_integer_labels
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    return loss(logits, target, axis).astype(dtype)


def _gradient_formula(axis, logits, target, upstream):
    return jax.vjp(lambda x: _formula(axis, x, target), logits)[1](upstream)[0]


def _register():
    """The kernels as targets of XLA's foreign function interface; returns their names.

    JAX keeps them until it starts, so this does not start it; an XLA that does not take them raises
    its error then, and names them. Once more is no error.
    """
    handlers = xla_handlers()
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return tuple(handlers)


ffi_targets = _register()
