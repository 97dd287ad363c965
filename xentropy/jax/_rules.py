"""Functions that JAX differentiates, transposes and maps by rules of their own.

JAX has two that are not enough for second derivatives. `jax.custom_jvp` loses its rule where
`jax.lax.scan` is differentiated: the next derivative is then that of the function itself.
`jax.custom_derivatives.linear_call` can neither be mapped nor differentiated in what it is not
linear in.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def total(terms):
    """The sum of ``function(tangent)``, without those whose tangent is known to be 0."""
    return reduce(jnp.add, (f(tangent) for f, tangent in terms if type(tangent) is not ad.Zero))


def _primitive(name, value):
    """JAX's primitive for ``value(*operands, **parameters)``; it has no derivatives yet."""

    def aval(*operands, **parameters):
        return jax.make_jaxpr(partial(value, **parameters))(*operands).out_avals[0]

    primitive = Primitive(name)
    primitive.def_impl(value)
    primitive.def_abstract_eval(aval)
    mlir.register_lowering(primitive, mlir.lower_fun(value, multiple_results=False))
    return primitive


def _size(operands, axes):
    return next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)


def _repeated(operand, axis, size):
    """With the mapped axis in front. What is not mapped is repeated: JAX adds up its cotangents."""
    if axis is None:
        return jnp.broadcast_to(operand, (size, *operand.shape))
    return jnp.moveaxis(operand, axis, 0)


def with_derivatives(*derivatives):
    """Give ``function(axis, *operands)`` a derivative in each operand.

    A derivative is ``derivative(axis, operands, tangent)``, which JAX must be able to transpose.
    The axis is negative, so that an axis in front maps the function. Of a function that works
    element by element, it may be any other constant.
    """

    def decorate(function):
        def value(*operands, axis):
            return function(axis, *operands)

        def call(axis, *operands):
            return primitive.bind(*operands, axis=axis)

        def jvp(operands, tangents, axis):
            at = [partial(derivative, axis, operands) for derivative in derivatives]
            return call(axis, *operands), total(zip(at, tangents, strict=True))

        def mapped(operands, axes, axis):
            pairs = zip(operands, axes, strict=True)
            return call(axis, *(_repeated(*pair, _size(operands, axes)) for pair in pairs)), 0

        primitive = _primitive(function.__name__, value)
        ad.primitive_jvps[primitive] = jvp
        batching.primitive_batchers[primitive] = mapped
        return call

    return decorate


def linear(function, transpose, constants, operand):
    """``function(*constants, operand)``, linear in the operand.

    ``transpose(*constants, cotangent)`` is the transpose and has the type of the operand. JAX
    differentiates both in the constants, and maps them.
    """
    return _linear.bind(*constants, operand, function=function, transpose=transpose)


def _linear_value(*operands, function, transpose):
    return function(*operands)


def _linear_jvp(operands, tangents, function, transpose):
    *constants, operand = operands
    moving = [i for i, tangent in enumerate(tangents[:-1]) if type(tangent) is not ad.Zero]

    def in_constants(moved):
        def of(*values):
            at = dict(zip(moving, values, strict=True))
            return function(*(at.get(i, x) for i, x in enumerate(constants)), operand)

        return jax.jvp(of, [constants[i] for i in moving], moved)[1]

    at = partial(linear, function, transpose, constants)
    terms = [(at, tangents[-1])]
    if moving:
        terms.append((in_constants, [tangents[i] for i in moving]))
    return at(operand), total(terms)


def _linear_transpose(cotangent, *operands, function, transpose):
    constants = operands[:-1]
    return [*(None for _ in constants), linear(transpose, function, constants, cotangent)]


def _linear_mapped(operands, axes, function, transpose):
    """What is constant while the operand is mapped is computed once."""
    *constants, operand = operands
    operand = _repeated(operand, axes[-1], _size(operands, axes))
    within = (*axes[:-1], 0)
    return linear(jax.vmap(function, within), jax.vmap(transpose, within), constants, operand), 0


_linear = _primitive("linear", _linear_value)
ad.primitive_jvps[_linear] = _linear_jvp
ad.primitive_transposes[_linear] = _linear_transpose
batching.primitive_batchers[_linear] = _linear_mapped
