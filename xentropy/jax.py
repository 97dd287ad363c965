r"""Softmax cross-entropy for JAX on the CPU, with optax's names, arguments and results.

The kernels are called through XLA's foreign function interface, on XLA's own memory: nothing is
copied, neither in nor out, for some 15 us a call (`python -m bench.fronts --front jax`). Nothing is
compiled for it, and JAX is needed only here. `jax.pure_callback` would copy every result once more,
cost 100 us a call, and can deadlock on arrays that JAX has yet to copy (jax-ml/jax#24255).

The loss is one call, which reads the logits; the gradient another, which reads them and writes
the gradient, already multiplied by the upstream gradient: 12 bytes an element in float32 for both,
and only the second where only the gradient is used. A gradient computed together with the loss
would have to be read and scaled later: 16 bytes, a rounding more.

On other devices, and for what the kernels do not take (element-wise masks, labels to be broadcast,
other dtypes), the functions are optax's. Reverse mode may be nested; forward mode (`jax.jvp`,
`jax.jacfwd`) raises JAX's TypeError. A batch that is sharded over devices belongs into
`jax.shard_map`: XLA does not know that it could split the call.
"""

from functools import cache, partial

import numpy as np

from . import _api

try:
    import jax
    import jax.numpy as jnp
    import optax
except ModuleNotFoundError as error:
    raise ImportError(
        "xentropy.jax needs JAX and optax: pip install 'xentropy-cpu[jax]'"
    ) from error

from ._xla import register

__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
IGNORED = -1  # the label of a row that costs nothing


def softmax_cross_entropy_with_integer_labels(logits, labels, axis=-1, where=None):
    """Cross entropy of class indices, `optax.softmax_cross_entropy_with_integer_labels`.

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64 (float64 with jax_enable_x64)
        Any shape with the classes along `axis`.
    labels : array of integers
        Class indices, shape of the logits without `axis`; negative ones count from the end.
    axis : int or tuple of ints, default -1
        The class axis; of several axes, labels are flat indices into them.
    where : array of bool, optional
        Rows that count, shape of the labels: others cost 0 and get gradient 0, whatever they
        hold. With a mask of the logits' shape this is optax's function.

    Returns
    -------
    jax.Array
        One loss a row in nats, dtype of the logits.

    Raises
    ------
    TypeError, ValueError
        As optax does, for types and shapes.

    Notes
    -----
    A label out of range has loss nan, as in optax. Its gradient is 0; in optax it is that of
    the log-sum-exp. Formula, exactness and edge cases are those of `xentropy.cross_entropy`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda x: softmax_cross_entropy_with_integer_labels(x, jnp.array([0])).mean()
    >>> value, grad = jax.value_and_grad(loss)(jnp.array([[20.0, 0.0]]))
    >>> f"{value:.7e}", [f"{g:.2e}" for g in grad[0]]
    ('2.0611537e-09', ['-2.06e-09', '2.06e-09'])
    """
    rows = _rows(logits, axis, where)
    if rows is None or np.shape(labels) != rows[2] or not _is(labels, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis, where)
    logits, last, _, counted = rows
    return _of_labels(last, logits, labels, counted)


def softmax_cross_entropy(logits, labels, axis=-1, where=None):
    """Cross entropy of class probabilities, `optax.softmax_cross_entropy`.

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64 (float64 with jax_enable_x64)
        Any shape with the classes along `axis`.
    labels : array
        Class probabilities, shape of the logits; they need not add up to 1.
    axis : int, tuple of ints or None, default -1
        The class axes; None is all of them.
    where : array of bool, optional
        As for `softmax_cross_entropy_with_integer_labels`.

    Returns
    -------
    jax.Array
        One loss a row in nats, in the common dtype of logits and labels. Differentiable in
        both.

    Notes
    -----
    A probability of 0 contributes 0 even where the logit is -inf, where optax gives nan.
    """
    axes = tuple(range(np.ndim(logits))) if axis is None else axis
    rows = _rows(logits, axes, where)
    if rows is None or np.shape(labels) != np.shape(logits) or not hasattr(labels, "dtype"):
        return optax.softmax_cross_entropy(logits, labels, axis, where)
    logits, last, _, counted = rows
    return _of_probabilities(last, logits, _one_axis(jnp.asarray(labels), axes), counted)


def _is(value, kind):
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind)


def _rows(logits, axis, where):
    """What the kernels take: logits with one class axis, that axis counted from the end (where
    `jax.vmap` does not move it), the shape of the rows, which of them count. None: not this."""
    if not _is(logits, jnp.floating):
        return None
    logits = jnp.asarray(logits)
    axes = (axis,) if isinstance(axis, int) else axis
    if logits.dtype.name not in DTYPES or not isinstance(axes, tuple):
        return None
    if not all(isinstance(a, int) and -logits.ndim <= a < logits.ndim for a in axes):
        return None
    numbers = {a % logits.ndim for a in axes}
    if not axes or len(numbers) < len(axes) or any(logits.shape[a] == 0 for a in numbers):
        return None
    shape = tuple(n for a, n in enumerate(logits.shape) if a not in numbers)
    if where is not None:
        where = jnp.asarray(where)
        if where.ndim == logits.ndim and all(where.shape[a] == 1 for a in numbers):
            where = where.squeeze(tuple(numbers))
        if where.ndim != len(shape) or np.broadcast_shapes(where.shape, shape) != shape:
            return None
        where = where.astype(bool)
    last = axis % logits.ndim - logits.ndim if isinstance(axis, int) else -1
    return _one_axis(logits, axis), last, shape, where


def _one_axis(array, axis):
    """Several class axes become the last one, in the order that they are given in."""
    if isinstance(axis, int):
        return array
    array = jnp.moveaxis(array, axis, range(-len(axis), 0))
    return array.reshape(*array.shape[: -len(axis)], -1)


@partial(jax.jit, static_argnums=0)
def _of_labels(axis, logits, labels, counted):
    classes = logits.shape[axis]
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which holds the number of classes
    if jnp.issubdtype(labels.dtype, jnp.signedinteger):
        labels = jnp.where(labels < 0, labels + classes, labels)
    valid = (labels >= 0) & (labels < classes)
    chosen = valid if counted is None else valid & counted
    target = jnp.where(chosen, labels.astype(jnp.int32), IGNORED)
    losses = jnp.where(valid, _losses(axis, logits, target), jnp.nan)
    losses = losses if counted is None else jnp.where(counted, losses, 0)
    return losses.astype(logits.dtype)


@partial(jax.jit, static_argnums=0)
def _of_probabilities(axis, logits, labels, counted):
    dtype = jnp.result_type(logits, labels)
    if labels.dtype.name not in DTYPES:
        labels = labels.astype(logits.dtype)
    if counted is not None:  # what is masked may hold anything
        mask = jnp.expand_dims(counted, axis)
        logits, labels = jnp.where(mask, logits, 0), jnp.where(mask, labels, 0)
    return _losses(axis, logits, labels).astype(dtype)


# --- one primitive and its derivatives ----------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(axis, logits, target):
    """One loss a row, float32 (float64 for float64 logits); target: labels or probabilities."""
    return _on_cpu("xentropy_losses", _formula, axis, logits, target)


def _losses_forward(axis, logits, target):
    return _losses(axis, logits, target), (logits, target)


def _losses_backward(axis, saved, upstream):
    logits, target = saved
    gradient = _gradient(axis, logits, target, upstream)
    if _is(target, jnp.integer):
        return gradient, None
    # Not computed where nobody asks for it, by jit's elimination of dead code.
    of_target = -jnp.expand_dims(upstream, axis) * jax.nn.log_softmax(logits, axis)
    return gradient, of_target.astype(target.dtype)


_losses.defvjp(_losses_forward, _losses_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(axis, logits, target, upstream):
    """The gradient in the logits, times the upstream gradient of its row."""
    return _on_cpu("xentropy_gradient", _gradient_formula, axis, logits, target, upstream)


def _gradient_forward(axis, *operands):
    return _gradient(axis, *operands), operands


def _gradient_backward(axis, operands, upstream):
    return jax.vjp(partial(_gradient_formula, axis), *operands)[1](upstream)


_gradient.defvjp(_gradient_forward, _gradient_backward)


# --- the kernels, and optax in their place --------------------------------------------------


def _on_cpu(name, formula, axis, *operands):
    """The kernel where the computation runs on a CPU, elsewhere the formula."""
    _register()
    formula = partial(formula, axis)
    # The formula says the type of the result, and what of it varies under `jax.shard_map`.
    result = jax.eval_shape(formula, *operands)
    kernel = jax.ffi.ffi_call(name, result, vmap_method="broadcast_all")
    return jax.lax.platform_dependent(
        *operands, cpu=partial(kernel, axis=np.int64(axis)), default=formula
    )


def _formula(axis, logits, target):
    labels = _is(target, jnp.integer)
    optaxs = (
        optax.softmax_cross_entropy_with_integer_labels if labels else (optax.softmax_cross_entropy)
    )
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    return optaxs(logits, target, axis).astype(dtype)


def _gradient_formula(axis, logits, target, upstream):
    return jax.vjp(lambda x: _formula(axis, x, target), logits)[1](upstream)[0]


def _losses_kernel(axis, inputs, results):
    logits, target = inputs
    results[0][...] = _api.cross_entropy(
        logits, target, axis=axis, ignore_index=IGNORED, reduction="none"
    )


def _gradient_kernel(axis, inputs, results):
    logits, target, upstream = inputs
    _api.cross_entropy_with_grad(
        logits,
        target,
        axis=axis,
        ignore_index=IGNORED,
        reduction="none",
        grad_output=upstream,
        out=results[0],
    )


@cache
def _register():
    """Not before the first call: a refusal while JAX starts would leave it without a CPU."""
    register("xentropy_losses", _losses_kernel)
    register("xentropy_gradient", _gradient_kernel)
