"""What becomes of a JAX process that is interrupted, that ends, or that runs out of stack.

    python -m bench.interrupts [--tries 160] [--quick]

For optax and xentropy.jax, class indices and probabilities, batched and under `jax.vmap`, each in
processes of their own:

* a signal handler raises during a step: how many of the exceptions arrive, how many values are
  wrong;
* the process ends with a step in flight: its exit codes, of which the row `right` has those
  that it should have;
* a function calls itself and the loss up to the recursion limit: exit code, 0 if every value is
  right.
"""

import argparse
import collections
import contextlib
import itertools
import random
import signal
import subprocess
import sys
import threading
import time

from .needed import require
from .quiet import notes, watched

MODULES = ("optax", "xentropy.jax")
TARGETS = ("indices", "probabilities")
MAPPINGS = ("batch", "vmap")
ENDS = {"return": 0, "error": 1, "SystemExit(3)": 3, "thread": 0}
PATIENCE = 60  # seconds for one process
HANGS = "hangs"


class Interrupt(BaseException):
    """What the signal handler raises."""


def compiled_step(module, target, mapping, shape):
    """A compiled mean loss with its gradient, and logits for it."""
    import importlib

    import jax
    import jax.numpy as jnp

    library = importlib.import_module(module)
    names = {
        "indices": "softmax_cross_entropy_with_integer_labels",
        "probabilities": "softmax_cross_entropy",
    }
    rows = getattr(library, names[target])
    rows = jax.vmap(rows) if mapping == "vmap" else rows
    labels = jnp.zeros(shape[0], jnp.int32)
    if target == "probabilities":
        labels = jax.nn.one_hot(labels, shape[1])
    step = jax.jit(jax.value_and_grad(lambda x: rows(x, labels).mean()))
    x = jnp.ones(shape)
    jax.block_until_ready(step(x))
    return step, x


def raise_interrupt(*_):
    raise Interrupt


def interrupted(step, x, seen):
    """Repeat the step until the alarm is raised, at most 0.2 s."""
    import jax

    wanted = seen["wanted"]
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.002, 0.006))
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            value = float(jax.block_until_ready(step(x))[0])
            seen["wrong"] += abs(value - wanted) > 1e-4
        seen["lost"] += 1
    except Interrupt:
        seen["arrived"] += 1
    except Exception:
        seen["became another"] += 1


def interrupts(*kind, tries):
    """Print how many interrupts arrive, become another exception or are lost, and wrong values."""
    step, x = compiled_step(*kind, (64, 100))
    seen = collections.Counter(wanted=float(step(x)[0]))
    random.seed(tries)
    signal.signal(signal.SIGALRM, raise_interrupt)
    for _ in range(tries):
        interrupted(step, x, seen)
    print(seen["arrived"], seen["became another"], seen["lost"], seen["wrong"])


def end(*kind, how):
    """End this process with a step in flight."""
    step, x = compiled_step(*kind, (20000, 1000))
    if how == "thread":
        threading.Thread(target=step, args=(x,)).start()
        return
    step(x)
    if how == "error":
        raise ValueError("the step is still in flight")
    if how == "SystemExit(3)":
        raise SystemExit(3)


def value_of(step, x):
    """The step's value, None for an exception."""
    try:
        return float(step(x)[0])
    except Exception:
        return None


def recursion(*kind):
    """Call the loss at each depth of a recursion that exceeds the limit."""
    step, x = compiled_step(*kind, (8, 3))
    values = [value_of(step, x)]

    def deeper():
        values.append(value_of(step, x))
        deeper()

    with contextlib.suppress(RecursionError):
        deeper()
    wanted, *others = values
    sys.exit(any(v is not None and abs(v - wanted) > 1e-6 for v in others))


def run(code, *arguments):
    """(exit code or HANGS, output) of a process that runs a function of this module."""
    command = [sys.executable, "-m", "bench.interrupts", "--run", code, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return HANGS, ""
    return done.returncode, done.stdout.strip()


def row(kind, tries):
    code, counts = run("interrupts", *kind, tries)
    counts = counts.split() if code == 0 else [f"exit {code}"] + 3 * ["-"]
    ends = [run("end", *kind, how)[0] for how in ENDS]
    return [*kind, *counts, " ".join(map(str, ends)), run("recursion", *kind)[0]]


def table(tries, kinds):
    """Print one row per library, target and mapping."""
    heads = "library", "target", "mapping", "arrived", "other", "lost", "wrong", "ends", "recursion"
    line = "{:<13} {:<14} {:<8} {:>8} {:>6} {:>5} {:>6}  {:<14} {}".format
    print(line(*heads))
    slow = []  # what only seems to hang when other processes take the cores
    for kind in kinds:
        visit = watched(lambda kind=kind: row(kind, tries))
        print(line(*visit.found), flush=True)
        if HANGS in " ".join(map(str, visit.found)):
            slow.append(visit)
    print(line("right", "", "", tries, 0, 0, 0, " ".join(map(str, ENDS.values())), 0))
    print(f"ends: {', '.join(ENDS)}")
    for note in notes(slow):
        print(f"hangs {note}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=160, help="interrupts a row (default 160)")
    parser.add_argument("--quick", action="store_true", help="one row, to see that it works")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    require("jax", "optax", extra="bench,jax")
    if not arguments.run:
        kinds = itertools.product(MODULES, TARGETS, MAPPINGS)
        quick = [("xentropy.jax", "indices", "batch")]
        return table(arguments.tries, quick if arguments.quick else kinds)
    code, *rest = arguments.run
    kind, rest = rest[:3], rest[3:]
    if code == "interrupts":
        return interrupts(*kind, tries=int(rest[0]))
    if code == "end":
        return end(*kind, how=rest[0])
    return recursion(*kind)


if __name__ == "__main__":
    main()
