"""xentropy.jax and its process: exits with a step in flight, signals, deep stacks, exports."""

import subprocess
import sys

import pytest
from helpers.processes import environment_at_start

# Each mode in which the kernels are called: the step, and its right loss.
MODES = {
    "labels": "ce(x, y).mean()",
    "probabilities": "ce_p(x, p).mean()",
    "labels, mapped": "jax.vmap(ce)(x.reshape(4, -1, C), y.reshape(4, -1)).mean()",
    "probabilities, mapped": "jax.vmap(ce_p)(*(a.reshape(4, -1, C) for a in (x, p))).mean()",
}
START = """
import jax, jax.numpy as jnp, math
from xentropy.jax import softmax_cross_entropy as ce_p
from xentropy.jax import softmax_cross_entropy_with_integer_labels as ce
jax.config.update("jax_enable_x64", {dtype!r} == "float64")

def steps(N, C, dtype={dtype!r}):
    x, y, p = jnp.ones((N, C), dtype), jnp.zeros(N, jnp.int32), jnp.full((N, C), 1 / C, dtype)
    step = jax.jit(jax.value_and_grad(lambda x: {mode}))
    loss = jax.jit(lambda x: {mode})
    jax.block_until_ready((step(x), loss(x)))
    return x, step, loss, math.log(C)
"""


def start(mode="labels", dtype="float32"):
    return START.format(mode=MODES[mode], dtype=dtype)


def run(program, *options, arguments=(), **environment):
    command = [sys.executable, "-X", "faulthandler", *options, "-c", program, *arguments]
    return subprocess.run(
        command,
        env={**environment_at_start(), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# --- the end of a process -------------------------------------------------------------------

IN_FLIGHT = """
x, step, *_ = steps(20_000, 1000)
last = step(x)
"""
# What the program does then, and its exit code.
ENDS = {
    "it is over": ("", 0),
    "an exception": ("raise ValueError('mine')", 1),
    "sys.exit": ("import sys; sys.exit(3)", 3),
    "os._exit": ("import os; os._exit(5)", 5),
    "nobody has the result": ("del last, x", 0),
    "many results": ("last = [step(x) for _ in range(5)]", 0),
    "an exit handler that waits": (
        "import atexit; atexit.register(lambda: print(float(last[0]), flush=True))",
        0,
    ),
    "an exit handler that starts another": (
        "import atexit; atexit.register(lambda: print(float(step(x)[0]), flush=True))",
        0,
    ),
    "a thread has started it": (
        "import threading; threading.Thread(target=lambda: globals().update(l=step(x))).start()",
        0,
    ),
    "a thread fails": (
        "import threading; threading.Thread(target=lambda: step(x) and 1 / 0).start()",
        0,
    ),
    "an object waits for it as it dies": (
        "class Late:\n    def __del__(self): print(float(self.kept[0]), flush=True)\n"
        "late = Late(); late.kept = last",
        0,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_with_a_step_in_flight_ends(end):
    what, code = ENDS[end]
    done = run(start() + IN_FLIGHT + what)
    assert done.returncode == code, done.stderr
    if "print" in what:
        assert abs(float(done.stdout) / 6.907755 - 1) < 1e-6, done.stdout  # log 1000


def test_a_process_with_steps_of_every_kind_in_flight_ends():
    program = "last = []\n"
    for mode in MODES:
        program += start(mode) + IN_FLIGHT.replace("last =", "last +=")
    assert run(program).returncode == 0


def test_scratch_is_not_allocated_by_python_whose_tracemalloc_waits_for_the_gil():
    """Rows so long that their exponentials do not fit on the stack."""
    program = start() + "x, step, *_ = steps(8, 3_000_000)\nlast = step(x)"
    assert run(program, "-X", "tracemalloc").returncode == 0


# --- signals --------------------------------------------------------------------------------

# Without the garbage collector, in which JAX has a callback: what is raised there, Python ignores.
# And without JAX's operations beside the step: they lose one of some thousand, with optax too.
INTERRUPTED = """
import collections, gc, random, signal, time
import numpy as np
gc.disable()

class Mine(BaseException):
    pass

def alarm(*_):
    raise Mine

signal.signal(signal.SIGALRM, alarm)
random.seed(1)
seen = collections.Counter()
for shape in ((32, 10), (256, 100)):
    x, step, loss, right = steps(*shape)
    for _ in range(80):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002 + random.random() * 0.004)
            end = time.monotonic() + 20
            while time.monotonic() < end:
                value, grad = jax.block_until_ready(step(x))
                if abs(float(value) / right - 1) > 0.01 or abs(np.float32(grad).sum()) > 0.01:
                    seen["wrong"] += 1
            seen["lost"] += 1
        except Mine:
            seen["Mine"] += 1
        except Exception as error:
            seen[f"became {error!r}"] += 1
print(dict(seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timer")
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        *((mode, "float32") for mode in MODES),
        ("labels", "float64"),
        ("labels, mapped", "bfloat16"),
        ("probabilities", "float16"),
    ],
)
def test_a_handler_of_signals_that_raises_is_heard_every_time(mode, dtype):
    done = run(start(mode, dtype) + INTERRUPTED)
    assert (done.returncode, done.stdout) == (0, "{'Mine': 160}\n"), done.stderr


# --- floating-point modes -------------------------------------------------------------------

FLUSHED = """
import numpy as np
import xentropy as xe
xe.set_num_threads(2)
logits = np.tile(np.float16([6e-5, -4.93, 0.5024]), (1 << 17, 1))
p = np.tile(np.float32([0, 0.98848355, 0.01151646]), (1 << 17, 1))
right = xe.cross_entropy(logits, p, reduction="none", n_threads=1)
loss = jax.jit(ce_p)(jnp.asarray(logits), jnp.asarray(p))
assert (np.asarray(loss) == right).all(), loss
for _ in range(20):
    assert (xe.cross_entropy(logits, p, reduction="none") == right).all()
"""


def test_subnormal_logits_count_on_the_threads_of_xla_and_in_later_calls():
    """XLA's threads flush subnormal numbers, and a team that is started there inherits that."""
    done = run(start() + FLUSHED)
    assert done.returncode == 0, done.stderr


# --- deep stacks ----------------------------------------------------------------------------

DEEP = """
x, step, loss, right = steps(8, 3)
values, failed = [], []

def deeper():
    try:
        values.append(float(loss(x)))
        values.append(float(step(x)[0]))
    except RecursionError:
        pass
    except Exception as error:
        failed.append(error)
    deeper()

try:
    deeper()
except RecursionError:
    pass
assert not failed, failed[0]
assert values and all(abs(value / right - 1) < 0.01 for value in values), values
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_call_at_the_recursion_limit(mode):
    done = run(start(mode) + DEEP)
    assert done.returncode == 0, done.stderr


# --- import and export ----------------------------------------------------------------------

RIGHT = """
loss = jax.jit(ce)(jnp.zeros((2, 3)), jnp.array([0, 1]))
assert abs(float(loss.sum()) / (2 * 1.0986123) - 1) < 1e-6, loss
"""
IMPORT = """
from xentropy.jax import softmax_cross_entropy_with_integer_labels as ce
"""
ORDERS = {
    "before JAX starts": f"{IMPORT}\nimport jax, jax.numpy as jnp\njax.devices()",
    "after JAX has started": f"import jax, jax.numpy as jnp\njax.devices(){IMPORT}",
    "JAX is set up later": f"""{IMPORT}
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
assert jax.device_count() == 2""",
    "a second time": f"""{IMPORT}
import importlib, sys, jax, jax.numpy as jnp
for name in [n for n in sys.modules if n.startswith("xentropy.jax")]:
    del sys.modules[name]
{IMPORT}
{RIGHT}
importlib.reload(sys.modules["xentropy.jax._primitives"])""",
    "JAX starts again": f"""{IMPORT}
import jax, jax.numpy as jnp, jax.extend
jax.devices()
jax.extend.backend.clear_backends()""",
    "in a thread": """
import jax, jax.numpy as jnp, importlib, threading
names = [threading.Thread(target=importlib.import_module, args=("xentropy.jax",)) for _ in "ab"]
for thread in names: thread.start()
for thread in names: thread.join()
from xentropy.jax import softmax_cross_entropy_with_integer_labels as ce""",
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_import(order):
    done = run(f"{ORDERS[order]}\n{RIGHT}")
    assert done.returncode == 0, done.stderr


def test_platforms_that_are_named():
    done = run(ORDERS["before JAX starts"] + RIGHT, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr


EXPORT = """
import sys
from jax import export
import xentropy.jax
checks = [export.DisabledSafetyCheck.custom_call(name) for name in xentropy.jax.ffi_targets]
x, step, loss, right = steps(8, 3)
shapes = jax.ShapeDtypeStruct(x.shape, x.dtype)
saved = export.export(step, disabled_checks=checks)(shapes)
open(sys.argv[1] + {mode!r}, "wb").write(saved.serialize())
"""
LOAD = """
import sys
import numpy as np
from jax import export
import xentropy.jax
for mode in {modes!r}:
    saved = export.deserialize(bytearray(open(sys.argv[1] + mode, "rb").read()))
    loss, grad = saved.call(np.ones((8, 3), np.float32))
    assert abs(float(loss) / np.log(3) - 1) < 1e-6, loss
    assert abs(np.asarray(grad).sum()) < 1e-6, grad
"""


def test_an_exported_program_runs_in_a_process_that_has_imported_xentropy_jax(tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export cannot save without it")
    export = "".join(start(mode) + EXPORT.format(mode=mode) for mode in MODES)
    load = LOAD.format(modes=list(MODES))
    for program in (export, load):
        done = run(program, arguments=[f"{tmp_path}/"])
        assert done.returncode == 0, done.stderr
    done = run(load.replace("import xentropy.jax\n", ""), arguments=[f"{tmp_path}/"])
    assert "xentropy_" in done.stderr, "the missing target is not named"


def test_the_names_of_targets_are_those_of_exported_programs():
    """They stay: a program that was saved by any version has them."""
    from xentropy import _kernels
    from xentropy import jax as xj

    assert xj.ffi_targets == ("xentropy_losses", "xentropy_gradient")
    assert tuple(_kernels.xla_handlers()) == xj.ffi_targets
