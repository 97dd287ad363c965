"""The benchmark of fine-tuning: the same curve with and without the patch, and what fits."""

import pytest

from bench.fronts.__main__ import shown
from bench.linear import fine_tuning
from bench.linear.fine_tuning import QUICK, WITH, WITHOUT


def test_both_models_learn_the_same():
    text = fine_tuning.torch.arange(1000) % QUICK.words
    runs = [fine_tuning.training(way, text, QUICK, QUICK.words) for way in (WITHOUT, WITH)]
    for _ in range(3):
        for run in runs:
            run.step()
    assert runs[0].curve == pytest.approx(runs[1].curve, rel=1e-5)
    assert runs[0].curve[-1] < runs[0].curve[0]


def test_what_fits_is_on_the_line_through_both_peaks(monkeypatch):
    """1,024 tokens take 1.0 GB, 1,536 take 1.5 GB: 15 GB more are 15,360 tokens more."""
    monkeypatch.setattr(fine_tuning, "said_by_fresh_process", lambda *_: [10**9, 1_500_000_000])
    a_token, tokens = fine_tuning.cost(WITHOUT, fine_tuning.FULL, 32_000)
    assert a_token == round(5e8 / 512)
    assert tokens == 1024 + 15360
    table = fine_tuning.fits_table(fine_tuning.FULL)
    assert [row[0] for row in table.rows] == ["32,000", "128,256", "262,144"]
    assert "| 32,000 | 976562 | 488281 | 16384 |" in shown(table).markdown()


def test_peaks_that_cannot_be_told_leave_the_table_empty(monkeypatch):
    monkeypatch.setattr(fine_tuning, "said_by_fresh_process", lambda *_: [None, None])
    assert fine_tuning.cost(WITH, fine_tuning.FULL, 32_000) == (None, None)
    assert fine_tuning.fits_table(QUICK).rows == [["500", *[None] * 5]]
