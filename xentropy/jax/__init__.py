r"""Softmax cross-entropy for JAX on the CPU, with optax's names, arguments and results.

The kernels are called through XLA's foreign function interface, on XLA's own memory: neither
arguments nor results are copied, for some 15 us a call (`python -m bench.fronts --front jax`).
Nothing is compiled for it, and JAX is needed only here. `jax.pure_callback` would copy every
result, cost 100 us a call, and can deadlock on arrays that JAX has yet to copy (jax-ml/jax#24255).

The loss is one call, which reads the logits; the gradient another, which reads them and writes
the gradient, already multiplied by the upstream gradient: 12 bytes an element in float32 for both,
and only the second where only the gradient is used. A gradient computed together with the loss
would have to be read and scaled later: 16 bytes, and one more rounding.

On other devices, and for arguments that the kernels do not support (element-wise masks, labels to
be broadcast, other dtypes), the functions are optax's. Reverse mode may be nested; forward mode
(`jax.jvp`, `jax.jacfwd`) raises JAX's TypeError. A batch that is sharded over devices belongs into
`jax.shard_map`: XLA does not know that it could split the call.
"""

try:
    import jax  # noqa: F401
    import optax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "xentropy.jax needs JAX and optax: pip install 'xentropy-cpu[jax]'"
    ) from error

from ._loss import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels

__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"]
