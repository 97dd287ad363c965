"""The losses of rows and their gradient as functions of XLA, with their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._kernels import xla_handlers
from ._rules import linear, with_derivatives

IGNORED = -1  # the label of a row that does not count


def is_kind(value, kind):
    """Is it an array with a dtype of this kind?"""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind)


def _loss_in_logits(axis, operands, tangent):
    return linear(partial(_along, axis), partial(_gradient, axis), operands, tangent)


def _loss_in_target(axis, operands, tangent):
    """The loss is linear in probabilities: a product 0 * inf with them is 0 here too."""
    logits, target = operands
    transpose = partial(_target_gradient, axis, target.dtype)
    return linear(partial(losses, axis), transpose, (logits,), tangent)


@with_derivatives(_loss_in_logits, _loss_in_target)
def losses(axis, logits, target):
    """One loss a row, float32 (float64 for float64 logits); target: labels or probabilities."""
    return _on_cpu("xentropy_losses", _formula, axis, logits, target)


def _gradient_in_logits(axis, operands, tangent):
    product = partial(_hessian_product, axis)  # symmetric
    return linear(product, product, operands, tangent)


def _gradient_in_target(axis, operands, tangent):
    """upstream (p sum(tangent) - tangent)."""
    logits, _, upstream = operands
    tangent = _wide(tangent)
    change = jax.nn.softmax(_wide(logits), axis) * tangent.sum(axis, keepdims=True) - tangent
    return (jnp.expand_dims(upstream, axis) * change).astype(logits.dtype)


def _gradient_in_upstream(axis, operands, tangent):
    return linear(partial(_gradient, axis), partial(_along, axis), operands[:2], tangent)


@with_derivatives(_gradient_in_logits, _gradient_in_target, _gradient_in_upstream)
def _gradient(axis, logits, target, upstream):
    """The gradient in the logits, times the upstream gradient of its row."""
    return _on_cpu("xentropy_gradient", _gradient_formula, axis, logits, target, upstream)


def _along(axis, logits, target, direction):
    """The derivative along a direction: of each row, the gradient's product with it."""
    logits, target = _wide(logits), _wide(target)
    ones = jnp.ones_like(jax.lax.index_in_dim(logits, 0, axis, keepdims=False))
    return (_gradient(axis, logits, target, ones) * _wide(direction)).sum(axis)


def _target_gradient(axis, dtype, logits, upstream):
    """reference.cross_entropy_target_grad."""
    log_p = jax.nn.log_softmax(_wide(logits), axis)
    return (-jnp.expand_dims(upstream, axis) * log_p).astype(dtype)


def _hessian_product(axis, logits, target, upstream, direction):
    """Of each row, upstream sum(target) (diag(p) - p p^T) direction."""
    x, v = _wide(logits), _wide(direction)
    p = jax.nn.softmax(x, axis)
    # The Hessian takes equal numbers to 0. Without that of the largest logit, directions have a
    # mean that keeps its digits where p is almost 1.
    v = v - jnp.take_along_axis(v, jnp.argmax(x, axis, keepdims=True), axis)
    product = p * (v - (p * v).sum(axis, keepdims=True)) * jnp.expand_dims(upstream, axis)
    if is_kind(target, jnp.integer):  # a row that does not count may hold anything
        product = jnp.where(jnp.expand_dims(target, axis) == IGNORED, 0, product)
    else:
        product = product * _wide(target).sum(axis, keepdims=True)
    return product.astype(logits.dtype)


def _cap_in_logits(softcap, operands, tangent):
    """1 - tanh^2 as 1 / cosh^2, which keeps its digits where the tanh rounds to 1.

    1 for nan, so that a row that does not count, which may hold it, keeps its derivative 0.
    """
    e = jnp.exp(-2 * jnp.abs(operands[0]) / softcap)
    return tangent * jnp.where(jnp.isnan(operands[0]), 1, 4 * e / (1 + e) ** 2)


@with_derivatives(_cap_in_logits)
def _capped(softcap, logits):
    return softcap * jnp.tanh(logits / softcap)


def capped(softcap, logits):
    """The logits under the softcap, half precision as float32; a softcap of None is none."""
    return logits if softcap is None else _capped(softcap, _wide(logits))


def _wide(array):
    """Half precision as float32, so that products and sums are not rounded to it."""
    half = is_kind(array, jnp.floating) and array.dtype.itemsize == 2
    return array.astype(jnp.float32) if half else array


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


def _register() -> tuple[str, ...]:
    """The kernels as targets of XLA's foreign function interface; returns their names.

    JAX keeps them until it starts, so this does not start it; an XLA that does not take them raises
    its error then, and names them. Once more is no error.
    """
    handlers = xla_handlers()
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return tuple(handlers)


ffi_targets: tuple[str, ...] = _register()
