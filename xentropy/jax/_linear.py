"""Linear functions whose transpose is given, not derived.

Reverse mode transposes what forward mode computes, so that a kernel serves both only if JAX is
told which kernel is the transpose of which. `jax.custom_derivatives.linear_call` does so too, but
it can neither be mapped by `jax.vmap` nor be differentiated in what it is not linear in, of
which second derivatives consist.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def linear(function, transpose, constants, operand):
    """``function(*constants, operand)``, which is linear in the operand.

    ``transpose(*constants, cotangent)`` has the type of the operand and is the transpose; both
    must be differentiable in the constants. Both may be called with arrays of several rows at
    once, by `jax.vmap`.
    """
    return _linear.bind(*constants, operand, function=function, transpose=transpose)


def _value(*operands, function, transpose):
    return function(*operands)


def _type(*operands, function, transpose):
    return jax.make_jaxpr(function)(*operands).out_avals[0]


def _jvp(primals, tangents, function, transpose):
    """The tangent of the operand takes the same way; those of the constants, the function's."""
    *constants, operand = primals
    bound = partial(linear, function, transpose, constants)
    moving = [i for i, tangent in enumerate(tangents[:-1]) if type(tangent) is not ad.Zero]

    def of_moving(*values):
        at = dict(zip(moving, values, strict=True))
        return function(*(at.get(i, value) for i, value in enumerate(constants)), operand)

    terms = []
    if type(tangents[-1]) is not ad.Zero:
        terms.append(bound(tangents[-1]))
    if moving:
        of, along = ([values[i] for i in moving] for values in (primals, tangents))
        terms.append(jax.jvp(of_moving, of, along)[1])
    return bound(operand), reduce(jnp.add, terms)


def _transpose(cotangent, *operands, function, transpose):
    *constants, _ = operands
    return [*(None for _ in constants), linear(transpose, function, constants, cotangent)]


def _mapped(operands, axes, function, transpose):
    """An operand that is the same for all is repeated: its cotangents are then added by JAX."""
    *constants, operand = operands
    *along, axis = axes
    if axis is None:
        size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
        operand, axis = jnp.broadcast_to(operand, (size, *operand.shape)), 0
    forward = jax.vmap(function, (*along, axis))
    backward = jax.vmap(transpose, (*along, 0), axis)
    return linear(forward, backward, constants, operand), 0


_linear = Primitive("linear")
_linear.def_impl(_value)
_linear.def_abstract_eval(_type)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _mapped
mlir.register_lowering(_linear, mlir.lower_fun(_value, multiple_results=False))
