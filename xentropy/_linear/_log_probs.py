"""Log-probabilities of selected classes of a linear layer's output, without its logits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .. import _check, _kernels
from .._kernels import Options
from .._log_probs import SelectedLogProbs, numbers_of, upstream_of
from . import _driver
from ._arguments import PARAMETERS, Arguments, LinearGradients, checked_layer, gradients
from ._products import NumpyProducts
from ._rows import Array, CountedRows, Rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._types import Number


def linear_selected_log_probs(
    input: ArrayLike,
    linear_weight: ArrayLike,
    index: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    logits_bytes: SupportsIndex | None = None,
    n_threads: SupportsIndex | None = None,
) -> SelectedLogProbs:
    r"""Log-probabilities and entropies of a linear layer's output, never holding all of its logits.

    Those of `selected_log_probs` for the logits

    .. math:: z_{nc} = \sum_h \text{input}_{nh} \, \text{linear\_weight}_{ch}
              + \text{linear\_bias}_c

    which are computed for some rows at a time, into one buffer. Rows without a class that counts
    are in no product and may hold anything. One product; `linear_selected_log_probs_grad` has the
    gradients.

    Parameters
    ----------
    input, linear_weight, linear_bias, logits_bytes, n_threads
        As for `linear_cross_entropy`.
    index : array_like of integers
        Classes, in the shape of `input` without its last axis, or with k in the place of its last
        axis for k classes a row.
    ignore_index, logit_scale, softcap
        As for `selected_log_probs`.

    Returns
    -------
    SelectedLogProbs
        log_prob, entropy and lse, as `selected_log_probs` returns them; the first two are float64
        if `input` or `linear_weight` is, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `linear_cross_entropy` and `selected_log_probs`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> hidden, layer = np.eye(3, 2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> xe.linear_selected_log_probs(hidden, layer, [0, 1, -100]).log_prob.round(4)
    array([-1.0064, -1.0064,  0.    ])
    """
    names = ("ignore_index", "logit_scale", "softcap", "n_threads")
    given = locals()
    options = {name: given[name] for name in names}
    a = checked(input, linear_weight, index, linear_bias, logits_bytes, **options)
    return computed(a, BatchLogProbs(a.target, len(a.linear_weight), a.options), {})


def linear_selected_log_probs_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    index: ArrayLike,
    lse: ArrayLike,
    log_prob: ArrayLike,
    entropy: ArrayLike,
    grad_log_prob: ArrayLike,
    grad_entropy: ArrayLike | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    out: tuple[Array | None, ...] | Mapping[str, Array | None] | None = None,
    wanted: Collection[str] = PARAMETERS,
    logits_bytes: SupportsIndex | None = None,
    n_threads: SupportsIndex | None = None,
) -> LinearGradients:
    r"""Gradients of `linear_selected_log_probs` in the layer's input and parameters.

    The upstream gradients may depend on the log-probabilities, so these have been returned before:
    the logits are made a second time, some rows at a time, and become their gradient in place.
    Three products; memory as for `linear_cross_entropy_with_grad`.

    Parameters
    ----------
    input, linear_weight, index, linear_bias, ignore_index, logit_scale, softcap
        As in `linear_selected_log_probs`.
    logits_bytes, n_threads
        As in `linear_selected_log_probs`.
    lse, log_prob, entropy : array_like of floats
        What it has returned for them.
    grad_log_prob, grad_entropy : array_like of floats, or a number
        Upstream gradients, as for `selected_log_probs_grad`.
    out, wanted
        As for `linear_cross_entropy_with_grad`.

    Returns
    -------
    named tuple (input, linear_weight, linear_bias)
        As `linear_cross_entropy_with_grad` returns them.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `linear_cross_entropy_with_grad` and `selected_log_probs_grad`.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> hidden, layer = np.eye(3, 2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> log_prob, entropy, lse = xe.linear_selected_log_probs(hidden, layer, [0, 1, -100])
    >>> grads = xe.linear_selected_log_probs_grad(
    ...     hidden, layer, [0, 1, -100], lse, log_prob, entropy, grad_log_prob=-0.5
    ... )
    >>> grads.input.round(4)
    array([[-0.1345,  0.25  ],
           [ 0.25  , -0.1345],
           [ 0.    ,  0.    ]])
    """
    names = ("ignore_index", "logit_scale", "softcap", "n_threads", "out", "wanted")
    given = locals()
    options = {name: given[name] for name in names}
    a = checked(input, linear_weight, index, linear_bias, logits_bytes, **options)
    saved = numbers_of((lse, log_prob, entropy), a.input.shape[:-1], a.target.shape)
    upstream = upstream_of(grad_log_prob, grad_entropy, a.input.shape[:-1], a.target.shape)
    batch = BatchLogProbs(a.target, len(a.linear_weight), a.options, saved, upstream)
    grads = gradients(a)
    computed(a, batch, grads)
    return LinearGradients(**grads)


class BatchLogProbs(CountedRows):
    """The classes of a batch and its rows' numbers, which are filled in chunk by chunk.

    `saved`: lse, log_prob and entropy, and `upstream`, the gradients in log_prob and entropy: of
    a batch whose gradient is wanted.
    """

    def __init__(
        self,
        index: Array,
        classes: int,
        options: Options,
        saved: tuple[Array, Array, Array] | None = None,
        upstream: tuple[Array, Array | None] | None = None,
    ) -> None:
        self._shape = index.shape
        self._row_shape = self._shape[: options.axis]
        rows = math.prod(self._row_shape)
        k = self._shape[options.axis :]
        self._index = index.reshape(rows, *k)
        of_class = index != options.ignore_index
        bad = of_class & ((index < 0) | (index >= classes))
        if bad.any():
            raise _kernels.label_error(index, int(np.argmax(bad)), classes, "index")
        super().__init__(of_class.reshape(rows, -1).any(axis=1))
        terms = {n: getattr(options, n) for n in Options.NAMES if n != "axis"}
        self._options = _kernels.make_options(axis=-1, **terms)
        if saved is None or upstream is None:
            self.log_prob = np.zeros((rows, *k))
            self.lse, self.entropy = np.zeros(rows), np.zeros(rows)
            return
        self.lse, self.entropy = (each.reshape(rows) for each in saved[::2])
        self.log_prob, self._on_log_prob = (
            each.reshape(rows, *k) for each in (saved[1], upstream[0])
        )
        self._on_entropy = None if upstream[1] is None else upstream[1].reshape(rows)

    def fill(self, logits: Array, rows: Rows, *, with_grad: bool) -> None:
        """Enter the numbers of rows with these logits, (n, V), C order.

        With `with_grad`, the gradient overwrites the logits.
        """
        index = self._index[rows]
        if not with_grad:
            found = _kernels.selected_log_probs(logits, index, self._options, checked=True)
            self.log_prob[rows], self.entropy[rows], self.lse[rows] = _check.taken(found)
            return
        saved = self.lse[rows], self.log_prob[rows], self.entropy[rows]
        upstream = (
            self._on_log_prob[rows],
            None if self._on_entropy is None else self._on_entropy[rows],
        )
        _check.taken(
            _kernels.selected_log_probs_grad(
                logits, index, *saved, *upstream, self._options, logits, checked=True
            )
        )

    def result(self, dtype: Any) -> SelectedLogProbs:
        """The numbers as the public call returns them."""
        entropy, lse = (each.reshape(self._row_shape)[()] for each in (self.entropy, self.lse))
        log_prob = self.log_prob.reshape(self._shape)[()]
        return SelectedLogProbs(log_prob.astype(dtype), entropy.astype(dtype), lse)


def computed(
    arguments: Arguments,
    batch: BatchLogProbs,
    grads: dict[str, Array],
    products: type[NumpyProducts] = NumpyProducts,
) -> SelectedLogProbs:
    """The numbers of all rows; the gradients are written."""
    with np.errstate(all="ignore"):  # silent, as the kernels are
        multiplied, at_a_time = _driver.products_of(arguments, batch, grads, products)
        _driver.run(batch, multiplied, at_a_time, tuple(grads))
        return batch.result(arguments.dtype)


def checked(
    input: Any,
    linear_weight: Any,
    index: Any,
    linear_bias: Any,
    logits_bytes: Any,
    out: Any = None,
    wanted: Any = (),
    **options: Any,
) -> Arguments:
    """The arguments of a call, or the error for the first that is wrong; but classes and `out`."""
    layer = checked_layer(input, linear_weight, linear_bias)
    shape = layer[0].shape
    axis = len(shape) - 1
    classes = _check.index(index, (*shape[:-1], len(layer[1])), axis)
    record = _kernels.make_options(axis=axis, reduction="none", **options)
    return Arguments.of(layer, classes, _check.options(record, axis), logits_bytes, out, wanted)
