"""Cross entropy of a linear layer's output, without the logits: definition and parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack, overload

import numpy as np

from . import _driver
from ._arguments import (
    PARAMETERS,
    Arguments,
    LinearGradients,
    checked,
    gradients,
)
from ._loss import BatchLoss
from ._products import NumpyProducts
from ._rows import Array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._types import (
        LinearGradientOptions,
        LinearOptions,
        Loss,
        NoReduction,
        Number,
        Rows,
        ToOneNumber,
    )

__all__ = ["LinearGradients", "linear_cross_entropy", "linear_cross_entropy_with_grad"]


@overload
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[LinearOptions],
) -> float: ...
@overload
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: NoReduction,
    **options: Unpack[LinearOptions],
) -> Rows: ...
@overload
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: str,
    **options: Unpack[LinearOptions],
) -> Loss: ...
def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    base: Number | None = None,
    logits_bytes: SupportsIndex | None = None,
    n_threads: SupportsIndex | None = None,
) -> Loss:
    r"""Softmax cross-entropy of a linear layer, never holding all of its logits.

    The loss of `cross_entropy` for the logits

    .. math:: z_{nc} = \sum_h \text{input}_{nh} \, \text{linear\_weight}_{ch}
              + \text{linear\_bias}_c

    which are computed for some rows at a time, into one buffer. Rows that do not count (label
    `ignore_index`, or sample weight 0) are in no product and may hold anything.

    Parameters
    ----------
    input : array_like of float16, bfloat16, float32 or float64
        Shape (N, H), (H,) for a single row, or any (..., H). Any strides, byte order and
        alignment.
    linear_weight : array_like of these dtypes
        Shape (V, H): one row for each of V classes. Any strides.
    target : array_like
        Class indices: integers of shape (N,), or as `input` without its last axis. Class
        probabilities: floating, (N, V), or (..., V).
    linear_bias : array_like (V,) of these dtypes, optional
        Added to the logits.
    weight : array_like (V,), optional
        Weight of each *class*, as torch has it.
    sample_weight, ignore_index, reduction, normalizer, empty_mean, label_smoothing, z_loss
        As for `cross_entropy`.
    logit_scale, softcap, base, n_threads
        As for `cross_entropy`. The matrix products run on the threads of NumPy's BLAS.
    logits_bytes : int, optional
        Bytes of the buffer for logits, 256 MB if it is not given; at least one row is made.
        A chunk never has more rows than its products need for their speed (1,024, or what has
        2^21 elements in an array of the larger of V and H columns). Of few rows, products are
        slow: for less than some 500 the whole call is.

    Returns
    -------
    float or ndarray
        As for `cross_entropy`; for "none" float64 if `input` or `linear_weight` is, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `cross_entropy`, and for arrays whose shapes do not go together.

    See Also
    --------
    linear_cross_entropy_with_grad : Says what is computed how, in which memory.

    References
    ----------
    Arguments are those of `torch.nn.functional.linear_cross_entropy`. Computing the loss by
    chunks of rows is known from Liger Kernel (arXiv:2410.10989), that nobody has to store the
    logits from Cut Cross-Entropy (arXiv:2411.09009).

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> hidden, layer = np.eye(3, 2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> round(xe.linear_cross_entropy(hidden, layer, [0, 1, -100]), 6)
    1.006409
    """
    arguments = checked(**locals())  # each parameter under its name
    return computed(arguments, loss_of(arguments), {})


@overload
def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: ToOneNumber = "mean",
    **options: Unpack[LinearGradientOptions],
) -> tuple[float, LinearGradients]: ...
@overload
def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: NoReduction,
    **options: Unpack[LinearGradientOptions],
) -> tuple[Rows, LinearGradients]: ...
@overload
def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: str,
    **options: Unpack[LinearGradientOptions],
) -> tuple[Loss, LinearGradients]: ...
def linear_cross_entropy_with_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: str = "mean",
    normalizer: Number | None = None,
    empty_mean: Number = math.nan,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_scale: Number = 1.0,
    softcap: Number | None = None,
    base: Number | None = None,
    grad_output: ArrayLike | None = None,
    out: tuple[Array | None, ...] | Mapping[str, Array | None] | None = None,
    wanted: Collection[str] = PARAMETERS,
    logits_bytes: SupportsIndex | None = None,
    n_threads: SupportsIndex | None = None,
) -> tuple[Loss, LinearGradients]:
    r"""Softmax cross-entropy of a linear layer, and the gradients of its input and parameters.

    All parameters but the three below, the semantics and the errors are those of
    `linear_cross_entropy`. With the gradient G of the loss in the logits, (N, V), as
    `cross_entropy_with_grad` has it:

    .. math:: \frac{\partial \ell}{\partial \text{input}} = G \, \text{linear\_weight}, \quad
              \frac{\partial \ell}{\partial \text{linear\_weight}} = G^T \, \text{input}, \quad
              \frac{\partial \ell}{\partial \text{linear\_bias}} = \sum_n G_n

    Parameters
    ----------
    grad_output : float or array_like, optional
        Upstream gradient: a scalar, or for reduction="none" also one value a row.
    out : tuple or mapping, optional
        Arrays for the gradients: (input, linear_weight, linear_bias), or a mapping from these
        names; None, or missing, for one that is to be allocated. Shape and dtype of the
        argument, or float32 for an argument of 16 bits; any strides. They may overlap neither an
        input nor one another.
    wanted : collection of str
        Names of the gradients to compute, of "input", "linear_weight" and "linear_bias". What is
        not wanted costs no product.

    Returns
    -------
    loss : float or ndarray
        As `linear_cross_entropy` returns it, bit for bit.
    grads : named tuple (input, linear_weight, linear_bias)
        Gradients in the shape and dtype of the arguments, in native byte order, or the arrays of
        `out`; None for one that is not wanted, and for a bias that is not there.

    Notes
    -----
    Computed in three matrix products, as with all logits at once: per chunk of rows the logits,
    over which their gradient is written, and from it both products of the gradient.

    Everything is float32 (float64 if `input` or `linear_weight` is): logits, their gradient and
    sums over rows. A 16-bit gradient is rounded once, at the end; the bias's is summed in
    float64.

    Memory beside the gradients, whatever the number of rows is:

    * the buffer for logits: `logits_bytes`, or less if the batch is small;
    * up to three tiles of the weight, 2^21 elements each (8 MB in float32), and scratch of the
      threads;
    * up to three times a chunk of rows of `input`, where it or its gradient cannot be used in
      place: 16 bits, gaps, rows that do not count between others;
    * up to 48 bytes a row of the batch, for labels, weights and losses;
    * if the gradient of `linear_weight` has 16 bits and there is more than one chunk: its sum,
      V x H float32. A float32 array in `out` is that sum itself.

    The same bits for any `n_threads`, and wherever the gradients go. BLAS adds in an order that
    depends on the shape of a product and on the number of BLAS's own threads. Beside that, bits
    depend on the rows of a chunk, that is, on how many rows count and on `logits_bytes`; but
    not on that if it holds the most rows that a chunk has. A single row, of which BLAS makes
    another kind of product, may differ in the last places from the same row among others.

    Examples
    --------
    >>> import numpy as np, xentropy as xe
    >>> hidden, layer = np.eye(3, 2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> loss, grads = xe.linear_cross_entropy_with_grad(hidden, layer, [0, 1, -100])
    >>> round(loss, 6)
    1.006409
    >>> grads.input.round(4)
    array([[-0.1345,  0.25  ],
           [ 0.25  , -0.1345],
           [ 0.    ,  0.    ]])
    >>> grads.linear_bias is None
    True
    """
    arguments = checked(**locals())  # each parameter under its name
    loss = loss_of(arguments)
    grads = gradients(arguments)
    return computed(arguments, loss, grads), LinearGradients(**grads)


def loss_of(arguments: Arguments) -> BatchLoss:
    """The loss to be filled in; IndexError for a label out of range."""
    a = arguments
    classes = len(a.linear_weight)
    return BatchLoss(
        a.target, classes, a.weight, a.sample_weight, a.grad_output, a.options, a.empty_mean
    )


def computed(
    arguments: Arguments,
    loss: BatchLoss,
    grads: dict[str, Array],
    products: type[NumpyProducts] = NumpyProducts,
) -> Any:
    """The loss; the gradients are written."""
    with np.errstate(all="ignore"):  # silent, as the kernels are
        multiplied, at_a_time = _driver.products_of(arguments, loss, grads, products)
        _driver.run(loss, multiplied, at_a_time, tuple(grads))
        return loss.result(arguments.dtype)
