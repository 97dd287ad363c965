"""How speed grows with the cores: the table says what was measured, and what it predicts."""

import json
import sys

import pytest

from bench import cores
from bench.cells import Cell
from bench.peers import US
from bench.results import CEILING, Measurement, Results

BIG, SMALL = Cell.parse("1000x2000"), Cell.parse("10x10")


def test_predicted_are_n_times_one_thread_within_the_ceiling():
    seconds = {  # of one thread and of four: 2e6 elements
        (BIG, US, "out"): (4e-3, 2e-3),
        (BIG, CEILING, "copy"): (2e-3, 1.25e-3),
        (BIG, US, "loss"): (2e-3, 0.6e-3),
        (BIG, CEILING, "read"): (1e-3, 0.25e-3),
        (SMALL, US, "out"): (1e-7, 1e-7),
    }
    results = Results({"threads": 4, "cores": 4}, grid=[BIG.name])
    results.measurements = [
        Measurement(cell.name, n, peer, mode, [each])
        for (cell, peer, mode), pair in seconds.items()
        for n, each in zip((1, 4), pair, strict=True)
    ]
    assert cores.predicted(results, BIG, "out", 1) == pytest.approx(0.5)
    assert cores.predicted(results, BIG, "out", 4) == pytest.approx(1.6)  # the copy, not 2
    assert cores.predicted(results, BIG, "loss", 4) == pytest.approx(4)
    assert cores.predicted(results, SMALL, "out", 4) == pytest.approx(4)  # in cache: no ceiling
    line = "| 1000x2000 | 4 | 3.33 | 3.3 | 4.00 | 42 % | 1.00 | 2.0 | 1.60 | 62 % |"
    assert cores.table(results).markdown().splitlines()[3] == line


def test_command_measures_saves_and_shows_again(tmp_path, capsys):
    pytest.importorskip("rich", reason="prints the table")
    path = tmp_path / "cores.json"
    words = ["--quick", "--threads", "1", "2", "--cells", "64x1000", "--budget", "0.001"]
    if len(cores.quiet.cores()) < 2 or sys.platform != "linux":
        words.remove("2")
    cores.main([*words, "--save", str(path)])
    shown = capsys.readouterr().out
    assert "64x1000" in shown
    measured = json.loads(path.read_text())["measurements"]
    assert {m["mode"] for m in measured} == {*cores.MODES, *cores.OF_MODE.values()}
    cores.main(["--load", str(path)])
    table = capsys.readouterr().out
    assert table.splitlines()[-1] in shown
