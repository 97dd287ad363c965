"""The process around a call: forks, other libraries, the GIL, interpreters."""

import importlib.util
import os
import sys
import sysconfig
import threading
import time

import pytest
from helpers.installed import NEIGHBOURS, missing
from helpers.processes import run
from helpers.support import make_logits, make_target
from helpers.tiers import HERE

import xentropy as xe

# ---- other libraries, each of which brings threads

# A call of each that its threads share.
USES = {
    "torch": """
import torch
torch.set_num_threads(2)
x_torch = torch.from_numpy(x).requires_grad_()
torch.nn.functional.cross_entropy(x_torch, torch.from_numpy(target)).backward()""",
    "sklearn": """
from sklearn._loss import HalfMultinomialLoss
wide = x.astype(np.float64)
HalfMultinomialLoss(n_classes=200).loss_gradient(target.astype(np.float64), wide, n_threads=2)""",
    "jax": """
import jax
float(jax.jit(lambda x: jax.nn.log_softmax(x).sum() + (x @ x.T).sum())(x))""",
}
OTHERS = [name for name in NEIGHBOURS if not missing([name])]

START = """
import os, sys, time
import numpy as np
x = np.random.default_rng(0).normal(size=(3000, 200)).astype(np.float32)
target = np.arange(3000) % 200
"""
OURS = """
import xentropy as xe
from xentropy import reference
loss, grad = xe.cross_entropy_with_grad(x, target, n_threads=2)
ranks = xe.row_statistics(x, target, n_threads=2).rank
exact = reference.cross_entropy_with_grad(x, target)
assert abs(loss / exact[0] - 1) < 1e-6, (loss, exact[0])
assert np.abs(grad - exact[1]).max() < 1e-9
"""
# Within a minute, because machines are busy; a child that waits for lost threads waits for ever.
FORK = """
def check():
    again, slope = xe.cross_entropy_with_grad(x, target, n_threads=2)
    statistics = xe.row_statistics(x, target, n_threads=2)
    same = (slope == grad).all() and (statistics.rank == ranks).all()
    return again == loss and same and xe.cross_entropy(x, target) == loss

child = os.fork()
if child == 0:
    os._exit(0 if check() and xe.get_num_threads() == 1 else 3)
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
POOL = """
import multiprocessing

def work(k):
    part = slice(k, None, 3)
    return xe.cross_entropy_with_grad(x[part], target[part], n_threads=2)

before = [work(k) for k in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    inside = pool.map_async(work, range(3)).get(60)
for there, here, again in zip(inside, before, map(work, range(3)), strict=True):
    assert there[0] == here[0] == again[0]
    assert (there[1] == here[1]).all() and (again[1] == here[1]).all()
"""


def need_fork():
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_libraries_in_either_order_and_in_a_child(other, order):
    need_fork()
    both = OURS + USES[other] + OURS if order == "second" else USES[other] + OURS + USES[other]
    run(START + both + FORK)


@pytest.mark.parametrize("tier", HERE)
def test_a_child_of_a_process_that_has_used_threads(tier):
    """It computes on one: whoever started the others, they are gone."""
    need_fork()
    run(START + OURS + FORK, XENTROPY_TIER=tier)


def test_a_child_of_a_process_that_has_not():
    need_fork()
    program = """
import os, xentropy as xe
child = os.fork()
if child == 0:
    os._exit(xe.get_num_threads())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1"""
    run(program)


def test_a_pool_of_forked_processes():
    need_fork()
    run(START + OURS + POOL)


# ---- labels


def test_labels_that_another_thread_changes_during_a_call():
    """They are looked at once more where they are used: a wrong one leaves its row out."""
    program = """
import threading, time
import numpy as np
import xentropy as xe
x, y, done = np.zeros((200_000, 10), np.float32), np.zeros(200_000, int), threading.Event()

def change():
    while not done.is_set():
        y[-1] = (1 << 40) - y[-1]
        time.sleep(1e-3)

thread = threading.Thread(target=change)
thread.start()
left_out, until = 0, time.monotonic() + 60
while left_out < 5 and time.monotonic() < until:
    try:
        loss = xe.cross_entropy(x, y, reduction="none")
    except IndexError:  # wrong from the beginning
        continue
    left_out += loss[-1] == 0
done.set()
thread.join()
print(left_out)"""
    assert int(run(program)) == 5


# ---- the GIL


@pytest.mark.parametrize(
    "name", ["cross_entropy_with_grad", "cross_entropy", "softmax", "entropy", "row_statistics"]
)
def test_other_python_threads_go_on_during_a_call(name):
    """Nobody is made to let go of the GIL here: what they count, they count during the call."""
    x = make_logits((500, 20_000))
    labelled = name.startswith("cross") or name == "row_statistics"
    arguments = (x, make_target("labels", x.shape)) if labelled else (x,)
    counted, ready, done = [0], threading.Event(), threading.Event()

    def count():
        ready.set()
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)  # lets go of the GIL

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    ready.wait()
    try:
        sys.setswitchinterval(1000)
        during = 0
        for _ in range(1000):  # at once, unless the machine is busy
            before = counted[0]
            getattr(xe, name)(*arguments, n_threads=1)
            during += counted[0] - before
            if during > 10:
                break
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert during > 10


def test_the_gil_stays_off_where_python_can_do_without():
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python is not free-threaded")
    assert run("import sys, xentropy; print(sys._is_gil_enabled())") == "False\n"


# ---- interpreters

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import xentropy as xe
import numpy as np
x, target = np.array([[20.0, 0.0]], np.float32), np.array([0])
expected = xe.cross_entropy(x, target)
program = '''
try:
    import warnings
    warnings.simplefilter("ignore")  # of NumPy, about interpreters
    import xentropy as xe
    import numpy as np
    loss = xe.cross_entropy(np.array([[20.0, 0.0]], np.float32), np.array([0]))
    said = "right" if abs(loss / 2.061153620314381e-09 - 1) < 1e-6 else f"wrong: {loss}"
except ImportError as error:
    said = f"ImportError: {error}"
print(said, flush=True)
'''
inner = interpreters.create()
interpreters.run_string(inner, program)
interpreters.destroy(inner)
assert xe.cross_entropy(x, target) == expected
"""


def test_a_subinterpreter_computes_or_is_refused():
    names = ("_interpreters", "_xxsubinterpreters")
    if not any(importlib.util.find_spec(name) for name in names):
        pytest.skip("this Python has no module for subinterpreters")
    said = run(SUBINTERPRETER)
    assert said.startswith("right") or "ImportError: " in said, said
    if "ImportError" in said:
        assert "interpreter" in said, said
