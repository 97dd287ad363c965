"""The loss of a batch whose logits come chunk by chunk."""

import math
from typing import Any

import numpy as np

from .. import _check, _kernels
from .._counted import counting_rows, row_weights
from .._kernels import Options
from ._rows import Array, CountedRows, Rows, flat, index_of, n_rows, runs

# Options that are the batch's, not those of the call for a chunk.
OF_THE_BATCH = ("axis", "reduction", "normalizer")


class BatchLoss(CountedRows):
    """Targets, weights and options of a batch; its rows' losses, filled in chunk by chunk.

    All arguments are those of the public calls, checked and converted by `_check`. Labels are
    checked here: IndexError.
    """

    def __init__(
        self,
        target: Array,
        classes: int,
        weight: Array | None,
        sample_weight: Array | None,
        grad_output: float | Array | None,
        options: Options,
        empty_mean: float = math.nan,
    ) -> None:
        self.has_labels = target.dtype.kind in "iu"
        self.row_shape = target.shape if self.has_labels else target.shape[:-1]
        self.target = target.reshape(-1) if self.has_labels else flat(target)
        self.weight = None if weight is None else np.ascontiguousarray(weight, np.float64)
        self.sample_weight = None if sample_weight is None else sample_weight.reshape(-1)
        self.reduction = options.reduction
        terms = {n: getattr(options, n) for n in Options.NAMES if n not in OF_THE_BATCH}
        self._options = _kernels.make_options(axis=-1, reduction="none", **terms)
        super().__init__(counting_rows(target, classes, options.ignore_index, self.sample_weight))
        self.divisor = self._divisor(options.normalizer)
        self._upstream = self._upstream_of(grad_output)
        own_mean = self.reduction == "mean" and options.normalizer is None
        self._empty_mean = empty_mean if own_mean and self.n_counted == 0 else None
        self.losses = np.zeros(self.rows)

    def _divisor(self, normalizer: float | None) -> float:
        """What the summed loss is divided by."""
        if self.reduction != "mean":
            return 1.0
        if normalizer is not None:
            return normalizer
        every: Rows = slice(0, self.rows) if self.counted is None else self.counted
        labels = self.target if self.has_labels else None
        weights = row_weights(labels, self.weight, self.sample_weight, every)
        return float(n_rows(every) if weights is None else weights.sum())

    def _upstream_of(self, grad_output: float | Array | None) -> float | Array:
        """The factor of a row's gradient: one for all, or one a row."""
        if isinstance(grad_output, np.ndarray):
            return grad_output.reshape(-1)
        with np.errstate(all="ignore"):
            return float(np.float64(1.0 if grad_output is None else grad_output) / self.divisor)

    def fill(self, logits: Array, rows: Rows, *, with_grad: bool) -> None:
        """Enter the losses of rows with these logits, (n, V), C order.

        With `with_grad`, their gradient overwrites them.
        """
        if self.has_labels:
            self._fill(logits, self.target[rows], rows, with_grad)
            return
        start = 0
        for run in runs(rows):  # rows of probabilities are never copied
            steps = run.stop - run.start if self.target.ndim == 2 else 1
            for first in range(run.start, run.stop, steps):
                part = slice(first, first + steps)
                target = self.target[index_of(self.target, part)]
                self._fill(logits[start : start + steps], target, part, with_grad)
                start += steps

    def _fill(self, logits: Array, target: Array, rows: Rows, with_grad: bool) -> None:
        upstream = self._upstream
        result = _check.taken(
            _kernels.compute_cross_entropy(
                with_grad,
                logits,
                target,
                self.weight,
                None if self.sample_weight is None else self.sample_weight[rows],
                self._options,
                upstream[rows] if isinstance(upstream, np.ndarray) else upstream,
                logits if with_grad else None,
                checked=True,
                float64_losses=True,
            )
        )
        self.losses[rows] = result[0] if with_grad else result

    def result(self, dtype: Any) -> Any:
        """The loss as the public calls return it; those of rows in `dtype`."""
        with np.errstate(all="ignore"):
            if self.reduction == "none":
                return self.losses.astype(dtype).reshape(self.row_shape)[()]
            if self._empty_mean is not None:
                return self._empty_mean
            return float(self.losses.sum() / np.float64(self.divisor))
