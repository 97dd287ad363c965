"""The shapes of the benchmark's grid, cut to a few rows, against the oracle on every tier."""

import math

import numpy as np
import pytest
from helpers.support import assert_plain

from bench.cells import BY_CLASSES, GRID, make_logits, make_target

pytestmark = pytest.mark.usefixtures("tier")

ELEMENTS = 1 << 17  # of the cut; a row at least


def few_rows(cell):
    """The first rows of a cell, with all of its classes."""
    logits_shape = list(cell.shape)
    for axis in (0, *range(2, len(cell.shape))):
        others = math.prod(logits_shape) // logits_shape[axis]
        logits_shape[axis] = max(1, min(logits_shape[axis], ELEMENTS // others))
    return type(cell)(tuple(logits_shape), cell.dtype)


@pytest.mark.parametrize("cell", [*GRID, *BY_CLASSES], ids=lambda cell: cell.name)
def test_cells_of_the_grid(cell):
    cell = few_rows(cell)
    logits, target = make_logits(cell), make_target(cell)
    assert_plain(logits, target, what=cell.name)
    out = np.empty_like(logits)
    assert_plain(logits, target, out=out, reduction="mean", what=f"{cell.name} into out")
