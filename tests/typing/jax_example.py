"""As example.py, for the front for JAX."""

from typing import assert_type

import jax
import jax.numpy as jnp

from xentropy import jax as xj

x = jnp.zeros((2, 3))
labels = jnp.array([0, 2])

assert_type(xj.softmax_cross_entropy_with_integer_labels(x, labels, axis=1), jax.Array)
assert_type(xj.softmax_cross_entropy(x, x, axis=None, where=labels > 0), jax.Array)
assert_type(xj.ffi_targets, tuple[str, ...])

xj.softmax_cross_entropy(x, x, axis="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
