"""xentropy.jax as XLA calls it: copies, errors, calls in flight, shards; when JAX is imported."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_losses import OURS, PAIRS, case
from helpers.support import TARGETS, assert_bits


@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_is_copied(kind):
    logits, target, _ = case(kind, (64, 1000))
    step = jax.jit(jax.value_and_grad(lambda x: PAIRS[kind][0](x, target).sum()))
    compiled = step.lower(logits).compile()
    assert " copy(" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < logits.nbytes


@pytest.mark.parametrize("kind", TARGETS)
def test_donated_logits(kind):
    """XLA may give their memory to the result; the kernels write the gradient in its place."""
    logits, target, _ = case(kind, (3000, 400))
    step = jax.grad(lambda x: PAIRS[kind][0](x, target).sum())
    expected = np.asarray(jax.jit(step)(logits))
    assert_bits(jax.jit(step, donate_argnums=0)(logits), expected)
    logits, target, upstream = case(kind, (3000, 400))
    if kind == "labels":
        target = target.astype(jnp.int32)
    in_place = jax.ffi.ffi_call("xentropy_gradient", logits, input_output_aliases={0: 0})
    call = jax.jit(lambda x: in_place(x, target, jnp.ones_like(upstream), axis=np.int64(-1)))
    assert_bits(call(logits), expected)


def test_an_error_in_the_handler_is_raised():
    logits, target, _ = case("labels")
    call = jax.ffi.ffi_call("xentropy_losses", jax.ShapeDtypeStruct((17,), jnp.float32))
    # Which one depends on the thread that XLA computes on.
    errors, words = (jax.errors.JaxRuntimeError, ValueError), r"target\[5\] = 33 is out of range"
    wrong = target.astype(jnp.int32).at[5].set(33)
    with pytest.raises(errors, match=words):
        call(logits, wrong, axis=np.int64(-1)).block_until_ready()
    with pytest.raises(errors, match="xentropy_losses: TypeError: target must be"):
        call(logits, wrong > 0, axis=np.int64(-1)).block_until_ready()
    assert np.isfinite(OURS(logits, target)).all()


def test_many_calls_in_flight_and_many_threads():
    logits, target, _ = case("labels", (200, 700))
    expected = np.asarray(jax.grad(lambda x: OURS(x, target).sum())(logits))
    step = jax.jit(jax.grad(lambda x: OURS(x, target).sum()))

    def run(_):
        grads = [step(logits) for _ in range(20)]
        return all((np.asarray(g) == expected).all() for g in grads)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_jax_is_imported_only_when_asked_for():
    done = run_python("import sys, xentropy; print('jax' in sys.modules, 'optax' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_sharded_batches():
    done = run_python("""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from xentropy.jax import softmax_cross_entropy_with_integer_labels as loss

mesh, rows = Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch")
x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
place = NamedSharding(mesh, rows)
arguments = jax.device_put(x, place), jax.device_put(np.arange(8) % 5, place)
grad = jax.grad(lambda x, t: loss(x, t).sum())
specs = {"mesh": mesh, "in_specs": (rows, rows), "out_specs": rows}
split = jax.jit(jax.shard_map(grad, **specs))(*arguments)
assert split.sharding.spec == rows
assert (split == jax.jit(grad)(*arguments)).all()
print("same bits")
""")
    assert done.stdout == "same bits\n", done.stderr


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_a_missing_library_is_named(missing):
    done = run_python(f"import sys; sys.modules[{missing!r}] = None; import xentropy.jax")
    assert "pip install 'xentropy-cpu[jax]'" in done.stderr
