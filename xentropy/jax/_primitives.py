"""The losses of rows and their gradient as functions of XLA, with their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._kernels import xla_handlers

IGNORED = -1  # the label of a row that does not count


def is_kind(value, kind):
    """Is it an array with a dtype of this kind?"""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def losses(axis, logits, target):
    """One loss a row, float32 (float64 for float64 logits); target: labels or probabilities."""
    return _on_cpu("xentropy_losses", _formula, axis, logits, target)


def _losses_forward(axis, logits, target):
    return losses(axis, logits, target), (logits, target)


def _losses_backward(axis, saved, upstream):
    logits, target = saved
    gradient = _gradient(axis, logits, target, upstream)
    if is_kind(target, jnp.integer):
        return gradient, None
    # reference.cross_entropy_target_grad. Where it is not used, jit eliminates it as dead code.
    of_target = -jnp.expand_dims(upstream, axis) * jax.nn.log_softmax(logits, axis)
    return gradient, of_target.astype(target.dtype)


losses.defvjp(_losses_forward, _losses_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(axis, logits, target, upstream):
    """The gradient in the logits, times the upstream gradient of its row."""
    return _on_cpu("xentropy_gradient", _gradient_formula, axis, logits, target, upstream)


def _gradient_forward(axis, *operands):
    return _gradient(axis, *operands), operands


def _gradient_backward(axis, operands, upstream):
    return jax.vjp(partial(_gradient_formula, axis), *operands)[1](upstream)


_gradient.defvjp(_gradient_forward, _gradient_backward)


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
