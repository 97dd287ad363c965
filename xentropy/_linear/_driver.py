"""The loop over chunks of rows: logits, loss, gradients. Who multiplies is not its business."""

from collections.abc import Collection
from typing import Protocol

from ._loss import BatchLoss
from ._rows import Array, Rows


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


def run(loss: BatchLoss, products: Products, at_a_time: int, wanted: Collection[str]) -> None:
    """Fill in the losses of all rows, and the wanted gradients: names of arguments of the call.

    Rows that do not count are in no product. Between chunks Python may handle signals.
    """
    for rows in loss.chunks(at_a_time):
        logits = products.logits(rows)
        loss.fill(logits, rows, with_grad=bool(wanted))
        for name in wanted:
            getattr(products, f"grad_{name}")(rows, logits)
    products.finish()
