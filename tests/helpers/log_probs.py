"""selected_log_probs and its gradient as one function, and the size of the gradient's terms."""

import numpy as np

import xentropy as xe
from bench.accuracy import spacing
from xentropy import reference

from .remember import remembered
from .support import CAP_ULPS, SLOPE_ULPS, assert_within, bits16, eps, oracle, wide_of


def gradient_of(x, index, g, h=None, out=None, **options):
    """The gradient in the logits, from the numbers that the forward pass has returned."""
    found = xe.selected_log_probs(x, index, **options)
    numbers = found.lse, found.log_prob, found.entropy
    return xe.selected_log_probs_grad(x, index, *numbers, g, h, out=out, **options)


def make_index(shape, k=None, *, axis=1, seed=3):
    """Classes for logits of this shape: one a row, or k."""
    axis = axis % len(shape)
    rows = (*shape[:axis], *(() if k is None else (k,)), *shape[axis + 1 :])
    return np.random.default_rng(seed).integers(shape[axis], size=rows)


def make_upstream(shape, index, axis=1, seed=4):
    """Upstream gradients of log_prob and entropy, multiples of 1/64 in every type."""
    rng, axis = np.random.default_rng(seed), axis % len(shape)
    rows = shape[:axis] + shape[axis + 1 :]
    return (rng.integers(-128, 129, s) / 64 for s in (np.shape(index), rows))


@remembered
def terms_of(x, index, g, h, *, axis=1, logit_scale=1.0, softcap=None, ignore_index=-100):
    """|g| (1 - p) at the classes y, |g| p, |h| p (1 + |log p + H|), |h| p H; the largest |x|."""
    arguments = index, axis, ignore_index, logit_scale, softcap
    x, slope, labels, counted, _, shape, _ = reference._selection(x, *arguments)
    rows = reference._Rows(x)
    g = np.broadcast_to(np.abs(np.asarray(g, np.float64)), np.shape(index))
    g = np.moveaxis(g, axis if g.ndim > 1 else 0, -1) if len(shape) < g.ndim else g
    g = np.where(counted, g.reshape(labels.shape), 0)
    own = np.zeros(x.shape)
    np.add.at(own, (np.arange(len(x))[:, None], labels), g)
    h = np.abs(reference._per_row(0.0 if h is None else h, shape))[:, None]
    entropy = reference._times(rows.p, rows.neg_log_p).sum(axis=1, keepdims=True)
    logs = reference._times(rows.p, np.abs(reference._centred(x, rows.p)))
    parts = own * rows.not_p, g.sum(axis=1, keepdims=True) * rows.p, h * (rows.p + logs)
    largest = np.abs(np.where(np.isfinite(x), x, 0)).max(axis=1, keepdims=True) + 0 * x
    scaled = [each * slope * logit_scale for each in (*parts, h * rows.p * entropy)]
    return tuple(reference._unrows(each, shape, axis) for each in (*scaled, largest))


def tolerance(x, index, g, h, exact, **options):
    """How far the gradient may be from the exact one: as far as its terms are rounded.

    Six roundings a term: exp, its factor, u, its product and sum, and that of the result. The
    entropy given is a number of the arithmetic type: half a unit of it, and some of its own. The
    digits of p are those of the lse in float64, and with a cap those of the capped logits.
    """
    own, others, logs, entropies, largest = terms_of(x, index, g, h, **options)
    roundings, step = 6.0, eps(x.dtype)
    shared = 2.0**-52 * (1 + largest)
    if options.get("softcap") is not None:
        roundings += SLOPE_ULPS
        shared = shared + 3 * CAP_ULPS * step * options["softcap"]
    allowed = roundings * step * (own + others + logs) + 3 * step * entropies
    allowed = allowed + shared * (others + logs + entropies)
    if bits16(x.dtype):
        allowed = allowed + spacing(exact, x.dtype.newbyteorder("=")) / 2
    # A p below 2 tiny may be 0, times its logarithm too.
    return allowed + np.finfo(wide_of(x)).tiny * 2e4


def assert_gradient(x, index, g, h=None, *, what="", **options):
    """Every entry of the gradient is that of the reference, as near as its terms are."""
    plain = {k: v for k, v in options.items() if k != "n_threads"}
    upstream = g, 0.0 if h is None else h
    exact = oracle(wide_of(x)).selected_log_probs_grad(x, index, *upstream, **plain)
    found = gradient_of(x, index, g, h, **options)
    assert found.dtype == x.dtype.newbyteorder("=")
    assert_within(found, exact, tolerance(x, index, g, h, exact, **plain), f"gradient {what}")
    return found
