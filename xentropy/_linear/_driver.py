"""The loop over chunks of rows: logits, loss, gradients. Who multiplies is not its business."""

from collections.abc import Collection, Iterator
from typing import Protocol

from ._arguments import Arguments
from ._products import NumpyProducts
from ._rows import Array, CountedRows, Rows


class Products(Protocol):
    """The matrix products of a linear layer with some rows of its input.

    `grad_logits` is the gradient of the loss in the logits of these rows: what `logits` has
    returned for them, overwritten. All calls for some rows come before the next call of `logits`.
    """

    def logits(self, rows: Rows) -> Array:
        """Their logits, (n, V) in C order, in memory that is used again for the next rows."""

    def grad_input(self, rows: Rows, grad_logits: Array) -> None:
        """Write the gradient of these rows of the input: grad_logits @ linear_weight."""

    def grad_linear_weight(self, rows: Rows, grad_logits: Array) -> None:
        """Add to the gradient of the weight: grad_logits.T @ input."""

    def grad_linear_bias(self, rows: Rows, grad_logits: Array) -> None:
        """Add to the gradient of the bias: the sum of grad_logits over the rows, in float64."""

    def finish(self) -> None:
        """Round the sums into the gradients, once."""


class Batch(Protocol):
    """What is computed from the logits of the rows that count."""

    def chunks(self, at_a_time: int) -> Iterator[Rows]:
        """These rows, so many at a time."""

    def fill(self, logits: Array, rows: Rows, *, with_grad: bool) -> None:
        """Enter the results of some rows; with `with_grad`, the gradient overwrites the logits."""


def products_of(
    arguments: Arguments,
    batch: CountedRows,
    grads: dict[str, Array],
    kind: type[NumpyProducts],
) -> tuple[NumpyProducts, int]:
    """The products of a batch, and the rows of a chunk. Of rows that do not count, the gradient
    in the input is 0 already."""
    a = arguments
    classes_and_features = a.linear_weight.shape
    room = a.dtype, a.logits_bytes
    at_a_time = kind.at_a_time(batch.n_counted, classes_and_features, *room, grads)
    layer = a.input, a.linear_weight, a.linear_bias
    if "input" in grads and batch.n_counted < batch.rows:
        grads["input"][...] = 0
    one_chunk = batch.n_counted <= at_a_time
    return kind(*layer, grads, at_a_time, a.dtype, one_chunk=one_chunk), at_a_time


def run(loss: Batch, products: Products, at_a_time: int, wanted: Collection[str]) -> None:
    """Fill in the results of all rows, and the wanted gradients: names of arguments of the call.

    Rows that do not count are in no product. Between chunks Python may handle signals.
    """
    for rows in loss.chunks(at_a_time):
        logits = products.logits(rows)
        loss.fill(logits, rows, with_grad=bool(wanted))
        for name in wanted:
            getattr(products, f"grad_{name}")(rows, logits)
    products.finish()
