"""No temporary of the size of the input: peaks of what NumPy allocates, by tracemalloc."""

import tracemalloc

import numpy as np
import pytest
from support import make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

SHAPE = 4096, 1500
# Two threads of 32 Ki float64 elements each for logits and for probabilities, and what goes
# with them; the smallest input here has 12 MB.
SCRATCH = 2 << 20


def peak(function):
    """The most memory that was allocated at a time, beyond what was before."""
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


def test_a_fresh_gradient_is_all_that_is_allocated():
    x, target = make_logits(SHAPE, np.float32), make_target("labels", SHAPE)
    assert peak(lambda: xe.cross_entropy_with_grad(x, target, n_threads=2)) < x.nbytes + SCRATCH


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("call", [xe.softmax, xe.log_softmax])
def test_softmax_writes_to_its_result(call, axis):
    x = make_logits(SHAPE, np.float32)
    out = np.empty_like(x)
    assert peak(lambda: call(x, axis, out=out, n_threads=2)) < SCRATCH


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("call", [xe.logsumexp, xe.entropy])
def test_reductions_need_scratch_alone(call, axis):
    x = make_logits(SHAPE, np.float32)
    assert peak(lambda: call(x, axis=axis, n_threads=2)) < SCRATCH


def test_kl_divergence_needs_scratch_alone():
    x, target = make_logits(SHAPE, np.float32), make_target("probabilities", SHAPE)
    assert peak(lambda: xe.kl_divergence(target, x, n_threads=2)) < SCRATCH


def test_refused_calls_leave_nothing_behind():
    x, target = make_logits(SHAPE, np.float32), make_target("labels", SHAPE)
    target[-1] = SHAPE[1]

    def refused():
        for _ in range(200):
            with pytest.raises(IndexError):
                xe.cross_entropy_with_grad(x, target)

    refused()
    tracemalloc.start()
    refused()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 64 << 10
