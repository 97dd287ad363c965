"""xentropy.jax against jit(optax): loss + gradient.

    python -m bench.fronts --front jax [--quick]

The ways take turns, a round each; medians. Memory is that of one call in a process of its own. The
third way is what xentropy.jax would be with `jax.pure_callback`: the same kernels, and copies.
"""

import sys

import numpy as np

from ..cells import Cell, make_logits, make_target
from ..peers import Way
from ..quiet import notes as no_conclusions
from ..stopwatch import peak_extra_bytes, said_by_fresh_process, seconds_in_turn
from .table import Table

CELLS = ("32x10", "1000000x10", "8192x1000", "2048x50257")
QUICK = ("32x10", "256x1000")
WAYS = ("optax", "xentropy.jax", "pure_callback")


def called_back():
    """The loss by `jax.pure_callback`, differentiated as xentropy.jax is."""
    import jax

    import xentropy as xe

    def losses(x, labels):
        result = jax.ShapeDtypeStruct(labels.shape, x.dtype)
        return jax.pure_callback(
            lambda x, t: xe.cross_entropy(np.asarray(x), np.asarray(t), reduction="none"),
            result,
            x,
            labels,
        )

    def backward(saved, upstream):
        x, labels = saved
        result = jax.ShapeDtypeStruct(x.shape, x.dtype)

        def gradient(x, t, g):
            x, t, g = np.asarray(x), np.asarray(t), np.asarray(g)
            return xe.cross_entropy_with_grad(x, t, reduction="none", grad_output=g)[1]

        return jax.pure_callback(gradient, result, x, labels, upstream), None

    function = jax.custom_vjp(losses)
    function.defvjp(lambda x, labels: (losses(x, labels), (x, labels)), backward)
    return function


def calls(cell):
    """Each way's step, compiled: the mean and its gradient."""
    import jax
    import optax

    import xentropy.jax

    functions = (
        optax.softmax_cross_entropy_with_integer_labels,
        xentropy.jax.softmax_cross_entropy_with_integer_labels,
        called_back(),
    )
    x = jax.device_put(make_logits(cell))
    labels = jax.device_put(make_target(cell).astype(np.int32))

    def call(function):
        step = jax.jit(jax.value_and_grad(lambda x, labels: function(x, labels).mean()))
        return lambda: jax.block_until_ready(step(x, labels))

    return dict(zip(WAYS, map(call, functions), strict=True))


def extra_memory(way, name):
    """The peak of one call in units of the logits, in a fresh process; None if unknown."""
    (said,) = said_by_fresh_process("bench.fronts.jax_front", way, name)
    return None if said is None else said / (4 * Cell.parse(name).elements)


def memory(way, name):
    """The peak of one call in bytes; what it loads and compiles is there before."""
    call = calls(Cell.parse(name))[way]
    call()
    return peak_extra_bytes(Way(call))


def row(name, quick):
    """Times, their ratio and memory of a cell; and the Turns."""
    cell = Cell.parse(name)
    rounds = (5 if quick else 15) * (20 if cell.elements < 1 << 16 else 1)
    turns = seconds_in_turn(calls(cell), rounds)
    measured = [round(turns.found[way] * 1e6, 1) for way in WAYS]
    large = cell.elements >= 1 << 20  # else it is less than what a process grows by anyway
    memory = [round(extra_memory(way, name), 2) if large else None for way in WAYS]
    return [name, *measured, turns.ratio("optax", "xentropy.jax"), *memory], turns


def tables(quick):
    """Time in microseconds, the ratio, peak extra memory in units of the logits."""
    columns = ["cell", *(f"{way} us" for way in WAYS), "optax / xentropy.jax"]
    columns += [f"{way} memory" for way in WAYS]
    found = [row(name, quick) for name in (QUICK if quick else CELLS)]
    rows, turns = [row for row, _ in found], [turns for _, turns in found]
    notes = [
        "jit(value_and_grad(mean loss)), float32, result released each time",
        "memory: peak beyond what was there before the call, over the size of the logits",
        *no_conclusions(turns),
    ]
    return [Table("jax", "xentropy.jax: loss + gradient under jit", columns, rows, notes)]


if __name__ == "__main__":  # a process of its own for `extra_memory`
    print(memory(*sys.argv[1:]))
