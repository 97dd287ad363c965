r"""Softmax cross-entropy for JAX on the CPU, with optax's names, arguments and results.

XLA calls the kernels through its foreign function interface, in machine code and on its own memory:
neither arguments nor results are copied, and no call needs the interpreter, so that signals, exits
and deep stacks are as with JAX's own operations. `jax.pure_callback` would copy every result, cost
100 us a call, and can deadlock on arrays that JAX has yet to copy (jax-ml/jax#24255).

The loss is one call, which reads the logits; the gradient another, which reads them and writes
the gradient, already multiplied by the upstream gradient: 12 bytes an element in float32 for both,
and only the second where only the gradient is used. A gradient computed together with the loss
would have to be read and scaled later: 16 bytes, and one more rounding.

The two are transposes of one another as far as JAX knows: forward mode (`jax.jvp`, `jax.linearize`,
`jax.jacfwd`) multiplies the gradient by the direction, row by row, and reverse mode keeps nothing
but logits and target. Second derivatives (`jax.hessian`, `jax.jvp` of `jax.grad`, either mode over
either) are formulas that XLA compiles, exact where a probability is almost 1, and may be
differentiated again; all of it under `jax.vmap`, `jax.lax.scan` and `jax.checkpoint`.

On other devices, and for arguments that the kernels do not support (element-wise masks, labels to
be broadcast, other dtypes), the functions are optax's. A batch that is sharded over devices belongs
into `jax.shard_map`: XLA does not know that it could split the call.

A program that `jax.export` saves contains the names of the kernels, `ffi_targets`. JAX's list of
names that stay has its own alone, so it has to be told that these do; and the process that loads
the program imports xentropy.jax first:

>>> import jax
>>> from jax import export
>>> from xentropy.jax import ffi_targets, softmax_cross_entropy_with_integer_labels
>>> checks = [export.DisabledSafetyCheck.custom_call(name) for name in ffi_targets]
>>> step = jax.jit(lambda x, y: softmax_cross_entropy_with_integer_labels(x, y).mean())
>>> shapes = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((2,), "int32")
>>> saved = export.export(step, disabled_checks=checks)(*shapes).serialize()
"""

try:
    import jax  # noqa: F401
    import optax  # noqa: F401
except ModuleNotFoundError as _error:
    raise ImportError(
        "xentropy.jax needs JAX and optax: pip install 'xentropy-cpu[jax]'"
    ) from _error

from ._loss import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels
from ._primitives import ffi_targets

__all__ = ["ffi_targets", "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"]
