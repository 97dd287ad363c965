"""The study of distillation: all ways compute the same loss and gradient."""

import numpy as np
import pytest

from bench.cells import Cell, make_logits
from bench.studies import distillation as study
from xentropy import reference


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_all_ways_agree_with_the_reference(beta, dtype):
    cell = Cell((5, 40), dtype)
    x, y = make_logits(cell), make_logits(cell, seed=2)
    loss, grad = reference.distillation_loss_with_grad(x, y, beta=beta)
    off = 1e-5 if dtype == "float32" else 0.15  # the formula is rounded at every step
    calls = study.ways(x, y, beta, ["torch"])
    assert set(calls) == {*study.OURS, "torch"}
    for name, call in calls.items():
        for _ in range(2):  # a gradient is not added to the one before
            found = study.arrays_of(call())
            assert found[0] == pytest.approx(loss, rel=off), name
            assert np.abs(found[1] - grad).max() < off * np.abs(grad).max(), name
    for of_loss, of_gradient in study.errors(x, y, beta, ["torch"]).values():
        assert of_loss < off
        assert of_gradient < 2 * off


def test_the_tables_of_a_small_cell():
    for table in study.both_tables([Cell((8, 10))], quick=True):
        assert [row[0] for row in table.rows] == [f"8x10, beta {b:g}" for b in study.BETAS]
        assert all(len(row) == len(table.columns) for row in table.rows)
