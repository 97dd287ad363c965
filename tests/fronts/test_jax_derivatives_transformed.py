"""xentropy.jax: derivatives under vmap, scan, checkpoint, transposition, sharding."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jax_derivatives import ALONG, HESSIANS, OURS, THEIRS, Case
from helpers.support import TARGETS, assert_bits


@pytest.mark.parametrize("mode", ["jvp", "jvp of grad", "grad of jvp"])
@pytest.mark.parametrize("axes", [(0, 0, 0), (2, None, None), (None, 0, None), (None, None, 1)])
@pytest.mark.parametrize("kind", TARGETS)
def test_vmap(mode, axes, kind):
    case = Case(kind, shape=(3, 6, 5))
    arguments = [
        x[0] if axis is None else jnp.moveaxis(x, 0, axis)
        for x, axis in zip((case.logits, case.target, case.direction), axes, strict=True)
    ]

    def along(x, t, v):
        return ALONG[mode](lambda x: OURS[kind](x, t), x, v)

    def part(i):
        return [
            x if axis is None else jnp.take(x, i, axis)
            for x, axis in zip(arguments, axes, strict=True)
        ]

    mapped = jax.jit(jax.vmap(along, axes))(*arguments)
    single = jnp.stack([jax.jit(along)(*part(i)) for i in range(3)])
    # Sums of five terms, in another order.
    np.testing.assert_allclose(mapped, single, rtol=0, atol=8 * 2.0**-23 * np.abs(single).max())


@pytest.mark.parametrize("mode", ["jvp", "jvp of grad", "grad of jvp"])
@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
@pytest.mark.parametrize("kind", TARGETS)
def test_modes_around_vmap(mode, axes, kind):
    """Of logits that are the same for all targets, JAX adds up the cotangents."""
    case = Case(kind, shape=(3, 6, 5))
    x = case.logits if axes[0] == 0 else case.logits[0]
    ours, theirs = (
        jax.jit(partial(ALONG[mode], lambda x, f=f: jax.vmap(f, axes)(x, case.target)))(x, 0.5 * x)
        for f in (OURS[kind], THEIRS[kind])
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # optax's error


@pytest.mark.parametrize("mode", HESSIANS)
@pytest.mark.parametrize("kind", TARGETS)
def test_scan_and_checkpoint(mode, kind):
    case = Case(kind, shape=(3, 6, 5))

    def total(x):
        step = jax.checkpoint(lambda sum_, part: (sum_ + OURS[kind](*part).sum(), None))
        return jax.lax.scan(step, 0.0, (x, case.target))[0]

    scanned, plain = (
        jax.jit(partial(HESSIANS[mode], f))(case.logits, case.direction)
        for f in (total, lambda x: OURS[kind](x, case.target).sum())
    )
    np.testing.assert_allclose(scanned, plain, rtol=0, atol=1e-6)  # as test_vmap


@pytest.mark.parametrize("kind", TARGETS)
def test_the_transpose_of_the_transpose(kind):
    case = Case(kind)
    along = jax.linearize(case.losses, case.logits)[1]
    back = jax.linear_transpose(along, case.logits)
    forth = jax.linear_transpose(lambda u: back(u)[0], case.weights)
    assert_bits(back(case.weights)[0], jax.grad(case.weighted)(case.logits))
    assert_bits(forth(case.direction)[0], along(case.direction))


@pytest.mark.parametrize("mode", ALONG)
@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_is_promoted_implicitly(mode, kind):
    case = Case(kind, "bfloat16")
    along = jax.jit(partial(ALONG[mode], case.losses))
    case.target = case.target.astype(jnp.int32 if kind == "labels" else jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        along(case.logits, case.direction)


def test_label_tangents_and_no_jit():
    case = Case("labels")
    none = np.zeros(case.target.shape, jax.dtypes.float0)
    expected = jax.jvp(case.losses, (case.logits,), (case.direction,))[1]
    operands = (case.logits, case.target), (case.direction, none)
    assert_bits(jax.jvp(case.losses, *operands)[1], expected)
    with jax.disable_jit():  # sums in another order
        np.testing.assert_allclose(jax.jvp(case.losses, *operands)[1], expected, rtol=1e-6)


def test_sharded_and_replicated_operands():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, optax, xentropy.jax
from jax.sharding import Mesh, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("batch",))
split, whole = PartitionSpec("batch"), PartitionSpec()
x, labels = np.random.default_rng(0).normal(size=(8, 5)).astype("float32"), np.arange(8) % 5
for name, target in (
    ("softmax_cross_entropy_with_integer_labels", labels),
    ("softmax_cross_entropy", np.eye(5, dtype="float32")[labels]),
):
    def modes(f, t):
        def grad(x):
            return jax.grad(lambda x: f(x, t).sum())(x)
        return {
            "grad": grad,
            "jvp": lambda x: jax.jvp(lambda x: f(x, t), (x,), (jnp.sin(x),))[1],
            "jvp of grad": lambda x: jax.jvp(grad, (x,), (jnp.sin(x),))[1],
        }
    for mode in modes(optax.softmax_cross_entropy, labels):
        for x_spec, t_spec in ((split, split), (whole, split), (split, whole)):
            if x_spec == whole and mode == "jvp of grad":
                continue  # adds up over the mesh, as the gradient does
            got, expected = (
                jax.jit(jax.shard_map(
                    lambda x, t: modes(getattr(module, name), t)[mode](x), mesh=mesh,
                    in_specs=(x_spec, t_spec),
                    out_specs=x_spec if mode != "jvp" else split,
                ))(x[:4] if x_spec == whole else x, target[:4] if t_spec == whole else target)
                for module in (xentropy.jax, optax)
            )
            np.testing.assert_allclose(got, expected, atol=2e-6, err_msg=f"{name} {mode}")
print("right")
"""
