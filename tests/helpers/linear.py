"""Linear layers for the tests, and how far their loss and gradients may be from the reference.

With unit roundoff u a product of K terms is within (K + 2) u of the sum of its terms' absolute
values, whatever the order in which BLAS adds them. The kernels' own error is that of
`support.assert_options`. A result below the normal range is off by a unit of that besides. All
are carried on from step to step, entry by entry, so that cancellation in the products is allowed
for and nothing else is.
"""

import numpy as np

from bench.accuracy import spacing
from xentropy import reference

from .support import OPTION_ROUNDINGS, bits16, eps, error_scale, make_target

NAMES = ("input", "linear_weight", "linear_bias")


def make_layer(rows, features, classes, dtype="float32", *, spread=3.0, seed=0):
    """(input, linear_weight, linear_bias) whose logits have about this spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 1.0, (rows, features))
    weight = rng.normal(0.0, spread / np.sqrt(features), (classes, features))
    return tuple(a.astype(dtype) for a in (x, weight, rng.normal(0.0, spread / 3, classes)))


def make_linear_target(kind, rows, classes, dtype="float32"):
    return make_target(kind, (rows, classes), dtype=dtype)


def of_cross_entropy(options):
    """The options that the call for logits has too; its classes come last."""
    ours = ("linear_bias", "logits_bytes", "out", "wanted", "n_threads")
    return {"axis": -1, **{name: v for name, v in options.items() if name not in ours}}


def product_error(terms, dtype):
    """The relative error of a product of so many terms."""
    return (terms + 2) * eps(dtype) / 2


def allowed_errors(x, layer, target, dtype, *, linear_bias=None, **options):
    """Bounds on the errors of the loss and the three gradients, for float arithmetic of `dtype`."""
    wide = [np.asarray(a, np.float64) for a in (x, layer)]
    bias = np.zeros(len(layer)) if linear_bias is None else np.asarray(linear_bias, np.float64)
    logits = wide[0] @ wide[1].T + bias
    size = np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(bias)
    scale = options.get("logit_scale", 1.0)
    off = product_error(x.shape[-1] + 1, dtype) * size + (scale != 1) * eps(dtype) * np.abs(logits)
    moved = 2 * scale * off.max(axis=1)  # two logits of a row, apart
    cap = options.get("softcap") or np.inf  # its slope 1 - tanh(z / cap)^2 moves with z
    options = of_cross_entropy(options)
    rounding = OPTION_ROUNDINGS * eps(dtype)
    loss_size, slope_size = error_scale(logits, target, **options)
    least = np.finfo(dtype).smallest_subnormal
    slope_off = (rounding + np.expm1(moved * (1 + 1 / cap))[:, None]) * slope_size + least
    loss_off = rounding * loss_size + moved_loss(logits, target, moved, options)
    slope = np.abs(reference.cross_entropy_with_grad(logits, target, **options)[1]) + slope_off
    rows, classes = logits.shape
    off_classes, off_rows = product_error(classes, dtype), product_error(rows, dtype)
    return loss_off, (
        (slope_off + off_classes * slope) @ np.abs(wide[1]) + classes * least,
        (slope_off + off_rows * slope).T @ np.abs(wide[0]) + rows * least,
        (slope_off + product_error(rows, "float64") * slope).sum(axis=0),
    )


def moved_loss(logits, target, moved, options):
    """How far losses go if two logits of a row may move apart by `moved`."""
    take = options.get
    mass, row_weight, counted = reference._target_mass(
        logits,
        (len(logits),),
        target,
        take("weight"),
        take("ignore_index", -100),
        take("label_smoothing", 0.0),
        1,
    )
    repeat = np.broadcast_to(np.float64(take("sample_weight", 1.0)), len(logits))
    counted = counted & (repeat != 0)
    capped = reference._capped(logits * take("logit_scale", 1.0), take("softcap"))[0]
    lse = np.abs(reference.logsumexp(capped, 1))
    each = reference._unit(take("base")) * np.abs(mass).sum(axis=1) * moved
    each = each + take("z_loss", 0.0) * (2 * lse + moved) * moved
    each = np.where(counted, np.abs(repeat) * each, 0.0)
    if take("reduction", "mean") == "none":
        return each
    divisor = reference._divisor(
        take("reduction", "mean"), take("normalizer"), counted, repeat, row_weight
    )
    return each.sum() / abs(divisor)


def rounded(bound, exact, dtype):
    """The bound, and the rounding of the result to its own dtype."""
    exact = np.asarray(exact, np.float64)
    return bound + spacing(exact, dtype) / (2 if bits16(dtype) else 1)
