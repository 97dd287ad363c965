"""What is computed of a block: arrays of NumPy in, arrays of NumPy out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import _check
from .._api import checked_cross_entropy
from .._counted import counting_rows, row_weights
from .._evaluation import Evaluation
from .._kernels import Options as KernelOptions
from .._kernels import make_options
from .._statistics import RowStatistics, row_statistics
from ._sums import Sums, boxed

Arrays = dict[str, Any]
Names = tuple[str, ...]
Options = dict[str, Any]

# How an error names an element of an array that has one for each row.
PLACE = re.compile(r"\b(target|sample_weight|grad_output|group|bytes)\[(\d+(?:, \d+)*)\](?= = )")


def losses_of_block(*blocks: Any, names: Names, options: Options) -> Any:
    """One loss a row."""
    arrays, start = _by_name(names, blocks)
    with counted_from(start):
        return _computed(False, arrays, options)


def sums_of_block(*blocks: Any, names: Names, options: Options, classes: int) -> Any:
    """The losses and weights of the rows, added up: in a box."""
    arrays, start = _by_name(names, blocks)
    with counted_from(start):
        losses = _computed(False, arrays, options)
        return boxed(_sums(arrays, options, classes, losses), len(start))


def weights_of_block(*blocks: Any, names: Names, options: Options, classes: int) -> Any:
    """The weights of the rows, added up: in a box."""
    arrays, start = _by_name(names, blocks)
    with counted_from(start):
        return boxed(_sums(arrays, options, classes), len(start))


def gradient_of_block(*blocks: Any, names: Names, options: Options, classes: int) -> Any:
    """(losses, gradient) for "none", else (sums in a box, gradient)."""
    arrays, start = _by_name(names, blocks)
    if "divisor" in arrays:
        options = options | _divided_by(float(arrays.pop("divisor")), arrays)
    with counted_from(start):
        losses, gradient = _computed(True, arrays, options)
        if options["reduction"] == "none":
            return losses, gradient
        return boxed(_sums(arrays, options, classes, losses), len(start)), gradient


def statistics_of_block(*blocks: Any, names: Names, options: Options) -> RowStatistics:
    arrays, start = _by_name(names, blocks)
    with counted_from(start):
        return row_statistics(**arrays, **options)


def evaluation_of_block(*blocks: Any, names: Names, settings: Options, options: Options) -> Any:
    """An `Evaluation` of the rows, in a box."""
    arrays, start = _by_name(names, blocks)
    evaluation = Evaluation(**settings)
    with counted_from(start):
        evaluation.update(**arrays, **options)
    return boxed(evaluation, len(start))


def taken_part(parts: Any, number: int) -> Any:
    return _only(parts)[number]


def _only(block: Any) -> Any:
    """The block in the lists, of one each, that stand for axes which the result has not."""
    while isinstance(block, list):
        (block,) = block
    return block


def _by_name(names: Names, blocks: tuple[Any, ...]) -> tuple[Arrays, tuple[int, ...]]:
    """The blocks by name, and the place in the whole array where their rows begin."""
    found = [_only(block) for block in blocks]
    starts = found[len(names) :]
    return dict(zip(names, found, strict=False)), tuple(int(start[0]) for start in starts)


@contextmanager
def counted_from(start: tuple[int, ...]) -> Iterator[None]:
    """Errors name places in the whole array, not those in a block that begins at `start`."""

    def moved(match: re.Match[str]) -> str:
        place = map(int, match[2].split(", "))
        return f"{match[1]}[{', '.join(str(i + s) for i, s in zip(place, start, strict=True))}]"

    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        error.args = tuple(PLACE.sub(moved, a) if isinstance(a, str) else a for a in error.args)
        raise


def _computed(with_grad: bool, arrays: Arrays, options: Options) -> Any:
    """The losses of the rows, in float64 unless they are the result; and their gradient.

    In C order, and adjacent rows as columns even if there is one: the last bits depend on it.
    """
    axis = options["axis"]
    arrays = arrays | {"logits": np.ascontiguousarray(arrays["logits"])}
    alone = options["columns"] and math.prod(arrays["logits"].shape[axis + 1 :]) == 1
    if alone:
        arrays = {name: _twice(name, array) for name, array in arrays.items()}
    found = checked_cross_entropy(
        with_grad,
        arrays["logits"],
        arrays["target"],
        arrays.get("weight"),
        arrays.get("sample_weight"),
        make_options(**{name: options[name] for name in KernelOptions.NAMES}),
        arrays.get("grad_output"),
        float64_losses=options["reduction"] != "none",
    )
    if not alone:
        return found
    return tuple(each[..., :1] for each in found) if with_grad else found[..., :1]


def _twice(name: str, array: Any) -> Any:
    """Each row twice, along the last axis; what is not of rows as it is."""
    return array if name == "weight" or not np.ndim(array) else np.repeat(array, 2, axis=-1)


def _divided_by(divisor: float, arrays: Arrays) -> Options:
    """The options of a gradient that is divided by this number."""
    if divisor and math.isfinite(divisor):
        return {"normalizer": divisor}
    with np.errstate(all="ignore"):  # which is no normalizer: rows get 0, infinities or nan
        arrays["grad_output"] = np.float64(arrays.get("grad_output", 1.0)) / divisor
    return {"normalizer": 1.0}


def _sums(arrays: Arrays, options: Options, classes: int, losses: Any = None) -> Sums:
    target, weight, sample_weight = map(arrays.get, ("target", "weight", "sample_weight"))
    weight = _check.weight(weight, classes)
    if sample_weight is not None:
        sample_weight = _check.sample_weight(sample_weight, sample_weight.shape).reshape(-1)
    if target is None:  # probabilities, not needed for their weights
        counts, labels = sample_weight != 0, None
    else:
        counts = counting_rows(target, classes, options["ignore_index"], sample_weight)
        labels = target.reshape(-1) if target.dtype.kind in "iu" else None
    rows, sums = np.flatnonzero(counts), Sums()
    sums.add(len(rows), row_weights(labels, weight, sample_weight, rows), losses)
    return sums
