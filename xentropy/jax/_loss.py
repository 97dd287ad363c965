"""The public functions: arguments as optax has them, reduced to what the kernels compute."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from .._check import softcap as check_softcap
from ._primitives import IGNORED, capped, is_kind, losses

DTYPES = ("float16", "bfloat16", "float32", "float64")


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    softcap: float | None = None,
) -> jax.Array:
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
    softcap : float, optional
        c, a constant: the logits become c tanh(logits / c) first, in (-c, c), -inf too. By
        operations of XLA, which write them and multiply the gradient.

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

    Differentiable in the logits, in forward and reverse mode and any number of times. Reverse mode
    saves logits and labels only: it reads the logits again and writes the gradient. Forward mode
    (`jax.jvp`) has the cost of a gradient and a product with it, in float32 for half precision;
    `jax.jacfwd` computes that gradient once for all directions. A product with the Hessian is
    XLA's: one softmax and two sums a row. Rows that do not count have derivatives 0 in all modes.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from xentropy.jax import softmax_cross_entropy_with_integer_labels
    >>> loss = lambda x: softmax_cross_entropy_with_integer_labels(x, jnp.array([0])).mean()
    >>> value, grad = jax.value_and_grad(loss)(jnp.array([[20.0, 0.0]]))
    >>> f"{value:.7e}", [f"{g:.2e}" for g in grad[0]]
    ('2.0611537e-09', ['-2.06e-09', '2.06e-09'])
    """
    softcap = check_softcap(softcap, 1.0)
    rows = _rows(logits, axis, where)
    _are_arrays(logits=logits, labels=labels)
    if rows is None or np.shape(labels) != rows[2] or not is_kind(labels, jnp.integer):
        logits = capped(softcap, logits)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis, where)
    logits, last, _, counted = rows
    return _of_labels(last, softcap, logits, labels, counted)


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Cross entropy of class probabilities, `optax.softmax_cross_entropy`.

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64 (float64 with jax_enable_x64)
        Any shape with the classes along `axis`.
    labels : array
        Class probabilities, shape of the logits; they need not add up to 1.
    axis : int, tuple of ints or None, default -1
        The class axes; None is all of them.
    where, softcap
        As for `softmax_cross_entropy_with_integer_labels`.

    Returns
    -------
    jax.Array
        One loss a row in nats, in the common dtype of logits and labels. Differentiable in
        both.

    Notes
    -----
    A probability of 0 contributes 0 even where the logit is -inf, where optax gives nan.

    Derivatives in the logits are those of `softmax_cross_entropy_with_integer_labels`. In the
    probabilities the loss is linear: their gradient is -log_softmax(logits), and is computed only
    where it is asked for; along a direction it is the loss of the direction, one more call.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from xentropy.jax import softmax_cross_entropy
    >>> loss = lambda x: softmax_cross_entropy(x, jnp.array([[0.9, 0.1]])).mean()
    >>> value, grad = jax.value_and_grad(loss)(jnp.zeros((1, 2)))
    >>> f"{value:.4f}", [f"{g:.1f}" for g in grad[0]]
    ('0.6931', ['-0.4', '0.4'])
    """
    softcap = check_softcap(softcap, 1.0)
    axes = tuple(range(np.ndim(logits))) if axis is None else axis
    rows = _rows(logits, axes, where)
    _are_arrays(logits=logits, labels=labels)
    if rows is None or np.shape(labels) != np.shape(logits) or not hasattr(labels, "dtype"):
        return optax.softmax_cross_entropy(capped(softcap, logits), labels, axis, where)
    logits, last, _, counted = rows
    return _of_probabilities(last, softcap, logits, _one_axis(_array(labels), axes), counted)


def _are_arrays(**arguments: object) -> None:
    """Raise for what optax, too, would stumble over, but without a word of the argument."""
    for name, value in arguments.items():
        if value is None or isinstance(value, str | list | tuple | dict):
            kind = "None" if value is None else type(value).__name__
            raise TypeError(
                f"{name} must be an array, not {kind}; jnp.asarray makes one of numbers"
            )


def _rows(logits, axis, where):
    """(logits with one class axis, that axis, shape of the rows, mask of the rows that count).

    The axis is counted from the end, where `jax.vmap` does not move it. None if the kernels do
    not support the arguments.
    """
    if not is_kind(logits, jnp.floating):
        return None
    logits = _array(logits)
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


def _array(value):
    """As `jnp.asarray`, which copies what is being differentiated outside of `jax.jit`."""
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def _one_axis(array, axis):
    """The array with several class axes merged into a last one, in the order given."""
    if isinstance(axis, int):
        return array
    array = jnp.moveaxis(array, axis, range(-len(axis), 0))
    return array.reshape(*array.shape[: -len(axis)], -1)


def _varying_alike(*arrays):
    """The arrays, in `jax.shard_map` all varying over the axes of the mesh that one varies over.

    JAX casts the operands of its operations so, and adds up gradients in what was replicated, but
    not those of kernels. A choice among one array is an operation that costs nothing.
    """
    scalars = [jnp.zeros_like(x, jnp.int32, ()) for x in arrays]
    if not hasattr(jax, "typeof") or len({*map(jax.typeof, scalars)}) == 1:
        return arrays  # also before 0.6, whose types do not say it
    first = sum(scalars)
    return [jax.lax.select_n(first, x) for x in arrays]


@partial(jax.jit, static_argnums=(0, 1))
def _of_labels(axis, softcap, logits, labels, counted):
    classes = logits.shape[axis]
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which holds the number of classes
    if jnp.issubdtype(labels.dtype, jnp.signedinteger):
        labels = jnp.where(labels < 0, labels + classes, labels)
    valid = (labels >= 0) & (labels < classes)
    chosen = valid if counted is None else valid & counted
    target = jnp.where(chosen, labels.astype(jnp.int32), IGNORED)
    x = capped(softcap, logits)
    rows = jnp.where(valid, losses(axis, *_varying_alike(x, target)), jnp.nan)
    rows = rows if counted is None else jnp.where(counted, rows, 0)
    return rows.astype(logits.dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _of_probabilities(axis, softcap, logits, labels, counted):
    dtype = jnp.result_type(logits, labels)
    if labels.dtype.name not in DTYPES:
        labels = labels.astype(logits.dtype)
    if counted is not None:  # what is masked may hold anything
        mask = jnp.expand_dims(counted, axis)
        logits, labels = jnp.where(mask, logits, 0), jnp.where(mask, labels, 0)
    return losses(axis, *_varying_alike(capped(softcap, logits), labels)).astype(dtype)
