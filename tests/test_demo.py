"""The demonstration, on a small library of generated sources."""

import functools
import io
import re
import subprocess
import sys

import numpy as np
import pytest

from xentropy import reference
from xentropy.__main__ import COMMANDS, main
from xentropy.cli import demo, demo_data, demo_model, demo_progress, demo_report

STEPS = 12


def write_library(folder, files=40, lines=120):
    """A folder of Python-like files with repeating names, about 150 kB."""
    rng = np.random.default_rng(0)
    names = ["value", "index", "result", "self", "buffer", "length", "_cache", "item"]
    for number in range(files):
        pick = rng.choice(names, (lines, 3))
        text = "".join(f"    {a}.{b} = {c}({a}, {b})\n" for a, b, c in pick)
        path = folder / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def f{number}():\n{text}", encoding="ascii")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The generated library in the place of the standard one, and training of a few steps."""
    write_library(tmp_path)
    monkeypatch.setattr(demo, "library", lambda: tmp_path)
    monkeypatch.setattr(demo_data, "TABLE_BITS", 12)
    monkeypatch.setattr(demo, "run", functools.partial(demo.run, steps=STEPS))
    return tmp_path


def figure(output, name):
    """The number that follows `name` in what was printed."""
    return float(re.search(rf"{re.escape(name)}\s+([\d.,]*\d(e-\d+)?)", output)[1].replace(",", ""))


def test_the_figures(library, capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    model = figure(output, "this model")
    assert 0 < model < figure(output, "single bytes (entropy)")
    for name in ("lzma, preset 9 extreme", "bz2, level 9", "zlib, level 9"):
        assert 0 < figure(output, name) < 8
    assert figure(output, "Perplexity of this model:") == pytest.approx(2**model, abs=0.01)
    assert figure(output, "difference from float64: gradient") < 1e-5
    times = re.findall(r"^  (xentropy|NumPy, float32) +([\d.]+) ms +(\d+)%(.*)$", output, re.M)
    assert [name for name, *_ in times] == ["xentropy", "NumPy, float32"]
    assert all(0 <= int(share) <= 100 for _, _, share, _ in times)
    assert "times ours" in times[1][3]
    assert "learned from the other files" in output
    assert f"{STEPS * demo_model.BATCH / 1e6:.2f} million bytes" in output


@pytest.mark.parametrize("columns", [40, 80])
def test_the_demonstration_fits_a_narrow_terminal(library, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("held-out files" in line for line in lines) >= 1


def test_what_is_compared_is_the_same_calculation():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 256)).astype(np.float32)
    labels = rng.integers(256, size=50).astype(np.uint8)
    exact = reference.cross_entropy_with_grad(logits, labels, reduction="none")
    ways = {"numpy": lambda: demo_report.in_numpy(logits, labels)}
    if torch := demo_report.in_torch(logits, labels):
        ways |= [torch]
    for way in ways.values():
        for part, right in zip(way(), exact, strict=True):
            assert part.dtype == np.float32 or "float32" in str(part.dtype)
            np.testing.assert_allclose(np.asarray(part), right, rtol=1e-5, atol=1e-6)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_progress_on_a_terminal_is_one_line_of_its_width(monkeypatch, rich):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr(demo_progress, "rich_bar", lambda stream: None)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with demo_progress.Progress() as progress:
        for share in (0.1, 0.5):
            progress.last = 0.0
            progress.show(share, "word " * 30)
        progress.done("3 files")
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())
    assert "3 files" in text
    assert "word" in text
    assert max(map(len, re.split(r"[\r\n]", text))) <= 40


def test_progress_without_a_terminal_is_a_line_every_five_seconds(monkeypatch, capsys):
    with demo_progress.Progress() as progress:
        progress.show(0.1, "too early")
        progress.last -= 6
        progress.show(0.2, "20 %")
        progress.done("read")
    shown, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r" +\d+\.\d s  20 %", shown)
    assert last.endswith("read")


def test_reading_is_shown(library):
    seen = []
    files = demo_data.sources(library, seen.append)
    assert seen == list(range(1, len(files) + 1))
    shares = []
    demo_data.Corpus(list(files.values()), shares.append)
    assert len(shares) == len(files)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_seed_and_steps_make_the_model(library, capsys):
    bits = [demo.run(seconds=30, seed=seed) for seed in (1, 1, 2)]
    assert bits[0] == bits[1]
    assert bits[0] != bits[2]


def test_seconds_end_the_training(library, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run", demo.run.func)
    assert main(["--seconds", "0.001"]) == 0
    assert "this model" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["", "no such folder"])
def test_sources_missing(tmp_path, monkeypatch, capsys, folder):
    (tmp_path / "os.pyc").write_bytes(bytes(200_000))
    monkeypatch.setattr(demo, "library", lambda: tmp_path / folder)
    assert main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sources of the standard library" in captured.err
    assert str(tmp_path) in captured.err


def test_tests_and_installed_packages_are_left_out(library):
    before = demo_data.sources(library)
    for name in ("site-packages", "__pycache__", "test"):
        (library / name).mkdir()
        (library / name / "other.py").write_bytes(b"pass\n")
    assert demo_data.sources(library) == before


def test_files_are_held_out_whole(library):
    files = demo_data.sources(library)
    training, held_out = demo_data.split(files, seed=0)
    assert sorted(training + held_out) == sorted(files.values())
    assert 0 < sum(map(len, held_out)) <= sum(map(len, files.values())) // 5
    assert demo_data.split(files, seed=0) == (training, held_out)
    assert demo_data.split(files, seed=1) != (training, held_out)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert "--seconds" in output
    assert "--seed" in output
    assert all(f"\n  {name} " in output for name in COMMANDS)


def test_the_default_subcommand_by_its_name(library, capsys):
    assert main(["demo", "--seed", "1"]) == 0
    assert "this model" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["nothing"], ["config", "--seconds", "5"]])
def test_unknown_arguments(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "unrecognized" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_must_be_a_time(seconds, capsys):
    with pytest.raises(SystemExit) as end:
        main([f"--seconds={seconds}"])
    assert end.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_config(capfd):
    assert main(["config"]) == 0
    assert capfd.readouterr().out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "xentropy", "--help"], capture_output=True, text=True, check=True
    )
    assert "config" in done.stdout


@pytest.mark.parametrize("distinct", [1, 3, 40, 1000])
def test_rows_of_one_context_are_summed(distinct):
    rng = np.random.default_rng(distinct)
    # Squared: some contexts are frequent (long runs), some come once.
    context = (distinct * rng.random(500) ** 2).astype(np.uint16)
    grad = rng.integers(-100, 100, (500, demo_data.CLASSES)).astype(np.float32)  # sums are exact
    expected = np.zeros((distinct, demo_data.CLASSES), np.float32)
    np.add.at(expected, context, grad)
    where, total = demo_model.sum_by_context(context, grad)
    assert sorted(where) == sorted(set(context))
    np.testing.assert_array_equal(total, expected[where])


def test_contexts_know_nothing_of_what_comes():
    rng = np.random.default_rng(0)
    text = b"".join(rng.choice([b"name", b"other_1", b" = ", b"\n    ", b"(", b")"], 300))
    known = demo_data.contexts(text)
    for at in (0, 1, 7, 200, len(text) - 1):
        changed = text[:at] + bytes(rng.integers(0, 256, len(text) - at, np.uint8))
        np.testing.assert_array_equal(demo_data.contexts(changed)[: at + 1], known[: at + 1])


def test_a_file_of_one_byte_has_contexts():
    assert demo_data.contexts(b"x").shape == (1, demo_data.TABLES)


def test_recall_is_the_byte_after_the_last_repeat():
    text = np.frombuffer(b"abcabdab?", np.uint8).astype(np.uint64)
    two_before = demo_data.mix(
        demo_data.mix(np.zeros_like(text), demo_data.shifted(text, 1)), demo_data.shifted(text, 2)
    )
    assert demo_data.recall(text, two_before)[[2, 5, 8]].tolist() == [256, ord("c"), ord("d")]
