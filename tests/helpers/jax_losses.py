"""The losses of xentropy.jax beside optax's, and their arguments."""

import jax.numpy as jnp
import numpy as np

from . import jax_derivatives
from .support import make_logits, make_target

PAIRS = {kind: (ours, jax_derivatives.THEIRS[kind]) for kind, ours in jax_derivatives.OURS.items()}
OURS, OPTAX = PAIRS["labels"]


def case(kind, shape=(17, 33), dtype="float32", axis=-1):
    """Logits, targets and an upstream gradient for each row, as JAX's arrays."""
    axis %= len(shape)
    logits = jnp.asarray(make_logits(shape, dtype))
    target = jnp.asarray(make_target(kind, shape, axis, dtype=dtype))
    rows = shape[:axis] + shape[axis + 1 :]
    # Positive and negative powers of two: a product with them rounds nothing.
    upstream = np.random.default_rng(5).choice([-2.0, 0.25, 1.0], size=rows)
    return logits, target, jnp.asarray(upstream, dtype)
