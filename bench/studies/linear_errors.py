"""Errors of the gradients of a linear cross entropy in 16 bits, ours and torch's.

    python -m bench.studies.linear_errors [--size 1024x256x8000] [--dtype bfloat16]

Inputs are numbers of the dtype, the truth is float64 arithmetic on them. An error is given in
units in the last place of the largest entry of that gradient: 0.5 is one rounding of it. torch
is measured eagerly (all logits) and by its chunked function at its default options.
"""

import argparse
import warnings

import numpy as np

import xentropy as xe
from xentropy import reference

NAMES = ("input", "linear_weight", "linear_bias")


def make_problem(rows, features, classes, dtype, seed=0):
    """(input, weight, bias) with logits of spread 3, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, 1.0, (rows, features))
    weight = rng.normal(0.0, 3.0 / np.sqrt(features), (classes, features))
    layer = tuple(a.astype(dtype) for a in (x, weight, rng.normal(0.0, 1.0, classes)))
    return layer, rng.integers(0, classes, rows)


def named(grads):
    return {name: np.asarray(g, np.float64) for name, g in zip(NAMES, grads, strict=True)}


def truth(layer, target):
    """The gradients in float64."""
    x, weight, bias = layer
    return named(reference.linear_cross_entropy_with_grad(x, weight, target, linear_bias=bias)[1])


def ours(layer, target):
    x, weight, bias = layer
    return named(xe.linear_cross_entropy_with_grad(x, weight, target, linear_bias=bias)[1])


def torch_gradients(layer, target, loss_of):
    """The gradients of torch's loss of these three tensors and the labels."""
    import torch

    dtype = getattr(torch, layer[0].dtype.name)
    # exact both ways: float32 holds every 16-bit number
    tensors = [torch.from_numpy(a.astype(np.float32)).to(dtype).requires_grad_() for a in layer]
    loss_of(*tensors, torch.from_numpy(target)).backward()
    return named(t.grad.float().numpy() for t in tensors)


def torch_eager(layer, target):
    from torch.nn import functional

    def loss_of(x, weight, bias, labels):
        return functional.cross_entropy(functional.linear(x, weight, bias), labels)

    return torch_gradients(layer, target, loss_of)


def torch_chunked(layer, target):
    """By chunks of rows, as many as torch chooses."""
    import torch
    from torch.nn import functional

    def loss_of(x, weight, bias, labels):
        options = torch.nn.LinearCrossEntropyOptions()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns where it falls back to all logits
            return functional.linear_cross_entropy(
                x, weight, labels, linear_bias=bias, options=options
            )

    return torch_gradients(layer, target, loss_of)


WAYS = {"xentropy": ours, "torch eager": torch_eager, "torch chunked": torch_chunked}


def table(size, dtype):
    """Print a row for each way and gradient."""
    layer, target = make_problem(*size, dtype)
    exact = truth(layer, target)
    print(f"{'x'.join(map(str, size))} {dtype}: errors in units in the last place of the largest")
    print(f"{'':<14} {'gradient':<14} {'largest':>9} {'rms':>9} {'bias':>10}")
    for way, gradients in WAYS.items():
        found = gradients(layer, target)
        for name in NAMES:
            unit = float(np.spacing(np.abs(exact[name]).max().astype(dtype)))
            off = (found[name] - exact[name]) / unit
            rms = np.sqrt(np.mean(off**2))
            print(f"{way:<14} {name:<14} {np.abs(off).max():9.4f} {rms:9.5f} {off.mean():10.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1024x256x8000", help="rows x features x classes")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    given = parser.parse_args()
    import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 from now on

    table(tuple(map(int, given.size.split("x"))), given.dtype)


if __name__ == "__main__":
    main()
