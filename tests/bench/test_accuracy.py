"""The benchmark's cells, its measures of errors, time and memory; and that all peers are right."""

import importlib.util
import math

import numpy as np
import pytest

from bench import accuracy, confidence, stopwatch
from bench.cells import Cell, make_logits, make_target
from bench.peers import PEERS, Inputs, Way
from xentropy import reference

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
