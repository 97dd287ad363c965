"""The softmax family: check, shape, allocate. No arithmetic on logits is here."""

import math

import numpy as np

from . import _check, _kernels


def value_dtype(float64):
    """The dtype of values that there is one of a row."""
    return np.float64 if float64 else np.float32


def fresh(like):
    """An uninitialised result: shape, dtype and memory order of `like`, native bytes."""
    return np.empty_like(like, dtype=like.dtype.newbyteorder("="), subok=False)


def scalar(array):
    """The array, or if it has no dimension its number."""
    return array if array.ndim else array[()]


def softmax(x, axis=None, *, out=None, n_threads=None):
    r"""Softmax, :math:`p_c = e^{x_c} / \sum_j e^{x_j}`, as `scipy.special.softmax`.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bools become float64.
    axis : int or tuple of ints, optional
        Axes that are normalised together; None (the default) is all of them.
    out : ndarray, optional
        Where the result goes; may be `x` itself.
    n_threads : int, optional
        Threads of this call.

    Returns
    -------
    ndarray
        Shape and dtype of `x` (a NumPy scalar for a scalar). A row that holds nan, +inf or
        nothing but -inf becomes nan.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; `out` of another shape or dtype, or overlapping `x`.
    """
    return _elementwise("softmax", x, axis, out, n_threads)


def log_softmax(x, axis=None, *, out=None, n_threads=None):
    r"""Logarithm of softmax, :math:`x_c - \mathrm{lse}(x)`, as `scipy.special.log_softmax`.

    Exact where the probability is almost 1: ``log_softmax([20, 0])[0]`` is -2.06e-9 in
    float32. Parameters, result and errors are those of `softmax`.
    """
    return _elementwise("log_softmax", x, axis, out, n_threads)


def logsumexp(x, axis=None, *, keepdims=False, n_threads=None):
    r"""Log-sum-exp, :math:`\ln \sum_c e^{x_c}`, as `scipy.special.logsumexp`.

    Parameters
    ----------
    x, axis, n_threads
        As for `softmax`.
    keepdims : bool, default False
        Keep the reduced axes, with length 1.

    Returns
    -------
    ndarray or scalar
        float32, or float64 for float64 and integer `x`, in nats. -inf for nothing but -inf
        and for no elements at all; inf if there is a +inf; nan if there is a nan.
    """
    x, axes = _softmax_input(x, axis, "x")
    return reduced("logsumexp", x, axes, keepdims, 1.0, n_threads, empty=-math.inf)


def entropy(logits, *, axis=-1, base=None, n_threads=None):
    r"""Entropy of softmax(logits), :math:`H(p) = -\sum_c p_c \log_b p_c`, of every row.

    Parameters
    ----------
    logits : array_like
        As `x` of `softmax`.
    axis : int or tuple of ints, default -1
        The class axis.
    base : float > 1, optional
        None gives nats, 2 bits.
    n_threads : int, optional
        Threads of this call.

    Returns
    -------
    ndarray or scalar
        One value a row, float32 (float64 for float64 and integer logits).
    """
    logits, axes = _softmax_input(logits, axis, "logits")
    unit = _check.unit(base)
    return reduced("entropy", logits, axes, False, unit, n_threads, empty=math.nan)


def _softmax_input(x, axis, name):
    """The array, integers as float64, and its class axes as sorted numbers >= 0."""
    x = _check.number_array(x, name)
    if axis is None:
        return x, tuple(range(x.ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    found = set()
    for each in axes:
        number = _check.integer(each, "axis")
        if not -x.ndim <= number < x.ndim:
            raise ValueError(f"axis = {number} is out of range for {name} of shape {x.shape}")
        if number % x.ndim in found:
            raise ValueError(f"axis = {axis} names dimension {number % x.ndim} twice")
        found.add(number % x.ndim)
    return x, tuple(sorted(found))


def _elementwise(what, x, axis, out, n_threads):
    """softmax or log_softmax: a result as large as x."""
    x, axes = _softmax_input(x, axis, "x")
    n_threads = _check.n_threads(n_threads)
    if out is not None:
        _check.out(out, x, "x", {})
    result = fresh(x) if out is None else out
    if x.size:
        float64 = x.dtype.itemsize == 8
        _kernels.normalize(
            what, x, axes, result, None, float64=float64, unit=1.0, n_threads=n_threads
        )
    return scalar(result) if out is None else out


def reduced(what, x, axes, keepdims, unit, n_threads, *, empty=math.nan, float64=False):
    """One value a row, in the arithmetic type; `empty` for rows without elements."""
    n_threads = _check.n_threads(n_threads)
    shape = tuple(n for d, n in enumerate(x.shape) if d not in axes)
    values = np.full(shape, empty, value_dtype(float64 or x.dtype.itemsize == 8))
    if x.size:
        float64 = values.dtype.itemsize == 8
        _kernels.normalize(
            what, x, axes, None, values, float64=float64, unit=unit, n_threads=n_threads
        )
    return np.expand_dims(values, axes) if keepdims else scalar(values)
