"""The study of row_statistics: what it compares computes the same. Of times nothing is asserted."""

import sys

import numpy as np
import pytest
from helpers.installed import missing

import xentropy as xe
from bench.cells import Cell, make_logits, make_target
from bench.studies import evaluate_file, statistics

CELLS = ("37x10", "20x700", "9x50:float64", "9x50:float16", "9x50:bfloat16", "3x7x4x5")


@pytest.mark.parametrize("name", statistics.PEERS[:-1])
@pytest.mark.parametrize("text", CELLS)
def test_every_peer_gives_the_same_numbers(name, text):
    if name == "torch" and missing(["torch"]):
        pytest.skip("torch is not installed")
    cell = Cell.parse(text)
    x, target = make_logits(cell), make_target(cell)
    x[:, ::3] = x[:, :1]  # ties
    (given,) = statistics.peers_of(x, target, [name]).values()
    (found,) = given()
    for field, value, wanted in zip(
        xe.RowStatistics._fields, found, xe.row_statistics(x, target), strict=True
    ):
        # Of numbers of about 10 in float32: some units in the last place.
        np.testing.assert_allclose(np.asarray(value), wanted, rtol=1e-5, atol=1e-5, err_msg=field)


def test_blocks_are_all_rows_in_order():
    x, target = np.arange(35.0).reshape(7, 5), np.arange(7)
    blocks = statistics.in_blocks(lambda a, b: (a, b), x, target, block=11)
    assert [len(a) for a, _ in blocks] == [2, 2, 2, 1]
    assert np.array_equal(np.concatenate([a for a, _ in blocks]), x)
    assert np.array_equal(np.concatenate([b for _, b in blocks]), target)


def test_the_tables_of_small_cells():
    cells = [Cell.parse("8x10"), Cell.parse("4x400:float64")]
    table = statistics.statistics_table(cells, ["numpy"], 1)
    assert [row[0] for row in table.rows] == ["8x10", "4x400:float64"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][3] is None  # torch, which was not asked for


def test_the_evaluation_of_a_file_is_that_of_the_command_and_its_memory_is_told(tmp_path):
    cell = Cell.parse("500x300")
    logits, target = evaluate_file.write(cell, tmp_path)
    x, y = np.load(logits), np.load(target)
    assert np.array_equal(x, make_logits(cell))
    counted = evaluate_file.evaluate(logits, target)
    loss = xe.cross_entropy(x.astype(np.float64), y)
    assert counted.complete
    assert counted.evaluation.result().nats == pytest.approx(loss, rel=1e-6)
    if sys.platform.startswith("linux"):
        assert 0 <= evaluate_file.own_memory(logits, target) < 100 << 20
