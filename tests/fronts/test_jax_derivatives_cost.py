"""xentropy.jax: what derivatives cost, in calls of the kernels and in memory."""

import jax
import numpy as np
import pytest
from helpers.jax_derivatives import ALONG, OURS, Case
from helpers.support import TARGETS


def kernels(function, *arguments):
    """The compiled calls of the kernels: names and first operands, sorted."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="xentropy_' in line]
    return sorted(
        (
            line.split('target="xentropy_')[1].split('"')[0],
            line.split("constraints={")[1].split("{")[0],
        )
        for line in calls
    )


LOSS, GRADIENT = ("losses", "f32[7,13]"), ("gradient", "f32[7,13]")


@pytest.mark.parametrize("kind", TARGETS)
def test_calls_of_the_kernels(kind):
    case = Case(kind)
    x, v = case.logits, case.direction
    count = {
        "loss": (case.losses, [LOSS]),
        "grad": (jax.grad(case.weighted), [GRADIENT]),
        "value_and_grad": (jax.value_and_grad(case.weighted), [GRADIENT, LOSS]),
        "vmapped": (jax.vmap(jax.value_and_grad(lambda x, t, w: OURS[kind](x, t) * w)), None),
        "checkpoint": (jax.value_and_grad(jax.checkpoint(case.weighted)), [GRADIENT, LOSS]),
        "jvp": (lambda x: jax.jvp(case.losses, (x,), (v,)), [GRADIENT, LOSS]),
        "jacfwd": (jax.jacfwd(case.losses), [GRADIENT]),
        "linearize": (lambda x: jax.vmap(jax.linearize(case.losses, x)[1])(v[None]), [GRADIENT]),
        "jvp of grad": (lambda x: jax.jvp(jax.grad(case.weighted), (x,), (v,)), [GRADIENT]),
    }
    assert kernels(jax.hessian(case.weighted), x) == []
    for name, (function, expected) in count.items():
        arguments = (x, case.target, case.weights) if expected is None else (x,)
        assert kernels(function, *arguments) == (expected or sorted([GRADIENT, LOSS])), name


def test_a_gradient_in_probabilities_alone_calls_no_kernel():
    case = Case("probabilities")
    assert kernels(jax.grad(case.weighted, 1), case.logits, case.target) == []


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_reverse_mode_saves_the_arguments_alone(kind, wrap):
    """12 bytes an element: no second array of this size is kept, not even a copy."""
    case = Case(kind)
    pull = jax.vjp(wrap(case.losses), case.logits)[1]
    arguments = {x.unsafe_buffer_pointer() for x in (case.logits, case.target)}
    saved = [x for x in jax.tree.leaves(pull) if np.shape(x) == case.logits.shape]
    assert len(saved) == len(arguments) - (kind == "labels")
    assert {x.unsafe_buffer_pointer() for x in saved} <= arguments


@pytest.mark.parametrize("kind", TARGETS)
def test_other_platforms_get_the_formula(kind):
    case = Case(kind)
    for mode in ALONG.values():
        step = jax.jit(lambda x, mode=mode: mode(case.losses, x, case.direction))
        lowered = jax.export.export(step, platforms=["cuda"])(case.logits).mlir_module()
        assert "xentropy_" not in lowered
