"""The command `xentropy evaluate`."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.files import LLAMA, npy
from helpers.processes import environment_at_start

import xentropy as xe
from xentropy.__main__ import main
from xentropy.cli import evaluate_plot, evaluate_run

BASE, OTHER = (str(LLAMA / f"{name}-16x1.kld") for name in ("base", "other"))
ROWS, CLASSES = 500, 11


@pytest.fixture
def files(tmp_path):
    """Logits, targets and groups as .npy; a function that names one."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "logits.npy", rng.normal(size=(ROWS, CLASSES)).astype(np.float32))
    np.save(tmp_path / "other.npy", rng.normal(size=(ROWS, CLASSES)).astype(np.float32))
    np.save(tmp_path / "target.npy", rng.integers(0, CLASSES, ROWS))
    np.save(tmp_path / "groups.npy", np.arange(ROWS) // 50)
    return lambda name: str(tmp_path / name)


def written(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


@pytest.mark.parametrize("block", [1 << 16, 7])
def test_the_figures_are_those_of_evaluation(files, capsys, monkeypatch, block):
    monkeypatch.setattr(evaluate_run, "BLOCK_ROWS", block)
    arguments = ["--groups", files("groups.npy"), "--json", files("o.json"), "--top", "1,3"]
    assert main(["evaluate", files("logits.npy"), files("target.npy"), *arguments]) == 0
    expected = xe.Evaluation(top=(1, 3))
    logits, target, groups = (np.load(files(f"{n}.npy")) for n in ("logits", "target", "groups"))
    expected.update(logits, target, group=groups)
    assert str(expected.result()) in capsys.readouterr().out
    found = written(files("o.json"))
    assert (found["rows_read"], found["complete"]) == (ROWS, True)
    assert found["evaluation"] == json.loads(json.dumps(expected.result().to_dict()))


def test_bytes_count_once(files, monkeypatch):
    monkeypatch.setattr(evaluate_run, "BLOCK_ROWS", 7)
    arguments = ["--bytes", "1234", "--json", files("o.json")]
    assert main(["evaluate", files("logits.npy"), files("target.npy"), *arguments]) == 0
    found = written(files("o.json"))["evaluation"]
    assert found["bytes"] == 1234
    assert found["bits_per_byte"] == pytest.approx(found["bits"] * ROWS / 1234, rel=1e-15)


@pytest.mark.parametrize("block", [1 << 16, 7])
def test_bytes_and_groups(files, monkeypatch, block):
    """A number of all bytes says nothing of those of the groups; a file does."""
    monkeypatch.setattr(evaluate_run, "BLOCK_ROWS", block)
    logits, target, groups = (np.load(files(f"{n}.npy")) for n in ("logits", "target", "groups"))
    sizes = np.random.default_rng(0).integers(1, 9, ROWS)
    np.save(files("sizes.npy"), sizes)
    for given, size in ((str(sizes.sum()), int(sizes.sum())), (files("sizes.npy"), sizes)):
        arguments = ["--bytes", given, "--groups", files("groups.npy"), "--json", files("o.json")]
        assert main(["evaluate", files("logits.npy"), files("target.npy"), *arguments]) == 0
        expected = xe.Evaluation()
        expected.update(logits, target, group=groups, bytes=size)
        found = written(files("o.json"))["evaluation"]
        assert found == json.loads(json.dumps(expected.result().to_dict()))


def test_the_axis_and_bfloat16(files):
    bits = (np.load(files("logits.npy")).view(np.uint32) >> 16).astype(np.uint16)
    np.save(files("t.npy"), bits.T)
    how = ["--axis", "0", "--dtype", "bfloat16", "--json", files("o.json")]
    assert main(["evaluate", files("t.npy"), files("target.npy"), *how]) == 0
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    loss = xe.cross_entropy(wide.astype(np.float64), np.load(files("target.npy")))
    found = written(files("o.json"))["evaluation"]["nats"]
    assert found == pytest.approx(loss, rel=1e-6)  # float32 arithmetic


def test_two_models_of_llama_cpp(capsys, tmp_path):
    """The figures that tests/files/test_llama.py has from the bytes of the files."""
    path = str(tmp_path / "o.json")
    assert main(["evaluate", OTHER, "--against", BASE, "--json", path]) == 0
    found = written(path)
    assert found["evaluation"]["perplexity"] == found["paired"]["perplexity"]
    for name, expected in (
        ("perplexity", 75951.87766176974),
        ("base_perplexity", 66726.47106986957),
        ("kl", 0.021554461155899568),
    ):
        assert found["paired"][name] == pytest.approx(expected, rel=1e-12)
    assert "KL divergence" in capsys.readouterr().out


def test_the_picture(files):
    pytest.importorskip("matplotlib")
    for path in (files("o.png"), files("o.svg")):
        assert main(["evaluate", files("logits.npy"), files("target.npy"), "--plot", path]) == 0
        assert os.path.getsize(path) > 5000


def test_the_losses_of_the_picture(files, monkeypatch):
    """Counted in the same pass; what is above the last bar is in it, and nan in none."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(evaluate_run, "BLOCK_ROWS", 7)
    logits, target = np.load(files("logits.npy")), np.load(files("target.npy"))
    logits[3], target[5] = np.nan, -100
    logits[9], target[9] = np.arange(CLASSES) * 9, 0
    np.save(files("logits.npy"), logits)
    np.save(files("target.npy"), target)
    drawn = []
    monkeypatch.setattr(evaluate_plot, "draw", lambda counted, path: drawn.append(counted))
    arguments = [files("logits.npy"), files("target.npy"), "--plot", files("o.png")]
    assert main(["evaluate", *arguments]) == 0
    found = drawn[0].evaluation
    loss = xe.cross_entropy(logits, target, reduction="none")[target != -100]
    assert found.edges[-1] < loss[8] == np.nanmax(loss)
    expected, _ = np.histogram(np.clip(loss[~np.isnan(loss)], 0, found.edges[-1]), found.edges)
    np.testing.assert_array_equal(found.counts, expected)


def test_errors_are_one_line(files, capsys):
    logits, target = files("logits.npy"), files("target.npy")
    np.save(files("far.npy"), np.full(ROWS, CLASSES))
    np.save(files("short.npy"), np.zeros(ROWS - 1, int))
    np.save(files("less.npy"), np.where(np.arange(ROWS) == 2, -1, 3))
    np.save(files("narrow.npy"), np.zeros((ROWS, 3)))
    wrong = {
        (logits,): "has no targets; a file of them can follow it as TARGET",
        (logits, logits): "float32, not integers",
        (logits, files("short.npy")): r"shape \(499,\), but the rows \(500,\)",
        (logits, files("far.npy")): r"far.npy, from row 0: target\[0\] = 11 is out of range",
        (logits, target, "--against", files("narrow.npy")): "500 rows of 3 classes, but",
        (logits, target, "--name", "x"): "name = 'x' goes with safetensors",
        (logits, target, "--bytes", files("less.npy")): r"less.npy, from row 0: bytes\[2\] = -1 is",
    }
    for arguments, said in wrong.items():
        assert main(["evaluate", *arguments]) == 1
        output = capsys.readouterr()
        assert re.fullmatch(rf"xentropy: .*{said}.*\n", output.err), output.err
        assert output.out == ""


def test_other_targets_are_of_another_text(tmp_path, capsys):
    data = bytearray((LLAMA / "base-16x1.kld").read_bytes())
    data[20 + 4 * 10] ^= 1  # the second token that is predicted
    path = tmp_path / "changed.kld"
    path.write_bytes(data)
    assert main(["evaluate", OTHER, "--against", str(path)]) == 1
    assert re.search("another target .* in row 1$", capsys.readouterr().err)


def test_ctrl_c_prints_what_has_been_counted(files, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_run, "BLOCK_ROWS", 100)
    real = evaluate_run.count_block

    def interrupted(counted, inputs, start, stop, more):
        if start == 200:
            signal.raise_signal(signal.SIGINT)
        real(counted, inputs, start, stop, more)

    monkeypatch.setattr(evaluate_run, "count_block", interrupted)
    arguments = [files("logits.npy"), files("target.npy"), "--json", files("o.json")]
    assert main(["evaluate", *arguments]) == 130
    output = capsys.readouterr().out
    assert "Interrupted after 300 of 500 rows (60%)" in output
    expected = xe.Evaluation()
    expected.update(np.load(files("logits.npy"))[:300], np.load(files("target.npy"))[:300])
    assert str(expected.result()) in output
    found = written(files("o.json"))
    assert (found["rows_read"], found["complete"]) == (300, False)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_as_a_process(files):
    """Of sparse files that would take minutes. Rows are short: few bytes are read in seconds."""
    rows = 1 << 30
    for name, shape, kind in (("long", (rows, 2), "<f2"), ("zeros", (rows,), "|i1")):
        start = npy(shape, kind, data=b"")
        with open(files(f"{name}.npy"), "wb") as file:
            file.write(start)
            file.truncate(len(start) + math.prod(shape) * int(kind[-1]))
    process = subprocess.Popen(
        [sys.executable, "-m", "xentropy", "evaluate", files("long.npy"), files("zeros.npy")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_at_start(),
    )
    line = process.stdout.readline()  # of the progress, after five seconds
    assert re.search(r"% of 1,073,741,824 rows, .* left", line)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "")
    assert re.search(r"Interrupted after [\d,]+ of 1,073,741,824 rows", output)
    assert re.search(r"perplexity +2\.0000", output)


WITHIN_100_MB = """
import resource, sys
from xentropy.__main__ import main
small, large = sys.argv[1:3], sys.argv[3:5]
assert main(["evaluate", *small]) == 0  # imports all, and starts the threads
with open("/proc/self/status") as file:
    (own,) = (int(line.split()[1]) for line in file if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, [own * 1024 + 100_000_000] * 2)
sys.exit(main(["evaluate", *large]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of private memory is Linux's")
def test_a_file_larger_than_memory(files):
    """80 GB, of which one row in 400 counts and is read: the others are holes in the file."""
    rows, classes = 200_000, 100_000
    start = npy((rows, classes), "<f4", data=b"")
    with open(files("large.npy"), "wb") as file:
        file.write(start)
        file.truncate(len(start) + 4 * rows * classes)
    labels = np.full(rows, -100)
    labels[::400] = 7
    np.save(files("labels.npy"), labels)
    paths = map(files, ("logits.npy", "target.npy", "large.npy", "labels.npy"))
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_100_MB, *paths],
        capture_output=True,
        text=True,
        env=environment_at_start() | {"OMP_NUM_THREADS": "2"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"500 tokens.*\n.*\n.*\nperplexity +100,000\.0000", done.stdout)


def test_durations():
    assert evaluate_run.duration(0.4) == "0 s"
    assert evaluate_run.duration(59.6) == "0:01:00"
    assert evaluate_run.duration(7384) == "2:03:04"
