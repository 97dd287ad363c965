"""Ranks of a vocabulary-parallel loss in one process: the same functions, without the wire."""

import math

import numpy as np

from xentropy import reference
from xentropy._kernels import make_options
from xentropy.torch.parallel import _exchange, _shards

from .support import assert_bits, assert_within, eps

TERMS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0, "reduction": "sum"},
    "z_loss": {"z_loss": 1e-2},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 5.0},
    "base": {"base": 2.0},
    "normalizer": {"normalizer": 3.5},
    "weight": {"weight": True},
    "sample_weight": {"sample_weight": True},
    "all": {
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "softcap": 7.0,
        "logit_scale": 0.5,
        "base": 10.0,
        "reduction": "none",
    },
}


def part_slice(array, axis, first, size):
    """The classes [first, first + size) of an array."""
    index = [slice(None)] * array.ndim
    index[axis] = slice(first, first + size)
    return array[tuple(index)]


def class_axis(ndim, options):
    return 0 if ndim == 1 else options.get("axis", 1) % ndim


def in_shards(logits, target, first, sizes, upstream=1.0, **options):
    """(loss, gradient) by ranks whose shards are these; every rank must have the same loss."""
    weight, repeat = (options.pop(n, None) for n in ("weight", "sample_weight"))
    empty_mean = options.pop("empty_mean", math.nan)
    axis = class_axis(logits.ndim, options)
    record = make_options(**options)
    places = list(zip(first, sizes, strict=True))
    dense = np.asarray(target).dtype.kind not in "iu"
    shards = [
        _shards.Shard(
            part_slice(logits, axis, *at),
            part_slice(target, axis, *at) if dense else target,
            None if weight is None else part_slice(weight, 0, *at),
            repeat,
            record,
        )
        for at in places
    ]
    parts = [_shards.part_of(s, o) for s, o in zip(shards, first, strict=True)]
    headers = [_exchange.header(*each) for each in zip(shards, first, strict=True)]
    numbers = [_exchange.numbers(*each) for each in zip(shards, parts, strict=True)]
    gradient, losses = np.full_like(logits, np.nan), []
    for rank, (shard, part) in enumerate(zip(shards, parts, strict=True)):
        agreed = _exchange.shards_of(shard, np.stack(headers))
        every = _exchange.parts(shard, agreed, np.stack(numbers))
        whole = _shards.whole_of(shard, every, agreed.classes, rank)
        losses.append(_shards.reduced(shard, whole, empty_mean))
        _shards.gradient(shard, part, whole, upstream, part_slice(gradient, axis, *places[rank]))
    for loss in losses[1:]:
        assert_bits(loss, losses[0], "ranks differ")
    return losses[0], gradient


def assert_as_reference(found, logits, target, upstream=1.0, **options):
    """Compare with the specification for all classes at once, in float64."""
    loss, gradient = found
    wide = logits.astype(np.float64)
    exact_loss, exact = reference.cross_entropy_with_grad(
        wide, target, grad_output=upstream, **options
    )
    unit = eps(logits.dtype)
    # The exps and sums of the kernels; a softcap is rounded to the arithmetic, and costs as many
    # units as the capped logits are large.
    units = 16 * (1 + (options.get("softcap") or 0))
    assert_within(loss, exact_loss, units * unit * np.abs(exact_loss), "loss")
    axis = class_axis(logits.ndim, options)
    terms = np.abs(exact)
    if np.asarray(target).dtype.kind == "f" or options.get("label_smoothing"):
        # Q p - q of a class that is not the most probable, of its shard: of the size of the masses.
        terms = np.maximum(terms, np.abs(exact).max(axis=axis, keepdims=True))
    rounding = np.abs(exact) * 2.0 ** {"float16": -11, "bfloat16": -8}.get(logits.dtype.name, -60)
    if logits.dtype == np.float16:
        rounding = rounding + 2.0**-25
    assert_within(gradient.astype(np.float64), exact, units * unit * terms + rounding, "gradient")
