"""What a fresh result costs: the command measures what it says."""

import pytest

pytest.importorskip("resource", reason="page faults are counted by getrusage")
from bench import fresh, quiet


def test_a_table_has_a_row_for_every_size(capsys, monkeypatch):
    monkeypatch.setattr(quiet, "SHARE", 1.0)  # of all cores: tests run side by side
    fresh.print_table([], [1 << 16, 1 << 20], 1, 2)
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("| alone | fresh / us | out= / us |")
    for row, size in zip(rows, ("64 KB", "1024 KB"), strict=True):
        name, *numbers = row.strip("| ").split(" | ")
        assert name == size
        slow, quick, ratio, faults = map(float, numbers)
        assert ratio == pytest.approx(slow / quick, rel=0.02)  # three digits each
        assert faults >= 0
