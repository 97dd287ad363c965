"""The products by NumPy's BLAS, in float32 or float64.

What BLAS cannot read where it is (16 bits, other byte orders, strides) is converted: rows of the
input by chunks, classes of the weight by tiles. No array is copied as a whole.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ._plan import chunk_rows, tile_classes
from ._rows import Array, MatrixRows, Rows, blas_writes, flat, index_of, n_rows

Wanted = Collection[str]  # names of arguments whose gradients are


class NumpyProducts:
    """`_driver.Products` of arrays; the gradients are those of the arrays in `gradients`.

    A gradient of another dtype than the products' is summed in theirs and rounded once.
    """

    def __init__(
        self,
        input: Array,
        linear_weight: Array,
        linear_bias: Array | None,
        gradients: Mapping[str, Array],
        at_a_time: int,
        dtype: np.dtype[Any],
        *,
        one_chunk: bool,
    ) -> None:
        classes, features = linear_weight.shape
        self._dtype = dtype
        self._tile = tile_classes(features, classes)
        self._input = MatrixRows(input, dtype, at_a_time)
        self._weight = MatrixRows(linear_weight, dtype, self._tile)
        self._bias = None if linear_bias is None else linear_bias.astype(dtype)
        self._gradients = gradients
        self._logits = self.buffer((at_a_time, classes), dtype)
        self._shape = at_a_time, features
        self._spaces: dict[str, Array] = {}
        self._one_chunk = one_chunk
        self._weight_sum: Array | None = None
        self._bias_sum = np.zeros(classes) if "linear_bias" in gradients else None

    @staticmethod
    def at_a_time(
        rows: int, shape: tuple[int, int], dtype: np.dtype[Any], logits_bytes: int, wanted: Wanted
    ) -> int:
        """Rows of a chunk, of so many that count, for a weight of this shape."""
        classes, features = shape
        return chunk_rows(rows, features, classes, dtype.itemsize, logits_bytes)

    @staticmethod
    def buffer(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Memory for the logits of a chunk."""
        return np.empty(shape, dtype)

    @staticmethod
    def multiply(a: Array, b: Array, out: Array) -> Array:
        """The product of two matrices, written to `out`."""
        return np.matmul(a, b, out=out)

    @staticmethod
    def widened(grad_logits: Array) -> Array:
        """A gradient of logits in the products' dtype; here it always is."""
        return grad_logits

    def logits(self, rows: Rows) -> Array:
        self._x = self._input.take(rows)
        logits = self._logits[: n_rows(rows)]
        for tile, weight in self._weight_tiles():
            self.multiply(self._x, weight.T, logits[:, tile])
        if self._bias is not None:
            logits += self._bias
        return logits

    def grad_input(self, rows: Rows, grad_logits: Array) -> None:
        result = flat(self._gradients["input"])
        index = index_of(result, rows)
        in_place = isinstance(index, slice) and blas_writes(result, self._dtype)
        product = (
            result[index] if in_place else self._space("input", self._shape)[: len(grad_logits)]
        )
        for tile, weight in self._weight_tiles():
            if tile.start == 0:
                self.multiply(grad_logits[:, tile], weight, product)
            else:
                more = self._space("more input", self._shape)[: len(grad_logits)]
                product += self.multiply(grad_logits[:, tile], weight, more)
        if not in_place:
            result[index] = product

    def grad_linear_weight(self, rows: Rows, grad_logits: Array) -> None:
        total = self._weight_sum
        first = total is None
        if total is None:
            total = self._weight_sum = self._sum_of(self._gradients["linear_weight"])
        for tile in self._tiles():
            part, transposed = total[tile], self.widened(grad_logits[:, tile]).T
            if first and blas_writes(part, self._dtype):
                self.multiply(transposed, self._x, part)
                continue
            space = self._space("tile", (self._tile, self._shape[1]))[: len(part)]
            product = self.multiply(transposed, self._x, space)
            if first:
                part[...] = product
            else:
                part += product

    def grad_linear_bias(self, rows: Rows, grad_logits: Array) -> None:
        self._bias_sum += np.add.reduce(grad_logits, axis=0, dtype=np.float64)

    def finish(self) -> None:
        if "linear_weight" in self._gradients:
            result, total = self._gradients["linear_weight"], self._weight_sum
            if total is None:
                result[...] = 0  # no row counts
            elif total is not result:
                result[...] = total
        if self._bias_sum is not None:
            self._gradients["linear_bias"][...] = self._bias_sum

    def _sum_of(self, gradient: Array) -> Array:
        """Where the gradient of the weight is summed: in its own memory if that is exact enough."""
        same = gradient.dtype.newbyteorder("=") == self._dtype
        return gradient if same or self._one_chunk else np.empty(gradient.shape, self._dtype)

    def _tiles(self) -> Iterator[slice]:
        classes = self._logits.shape[1]
        for start in range(0, classes, self._tile):
            yield slice(start, min(start + self._tile, classes))

    def _weight_tiles(self) -> Iterator[tuple[slice, Array]]:
        """(classes, their weights): all at once if BLAS reads them in place."""
        if self._weight.in_place:
            yield slice(0, self._logits.shape[1]), self._weight.array
            return
        for tile in self._tiles():
            yield tile, self._weight.take(tile)

    def _space(self, name: str, shape: tuple[int, int]) -> Array:
        """Memory of this call under a name."""
        if name not in self._spaces:
            self._spaces[name] = np.empty(shape, self._dtype)
        return self._spaces[name]
