"""Linear cross entropy in a process: signals between chunks, forks, other threads."""

import os
import sys

import pytest
from helpers.processes import run

START = """
import os, signal, sys, time
import numpy as np
import xentropy as xe
r = np.random.default_rng(0)
x, layer = r.normal(size=(400, 16)).astype("f4"), r.normal(size=(3000, 16)).astype("f4")
target = np.arange(400)
expected = xe.linear_cross_entropy_with_grad(x, layer, target, n_threads=2)

def check():
    loss, grads = xe.linear_cross_entropy_with_grad(x, layer, target, n_threads=2)
    close = abs(loss / expected[0] - 1) < 1e-6  # BLAS may have another number of threads
    return close and all(np.allclose(a, b, 1e-4, 1e-8) for a, b in zip(grads[:2], expected[1]))
"""
SIGNALS = """
rows = 400_000
many, none = np.zeros((rows, 16), "f4"), np.zeros(rows, int)
out = {"input": np.full((rows, 16), 7, "f4")}

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
for _ in range(5):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        # some 400,000 chunks: many seconds
        xe.linear_cross_entropy_with_grad(
            many, layer, none, logits_bytes=1, out=out, wanted=("input",)
        )
    except KeyboardInterrupt:
        print("interrupted", bool((out["input"][-1] == 7).all()), check())
"""
FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if check() else 3)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
assert os.waitstatus_to_exitcode(status) == 0, f"the child exits with {status}"
assert check(), "the parent changed"
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    print(all(pool.map(lambda _: check(), range(40))))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timers")
def test_signals_are_handled_between_chunks():
    """Five of five arrive at once, long before the last chunk, and the next call is right."""
    assert run(START + SIGNALS).splitlines() == ["interrupted True True"] * 5


def test_a_child_of_a_process_that_has_used_it():
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    run(START + FORK)


def test_calls_from_many_threads():
    assert run(START + THREADS) == "True\n"
