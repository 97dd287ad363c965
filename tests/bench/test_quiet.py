"""What other processes take of the cores is seen, and nothing is concluded beside them."""

import itertools
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.workers import spins

from bench import quiet, stopwatch, tables
from bench.cells import Cell
from bench.peers import US
from bench.results import CEILING, Measurement, Results

CELL, OTHER = Cell.parse("4096x1000"), Cell.parse("8x10")
ROOT = Path(__file__).resolve().parents[2]


# --- the watch ---


def test_children_are_ours_and_their_time_is_of_the_cores():
    """Processor time, which does not depend on how busy the machine is."""
    mine = quiet.cores()
    own, busy = quiet.own_seconds(), quiet.busy_seconds(mine)
    child = multiprocessing.get_context("spawn").Process(target=spins, args=(0.3,))
    child.start()
    while child.is_alive():
        time.sleep(0.01)
    child.join()
    grown = quiet.own_seconds() - own
    assert grown > 0.25
    assert quiet.busy_seconds(mine) - busy > grown - 0.1


@pytest.fixture
def taken(monkeypatch):
    """A clock by hand: each visit lasts a second, and others take the next of these cores."""
    left, now = [], {"time": 0.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(quiet, "cores", lambda: [0, 1])
    monkeypatch.setattr(quiet, "busy_seconds", lambda mine: now["busy"])
    monkeypatch.setattr(quiet, "own_seconds", lambda: now["own"])
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: now["time"])
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now["time"])

    def visit(own=1.5):
        others = left.pop(0)
        now["time"] += 1.0
        now["own"] += own
        now["busy"] += own + others
        return others

    return left, visit


def test_what_is_neither_idle_nor_ours_was_taken_by_others(taken):
    left, visit = taken
    left += [0.0, 0.015, 1.32, 5.0]
    assert [quiet.watched(visit).others for _ in range(4)] == pytest.approx([0, 0, 1.3, 2])


def test_a_short_visit_is_watched_beyond_its_end(taken, monkeypatch):
    """The system counts in steps of 10 ms: a visit of one would seem quiet beside a compiler."""
    left, visit = taken
    left.append(1.5)
    monkeypatch.setattr(quiet.time, "sleep", lambda seconds: visit(0.0) if seconds > 0.1 else None)
    assert quiet.watched(lambda: None).others == pytest.approx(1.48)


def test_visits_are_repeated_until_one_is_quiet_and_no_longer_than_patience(taken):
    left, visit = taken
    left += [1.3, 1.0, 0.1, 9.0]
    best = quiet.quietest(visit)
    assert (best.found, best.quiet, left) == (0.1, True, [9.0])
    left[:] = [1.3, 0.9, 1.1, 9.0]
    best = quiet.quietest(visit)
    assert (best.found, best.quiet, left) == (0.9, False, [9.0])
    patience = quiet.Patience(1.5)
    left[:] = [1.3, 1.2, 1.4, 0.0, 0.0]
    best = [patience.quietest(lambda: quiet.watched(visit)).found for _ in range(2)]
    assert (best, left) == ([1.2, 0.0], [0.0])


def test_a_note_in_plain_words():
    assert quiet.notes([quiet.Visit(1, 0.1), quiet.Visit(1, 0.0)]) == []
    (note,) = quiet.notes([quiet.Visit(1, 0.0), quiet.Visit(1, 1.3)])
    cores = len(quiet.cores())
    assert f"other processes took 1.3 of {cores} cores during these visits: no conclusion" in note
    assert "(1 of 2)" in note


@pytest.mark.parametrize(("others", "ratio"), [(0.0, 1.0), (2.0, quiet.UNKNOWN)])
def test_turns_have_a_ratio_only_if_they_were_quiet(others, ratio):
    turns = stopwatch.Turns({"a": 1.0, "b": 1.0}, others)
    assert turns.ratio("a", "b") == ratio
    assert tables.number(turns.ratio("a", "b")) == ("1.00" if ratio == 1 else "?")


# --- verdicts ---


def results_of(ours, theirs, others, cell=CELL):
    """Ours and a peer's in the fresh mode; the cores that others took in the visits of both."""
    found = Results({"cores": 2, "threads": 2}, grid=[cell.name])
    for (peer, seconds), each in zip(((US, ours), ("peer", theirs)), others, strict=True):
        found.measurements.append(Measurement(cell.name, 2, peer, "fresh", seconds, others=each))
    copy = Measurement(cell.name, 2, CEILING, "copy", [1.0] * 2, others=[0.0] * 2)
    found.measurements.append(copy)
    return found


BUSY = [[0.0, 0.1], [1.3, 0.0], [1.3, 1.9]]


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(BUSY, repeat=2)))
@pytest.mark.parametrize("slower", [True, False])
def test_there_is_a_verdict_only_on_quiet_visits(ours, theirs, slower):
    """Half of the visits of each must have been quiet; the others do not count."""
    times = ([4.0, 4.0], [2.0, 2.0]) if slower else ([2.0, 2.0], [4.0, 4.0])
    results = results_of(*times, (ours, theirs))
    table = tables.mode_table(results, "fresh")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    said = " ".join(table.notes)
    if max(ours) > 1.5 or max(theirs) > 1.5:
        assert row["ratio"] == "?"
        assert "0 of 1 cells judged, 0 lost" in said
        assert "other processes took 1.9 of 2 cores during these visits: no conclusion" in said
        assert results.geometric_mean("fresh") is None
    else:
        assert row["ratio"] == ("0.50x slower" if slower else "2.0x")
        assert f"1 of 1 cells judged, {int(slower)} lost" in said
        assert "other processes" not in said
    assert row["% of copy"] == ("?" if max(ours) > 1.5 else "25 %" if slower else "50 %")


def test_visits_that_were_disturbed_do_not_count():
    results = results_of([1.0, 9.0, 1.2], [2.0, 2.0, 2.0], ([0.0, 1.5, 0.0], [0.0] * 3))
    assert results.seconds(CELL, US, "fresh") == pytest.approx(1.1)
    assert results.ratio(CELL, "fresh") == pytest.approx(2 / 1.1)


def test_nobody_is_ahead_if_the_visits_do_not_tell():
    results = results_of([1.0, 1.4, 1.5], [1.3, 1.2, 1.6], ([], []))
    assert results.lost("fresh") == []
    assert tables.verdict(results, CELL, "fresh") == "~0.93x"
    assert "1 even" in tables.verdict_notes(results, ["fresh"])[0]


def test_cells_without_a_peer_are_not_counted():
    results = results_of([1.0], [2.0], ([0.0], [0.0]))
    results.grid.append(OTHER.name)
    results.measurements.append(Measurement(OTHER.name, 2, US, "fresh", [1.0], others=[0.0]))
    assert "1 of 1 cells judged" in tables.verdict_notes(results, ["fresh"])[0]
    assert tables.verdict(results, OTHER, "fresh") == ""


def test_cells_that_were_left_out_are_counted_as_not_judged():
    results = results_of([1.0], [2.0], ([0.0], [0.0]))
    results.grid.append(OTHER.name)
    results.absent.append((OTHER.name, US, "no time was left"))
    assert "1 of 2 cells judged" in tables.verdict_notes(results, ["fresh"])[0]


# --- what is not installed ---

WITHOUT = """
import runpy, sys
for name in {absent!r}:
    sys.modules[name] = None
sys.argv = {argv!r}
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
NEEDS = {
    "bench": ["psutil", "rich", "matplotlib", "threadpoolctl", "ml_dtypes"],
    "bench.exactness": ["ml_dtypes"],
    "bench.options": ["psutil"],
    "bench.tiers": ["psutil"],
    "bench.softmax": ["psutil"],
    "bench.fresh": ["psutil"],
    "bench.contention": ["psutil"],
    "bench.cores": ["ml_dtypes", "psutil", "rich"],
    "bench.interrupts": ["jax", "optax"],
    "bench.fronts": ["rich", "psutil"],
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, needs in NEEDS.items() for n in needs])
def test_what_is_not_installed_is_said_in_one_line(module, name):
    program = WITHOUT.format(absent=[name], argv=[module])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "pip install -e '.[bench" in line


def test_exactness_leaves_out_what_is_not_there_and_says_so():
    pytest.importorskip("ml_dtypes")
    program = """
import importlib.util
there = importlib.util.find_spec
absent = ["torch", "jax", "optax", "sklearn"]
importlib.util.find_spec = lambda name: None if name in absent else there(name)
import sys
import bench.exactness as e
sys.argv[1:] = []
e.scenarios = lambda: [e.normal("N(0, 3), 10 classes", 9, 10, "f4")]
e.main()"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Not installed, so not compared: torch, jax + optax, scikit-learn." in done.stderr
    assert done.stdout.startswith("| largest error of loss / gradient, ulp | xentropy | scipy |")
