"""Log-probabilities of selected classes, with the entropy: definition, parameters and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from . import _check, _kernels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._types import FloatArray, Number, Rows


class SelectedLogProbs(NamedTuple):
    """What `selected_log_probs` returns.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> found = xe.selected_log_probs(np.zeros((2, 4)), [0, 3])
    >>> np.exp(found.log_prob), np.exp(found.entropy), np.exp(found.lse).round(12)
    (array([0.25, 0.25]), array([4., 4.]), array([4., 4.]))
    """

    log_prob: Rows
    entropy: Rows
    lse: Rows


def selected_log_probs(
    logits: ArrayLike,
    index: ArrayLike,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    n_threads: SupportsIndex | None = None,
) -> SelectedLogProbs:
    r"""Log-probabilities of one or several classes a row, and the entropy, in one read of memory.

    With x the scaled (and capped) logits of a row and p = softmax(x), for a class y of `index`:

    .. math:: \ln p_y = x_y - \mathrm{lse}, \quad \mathrm{lse} = \ln \sum_c e^{x_c}, \quad
              H = -\sum_c p_c \ln p_c

    `selected_log_probs_grad` has the gradient.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, any number of dimensions.
    index : array_like of integers
        Classes: in the shape of the logits without the class axis, or with k in its place for k
        classes a row, which may be given more than once.
    axis : int, default 1
        The class axis; in one dimension 1 means 0.
    ignore_index : int, default -100
        Classes of this number are left out; a row without any other is not read.
    logit_scale : float > 0, default 1.0
        Factor of the logits: the inverse of a temperature.
    softcap : float > 0, optional
        Caps the scaled logits, as in `cross_entropy`.
    n_threads : int, optional
        At most so many threads for this call; without it see `set_num_threads`.

    Returns
    -------
    SelectedLogProbs
        A named tuple of arrays, in nats.

        log_prob
            ln p of the classes, shape of `index`; float32 (float64 for float64 logits).
        entropy
            H, one a row, of the same type.
        lse
            One a row, float64 whatever the logits are: a float32 number near 20 would tell p
            to 1e-6 only.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`.
    IndexError
        A class is out of range.

    Notes
    -----
    log_prob and entropy are good to a few units in the last place also where a row is almost
    certain: ``-np.expm1(log_prob)`` is the probability of all other classes. A class left out has
    log_prob 0, a row that is not read entropy and lse 0. A row with nan or +inf, or with nothing
    but -inf, has no softmax: log_prob and entropy are nan, lse is nan or that infinity.

    The results have the same bits for any number of threads and any memory layout.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    >>> log_prob, entropy, lse = xe.selected_log_probs(logits, [0, 2])
    >>> np.exp(log_prob).round(12), entropy.round(4)
    (array([0.5  , 0.125]), array([1.0397, 0.7356]))
    >>> np.exp(xe.selected_log_probs(logits, [[0, 1], [1, 2]]).log_prob).round(12)
    array([[0.5  , 0.25 ],
           [0.75 , 0.125]])
    """
    options = _options(axis, ignore_index, logit_scale, softcap, n_threads)
    log_prob, entropy, lse = numbers(logits, index, options)
    if np.asarray(logits).dtype.itemsize < 8:
        with np.errstate(all="ignore"):  # silent, as the kernels are
            log_prob, entropy = log_prob.astype(np.float32), entropy.astype(np.float32)
    return SelectedLogProbs(log_prob, entropy, lse)


def selected_log_probs_grad(
    logits: ArrayLike,
    index: ArrayLike,
    lse: ArrayLike,
    log_prob: ArrayLike,
    entropy: ArrayLike,
    grad_log_prob: ArrayLike,
    grad_entropy: ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    n_threads: SupportsIndex | None = None,
    out: NDArray[Any] | None = None,
) -> FloatArray:
    r"""Gradient in the logits of selected log-probabilities and the entropy: one read, one write.

    With g the upstream gradients of the classes y of a row, h that of its entropy H, and
    p = exp(x - lse):

    .. math:: \frac{\partial}{\partial \mathrm{logits}_c} = \mathrm{logit\_scale} \left[
              \sum_j g_j (\delta_{c y_j} - p_c) - h\, p_c (\ln p_c + H) \right]

    and with a softcap times its slope. The upstream gradients may depend on log_prob, as in the
    ratios of PPO: nothing else of the forward pass is needed.

    Parameters
    ----------
    logits, index, axis, ignore_index, logit_scale, softcap, n_threads
        As in `selected_log_probs`.
    lse, log_prob, entropy : array_like of floats
        What it has returned for them.
    grad_log_prob : array_like of floats, or a number
        Upstream gradient of log_prob, one for each.
    grad_entropy : array_like of floats, or a number, optional
        That of the entropy, one a row. None: 0.
    out : ndarray, optional
        Where the gradient goes: shape and dtype of the logits. The logits themselves are
        allowed (in place).

    Returns
    -------
    ndarray
        Shape and dtype of the logits; `out` if given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `cross_entropy_with_grad`, before anything is written.

    Notes
    -----
    float32 gradients are within 8 units in the last place of a row's largest term; 16-bit ones are
    such numbers rounded once. At the classes selected 1 - p is computed from log_prob, and at a
    class that is almost certain and not selected the part of the entropy is minus the sum of all
    others: both are exact where p rounds to 1. The digits of p are those of the lse: relative
    errors of \|lse\| 2**-53, which float64 logits show. A row that is not read has gradient 0, a
    row without a softmax nan.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> logits = np.array([[0.0, np.log(3)]])
    >>> log_prob, entropy, lse = xe.selected_log_probs(logits, [1])
    >>> xe.selected_log_probs_grad(logits, [1], lse, log_prob, entropy, [1.0]).round(12)
    array([[-0.25,  0.25]])
    >>> xe.selected_log_probs_grad(logits, [1], lse, log_prob, entropy, [0.0], [1.0]).round(4)
    array([[ 0.206, -0.206]])
    """
    options = _options(axis, ignore_index, logit_scale, softcap, n_threads)
    saved = lse, log_prob, entropy
    return gradient(logits, index, saved, grad_log_prob, grad_entropy, options, out)


def _options(
    axis: Any, ignore_index: Any, logit_scale: Any, softcap: Any, n_threads: Any
) -> _kernels.Options:
    return _kernels.make_options(
        axis=axis,
        ignore_index=ignore_index,
        reduction="none",
        logit_scale=logit_scale,
        softcap=softcap,
        n_threads=n_threads,
    )


def numbers(logits: Any, index: Any, options: _kernels.Options) -> tuple[Any, Any, Any]:
    """log_prob, entropy and lse of any arguments, in float64; or their error raised."""
    found = _kernels.selected_log_probs(logits, index, options)
    if found is not None:
        return found
    return _check.taken(
        _kernels.selected_log_probs(*_checked(logits, index, options), checked=True)
    )


def gradient(
    logits: Any,
    index: Any,
    saved: tuple[Any, Any, Any],
    grad_log_prob: Any,
    grad_entropy: Any,
    options: _kernels.Options,
    out: Any = None,
) -> FloatArray:
    """The gradient of any arguments: converted where needed, or their error raised.

    `saved`: lse, log_prob and entropy.
    """
    arrays = logits, index, *saved, grad_log_prob, grad_entropy
    found = _kernels.selected_log_probs_grad(*arrays, options, out)
    if found is not None:
        return found
    x, classes, options = _checked(logits, index, options)
    rows = x.shape[: options.axis] + x.shape[options.axis + 1 :]
    taken = numbers_of(saved, rows, classes.shape)
    upstream = upstream_of(grad_log_prob, grad_entropy, rows, classes.shape)
    if out is not None:
        inputs = dict(zip(("index", *SAVED, *UPSTREAM), (classes, *taken, *upstream), strict=True))
        _check.out(out, x, "logits", inputs)
    arrays = x, classes, *taken, *upstream
    return _check.taken(_kernels.selected_log_probs_grad(*arrays, options, out, checked=True))


def _checked(logits: Any, index: Any, options: _kernels.Options) -> tuple[Any, Any, Any]:
    """Logits, index and options of any call: converted where needed, or their error raised."""
    x = _check.logits(logits)
    axis = _check.class_axis(options.axis, x)
    return x, _check.index(index, x.shape, axis), _check.options(options, axis)


SAVED, UPSTREAM = ("lse", "log_prob", "entropy"), ("grad_log_prob", "grad_entropy")


def numbers_of(
    saved: tuple[Any, Any, Any], rows: tuple[int, ...], index: tuple[int, ...]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """lse, log_prob and entropy of rows in this shape, with classes in the shape `index`."""
    return (
        _numbers(saved[0], "lse", rows, "one per row"),
        _numbers(saved[1], "log_prob", index, "as index"),
        _numbers(saved[2], "entropy", rows, "one per row"),
    )


def upstream_of(
    grad_log_prob: Any, grad_entropy: Any, rows: tuple[int, ...], index: tuple[int, ...]
) -> tuple[FloatArray, FloatArray | None]:
    """The upstream gradients of such rows."""
    on_log_prob = _upstream(grad_log_prob, "grad_log_prob", index, "as log_prob")
    if grad_entropy is None:
        return on_log_prob, None
    return on_log_prob, _upstream(grad_entropy, "grad_entropy", rows, "as entropy")


def _numbers(value: Any, name: str, shape: tuple[int, ...], what: str) -> FloatArray:
    array: FloatArray = _check.number_array(value, name)
    _check.same_shape(array, shape, name, what)
    return array


def _upstream(value: Any, name: str, shape: tuple[int, ...], what: str) -> FloatArray:
    """The same, or one number for all."""
    array: FloatArray = _check.number_array(value, name)
    if array.ndim == 0:
        return np.broadcast_to(array, shape)
    _check.same_shape(array, shape, name, what + ", or a scalar")
    return array
