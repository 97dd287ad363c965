"""The benchmark suite's own arithmetic, and that what it reports is what was measured."""

import math
import multiprocessing
from dataclasses import asdict

import pytest
from helpers.workers import dies, raises
from rich.console import Console

from bench import __main__ as command
from bench import confidence, report, run, tables, worker
from bench.ceiling import OF_MODE
from bench.cells import MODES, Cell
from bench.peers import US
from bench.results import CEILING, Measurement, Results

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
    m = run.summary(BIG, 2, "quick", "loss", visits, (0.1234, 0.0))
    assert m.seconds == [2.0, 4.5]
    assert m.spread == pytest.approx((4 - 2) / 2 / 3)
    assert (m.memory, m.loss_ulp, m.grad_ulp) == (0.5, 1.0, None)
    assert m.others == [0.123, 0.0]


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
    said = "2 of 2 cells judged, 1 lost, 0 even (~); geometric mean of the ratios: 1.2x."
    assert any(said in note for note in table.notes)


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


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_fit_the_terminal_in_parts_that_have_every_column_once(results, width, capsys):
    console = Console(width=width)
    for table in tables.all_tables(results):
        parts = table.parts(width)
        assert [i for part in parts for i in part[1:]] == list(range(1, len(table.columns)))
        assert all(part[0] == 0 for part in parts)
        table.print(console)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any("4096x1000" in line for line in lines)
    assert "\u2026" not in "".join(lines)  # nothing is cut short


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


# --- the pages ---


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_of_a_page_are_those_of_the_committed_results(page):
    text = page.read_text(encoding="utf-8")
    (path,) = report.sources(text)
    stored = Results.load(report.ROOT / path)
    assert report.filled(text, stored, path, page) == text
    for link in report.IMAGE.findall(text):
        assert (page.parent / link).is_file(), link


def test_the_grid_leaves_the_marks_of_the_readme_cells_alone(results):
    mark = "<!-- bench: machine from bench/results/{}.json -->\nold\n<!-- bench: end -->\n"
    text = mark.format("x-readme") + mark.format("x")
    filled = report.filled(text, results, "bench/results/y.json")
    assert filled.startswith(mark.format("x-readme"))
    assert "from bench/results/y.json" in filled
    assert "Abacus" in filled
    filled = report.filled(text, results, "bench/results/y-readme.json")
    assert filled.count("from bench/results/y-readme.json") == filled.count("Abacus") == 2


@pytest.mark.parametrize(
    ("words", "suffix"),
    [([], ""), (["--pages"], ""), (["--readme"], "-readme"), (["--quick"], "-part")],
)
def test_results_are_named_by_what_was_measured(words, suffix):
    assert command.arguments(words).suffix == suffix


def test_pages_are_filled_and_the_changed_ones_named(tmp_path, monkeypatch):
    pages = tmp_path / "README.md", tmp_path / "other.md"
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGES", pages)
    for page, text in zip(pages, ("old", "new"), strict=True):
        page.write_text(text)
    assert report.fill_pages(lambda text, page: text.replace("old", page.name)) == ["README.md"]
    assert [page.read_text() for page in pages] == ["README.md", "new"]


def test_report_is_that_of_the_committed_results():
    for path in report.RESULTS.glob("*.json"):
        stored = Results.load(path)
        plots = {p.stem.removeprefix(f"{path.stem}-"): p for p in path.parent.glob("*.png")}
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        ordered = {name: plots[name] for name in report.IMAGE_NAME.findall(text)}
        assert report.report(stored, ordered) == text


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
    begun = []
    costs = list(work.all(steps, begun.append))
    assert begun == ["grid cell 64x10", "grid cell 4x10x3", "confidence"]
    assert costs == [cost for *_, cost in steps]
    results = work.results
    assert results.cells() == [cell, odd]
    for mode in ("loss", "fresh", "out"):
        assert len(results.find(cell, US, mode).seconds) == 2
        assert len(results.find(cell, US, mode).others) == 2
        assert not results.find(cell, US, mode).wrong
    assert results.find(odd, US, "fresh").grad_ulp <= 4
    assert results.find(cell, "numpy reference", "out") is None
    assert results.find(cell, CEILING, "copy").loss_ulp is None
    assert results.seconds(cell, US, "fresh") > 0
    assert sum(cost for cost, _ in advanced) == pytest.approx(sum(cost for *_, cost in steps))
    assert max(confidence.errors(results.confidence[US], 0)) < 4 * 2**-24
    assert multiprocessing.active_children() == []
    assert {"mode", "cell", "seconds"} <= asdict(results)["measurements"][0].keys()


def test_a_run_ends_when_its_time_is_over_and_says_what_it_left_out():
    work = run.Run([US], ("loss",), 1, 2, 0.001, lambda *a: None, limit=0)
    for _ in work.all(work.steps([SMALL], ["confidence"]), str):
        pass
    assert work.results.measurements == []
    assert work.results.confidence == {}
    assert [why for *_, why in work.results.absent] == [run.NO_TIME] * 2
    assert tables.absent_table(work.results).rows[0] == ["8x10", US, run.NO_TIME]


def test_a_cell_that_does_not_fit_into_memory_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(run, "available_bytes", lambda: 100)
    work = run.Run([US], ("loss",), 1, 1, 0.001, lambda *a: None)
    work.grid_cell(SMALL)
    assert work.results.measurements == []
    assert "GiB" in work.results.why_absent(SMALL, US)
    table = tables.mode_table(work.results, "loss")
    assert table.rows[0][:2] == ["8x10", work.results.why_absent(SMALL, US)]
