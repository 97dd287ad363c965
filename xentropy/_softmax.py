"""The softmax family: definitions, parameters and errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, SupportsIndex

from . import _check, _kernels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._types import Axes, FloatArray, Number, Rows


def softmax(
    x: ArrayLike,
    axis: Axes = None,
    *,
    out: NDArray[Any] | None = None,
    n_threads: SupportsIndex | None = None,
) -> FloatArray:
    r"""Softmax, :math:`p_c = e^{x_c} / \sum_j e^{x_j}`, as `scipy.special.softmax`.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bools become float64. Subclasses
        count as the arrays that they are; masked arrays are refused.
    axis : int or tuple of ints, optional
        Axes that are normalised together; None (the default) is all of them.
    out : ndarray, optional
        Where the result goes; may be `x` itself.
    n_threads : int, optional
        At most so many threads for this call; without it see `set_num_threads`.

    Returns
    -------
    ndarray
        Shape and dtype of `x` (a NumPy scalar for a scalar). A row that holds nan, +inf or
        nothing but -inf becomes nan.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; `out` of another shape or dtype, or overlapping `x`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> xe.softmax(np.log([[1.0, 2.0, 1.0], [3.0, 3.0, 2.0]]), axis=1).round(4)
    array([[0.25 , 0.5  , 0.25 ],
           [0.375, 0.375, 0.25 ]])
    """
    result = _kernels.normalize("softmax", x, axis, out, n_threads)
    return _elementwise("softmax", x, axis, out, n_threads) if result is None else result


def log_softmax(
    x: ArrayLike,
    axis: Axes = None,
    *,
    out: NDArray[Any] | None = None,
    n_threads: SupportsIndex | None = None,
) -> FloatArray:
    r"""Logarithm of softmax, :math:`x_c - \mathrm{lse}(x)`, as `scipy.special.log_softmax`.

    Exact where the probability is almost 1: ``log_softmax([20, 0])[0]`` is -2.06e-9 in
    float32. Parameters, result and errors are those of `softmax`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> log_p = xe.log_softmax(np.array([20.0, 0.0], np.float32))
    >>> [f"{value:.6g}" for value in log_p]
    ['-2.06115e-09', '-20']
    """
    result = _kernels.normalize("log_softmax", x, axis, out, n_threads)
    return _elementwise("log_softmax", x, axis, out, n_threads) if result is None else result


def entropy(
    logits: ArrayLike,
    *,
    axis: Axes = -1,
    base: Number | None = None,
    n_threads: SupportsIndex | None = None,
) -> Rows:
    r"""Entropy of the softmax of logits, :math:`H(p) = -\sum_c p_c \log_b p_c`, of every row.

    Parameters
    ----------
    logits : array_like
        As `x` of `softmax`.
    axis : int or tuple of ints, default -1
        The class axis.
    base : float > 1, optional
        None gives nats, 2 bits.
    n_threads : int, optional
        At most so many threads for this call; without it see `set_num_threads`.

    Returns
    -------
    ndarray or scalar
        One value a row, float32 (float64 for float64 and integer logits).

    Warns
    -----
    UserWarning
        The logits are probabilities, as said of `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> xe.entropy(np.log([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]]), base=2).round(4)
    array([2.  , 1.75])
    """
    arguments = "entropy", logits, axis, False, base, math.nan, n_threads
    values = _kernels.reduce_rows(*arguments)
    return reduced(*arguments, name="logits") if values is None else values


def class_axes(axis: Any, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The class axes of an array of this shape as sorted numbers >= 0."""
    if axis is None:
        return tuple(range(len(shape)))
    axes = axis if isinstance(axis, tuple) else (axis,)
    found = set()
    for each in axes:
        number = _check.integer(each, "axis")
        if not -len(shape) <= number < len(shape):
            raise ValueError(f"axis = {number} is out of range for {name} of shape {shape}")
        if number % len(shape) in found:
            raise ValueError(f"axis = {axis} names dimension {number % len(shape)} twice")
        found.add(number % len(shape))
    return tuple(sorted(found))


def _elementwise(what: str, x: Any, axis: Any, out: Any, n_threads: Any) -> FloatArray:
    """softmax or log_softmax of any arguments: converted where needed, or their error raised."""
    x = _check.number_array(x, "x")
    axes = class_axes(axis, x.shape, "x")
    n_threads = _check.n_threads(n_threads)
    if out is not None:
        _check.out(out, x, "x", {})
    return _check.taken(_kernels.normalize(what, x, axes, out, n_threads, checked=True))


def reduced(
    what: str,
    x: Any,
    axis: Any,
    keepdims: bool,
    base: Any,
    empty: float,
    n_threads: Any,
    *,
    name: str = "x",
    float64: bool = False,
) -> Rows:
    """A reduction of any arguments: converted where needed, or their error raised."""
    x = _check.number_array(x, name)
    axes = class_axes(axis, x.shape, name)
    base = _check.base(base)
    n_threads = _check.n_threads(n_threads)
    if what == "entropy" and len(axes) == 1 and x.dtype.kind != "c":
        from . import _suspicion

        _suspicion.logits(x, axes[0])
    plain = x, axes, keepdims, base, empty, n_threads
    return _check.taken(_kernels.reduce_rows(what, *plain, checked=True, float64=float64))
