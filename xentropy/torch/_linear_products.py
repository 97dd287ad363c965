"""Who multiplies for the linear loss: NumPy's BLAS, or torch.

The rule depends on the machine alone, so that the bits of a result do not change between runs:

* float32 and float64: NumPy's BLAS where torch has MKL and the processor is not Intel's, for MKL
  runs below the rate of such processors. Otherwise torch.
* bfloat16: torch, if the processor multiplies bfloat16. These products are rounded to bfloat16:
  the logits, their gradient, and the gradient of the input. So is the gradient of the weight if
  there is one chunk; over several it is a sum, which is made in float32 and rounded once.
* other 16 bits: as float32, from converted tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .._linear._plan import chunk_rows
from .._linear._products import NumpyProducts, Wanted
from .._linear._rows import Array, Rows, n_rows
from ._arrays import array, tensor


@functools.cache
def vendor() -> str:
    """The vendor of the processor as Linux names it; "" if it does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("vendor_id"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


@functools.cache
def numpy_multiplies() -> bool:
    """Does NumPy's BLAS make the products of float32 and float64?"""
    return torch.backends.mkl.is_available() and vendor() not in ("", "GenuineIntel")


@functools.cache
def torch_multiplies_bfloat16() -> bool:
    """Does the processor multiply bfloat16, and torch by it?"""
    if not torch.backends.mkldnn.is_available():
        return False
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    return any(getattr(torch.cpu, name, bool)() for name in names)


def config() -> dict[str, str]:
    """The lines of `xentropy.show_config`."""
    wide = "NumPy's BLAS" if numpy_multiplies() else "torch"
    narrow = "torch" if torch_multiplies_bfloat16() else f"{wide}, as float32"
    return {"products": f"float32 by {wide}; bfloat16 by {narrow} (xentropy.torch)"}


def kind_of(input: torch.Tensor) -> type[NumpyProducts]:
    """The class of products for an input of this dtype."""
    if input.dtype is torch.bfloat16 and torch_multiplies_bfloat16():
        return BFloat16Products
    return NumpyProducts if numpy_multiplies() else TorchProducts


class TorchProducts(NumpyProducts):
    """The same products, each by torch."""

    @staticmethod
    def multiply(a: Array, b: Array, out: Array) -> Array:
        torch.mm(tensor(a), tensor(b), out=tensor(out))
        return out


class BFloat16Products(TorchProducts):
    """Logits and gradients in bfloat16; a sum over chunks, the weight's gradient, in float32.

    All by torch: threads of another BLAS would find its threads still spinning.
    """

    @staticmethod
    def at_a_time(
        rows: int, shape: tuple[int, int], dtype: np.dtype[Any], logits_bytes: int, wanted: Wanted
    ) -> int:
        """All rows, if a buffer of fewer with the float32 sum needs as much memory."""
        classes, features = shape
        itemsize = torch.bfloat16.itemsize
        of_the_sum = classes * features * dtype.itemsize if "linear_weight" in wanted else 0
        if 0 < rows * classes * itemsize <= logits_bytes + of_the_sum:
            return rows
        return chunk_rows(rows, features, classes, itemsize, logits_bytes)

    @staticmethod
    def buffer(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        return array(torch.empty(shape, dtype=torch.bfloat16, device="cpu"))

    def __init__(
        self,
        input: Array,
        linear_weight: Array,
        linear_bias: Array | None,
        gradients: Mapping[str, Array],
        *others: Any,
        one_chunk: bool,
    ) -> None:
        layer = input, linear_weight, linear_bias
        super().__init__(*layer, gradients, *others, one_chunk=one_chunk)
        self._inputs, self._classes = _matrix(tensor(input)), tensor(linear_weight)
        self._offsets = None if linear_bias is None else tensor(linear_bias)
        self._grads = {name: tensor(gradient) for name, gradient in gradients.items()}

    def logits(self, rows: Rows) -> Array:
        x, weight = self._inputs[_index(rows)], self._classes.t()
        out = tensor(self._logits[: n_rows(rows)])
        if self._offsets is None:
            torch.mm(x, weight, out=out)
        else:
            torch.addmm(self._offsets, x, weight, out=out)
        return array(out)

    def grad_input(self, rows: Rows, grad_logits: Array) -> None:
        result = _matrix(self._grads["input"])
        if isinstance(rows, slice):
            torch.mm(tensor(grad_logits), self._classes, out=result[rows])
        else:
            result[_index(rows)] = torch.mm(tensor(grad_logits), self._classes)

    def grad_linear_weight(self, rows: Rows, grad_logits: Array) -> None:
        if self._one_chunk:
            result = self._grads["linear_weight"]
            torch.mm(tensor(grad_logits).t(), self._inputs[_index(rows)], out=result)
            self._weight_sum = self._gradients["linear_weight"]
            return
        self._x = self._input.take(rows)
        super().grad_linear_weight(rows, grad_logits)

    def grad_linear_bias(self, rows: Rows, grad_logits: Array) -> None:
        self._bias_sum += tensor(grad_logits).sum(0, dtype=torch.float64).numpy()

    def finish(self) -> None:
        total = self._weight_sum
        if total is not None and total is not self._gradients["linear_weight"]:
            self._grads["linear_weight"].copy_(tensor(total))
            self._weight_sum = self._gradients["linear_weight"]
        super().finish()

    @staticmethod
    def widened(grad_logits: Array) -> Array:
        return tensor(grad_logits).float().numpy()


def _matrix(rows: torch.Tensor) -> torch.Tensor:
    """Rows of an input; a single one may have no axis of its own."""
    return rows[None] if rows.dim() == 1 else rows


def _index(rows: Rows) -> Any:
    return rows if isinstance(rows, slice) else torch.from_numpy(rows)
