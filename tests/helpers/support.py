"""What the tests share: inputs, oracles, distances in units of the last place."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from ml_dtypes import bfloat16  # noqa: F401 - NumPy knows the name from now on

import xentropy as xe
from bench.accuracy import long_reference, spacing, ulps, wide
from xentropy import reference

from .remember import remembered

HALVES = ("float16", "bfloat16")
EXACT = ("float32", "float64")  # what kernels compute in
DTYPES = HALVES + EXACT
TARGETS = ("labels", "probabilities")

# Around every vector, cache line, chunk and group boundary of every tier and dtype.
LENGTHS = [*range(1, 66)] + [
    near + step for near in (96, 128, 192, 256, 512, 1024, 4096) for step in (-1, 0, 1)
]

# Plain options: loss and gradient are exact to 4 units in the last place. exp is good to
# 0.9 ulp, the sum of exps to 1, reciprocal, product with the upstream gradient and log1p to
# 0.5-1 each.
PLAIN = {np.dtype("float32"): 4, np.dtype("float64"): 4}
# 16-bit gradients are the float32 ones rounded once: half a unit, plus a few float32 units,
# each of which is at most 1 / 2**13 of a float16 unit.
ROUNDED_ONCE = 0.501


def remembering(module):
    """The functions of the reference, each with a memory, and a slow step of theirs."""
    module._centred = remembered(module._centred)
    names = ("cross_entropy", "cross_entropy_with_grad", "softmax", "log_softmax", "logsumexp")
    names += ("entropy", "kl_divergence", "row_statistics")
    names += ("selected_log_probs", "selected_log_probs_grad", "distillation_loss_with_grad")
    return SimpleNamespace(**{name: remembered(getattr(module, name)) for name in names})


_WIDE, _LONG = remembering(reference), remembering(long_reference())


def oracle(dtype):
    """The reference, in a precision that makes its own rounding negligible for `dtype`."""
    if np.dtype(dtype) != np.float64:
        return _WIDE
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is double here: no vectorised oracle for float64")
    return _LONG


def bits16(dtype):
    return np.dtype(dtype).itemsize == 2


def eps(dtype):
    """The machine epsilon of the arithmetic: float32 for 16 and 32 bits, else float64."""
    return float(np.finfo(np.float64 if np.dtype(dtype) == np.float64 else np.float32).eps)


def wide_of(array):
    """The arithmetic type of an array of logits."""
    return np.dtype("float64" if np.asarray(array).dtype.itemsize == 8 else "float32")


def plain(dtype):
    """How many units in the last place of the arithmetic an answer may be off."""
    return PLAIN[np.dtype("float64" if np.dtype(dtype) == np.float64 else "float32")]


def gradient_ulps(dtype):
    return ROUNDED_ONCE if bits16(dtype) else plain(dtype)


# ---- inputs


@remembered
def make_logits(shape, dtype="float32", *, seed=0, spread=3.0):
    return np.random.default_rng(seed).normal(0.0, spread, shape).astype(dtype)


@remembered
def make_target(kind, shape, axis=1, *, dtype="float32", seed=0):
    """Labels, or probabilities with one zero a row, for logits of this shape."""
    rng = np.random.default_rng(seed + 1)
    axis = axis if len(shape) > 1 else 0
    if kind == "labels":
        rows = np.delete(np.array(shape), axis)
        return rng.integers(shape[axis], size=tuple(rows))
    p = rng.gamma(0.7, size=shape) + 1e-3
    if shape[axis] > 2:
        np.moveaxis(p, axis, 0)[0] = 0.0
    p /= p.sum(axis=axis, keepdims=True)
    return p.astype("float64" if np.dtype(dtype) == np.float64 else "float32")


# ---- distances


def assert_ulps(actual, exact, bound, what=""):
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.shape == exact.shape, what
    distance = ulps(actual, exact)
    if distance.size and not distance.max() <= bound:
        worst = np.unravel_index(np.argmax(distance), distance.shape)
        raise AssertionError(
            f"{what}: {distance[worst]:.3g} ulp > {bound} at {tuple(map(int, worst))}: "
            f"{actual[worst]!r}, exactly {exact[worst]!r}; {np.sum(distance > bound)} such"
        )


def assert_bits(actual, expected, what=""):
    """Equal to the last bit (any nan equals any nan), in equal dtype and shape."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    unsigned = f"u{actual.dtype.itemsize}"
    a, b = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    differ = (a.view(unsigned) != b.view(unsigned)) & ~((a != a) & (b != b))
    if differ.any():
        at = tuple(np.argwhere(differ)[0].tolist())
        raise AssertionError(f"{what}: {a[at]!r} is not {b[at]!r} at {at}; {differ.sum()} such")


def assert_within(actual, exact, tolerance, what=""):
    """|actual - exact| <= tolerance, element by element; nan and inf must be the same."""
    actual = np.asarray(actual)
    a, e = (np.asarray(each, wide(actual.dtype)) for each in (actual, exact))
    assert a.shape == e.shape, what
    with np.errstate(invalid="ignore"):
        fine = (a == e) | (np.isnan(a) & np.isnan(e)) | (np.abs(a - e) <= tolerance)
    if not fine.all():
        at = tuple(np.argwhere(~fine)[0].tolist())
        allowed = np.broadcast_to(tolerance, a.shape)[at]
        raise AssertionError(f"{what} at {at}: {a[at]} is not {e[at]} +- {allowed}")


@contextmanager
def case(what):
    """Names the case of a loop in whatever goes wrong inside."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case: {what}")
        raise


# ---- the two checks


def assert_plain(logits, target, *, reduction="none", what="", **options):
    """Loss and gradient of a call without cancelling options: exact to `plain` ulp."""
    loss, grad = xe.cross_entropy_with_grad(logits, target, reduction=reduction, **options)
    dtype = np.asarray(logits).dtype.newbyteorder("=")
    options = {name: options[name] for name in options.keys() - {"out", "n_threads"}}
    exact_loss, exact_grad = oracle(dtype).cross_entropy_with_grad(
        logits, target, reduction=reduction, **options
    )
    assert grad.dtype.newbyteorder("=") == dtype, what
    if np.ndim(target) == np.ndim(logits):  # probabilities: p - t truly cancels
        scale = error_scale(logits, target, reduction=reduction, **options)[1]
        allowed = plain(dtype) * eps(dtype) * scale + spacing(exact_grad, dtype) / 2
        assert_within(grad, exact_grad, allowed, f"gradient {what}")
    else:
        assert_ulps(grad, exact_grad, gradient_ulps(dtype), f"gradient {what}")
    if reduction == "none":
        assert_ulps(loss, exact_loss, plain(dtype), f"loss {what}")
    else:  # nonnegative rows, added in float64: their relative error, and one rounding a row
        relative = plain(dtype) * eps(dtype) + np.size(loss) * 2.0**-53
        assert_within(loss, exact_loss, relative * np.abs(exact_loss), f"loss {what}")
    return loss, grad


@remembered
def error_scale(logits, target, weight=None, *, axis=1, **options):
    """The size of the terms of loss and gradient, signs removed: (rows, elements).

    Where weights are negative, labels smoothed or lse near 0 these terms truly cancel, and
    no float arithmetic is exact relative to their sum: the error is relative to this.
    """
    take = options.get
    x, shape = reference._rows(logits, axis)
    mass, row_weight, counted = reference._target_mass(
        x, shape, target, weight, take("ignore_index", -100), take("label_smoothing", 0.0), axis
    )
    repeat = np.broadcast_to(np.float64(take("sample_weight", 1.0)), shape).reshape(-1)
    counted = counted & (repeat != 0)
    scale = take("logit_scale", 1.0)
    x = np.where(counted[:, None], x, 0.0) * scale
    x, slope = reference._capped(x, take("softcap"))
    if take("softcap") is not None:  # a slope below 2^-124 (float64: 2^-1020) is 0
        slope = slope + 4 * np.finfo(wide_of(logits)).tiny / eps(wide_of(logits))
    rows = reference._Rows(x)
    mass = np.where(counted[:, None], np.abs(mass), 0.0)
    unit, z = reference._unit(take("base")), take("z_loss", 0.0)
    # The 1: a sum of exps that is off by eps of itself has a logarithm off by eps of 1.
    lse = 1.0 + np.abs(rows.lse) + np.abs(np.where(np.isfinite(x), x, 0.0)).max(axis=1)
    loss = unit * reference._times(mass, rows.neg_log_p).sum(axis=1)
    grad = unit * (mass.sum(axis=1, keepdims=True) * rows.p + mass)
    if z:
        loss = loss + z * lse**2
        grad = grad + reference._times(rows.p, 2 * z * lse[:, None])

    divisor = 1.0
    if take("reduction", "mean") == "mean":
        divisor = take("normalizer") or np.sum((repeat * row_weight)[counted])
    upstream = np.broadcast_to(1.0 if (g := take("grad_output")) is None else g, shape)
    repeat = np.where(counted, np.abs(repeat), 0.0)
    loss = (repeat * loss).reshape(shape)
    with np.errstate(divide="ignore", invalid="ignore"):  # weights may add up to 0
        if take("reduction", "mean") != "none":
            loss = loss.sum() / abs(divisor)
        grad = grad * slope * (scale * repeat * np.abs(upstream.reshape(-1) / divisor))[:, None]
    return loss, reference._unrows(grad, shape, axis)


# Ten roundings at most stand between a term and the answer with every option on: exp, the
# sum, reciprocal, lse, mass (2), upstream, unit, z term, last addition.
OPTION_ROUNDINGS = 10
# The errors of a capped logit and of its slope: tests/kernels/elementary_main.cpp.
CAP_ULPS, SLOPE_ULPS = 3.5, 6


def assert_options(logits, target, *, moved=0.0, what="", **options):
    """Loss and gradient under any options; the loss alone has the same bits.

    `moved` is how far the rounding of logit_scale may move two logits apart. A softcap moves each
    by CAP_ULPS, and costs as many roundings as there are in a slope.
    """
    dtype = np.asarray(logits).dtype.newbyteorder("=")
    plain = {name: options[name] for name in options.keys() - {"out", "n_threads"}}
    exact_loss, exact_grad = oracle(dtype).cross_entropy_with_grad(logits, target, **plain)
    scales = error_scale(logits, target, **plain)
    roundings = OPTION_ROUNDINGS
    if "softcap" in options:
        size = np.nanmax(np.abs(np.asarray(logits, np.float64)), initial=0)
        size = min(options["softcap"], size * options.get("logit_scale", 1))
        moved, roundings = moved + 2 * CAP_ULPS * eps(dtype) * size, roundings + SLOPE_ULPS
    forward = {name: options[name] for name in options.keys() - {"out", "grad_output"}}
    alone = xe.cross_entropy(logits, target, **forward)
    loss, grad = xe.cross_entropy_with_grad(logits, target, **options)

    allowed = [(roundings * eps(dtype) + moved) * scale for scale in scales]
    allowed[0] = allowed[0] + moved
    assert_bits(alone, loss, f"loss alone {what}")
    assert_within(loss, exact_loss, allowed[0] + spacing(exact_loss, np.float64), f"loss {what}")
    assert_within(grad, exact_grad, allowed[1] + spacing(exact_grad, dtype), f"gradient {what}")
    return loss, grad
