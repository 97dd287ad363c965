"""The grid under pytest-benchmark, grouped by cell and mode.

    pytest bench --benchmark-only -k "1024x32000 and fresh" --benchmark-save=before
    pytest bench --benchmark-only -k "1024x32000 and fresh" --benchmark-compare

All peers share this process and its threads; `python -m bench` keeps them apart and measures
memory, errors and the ceiling too. Nothing about time is asserted.
"""

import functools

import numpy as np
import pytest

from . import accuracy
from .cells import GRID, MODES, aligned, make_logits, make_target
from .peers import PEERS, Inputs
from .run import MEMORY_TIMES, available_bytes
from .stopwatch import SHORT

# What the libraries of others warn of is not for this suite to judge.
pytestmark = pytest.mark.filterwarnings("default")


@functools.lru_cache(maxsize=1)
def inputs_of(cell):
    """The numbers of a cell, and the right answer; one cell is kept."""
    logits = make_logits(cell, aligned(cell.shape, cell.numpy_dtype))
    inputs = Inputs(cell, logits, make_target(cell))
    return inputs, accuracy.exact(cell, logits, inputs.target)


@functools.cache
def prepare_of(name):
    from xentropy import get_num_threads

    return PEERS[name].make(get_num_threads())


CASES = [
    pytest.param(cell, mode, name, id=f"{cell.name}-{mode}-{name}")
    for cell in GRID
    for mode in MODES
    for name, peer in PEERS.items()
    if mode in peer.modes and not peer.why_not(cell)
]


@pytest.mark.parametrize(("cell", "mode", "name"), CASES)
def test_speed(benchmark, cell, mode, name):
    peer = PEERS[name]
    if not peer.installed:
        pytest.skip(f"{name} is not installed")
    if MEMORY_TIMES * cell.nbytes > available_bytes():
        pytest.skip(f"{cell.name} needs {MEMORY_TIMES * cell.nbytes / 2**30:.1f} GiB of memory")
    if cell.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    inputs, truth = inputs_of(cell)
    way = prepare_of(name)(inputs)[mode]
    benchmark.group = f"{cell.name}, {MODES[mode]}"

    def setup():
        if way.before is not None:
            way.before()

    setup()
    loss, gradient = peer.answer(way.run())
    divisor = cell.rows if peer.divides else 1
    benchmark.extra_info |= accuracy.compare(cell, truth, loss, gradient, divisor)
    assert np.isfinite(benchmark.extra_info["loss_ulp"]) or benchmark.extra_info["wrong"]
    del loss, gradient
    if way.before is None or cell.elements < SHORT * 1e9:
        benchmark(way.run)
    else:
        benchmark.pedantic(way.run, setup=setup, rounds=5, warmup_rounds=1)
