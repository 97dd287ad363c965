"""The benchmark of the linear loss: what it compares, leaves out and says. No time is asserted."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bench import quiet
from bench.linear import cells, run, speed, truth, ways, work
from bench.worker import Worker
from xentropy import reference

CELL = cells.LinearCell.parse("24x6x40")
LARGE = cells.LinearCell.parse("48x12x80")


def arrays(cell, seed=0):
    """Input, weight, labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((cell.rows, cell.features))
    w = rng.standard_normal((cell.classes, cell.features))
    dtype = cell.input.numpy_dtype
    return x.astype(dtype), w.astype(dtype), rng.integers(cell.classes, size=cell.rows)


@pytest.mark.parametrize("text", ["24x6x40", "1x1x1:bfloat16"])
def test_a_cell_has_the_name_that_it_is_read_from(text):
    assert cells.LinearCell.parse(text).name == text


@pytest.mark.parametrize("text", ["24x6", "24x6x40x2", "24x6x40:int8", "0x6x40", "axbxc", ""])
def test_what_is_no_cell_is_refused(text):
    with pytest.raises(ValueError, match=repr(text)):
        cells.LinearCell.parse(text)


def test_the_truth_by_chunks_and_tiles_is_that_of_all_logits(monkeypatch):
    monkeypatch.setattr(truth, "CHUNK_ELEMENTS", 7 * CELL.classes)
    monkeypatch.setattr(truth, "TILE_ELEMENTS", 9 * CELL.features)
    monkeypatch.setattr(truth, "ROWS", 10)
    monkeypatch.setattr(truth, "CLASSES", 12)
    x, w, y = arrays(CELL)
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    loss, slope = reference.cross_entropy_with_grad(wide_x @ wide_w.T, y)
    found = truth.truth(CELL, x, w, y)
    assert found.loss == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(found.input, (slope @ wide_w)[found.rows], rtol=1e-11, atol=1e-14)
    of_weight = (slope.T @ wide_x)[found.classes]
    np.testing.assert_allclose(found.weight, of_weight, rtol=1e-11, atol=1e-14)
    assert len(found.rows) == 10
    assert set(y[truth.evenly(CELL.rows, 6)]) <= set(found.classes)
    answer = found.loss * 1.5, found.input * 1.25, found.weight
    assert truth.errors(answer, found) == pytest.approx((0.5, 0.25, 0.0))


@pytest.mark.parametrize("dtype", cells.DTYPES)
@pytest.mark.parametrize("name", [name for name, p in ways.PEERS.items() if not p.bare])
def test_every_peer_answers_right(name, dtype):
    """Within the rounding of its products: 2^-8 for bfloat16, some sums of it."""
    if name not in ways.installed():
        pytest.skip(f"{name} is not installed")
    if name == ways.COMPILED:
        pytest.skip("it compiles for minutes; its function is that of torch eager")
    cell = cells.LinearCell(CELL.rows, CELL.features, CELL.classes, dtype)
    x, w, y = arrays(cell)
    exact = truth.truth(cell, x, w, y)
    loss, of_input, of_weight = ways.PEERS[name].make(ways.Layer(x, w, y, True))()
    parts = work.numbers(of_input, exact.rows), work.numbers(of_weight, exact.classes)
    errors = truth.errors((float(loss), *parts), exact)
    assert max(errors) < (0.03 if dtype == "bfloat16" else 3e-6)
    (alone,) = ways.PEERS[name].make(ways.Layer(x, w, y, False))()
    assert float(alone) == pytest.approx(float(loss), rel=1e-2 if dtype == "bfloat16" else 1e-6)


def a_run(names, seconds=100.0):
    found = run.Run([LARGE, CELL], names, 1, seconds)
    found.asks = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def ask(self, job, patience):
            found.asks.append((job.cell, job.mode, self.name))
            answer = work.Found([1.0, 3.0, 2.0], 100)
            return quiet.Visit(answer, 0.0)

        def close(self):
            pass

    found.worker = Fake
    return found


def test_small_cells_have_all_their_rounds_first_and_ignored_labels_are_asked_of_ours():
    found = a_run([ways.BARE_NUMPY, ways.NUMPY])
    found.all()
    small = [ask for ask in found.asks if ask[0] == CELL]
    assert found.asks[: len(small)] == small
    assert len(small) == run.ROUNDS * 5
    assert (CELL, "half", ways.BARE_NUMPY) not in found.asks
    assert found.records[CELL, "forward", ways.NUMPY].seconds == 2.0


def test_the_default_chunks_of_torch_are_visited_once():
    found = a_run([ways.DEFAULT])
    found.asked = lambda cell, mode: found.names
    found.all()
    assert len(found.asks) == len(set(found.asks)) == 2 * len(cells.MODES)


def record(seconds, others=0.0):
    return run.Record([quiet.Visit(work.Found([seconds], 0), others)])


def test_who_needs_too_long_is_left_out_by_what_a_smaller_cell_took():
    found = a_run([ways.EAGER])
    found.records[CELL, "gradients", ways.EAGER] = record(run.LONGEST / 7)
    assert found.why_not(CELL, "gradients", ways.EAGER) is None
    assert "some 69 s a call" in found.why_not(LARGE, "gradients", ways.EAGER)


def test_no_visit_begins_that_would_end_too_late():
    found = a_run([ways.NUMPY], seconds=10.0)
    found.records[CELL, "gradients", ways.NUMPY] = record(2.0)
    assert found.why_not(CELL, "gradients", ways.NUMPY) is None
    assert found.why_not(LARGE, "gradients", ways.NUMPY) == "the time was up"


def test_only_the_chunks_that_were_fastest_go_to_larger_cells():
    slow, fast = (ways.CHUNKED(rows) for rows in ways.CHUNKS)
    found = a_run([slow, fast])
    found.records[CELL, "gradients", slow] = record(2.0)
    found.records[CELL, "gradients", fast] = record(1.0)
    assert "another size" in found.why_not(LARGE, "gradients", slow)
    assert found.why_not(LARGE, "gradients", fast) is None


def test_a_failing_worker_is_a_reason_in_the_notes_and_no_row():
    found = a_run([ways.NUMPY])

    def ask(job, patience):
        raise run.WorkerError("it died")

    found.worker = lambda name: SimpleNamespace(ask=ask)
    closed = []
    found._workers = {ways.NUMPY: SimpleNamespace(close=lambda: closed.append(True))}
    found.visit(CELL, "gradients", ways.NUMPY, first=True)
    assert closed == [True]
    table = speed.table(found, CELL)
    assert table.rows == []
    assert table.notes == [f"Not measured (gradients): {ways.NUMPY}: it died."]
    found._workers = {}
    found.close()


def test_shares_and_ratios_are_told_of_quiet_visits_alone(monkeypatch):
    monkeypatch.setattr(ways, "ceiling", lambda name, dtype: (ways.BARE_NUMPY, "float32"))
    found = a_run([ways.BARE_NUMPY, ways.NUMPY, ways.TORCH])
    found.records[CELL, "gradients", ways.BARE_NUMPY] = record(0.9)
    found.records[CELL, "gradients", ways.NUMPY] = record(1.0)
    found.records[CELL, "gradients", ways.TORCH] = record(2.0)
    bare, numpy, torch = speed.table(found, CELL).rows
    assert (bare[2], numpy[2], torch[2]) == ("", "90 %", "45 %")
    assert (numpy[3], torch[3]) == (0.5, 1.0)
    found.records[CELL, "gradients", ways.TORCH] = record(2.0, others=1.0)
    table = speed.table(found, CELL)
    assert [row[3] for row in table.rows] == [quiet.UNKNOWN] * 3
    assert table.notes[-1].startswith(quiet.UNKNOWN)


def test_a_run_of_the_numpy_call_in_processes(monkeypatch):
    monkeypatch.setattr(speed, "AT_ONCE", {"rounds": 1, "budget": 0.0})
    monkeypatch.setattr(ways, "installed", lambda: [ways.BARE_NUMPY, ways.NUMPY])
    monkeypatch.setattr(ways, "ceiling", lambda name, dtype: (ways.BARE_NUMPY, "float32"))
    first, second = speed.tables(True, [CELL, cells.LinearCell(24, 6, 40, "bfloat16")])
    assert (first.name, second.name) == ("linear_40", "linear_40_bfloat16")
    assert [row[0] for row in first.rows] == [ways.BARE_NUMPY, ways.NUMPY]
    assert max(first.rows[1][-3:]) < 1e-6
    assert max(second.rows[0][-3:]) < 0.01
    assert speed.NOTES[0] in second.notes
    assert speed.NOTES[0] not in first.notes


def test_peak_memory_is_that_of_the_logits_or_of_a_buffer():
    """4096 x 8 -> 2000: logits of 33 MB; torch makes three such arrays, a chunk has a quarter."""
    pytest.importorskip("torch", reason="it is what is measured")
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process is known on Linux only")
    cell = cells.LinearCell.parse("4096x8x2000")
    batch, found = cells.Batch(cell), {}
    target = batch.targets["gradients"]
    paths = batch.input.path, batch.weight.path
    job = work.Visit(cell, paths, target, "gradients", 0.0, truth.sample(cell, target))
    for name in (ways.EAGER, ways.TORCH):
        worker = Worker(name, 1, target=work.serve)
        found[name] = worker.ask(job).found.memory / cell.logits_bytes
        worker.close()
    batch.close()
    assert 2.9 < found[ways.EAGER] < 3.6
    assert found[ways.TORCH] < 1.5
