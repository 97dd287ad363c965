"""The benchmark of the fronts: tables, pages, what is absent. Of times nothing is asserted."""

import json
import subprocess
import sys

import pytest

from bench.fronts import __main__ as fronts
from bench.fronts.table import Table

HEADER = {
    "date": "2026-01-02",
    "cpu": "Some CPU",
    "cores": 2,
    "tier": "x86_64_v3",
    "compiler": "GCC",
    "openmp": "libgomp",
    "wait_policy": "default",
    "threads": 2,
    "system": "Linux",
    "python": "3.11",
    "versions": {"torch": "2.13"},
}
ROWS = [["32x10", 0.041234, None], ["1x1", 7, "text"]]
RESULTS = {
    "torch": {
        "header": HEADER,
        "tables": [{"name": "torch", "title": "T", "columns": ["cell", "a", "b"], "rows": ROWS,
                    "notes": ["A note."]}],
    }
}  # fmt: skip


def test_a_table_as_text():
    table = fronts.shown(Table("torch", "T", ["cell", "a", "b"], ROWS, ["A note."]))
    assert table.markdown() == (
        "| cell | a | b |\n| --- | ---: | ---: |\n"
        "| 32x10 | 0.0412 |  |\n| 1x1 | 7 | text |\n\nA note."
    )


def test_a_page_is_filled_between_its_marks_and_only_there():
    mark = "<!-- fronts: torch from {} -->\n"
    other = "<!-- bench: torch from x -->\nkeep\n<!-- bench: end -->\n"
    text = other + mark.format("old.json") + "old\n<!-- fronts: end -->\nafter\n"
    filled = fronts.filled(text, RESULTS, "new.json")
    assert filled.startswith(other + mark.format("new.json"))
    assert "old" not in filled
    assert "| 32x10 | 0.0412 |  |" in filled
    assert "> Some CPU, 2 cores, 2 threads" in filled
    assert filled.endswith("<!-- fronts: end -->\nafter\n")
    assert fronts.filled(filled, RESULTS, "new.json") == filled


def test_a_table_that_was_not_measured_leaves_its_part_of_a_page_alone():
    part = "<!-- fronts: jax from old.json -->\nold\n<!-- fronts: end -->\n"
    assert fronts.filled(part, RESULTS, "new.json") == part


def test_what_the_pages_show_is_what_was_saved():
    shown = set()
    for page in fronts.report.PAGES:
        text = page.read_text(encoding="utf-8")
        for source in fronts.report.sources(text, fronts.MARK):
            results = json.loads((fronts.report.ROOT / source).read_text(encoding="utf-8"))
            assert fronts.filled(text, results, source) == text
            known = fronts.named_tables(results)
            for match in fronts.MARK.finditer(text):
                if match[3] == source and match[2] not in known:
                    assert match[0] == match[1] + match[4], f"{match[2]} is not in the results"
        shown |= {match[2] for match in fronts.MARK.finditer(text)}
    assert {"torch", "language_model", "jax", "boosting_rounds"} <= shown


def test_an_absent_library_is_said_and_other_results_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fronts.FRONTS, "torch", ("torch_front", ("no-such-library",)))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    fronts.main(["--quick", "--front", "torch", "--save", str(path)])
    assert "torch: not measured, no-such-library not installed." in capsys.readouterr().out
    assert json.loads(path.read_text()) == RESULTS


def test_a_front_that_is_there_is_measured_and_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fronts.FRONTS, "torch", ("fake_front", ("numpy",)))
    table = Table("fake", "A title", ["cell", "x"], [["1x1", 1.5]], [])
    module = type(sys)("bench.fronts.fake_front")
    module.tables = lambda quick: [table] if quick else []
    module.__spec__ = True  # it is there
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "results.json"
    fronts.main(["--quick", "--front", "torch", "--save", str(path)])
    assert "A title" in capsys.readouterr().out
    saved = json.loads(path.read_text())["torch"]
    assert saved["tables"][0]["rows"] == [["1x1", 1.5]]
    assert "numpy" in saved["header"]["versions"]


def test_memory_of_the_torch_front_is_the_gradient_or_nothing():
    """1024 x 2000 float32: 8 MB; what else a process grows by is below a tenth of it."""
    pytest.importorskip("torch", reason="it is what is measured")
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process is known on Linux only")
    found = {}
    for way in ("xentropy.torch", "inplace=True"):
        command = [sys.executable, "-m", "bench.fronts.torch_front", way, "1024x2000"]
        said = subprocess.run(
            command, cwd=fronts.report.ROOT, capture_output=True, text=True, check=True
        )
        found[way] = int(said.stdout.split()[-1]) / (4 * 1024 * 2000)
    assert found["inplace=True"] < 0.1
    assert 0.9 < found["xentropy.torch"] < 1.1
