"""The benchmark suite's own arithmetic, and that what it reports is what was measured."""

import importlib.util
import math
import multiprocessing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers.workers import dies, raises

from bench import accuracy, confidence, report, run, stopwatch, tables, worker
from bench.ceiling import OF_MODE
from bench.cells import MODES, Cell, make_logits, make_target
from bench.peers import PEERS, US, Inputs, Way
from bench.results import CEILING, Measurement, Results
from xentropy import reference

BIG, SMALL = Cell.parse("4096x1000"), Cell.parse("8x10")
HEADER = {
    "date": "2000-01-01",
    "cpu": "Abacus",
    "cores": 2,
    "tier": "beads",
    "compiler": "carpenter",
    "openmp": "hands",
    "wait_policy": "default",
    "threads": 2,
    "system": "wood",
    "python": "3",
    "versions": {"xentropy-cpu": "0"},
}


def measured(*rows):
    """Results of (cell, peer, mode, seconds, other fields)."""
    results = Results(dict(HEADER), grid=list(dict.fromkeys(cell.name for cell, *_ in rows)))
    for cell, peer, mode, seconds, *more in rows:
        seconds = seconds if isinstance(seconds, list) else [seconds]
        fields = more[0] if more else {}
        results.measurements.append(Measurement(cell.name, 2, peer, mode, seconds, **fields))
    return results


@pytest.fixture
def results():
    """Ours is 4 and 3 times as fast as the best peer on one cell, half as fast on the other."""
    return measured(
        (BIG, US, "fresh", [0.004, 0.001, 0.002], {"memory": 1.0, "grad_ulp": 2.5}),
        (BIG, US, "out", 0.002, {"memory": 0.0}),
        (BIG, "slow", "fresh", 0.02),
        (BIG, "quick", "fresh", 0.006, {"wrong": True, "memory": 3.0}),
        (BIG, "quick", "loss", 0.0001),
        (BIG, US, "loss", 0.0004),
        (BIG, CEILING, "copy", [0.001, 0.0011, 0.001]),
        (BIG, CEILING, "read", [0.0003, 0.0002, 0.0002]),
        (SMALL, US, "fresh", 2e-6),
        (SMALL, "quick", "fresh", 1e-6),
        (SMALL, CEILING, "copy", 1e-6),
    )


# --- arithmetic ---


def test_speed_is_elements_over_the_median(results):
    assert results.speed(BIG, US, "fresh") == pytest.approx(4.096e6 / 0.002 / 1e9)
    assert results.speed(BIG, "nobody", "fresh") is None
    assert results.speed(BIG, US, "fresh", threads=1) is None


def test_best_peer_is_the_fastest_right_or_wrong_in_its_own_mode(results):
    assert results.best_peer(BIG, "fresh") == ("quick", 0.006)
    assert results.best_peer(BIG, "out") == ("quick", 0.006)
    assert results.best_peer(BIG, "loss") == ("quick", 0.0001)
    assert results.best_peer(SMALL, "loss") is None


def test_ratios_geometric_mean_and_lost_cells(results):
    assert results.ratio(BIG, "fresh") == pytest.approx(3)
    assert results.ratio(BIG, "loss") == pytest.approx(0.25)
    assert results.ratio(SMALL, "fresh") == pytest.approx(0.5)
    assert results.geometric_mean("fresh") == pytest.approx(math.sqrt(3 * 0.5))
    assert results.geometric_mean("in place") is None
    assert results.lost("fresh") == [SMALL]
    assert results.lost("out") == []


def test_percent_of_the_ceiling_of_the_same_traffic(results):
    assert results.percent_of_ceiling(BIG, "fresh") == pytest.approx(50)
    assert results.percent_of_ceiling(BIG, "loss") == pytest.approx(50)
    assert results.percent_of_ceiling(SMALL, "fresh") is None  # in cache: it means nothing
    assert OF_MODE.keys() == MODES.keys()


def test_a_ceiling_that_moves_by_more_than_15_percent_is_noise(results):
    assert results.noisy(BIG) == {"read": pytest.approx(0.5)}
    assert results.noisy(SMALL) == {}
    notes = tables.noise_notes(results)
    assert len(notes) == 1
    assert "in 1 of 2 cells" in notes[0]
    assert "4096x1000 (by 50 %)" in notes[0]


def test_summary_of_visits_is_medians_and_half_the_interquartile_range():
    visits = [worker.Timed([1.0, 2.0, 3.0], 0.5, {"loss_ulp": 1.0}), worker.Timed([4.0, 5.0])]
    m = run.summary(BIG, 2, "quick", "loss", visits)
    assert m.seconds == [2.0, 4.5]
    assert m.spread == pytest.approx((4 - 2) / 2 / 3)
    assert (m.memory, m.loss_ulp, m.grad_ulp) == (0.5, 1.0, None)


def test_cells_of_curves_are_not_in_the_tables(results):
    results.measurements.append(Measurement("2x2", 2, US, "fresh", [1.0]))
    results.curves["rows"] = ["2x2", BIG.name]
    assert results.cells() == [BIG, SMALL]
    assert results.find(Cell.parse("2x2"), US, "fresh").seconds == [1.0]


def test_results_come_back_from_their_file(results, tmp_path):
    results.absent.append(("1x2", "slow", "cannot"))
    results.confidence = {US: [[1.0, None]]}
    results.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    assert again.measurements == results.measurements
    assert again.header == results.header
    assert again.why_absent(Cell.parse("1x2"), "slow") == "cannot"
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "r.json").read_text()


# --- tables ---


def test_mode_table_marks_lost_cells_and_leaves_them_in(results):
    table = tables.mode_table(results, "fresh")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["4096x1000", "8x10"]
    big, small = rows.values()
    assert big["time"] == "2.00 ms"
    assert big["Gel/s"] == "2.05"
    assert (big["best peer"], big["ratio"]) == ("quick", "3.0x")
    assert (big["% of copy"], big["extra memory"], big["grad ulp"]) == ("50 %", "1.00x", "2.5")
    assert small["ratio"] == "0.50x slower"
    assert (small["% of copy"], small["extra memory"]) == ("", "")
    assert any("1.2x; 1 cells lost" in note for note in table.notes)


def test_wrong_peers_are_marked_and_not_dropped(results):
    table = tables.speeds_table(results, "fresh")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["quick"] == "0.683 wrong!"
    assert row["slow"] == "0.205"
    assert row["ceiling (copy)"] == "4.10"


def test_a_wrong_answer_of_ours_is_marked_too():
    results = measured((BIG, US, "fresh", 0.002, {"wrong": True, "grad_ulp": 1e6}))
    assert tables.mode_table(results, "fresh").rows[0][-1] == "1.0e+06 wrong!"


def test_markdown_has_as_many_columns_in_every_line(results):
    for table in tables.all_tables(results):
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, table.title
        assert len(lines) == 2 + len(table.rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5.391, "5.39"),
        (12345.6, "12346"),
        (0.0123, "0.0123"),
        (None, ""),
        (2e-9, "2.00e-09"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert tables.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.50 s"), (0.0025, "2.50 ms"), (4e-7, "0.400 us"), (None, "")]
)
def test_durations_have_a_fitting_unit(seconds, text):
    assert tables.duration(seconds) == text


def test_ceilings_are_bytes_moved(results):
    table = tables.ceilings_table(results)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["copy, 2 threads"] == tables.number(2 * 4 * 4.096e6 / 0.001 / 1e9)
    assert row["read, 2 threads"] == tables.number(4 * 4.096e6 / 0.0002 / 1e9)


# --- the README ---


def test_readme_tables_are_those_of_the_committed_results():
    text = report.README.read_text(encoding="utf-8")
    sources = report.sources(text)
    assert len(sources) == 1
    path = sources.pop()
    stem = Path(path).stem
    stored = Results.load(report.README.parent / path)
    assert report.filled(text, stored, stem, path) == text
    for link in report.IMAGE.findall(text):
        assert (report.README.parent / link).is_file(), link


def test_report_is_that_of_the_committed_results():
    for path in report.RESULTS.glob("*.json"):
        stored = Results.load(path)
        plots = {p.stem.removeprefix(f"{path.stem}-"): p for p in path.parent.glob("*.png")}
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        ordered = {name: plots[name] for name in report.IMAGE_NAME.findall(text)}
        assert report.report(stored, ordered) == text


# --- cells and accuracy ---


@pytest.mark.parametrize("text", ["1024x32000", "2x3x4:float64", "1x10:bfloat16"])
def test_cells_are_read_back_from_their_names(text):
    assert Cell.parse(text).name == text


@pytest.mark.parametrize("text", ["", "10", "0x5", "3x-1", "axb", "2x3:int8", "2x3:float32:4"])
def test_what_is_no_cell_is_refused(text):
    with pytest.raises(ValueError, match=r"no cell|no rows"):
        Cell.parse(text)


def test_inputs_are_the_same_every_time():
    cell = Cell.parse("3x7x2:float16")
    assert np.array_equal(make_logits(cell), make_logits(cell))
    assert np.array_equal(make_target(cell), make_target(cell))
    assert make_target(cell).shape == (3, 2)


@pytest.mark.parametrize("text", ["40x7", "3x5x4x2", "6x300:float64"])
def test_exact_is_the_reference(monkeypatch, text):
    monkeypatch.setattr(accuracy, "CHUNK_ELEMENTS", 50)  # in many pieces
    monkeypatch.setattr(accuracy, "SAMPLE_ELEMENTS", 100)
    cell = Cell.parse(text)
    logits, target = make_logits(cell), make_target(cell)
    truth = accuracy.exact(cell, logits, target)
    loss, grad = reference.cross_entropy_with_grad(logits, target)
    assert truth.loss == pytest.approx(loss, rel=1e-14)
    sample = accuracy.rows_of(grad, truth.rows)
    np.testing.assert_allclose(truth.gradient.astype(float), sample, rtol=1e-12, atol=1e-18)
    assert len(truth.rows) == min(cell.rows, max(1, 100 // cell.classes))


def test_compare_counts_units_in_the_last_place_and_finds_what_is_wrong():
    cell = Cell.parse("4x3")
    logits, target = make_logits(cell), make_target(cell)
    truth = accuracy.exact(cell, logits, target)
    right = truth.gradient.astype(np.float32)
    found = accuracy.compare(cell, truth, truth.loss, right, cell.rows)
    assert found["loss_ulp"] == 0
    assert found["grad_ulp"] <= 0.5
    assert not found["wrong"]

    off, unit = right.copy(), float(np.spacing(np.float32(truth.loss)))
    off[1, 2] = np.nextafter(np.nextafter(off[1, 2], np.float32(9)), np.float32(9))
    found = accuracy.compare(cell, truth, truth.loss + unit, off, 4)
    assert found["loss_ulp"] == pytest.approx(1, rel=1e-6)
    assert 1.5 <= found["grad_ulp"] <= 2.5

    summed = accuracy.compare(cell, truth, 4 * truth.loss, 4 * right, 1)
    assert summed["grad_ulp"] <= 0.5
    for loss, gradient in (
        (1.02 * truth.loss, right),
        (math.nan, right),
        (truth.loss, 0 * right),
        (truth.loss, math.nan * right),
    ):
        assert accuracy.compare(cell, truth, loss, gradient, 4)["wrong"]


COMPARED = [name for name in PEERS if PEERS[name].installed and name != "torch.compile"]


@pytest.fixture
def torch_threads():
    """Peers set torch's number of threads, which is OpenMP's, for all of this process."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["5x7", "2x3x4", "6x4:float64", "3x9:bfloat16"])
@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.filterwarnings("default")  # of other libraries
@pytest.mark.usefixtures("torch_threads")
def test_every_peer_computes_what_the_reference_computes(name, text):
    peer, cell = PEERS[name], Cell.parse(text)
    if peer.why_not(cell):
        return  # it refuses such cells
    inputs = Inputs(cell, make_logits(cell), make_target(cell))
    truth = accuracy.exact(cell, inputs.logits, inputs.target)
    ways = peer.make(1)(inputs)
    assert tuple(ways) == peer.modes
    for way in ways.values():
        if way.before is not None:
            way.before()
        loss, gradient = peer.answer(way.run())
        divisor = cell.rows if peer.divides else 1
        found = accuracy.compare(cell, truth, loss, gradient, divisor)
        # bfloat16 has 8 bits, and scipy adds up in it.
        assert not found["wrong"] or (name, cell.dtype) == ("scipy", "bfloat16"), found


def test_errors_against_confidence_are_relative():
    answers = [confidence.exact(margin) for margin in confidence.MARGINS]
    assert max(confidence.errors(answers, 0)) == 0
    tail = confidence.MARGINS.index(confidence.TAIL)
    answers[tail] = (0.0, 2 * answers[tail][1])
    assert confidence.errors(answers, 0)[tail] == 1
    assert confidence.errors(answers, 1)[tail] == pytest.approx(1)
    answers[0] = (answers[0][0], None)
    assert confidence.errors(answers, 1) is None
    losses = [confidence.exact(margin)[0] for margin in (confidence.MARGINS[0], 69)]
    assert losses[0] == pytest.approx(100)
    assert losses[1] == pytest.approx(1e-30, rel=0.1)


# --- time and memory ---


def test_short_calls_are_timed_several_at_a_time_after_a_warm_up():
    calls = []
    taken = stopwatch.timings(Way(lambda: calls.append(1)), budget=0)
    assert len(taken) == 2
    assert len(calls) > 100
    assert all(0 < seconds < 1 for seconds in taken)


def test_what_comes_before_a_call_is_done_every_time():
    order = []
    way = Way(lambda: order.append("run"), before=lambda: order.append("before"))
    stopwatch.seconds_of(way, 2)
    assert order == ["before", "run", "run"]


def test_peak_memory_is_that_of_what_a_call_allocates():
    n_bytes = 64 << 20

    def call():
        np.ones(n_bytes, np.uint8)  # gone at once: the peak must still be seen

    extra = stopwatch.peak_extra_bytes(Way(call))
    if extra is None:
        pytest.skip("this system does not tell the peak memory of a process")
    # The system counts pages in batches, some hundred kilobytes a thread.
    assert 0.98 * n_bytes < extra < 1.2 * n_bytes


# --- processes ---


@pytest.mark.parametrize(("serve", "said"), [(dies, "code 3"), (raises, "KeyError: 'it on 2'")])
def test_a_worker_that_fails_is_an_error_and_not_the_end(serve, said):
    failing = worker.Worker("it", 2, target=serve)
    with pytest.raises(worker.WorkerError, match=said):
        failing.ask("anything")
    failing.close()


def test_a_run_measures_checks_and_leaves_nothing_behind():
    cell, odd = Cell.parse("64x10"), Cell.parse("4x10x3")
    advanced = []
    work = run.Run(
        [US, "numpy reference"],
        ("loss", "fresh", "out"),
        1,
        2,
        0.001,
        lambda *a: advanced.append(a),
    )
    steps = work.steps([cell, odd], ["confidence"])
    for function, arguments, _ in steps:
        function(*arguments)
    results = work.results
    assert results.cells() == [cell, odd]
    for mode in ("loss", "fresh", "out"):
        assert len(results.find(cell, US, mode).seconds) == 2
        assert not results.find(cell, US, mode).wrong
    assert results.find(odd, US, "fresh").grad_ulp <= 4
    assert results.find(cell, "numpy reference", "out") is None
    assert results.find(cell, CEILING, "copy").loss_ulp is None
    assert results.ratio(cell, "fresh") > 0
    assert sum(cost for cost, _ in advanced) == pytest.approx(sum(cost for *_, cost in steps))
    assert max(confidence.errors(results.confidence[US], 0)) < 4 * 2**-24
    assert multiprocessing.active_children() == []
    assert {"mode", "cell", "seconds"} <= asdict(results)["measurements"][0].keys()


def test_a_cell_that_does_not_fit_into_memory_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(run, "available_bytes", lambda: 100)
    work = run.Run([US], ("loss",), 1, 1, 0.001, lambda *a: None)
    work.grid_cell(SMALL)
    assert work.results.measurements == []
    assert "GiB" in work.results.why_absent(SMALL, US)
    table = tables.mode_table(work.results, "loss")
    assert table.rows[0][:2] == ["8x10", work.results.why_absent(SMALL, US)]
