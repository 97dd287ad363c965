"""Memory of a linear cross entropy: a buffer of the size that it is told, whatever the rows."""

import sys
import tracemalloc

import numpy as np
import pytest
from helpers.layouts import at_offset, every_second
from helpers.processes import run
from helpers.support import bfloat16

import xentropy as xe
from xentropy._linear import _plan

CLASSES, FEATURES = 32_000, 4
BUFFER = 256 * CLASSES * 4  # 256 rows
ROW_BYTES = 48  # of labels, weights and losses of the batch
SLACK = 4 << 20  # scratch of two threads, converted class weights, a chunk's labels


@pytest.fixture
def tile(monkeypatch):
    """Smaller tiles, so that smaller arrays are large beside them; elements of one."""
    monkeypatch.setattr(_plan, "TILE_ELEMENTS", 1 << 16)
    return 1 << 16


def beyond_gradients(function):
    """The most memory that was allocated at a time, beyond the results."""
    function()  # what Python loads for a first call
    tracemalloc.start()
    try:
        result = function()
        most = tracemalloc.get_traced_memory()[1]
        del function
    finally:
        tracemalloc.stop()
    arrays = [a for a in (result[1] if isinstance(result, tuple) else ()) if a is not None]
    return most - sum(a.nbytes for a in arrays)


def calls(rows, features, classes, dtype="float32", **options):
    """The loss alone, and with all gradients."""
    x, layer = np.ones((rows, features), dtype), np.ones((classes, features), dtype)
    target = np.arange(rows) % classes
    options |= {"linear_bias": np.zeros(classes, dtype), "n_threads": 2}
    yield lambda: xe.linear_cross_entropy(x, layer, target, **options)
    yield lambda: xe.linear_cross_entropy_with_grad(x, layer, target, **options)


def assert_the_same_peak(most_rows):
    options = {"logits_bytes": BUFFER, "weight": np.ones(CLASSES)}
    few = [beyond_gradients(f) for f in calls(512, FEATURES, CLASSES, **options)]  # two chunks
    many = [beyond_gradients(f) for f in calls(most_rows, FEATURES, CLASSES, **options)]
    for small, large in zip(few, many, strict=True):
        assert BUFFER < small < BUFFER + SLACK
        assert large < small + ROW_BYTES * most_rows


def test_the_peak_does_not_grow_with_the_rows():
    assert_the_same_peak(1536)


@pytest.mark.slow
def test_the_peak_does_not_grow_up_to_65536_rows():
    assert_the_same_peak(65_536)


def test_bytes_of_a_row():
    """All weights, many rows that do not count, and a tiny buffer: what is left is by row."""
    rows = 400_000
    x, layer = np.ones((rows, 1), "f4"), np.ones((2, 1), "f4")
    target = np.arange(rows, dtype="i4") % 3 - 1
    options = {"weight": np.ones(2), "sample_weight": np.arange(rows, dtype="f4") % 7}
    options |= {"ignore_index": -1, "logits_bytes": 1 << 16}

    def loss():
        return xe.linear_cross_entropy(x, layer, target, **options)

    assert beyond_gradients(loss) < ROW_BYTES * rows + SLACK


def test_a_small_problem_takes_what_it_needs():
    for call in calls(20, 16, 1000):
        assert beyond_gradients(call) < 20 * 1000 * 4 + 16 * 1000 * 4 + (1 << 18)


@pytest.mark.parametrize("dtype", ["float16", bfloat16, ">f4", "f8"], ids=str)
def test_no_array_is_copied_as_a_whole(tile, dtype):
    """Beside the buffer: tiles of the weight, a chunk of the input, and the sum that is rounded."""
    rows, features, classes, slack = 40, 256, 8000, 1 << 20
    each = 8 if dtype == "f8" else 4
    whole = classes * features * each
    buffer = 16 * classes * each
    workspace = buffer + 3 * tile * each + 3 * 16 * features * each + slack
    assert workspace < buffer + whole / 2
    loss, with_grad = calls(rows, features, classes, dtype, logits_bytes=buffer)
    sums = whole if np.dtype(dtype).itemsize == 2 else 0
    assert beyond_gradients(loss) < workspace
    assert beyond_gradients(with_grad) < workspace + sums
    rows, classes = 8000, 8
    _, with_grad = calls(rows, features, classes, dtype, logits_bytes=256 * classes * each)
    workspace = 3 * 256 * features * each + ROW_BYTES * rows + slack
    assert beyond_gradients(with_grad) < workspace < rows * features * each / 1.5


def test_float32_out_is_the_sum_of_16_bit_gradients(tile):
    features, classes = 256, 8000
    x, layer = np.ones((40, features), "f2"), np.ones((classes, features), "f2")
    target, out = np.zeros(40, int), np.empty((classes, features), "f4")
    buffer = 16 * classes * 4
    options = {"logits_bytes": buffer, "wanted": ("linear_weight",)}

    def call():
        xe.linear_cross_entropy_with_grad(x, layer, target, out=(None, out, None), **options)

    assert beyond_gradients(call) < buffer + 2 * tile * 4 + (1 << 20) < buffer + out.nbytes / 2


ARRANGED = {
    "unaligned": lambda a: at_offset(a, 0, 1),
    "axes that do not merge": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "gaps": every_second,
}


@pytest.mark.parametrize("layout", ARRANGED)
def test_strided_arrays_are_not_copied(tile, layout):
    """Neither a large input beside a small weight, nor the weight."""
    arrange, buffer, slack = ARRANGED[layout], 1 << 20, 1 << 20
    x, layer = np.ones((100, 80, 256), "f4"), np.ones((8, 256), "f4")
    inputs = (arrange(x), layer, np.zeros((100, 80), int)), x
    weight = np.ones((8000, 256), "f4")
    moved = weight if layout.startswith("axes") else arrange(weight)
    weights = (np.ones((40, 256), "f4"), moved, np.zeros(40, int)), weight
    for arguments, large in (inputs, weights):

        def call(arguments=arguments):
            return xe.linear_cross_entropy_with_grad(*arguments, logits_bytes=1 << 13, n_threads=1)

        rows = arguments[2].size
        workspace = 3 * tile * 4 + 3 * 256 * 256 * 4 + ROW_BYTES * rows + slack
        assert beyond_gradients(call) < buffer + workspace < large.nbytes / 1.2


def test_probabilities_are_not_copied():
    """Nor are they where rows do not count, or axes do not merge."""
    shape = 4, 300
    x, layer = np.ones((*shape, 3), "f4"), np.ones((4000, 3), "f4")
    p = np.full((*shape[::-1], 4000), 1 / 4000, "f4").swapaxes(0, 1)
    options = {"logits_bytes": 100 * 4000 * 4, "sample_weight": np.arange(1200.0).reshape(shape)}

    def call():
        return xe.linear_cross_entropy_with_grad(x, layer, p, **options)

    assert beyond_gradients(call) < 100 * 4000 * 4 + SLACK < p.nbytes


PEAK = f"""
from types import SimpleNamespace
import numpy as np, xentropy as xe
from bench.stopwatch import peak_extra_bytes

layer = np.ones(({CLASSES}, {FEATURES}), "f4")
for rows in (256, 2048):
    x, target = np.ones((rows, {FEATURES}), "f4"), np.zeros(rows, int)
    def call():
        return xe.linear_cross_entropy_with_grad(x, layer, target, logits_bytes={BUFFER})
    call()
    print(peak_extra_bytes(SimpleNamespace(before=None, run=call)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")
def test_the_process_grows_by_the_buffer():
    """BLAS too takes nothing that grows with the rows."""
    few, many = map(int, run(PEAK).split())
    assert few < BUFFER + (16 << 20)
    assert many < few + (8 << 20) < 2048 * CLASSES * 4
