"""No temporary of the size of the input, no growth, and MemoryError where there is no memory."""

import os
import sys
import tracemalloc

import numpy as np
import pytest
from helpers.processes import run
from helpers.support import make_logits, make_target

import xentropy as xe

on_every_tier = pytest.mark.usefixtures("tier")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")

SHAPE = 2048, 1500
# Two threads of 32 Ki float64 elements each for logits and for probabilities, and what goes
# with them; the smallest input here has 6 MB.
SCRATCH = 2 << 20


def peak(function):
    """The most memory that was allocated at a time, beyond what was before."""
    function()  # what Python loads for a first call
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "axis 0": lambda x: np.ascontiguousarray(x.T).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_cross_entropy_needs_scratch_alone(stored, kind, layout):
    x = LAYOUTS[layout](make_logits(SHAPE, stored))
    target = make_target(kind, SHAPE)
    out = np.empty_like(x)
    calls = {
        "loss": lambda: xe.cross_entropy(x, target, label_smoothing=0.1, n_threads=2),
        "out": lambda: xe.cross_entropy_with_grad(x, target, out=out, n_threads=2),
    }
    for name, call in calls.items():
        assert peak(call) < SCRATCH, name


@on_every_tier
def test_a_fresh_gradient_is_all_that_is_allocated():
    x, target = make_logits(SHAPE, np.float32), make_target("labels", SHAPE)
    assert peak(lambda: xe.cross_entropy_with_grad(x, target, n_threads=2)) < x.nbytes + SCRATCH


@on_every_tier
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("call", [xe.softmax, xe.log_softmax])
def test_softmax_writes_to_its_result(call, axis):
    x = make_logits(SHAPE, np.float32)
    out = np.empty_like(x)
    assert peak(lambda: call(x, axis, out=out, n_threads=2)) < SCRATCH


@on_every_tier
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("call", [xe.logsumexp, xe.entropy])
def test_reductions_need_scratch_alone(call, axis):
    x = make_logits(SHAPE, np.float32)
    assert peak(lambda: call(x, axis=axis, n_threads=2)) < SCRATCH


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_row_statistics_needs_scratch_alone(stored, layout):
    """And its results: up to 56 bytes a row, a tenth of the bound."""
    x, target = LAYOUTS[layout](make_logits(SHAPE, stored)), make_target("labels", SHAPE)
    for options in ({}, {"softcap": 3.0, "logit_scale": 0.7}):
        assert peak(lambda o=options: xe.row_statistics(x, target, n_threads=2, **o)) < SCRATCH


@on_every_tier
def test_kl_divergence_needs_scratch_alone():
    x, target = make_logits(SHAPE, np.float32), make_target("probabilities", SHAPE)
    assert peak(lambda: xe.kl_divergence(target, x, n_threads=2)) < SCRATCH


@pytest.mark.parametrize("layout", LAYOUTS)
def test_distillation_needs_scratch_alone(layout):
    x, y = (LAYOUTS[layout](make_logits(SHAPE, np.float32, seed=seed)) for seed in (0, 1))
    out = np.empty_like(x)
    for beta in (0, 0.5, 1):
        options = {"beta": beta, "n_threads": 2}
        assert peak(lambda o=options: xe.distillation_loss(x, y, **o)) < SCRATCH
        assert peak(lambda o=options: xe.distillation_loss_with_grad(x, y, out=out, **o)) < SCRATCH


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0}], ids=str)
def test_selected_log_probs_need_scratch_alone(layout, options):
    x = LAYOUTS[layout](make_logits(SHAPE, np.float32))
    index, out = make_target("labels", SHAPE), np.empty_like(x)
    found = xe.selected_log_probs(x, index, **options)
    arguments = x, index, found.lse, found.log_prob, found.entropy, found.log_prob, found.entropy
    calls = {
        "forward": lambda: xe.selected_log_probs(x, index, n_threads=2, **options),
        "out": lambda: xe.selected_log_probs_grad(*arguments, out=out, n_threads=2, **options),
    }
    for name, call in calls.items():
        assert peak(call) < SCRATCH, name


def test_refused_calls_leave_nothing_behind():
    """Of the rows of so many chunks that the reports on their labels do not fit on the stack."""
    rows = 6 << 20
    x, target = np.broadcast_to(np.float32(0), (rows, 2)), np.zeros(rows, np.int8)
    target[-1] = 2

    def refused():
        for _ in range(20):
            with pytest.raises(IndexError):
                xe.cross_entropy_with_grad(x, target)

    refused()
    tracemalloc.start()
    refused()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 64 << 10


# ---- what the whole process grows by, in a process of its own


def run_here(program):
    """What a program prints in a process of its own, that finds what this one does."""
    return run(program, PYTHONPATH=os.pathsep.join(sys.path))


# A shape of about 100 MB for every kernel, and how it is called. The process is asked for its
# largest resident size, to which a page per thread's stack and the allocator's own add some.
FAMILIES = {
    "rows": ("f4", (500, 50_257), {}),
    "float16 rows": ("f2", (900, 50_257), {}),
    "groups": ("f4", (2_500_000, 10), {}),
    "columns": ("f4", (4, 21, 512, 512), {}),
    "float64 columns": ("f8", (300, 20, 2000), {}),
    "probabilities": ("f4", (500, 50_257), {"probabilities": True}),
    "smoothing and weights": ("f4", (500, 50_257), {"label_smoothing": 0.1, "weight": True}),
    "other bytes": (">f4", (500, 50_257), {}),
}
PEAK = """
import sys
from types import SimpleNamespace
import numpy as np, xentropy as xe
from bench.stopwatch import peak_extra_bytes

dtype, shape, options = {family!r}

def arguments(shape):
    x = np.empty(shape, dtype)
    x[...] = np.linspace(-3, 3, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    o = dict(options, n_threads=2)
    target = np.zeros(shape[:1] + shape[2:], int)
    if o.pop("probabilities", False):
        target = np.full(shape, 1 / shape[1], "f4")
    if o.pop("weight", False):
        o["weight"] = np.ones(shape[1])
    return x, target, o

def calls(x, target, o):
    out = np.ones(x.shape, x.dtype)
    labels = np.zeros(x.shape[:1] + x.shape[2:], int)
    soft = dict(axis=1, n_threads=2)
    yield "loss", 0.01, lambda: xe.cross_entropy(x, target, **o)
    yield "gradient into out", 0.01, lambda: xe.cross_entropy_with_grad(x, target, out=out, **o)
    yield "softmax into out", 0.01, lambda: xe.softmax(x, out=out, **soft)
    yield "logsumexp", 0.01, lambda: xe.logsumexp(x, **soft).sum()
    yield "row_statistics", 0.01, lambda: xe.row_statistics(x, labels, **soft)
    del out
    yield "fresh gradient", 1.01, lambda: xe.cross_entropy_with_grad(x, target, **o)

for _, _, call in calls(*arguments((64, *shape[1:]) if shape[0] > 99 else shape)):
    call()  # what is loaded, and the threads
whole = arguments(shape)
for name, most, call in calls(*whole):
    # the results: numbers in float32 or float64, and classes
    numbers, classes = {{"logsumexp": (1, 0), "row_statistics": (5, 2)}}.get(name, (0, 0))
    rows = whole[0].size // shape[1] * ((8 if dtype == "f8" else 4) * numbers + 8 * classes)
    extra = peak_extra_bytes(SimpleNamespace(before=None, run=call))
    print(f"{{name}}: {{extra / whole[0].nbytes:.4f}}", (extra - rows) / whole[0].nbytes <= most)
"""


@linux
@pytest.mark.parametrize("family", FAMILIES)
def test_the_process_grows_by_the_result_alone(family):
    said = run_here(PEAK.format(family=FAMILIES[family]))
    assert said.count("True") == 6, said
    assert "False" not in said, said


GROWTH = """
import gc, sys
import numpy as np, xentropy as xe
from bench.stopwatch import _status

x = np.random.default_rng(0).normal(size=(40, 300)).astype("f4")  # scratch beyond the stack
target, out = np.zeros(40, int), np.empty_like(x)
p, half, bad = np.full(x.shape, 1 / 300), x.astype("f2"), np.full(40, 300)

def good(_):
    xe.cross_entropy_with_grad(x, target)
    xe.cross_entropy_with_grad(x, target, np.ones(300), out=out, reduction="none")
    xe.cross_entropy(half, target, label_smoothing=0.1, sample_weight=np.ones(40))
    xe.cross_entropy(x, p)
    xe.softmax(x, axis=1)
    xe.entropy(x.tolist())
    xe.row_statistics(x, target)
    xe.kl_divergence(p, x)

def refused(k):
    for arguments, options in (
        ((x, bad), {{}}),
        ((x, target[1:]), {{}}),
        ((x, target), {{"out": out[1:]}}),
        ((x, target), {{"reduction": f"none {{k}}"}}),
        ((x, target, np.full(300, np.nan)), {{}}),
        ((target, x), {{}}),
        ((p, x), {{"axis": 7}}),
    ):
        try:
            xe.cross_entropy_with_grad(*arguments, **options)
        except (IndexError, TypeError, ValueError):
            continue
        raise AssertionError(options)

def grown(n):
    before = sys.getallocatedblocks(), _status("VmRSS")
    for k in range(n):
        {what}(k)
    gc.collect()
    return sys.getallocatedblocks() - before[0], _status("VmRSS") - before[1]

grown(300)
blocks, size = grown(10_000 // 7)
print(blocks, size)
assert blocks < 700, blocks  # one of these calls that leaves a block would leave 1,428
assert size < 2 << 20, size  # scratch of a call has 20 KB and more: it would be 28 MB
"""


@linux
@pytest.mark.parametrize("what", ["good", "refused"])
def test_ten_thousand_calls_leave_nothing_behind(what):
    run_here(GROWTH.format(what=what))


# ---- no memory


NO_MEMORY = """
import resource
import numpy as np, xentropy as xe
from bench.stopwatch import _status

xe.set_num_threads(1)  # where no thread can start, GNU's OpenMP ends the process
row = np.broadcast_to(np.float32(0), (1, 1 << 25))  # 128 MB as an array, 4 bytes here
rows = np.broadcast_to(np.float32(0), (1 << 22, 8))
integers = np.broadcast_to(np.int8(0), (1 << 20, 32))
labels = np.zeros(1 << 22, np.int8)
long, zero = np.zeros((1, 1 << 25), "f4"), np.zeros(1, np.int8)
small, first = np.ones((3, 4), "f4"), [0, 1, 2]
expected = xe.cross_entropy(small, first)
out = np.full((1, 1 << 22), 7, "f4")
scattered = np.broadcast_to(np.float32(0), (1 << 22, 1)).T

def attempts():
    yield "result of rows", lambda: xe.cross_entropy_with_grad(row, zero)
    yield "result of groups", lambda: xe.cross_entropy_with_grad(rows, labels)
    yield "result of softmax", lambda: xe.softmax(rows, axis=1)
    yield "losses", lambda: xe.cross_entropy(rows.T[:1], labels, axis=0, reduction="none")
    yield "scratch of rows", lambda: xe.cross_entropy(row, zero)
    yield "scratch of probabilities", lambda: xe.cross_entropy(row, row)
    shared = dict(out=long, n_threads=2)
    yield "scratch of a row that threads share", (
        lambda: xe.cross_entropy_with_grad(long, zero, **shared)
    )
    yield "scratch of softmax", lambda: xe.logsumexp(row, 1)
    yield "scratch of statistics", lambda: xe.row_statistics(row, zero)
    yield "scratch of out", lambda: xe.cross_entropy_with_grad(scattered, zero, out=out)
    yield "conversion", lambda: xe.softmax(integers, axis=1)
    yield "conversion of weights", lambda: xe.cross_entropy(row, zero, row[0])

limit = {limit} << 20
resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + limit, resource.RLIM_INFINITY))
for name, attempt in attempts():
    try:
        attempt()
        print(name, "fits")
    except MemoryError as error:
        print(name, "MemoryError", error)
    assert xe.cross_entropy(small, first) == expected
assert (out == 7).all()
assert not long.any()
"""


@linux
def test_an_allocation_that_fails_is_a_memory_error():
    """Of results, scratch and conversions; the next call is as good as ever."""
    said = run_here(NO_MEMORY.format(limit=8)).splitlines()
    assert len(said) == 12
    for line in said:  # and it is this allocation that failed, not one that would come after it
        assert ("bytes of scratch" if line.startswith("scratch") else "for an array") in line
        assert "MemoryError" in line
