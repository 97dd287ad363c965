"""Batches of the tests of evaluations, and what a process does with a part of one."""

import math
from dataclasses import fields

import numpy as np

import xentropy as xe


def batch(rows=60, classes=11, seed=0, scale=3.0, dtype=np.float32):
    """The arguments of an update, an array for each."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, classes)) * scale).astype(dtype)
    target = rng.integers(classes, size=rows)
    target[rng.random(rows) < 0.1] = -100
    return {
        "logits": logits,
        "base_logits": (logits + 0.1 * rng.normal(size=logits.shape)).astype(dtype),
        "target": target,
        "group": np.array([f"document {n}" for n in rng.integers(7, size=rows)]),
        "sample_weight": rng.random(rows).astype(np.float32) * (rng.random(rows) > 0.1),
        "bytes": rng.integers(1, 9, size=rows),
    }


def given(kind, arguments):
    """Those arguments that the kind of evaluation has."""
    absent = "bytes" if kind is xe.PairedEvaluation else "base_logits"
    return {name: value for name, value in arguments.items() if name != absent}


def counted(kind, arguments, rows=slice(None)):
    """An evaluation of these rows of the batch."""
    evaluation = kind()
    evaluation.update(**{name: value[rows] for name, value in given(kind, arguments).items()})
    return evaluation


def counted_in_a_process(task):
    """The same for `map` of a pool: the name of a kind, the seed of a batch, and rows."""
    kind, seed, rows = task
    return counted(getattr(xe, kind), batch(seed=seed), rows)


def bits(value):
    """A result as a value that is equal only for equal bits, nan included."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [bits(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: bits(getattr(value, field.name)) for field in fields(value)}
    return value
