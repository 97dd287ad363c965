"""Statistics of the rows of logits: definition, parameters and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

from . import _check, _kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from ._types import Number, Rows


class RowStatistics(NamedTuple):
    """What `row_statistics` returns: one number a row in each field, scalars for a single row.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> s = xe.row_statistics(np.zeros((2, 4)), [0, 3])
    >>> s.rank, s.sum_squares
    (array([0, 3]), array([0.25, 0.25]))
    """

    lse: Rows
    loss: Rows | None
    entropy: Rows
    argmax: NDArray[np.int64]
    max_log_prob: Rows
    rank: NDArray[np.int64] | None
    sum_squares: Rows


def row_statistics(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    *,
    axis: SupportsIndex = 1,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    n_threads: SupportsIndex | None = None,
) -> RowStatistics:
    r"""Loss, entropy, confidence and ranks of all rows of logits, in one read of memory.

    With x the scaled (and capped) logits of a row, p = softmax(x), and m the class of the largest
    logit, the first if there are several:

    .. math:: \mathrm{lse} = \ln \sum_c e^{x_c}, \quad \mathrm{loss} = \mathrm{lse} - x_y, \quad
              \mathrm{entropy} = -\sum_c p_c \ln p_c

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, any number of dimensions.
    target : array_like of integers, optional
        Class indices, shape of the logits without the class axis. None: `loss` and `rank` are None.
    axis : int, default 1
        The class axis; in one dimension 1 means 0.
    ignore_index : int, default -100
        Rows with this label are not read.
    logit_scale : float > 0, default 1.0
        Factor of the logits: the inverse of a temperature.
    softcap : float > 0, optional
        Caps the scaled logits, as in `cross_entropy`.
    n_threads : int, optional
        At most so many threads for this call; without it see `set_num_threads`.

    Returns
    -------
    RowStatistics
        A named tuple of arrays in the shape of the logits without the class axis. Floating ones
        are float32 (float64 for float64 logits), in nats; `argmax` and `rank` are int64.

        lse
            Log-sum-exp.
        loss
            The cross entropy, -log p of the target.
        entropy
            Of p: 0 for a certain row, ln C for one that knows nothing.
        argmax
            The class m.
        max_log_prob
            log p of class m: -expm1 of it is the probability of all others, to the last digits.
        rank
            How many classes have a larger logit than the target, or an equal one and a smaller
            index: ``rank < k`` is top-k accuracy, for every k at once.
        sum_squares
            The sum of all p squared. Brier's score is ``1 - 2 * exp(-loss) + sum_squares``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `cross_entropy`; a target of class probabilities.

    Notes
    -----
    No number is a difference of almost equal ones: `loss`, `entropy` and `max_log_prob` are good
    to a few units in the last place also where a row is almost certain.

    An ignored row has loss 0, argmax and rank -1, and nan elsewhere. A row with +inf, or nothing
    but -inf, has no softmax: its `lse` is that infinity, `argmax` and `rank` are as above, and all
    else is nan. So is `lse` if there is a nan; then `argmax` is the first nan, as of
    `numpy.argmax`, and `rank` the number of classes: no top-k counts such a row as right. -inf at
    the target of any other row is loss inf. With a softcap, `argmax` and `rank` are those of the
    capped logits, rounded to the precision of the computation: what the cap makes equal ties.

    The results have the same bits for any number of threads and any memory layout.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> s = xe.row_statistics(np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]), [0, 2])
    >>> s.loss.round(4), s.entropy.round(4)
    (array([0.6931, 2.0794]), array([1.0397, 0.7356]))
    >>> s.rank < 1, s.sum_squares
    (array([ True, False]), array([0.375  , 0.59375]))
    """
    options = _kernels.make_options(
        axis=axis,
        ignore_index=ignore_index,
        reduction="none",
        logit_scale=logit_scale,
        softcap=softcap,
        n_threads=n_threads,
    )
    found = _kernels.row_statistics(logits, target, options)
    return RowStatistics(*(_checked(logits, target, options) if found is None else found))


def _checked(logits: Any, target: Any, options: _kernels.Options) -> tuple[Any, ...]:
    """The statistics of any arguments: converted where needed, or their error raised."""
    logits = _check.logits(logits)
    axis = _check.class_axis(options.axis, logits)
    if target is not None:
        target = _check.labels(target, logits.shape, axis)
    options = _check.options(options, axis)
    return _check.taken(_kernels.row_statistics(logits, target, options, checked=True))
