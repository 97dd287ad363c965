"""The study of log-probabilities: all ways compute the same numbers and gradient."""

import pytest

from bench.cells import Cell
from bench.studies import log_probs as study


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("entropy", [False, True])
def test_all_ways_agree_with_float64(entropy, dtype):
    logits, index = study.tensors_of(Cell((5, 40), dtype))
    off = 1e-5 if dtype == "float32" else 0.05  # the formulas are rounded at every step
    for name, way in study.ways(study.PEERS[::2]).items():
        step = study.step_of(way, logits, index, entropy)
        of_log_p, of_gradient = study.errors(step, logits, index, entropy)
        assert of_log_p < off, name
        assert of_gradient < off, name


def test_the_tables_of_a_small_cell():
    for table in study.both_tables([Cell((8, 10))], quick=True):
        assert [row[0] for row in table.rows] == ["8x10", "8x10, entropy"]
        assert all(len(row) == len(table.columns) for row in table.rows)
