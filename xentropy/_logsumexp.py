"""logsumexp: the call of the kernels, and weights, signs and complex numbers around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np

from . import _check, _kernels
from ._signed_sums import log_of_sums
from ._softmax import class_axes, reduced

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._types import Axes, Numbers

NEAR_ZERO = 2.0**-10


@overload
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    *,
    a: ArrayLike | None = None,
    n_threads: SupportsIndex | None = None,
) -> Numbers: ...
@overload
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    return_sign: Literal[True],
    a: ArrayLike | None = None,
    n_threads: SupportsIndex | None = None,
) -> tuple[Numbers, Numbers]: ...
@overload
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    *,
    a: ArrayLike | None = None,
    n_threads: SupportsIndex | None = None,
) -> Numbers | tuple[Numbers, Numbers]: ...
def logsumexp(
    x: ArrayLike | None = None,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    *,
    a: ArrayLike | None = None,
    n_threads: SupportsIndex | None = None,
) -> Numbers | tuple[Numbers, Numbers]:
    r"""Log-sum-exp, :math:`\ln \sum_c b_c e^{x_c}`, as `scipy.special.logsumexp`.

    Parameters
    ----------
    x : array_like
        As for `softmax`, or complex64 or complex128.
    axis : int or tuple of ints, optional
        Axes that are summed over, of `x` and `b` broadcast together; None (the default) is all
        of them, () none. A scalar counts as one element along axis 0.
    b : array_like, optional
        Weights, of the types of `x`, broadcast with it: negative and complex ones too. A term of
        weight 0 is not read: its `x` may be nan or inf.
    keepdims : bool, default False
        Keep the reduced axes, with length 1.
    return_sign : bool, default False
        Also return the sign of the sum, and the logarithm of its absolute value.
    a : array_like, optional
        SciPy's name of `x`.
    n_threads : int, optional
        At most so many threads for this call. Sums with negative or complex terms take one.

    Returns
    -------
    ndarray or scalar, or a tuple of two
        The logarithm, in nats, in the dtype to which NumPy promotes `x` and `b`, where 16-bit
        floats become float32 and integers alone float64. -inf for a sum of 0, for nothing but -inf
        and for no elements at all; inf if there is a +inf; nan if there is a nan, if infinite
        terms of both signs meet, and, without `return_sign`, for a negative sum.

        For complex `x` or `b` it is complex64 or complex128, the imaginary part in (-pi, pi].

        With `return_sign`, the logarithm of the absolute value, which is real, and the sign: 1, 0,
        -1 or nan; for complex sums their phase, sum / abs(sum).

    Raises
    ------
    TypeError, ValueError
        As for `softmax`; `b` that does not broadcast with `x`; both `x` and `a`.

    Notes
    -----
    Real sums are computed in float64 if there is a `b`. Without negative weights they are good to
    a few units in the last place of the result or, if it is smaller, of the largest :math:`|x_c|`
    and :math:`|\ln b_c|`. Where weights are negative and terms cancel, the sum itself is besides
    off by two units in the last place of its terms, :math:`\sum_c |b_c| e^{x_c}`, at most. Terms
    of equal `x` cancel exactly, whatever is left, and so the difference of two terms of equal
    weight is as exact as their sum. Complex sums are off by a few units of their terms.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> float(xe.logsumexp([1000.0, 1000.0]).round(4))
    1000.6931
    >>> float(xe.logsumexp(np.log([5.0, 2.0]), b=[1, -1]).round(4))
    1.0986
    """
    keepdims = _check.flag(keepdims, "keepdims")
    if a is not None:
        if x is not None:
            raise TypeError("x and a are the same argument: give one of them")
        x = a
    if b is None and return_sign is False:
        arguments = "logsumexp", x, axis, keepdims, None, -math.inf, n_threads
        values = _kernels.reduce_rows(*arguments)
        if values is None and _is_real(x):
            values = reduced(*arguments)
        if values is not None:
            return values
    return_sign = _check.flag(return_sign, "return_sign")
    with np.errstate(all="ignore"):
        return _any_logsumexp(x, axis, b, keepdims, return_sign, _check.n_threads(n_threads))


def _is_real(x: object) -> bool:
    """Is this an array of real numbers, so that `reduced` takes it or has the right error?"""
    array = _check.as_array(x, "x")
    return array.ndim > 0 and array.dtype.kind != "c"


def _any_logsumexp(
    x: Any, axis: Any, b: Any, keepdims: bool, return_sign: bool, n_threads: int | None
) -> Any:
    """logsumexp of any arguments: converted where needed, or their error raised."""
    name = "x" if b is None else "x and b"
    x, b, dtype = _terms(x, b)
    axes = class_axes(axis, x.shape or (1,), name)  # a scalar has an axis 0, as in NumPy's sums
    axes = axes if x.ndim else ()
    if b is None:
        log = reduced("logsumexp", x, axes, False, None, -math.inf, n_threads)
        total = np.where(np.isnan(log), np.nan, log > -math.inf)
    else:
        log, total = _weighted(x, b, axes, n_threads)

    def kept(array: Any, dtype: Any) -> Any:
        array = array.astype(dtype)
        return np.expand_dims(array, axes) if keepdims else array[()]

    if return_sign:
        return kept(log, np.empty(0, dtype).real.dtype), kept(np.sign(total), dtype)
    if dtype.kind == "c":
        return kept(_complex_log(log, total), dtype)
    return kept(np.where(total < 0, np.nan, log), dtype)


def _terms(x, b):
    """x, b and the dtype of the result. b is None for a plain sum of real numbers.

    Otherwise both are broadcast together, as float64 or complex128.
    """
    x_array, width = _numbers(x, "x")
    if b is None and x_array.dtype.kind != "c":
        return x_array, None, _dtype(width)
    b_array, b_width = _numbers(1.0 if b is None else b, "b")
    wide = [array.astype(np.result_type(array, np.float64)) for array in (x_array, b_array)]
    try:
        return *np.broadcast_arrays(*wide), _dtype(width, b_width)
    except ValueError:
        shapes = f"x of shape {x_array.shape} and b of shape {b_array.shape}"
        raise ValueError(f"{shapes} do not broadcast") from None


def _numbers(value, name):
    """As `_check.number_array`, but complex arrays stay; and what promotes as the argument does."""
    array = _check.as_array(value, name)
    if type(value) in (bool, int, float, complex):
        width = value  # has no width of its own
    else:
        width = array.dtype.newbyteorder("=")
        width = np.float32 if width.name in ("float16", "bfloat16") else width
    if array.dtype.name not in ("complex64", "complex128"):
        array = _check.number_array(array, name)
    return array, width


def _dtype(*widths):
    """The dtype of the result: integers alone are summed in float64."""
    dtype = np.result_type(*widths)
    return dtype if dtype.kind in "fc" else np.dtype(np.float64)


def _weighted(x, b, axes, n_threads):
    """The logarithm of |S|, S = sum_c b_c exp(x_c), and a number of the sign or phase of S."""
    (x, rows), (b, _) = _rows(x, axes), _rows(b, axes)
    if "c" in (x.dtype.kind, b.dtype.kind):
        log, total = log_of_sums(x, b)
    else:
        terms = np.where(b == 0, -np.inf, x + np.log(np.abs(b)))
        log = reduced("logsumexp", terms, 1, False, None, -math.inf, n_threads)
        total = np.where(np.isnan(log), np.nan, log > -math.inf)
        # x + log b is rounded, which a logarithm near 0, all of it tail, would show.
        careful = (b < 0).any(axis=1) | (np.abs(log) < NEAR_ZERO)
        log[careful], total[careful] = log_of_sums(x[careful], b[careful])
    return log.reshape(rows), total.reshape(rows)


def _rows(array, axes):
    """The array as rows of what is summed, and the shape of an array of one value for each."""
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    rows = moved.shape[: array.ndim - len(axes)]
    return moved.reshape(math.prod(rows), math.prod(moved.shape[len(rows) :])), rows


def _complex_log(log, total):
    """log + i angle(total), the angle in (-pi, pi]."""
    angle = np.angle(total)
    result = np.empty(total.shape, np.complex128)
    result.real, result.imag = log, np.where(angle == -np.pi, np.pi, angle)
    return result
