"""Who is measured: functions that make a step of a peer, (loss, gradients), for a layer's arrays.

Torch's chunked function has a row for each size of chunks: the best of them is what counts.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUMPY, TORCH = "xentropy, NumPy", "xentropy.torch"
EAGER, COMPILED = "torch eager", "torch.compile"
BARE_NUMPY, BARE_TORCH = "products alone, NumPy", "products alone, torch"
CHUNKS = (256, 512)
CHUNKED = "torch chunked, {}".format
DEFAULT = CHUNKED("default")


@dataclass(frozen=True)
class Layer:
    """The arrays of a call, and whether gradients are wanted."""

    input: np.ndarray
    weight: np.ndarray
    target: np.ndarray
    gradients: bool


@dataclass(frozen=True)
class Peer:
    """`make(layer)` is the step: it returns (loss, gradient of input, of weight) or (loss,)."""

    make: Callable
    needs: tuple = ("torch",)
    chunk: int = 0  # rows, where it is asked for
    bare: bool = False

    @property
    def installed(self):
        return all(importlib.util.find_spec(name) for name in self.needs)


def bare_numpy(layer):
    """The products in float32, of all rows at once, into memory that is there."""
    x, w = layer.input.astype(np.float32), layer.weight.astype(np.float32)
    z, dx, dw = np.ones((len(x), len(w)), np.float32), np.ones_like(x), np.ones_like(w)

    def step():
        np.matmul(x, w.T, out=z)
        if layer.gradients:
            np.matmul(z, w, out=dx)
            np.matmul(z.T, x, out=dw)

    return step


def tensor(array):
    """A tensor of the same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def bare_torch(layer):
    """The products in the dtype of the layer, likewise."""
    import torch

    x, w = tensor(layer.input), tensor(layer.weight)
    z, dx, dw = torch.ones(len(x), len(w), dtype=x.dtype), torch.ones_like(x), torch.ones_like(w)

    def step():
        torch.mm(x, w.t(), out=z)
        if layer.gradients:
            torch.mm(z, w, out=dx)
            torch.mm(z.t(), x, out=dw)

    return step


def of_numpy(layer):
    import xentropy as xe

    arrays = layer.input, layer.weight, layer.target

    def step():
        if not layer.gradients:
            return (xe.linear_cross_entropy(*arrays),)
        loss, grads = xe.linear_cross_entropy_with_grad(*arrays)
        return loss, grads.input, grads.linear_weight

    return step


def of_torch(function):
    """The maker of steps of a function of tensors (input, weight, target)."""

    def make(layer):
        x, w = (tensor(a).requires_grad_(layer.gradients) for a in (layer.input, layer.weight))
        y, loss_of = tensor(layer.target), function()

        def step():
            x.grad = w.grad = None
            loss = loss_of(x, w, y)
            if not layer.gradients:
                return (loss,)
            loss.backward()
            return loss.detach(), x.grad, w.grad

        return step

    return make


def ours():
    from xentropy.torch import linear_cross_entropy

    return linear_cross_entropy


def eager():
    from torch.nn import functional as F

    return lambda x, w, y: F.cross_entropy(F.linear(x, w), y)


def compiled():
    """For any shape, so that a tiny call compiles what the large ones run."""
    import torch

    return torch.compile(eager(), dynamic=True)


def chunked(rows):
    def function():
        from torch.nn import LinearCrossEntropyOptions
        from torch.nn import functional as F

        options = LinearCrossEntropyOptions(batch_chunk_size=rows)
        return lambda x, w, y: F.linear_cross_entropy(x, w, y, options=options)

    return function


PEERS = {
    BARE_NUMPY: Peer(bare_numpy, ("numpy",), bare=True),
    BARE_TORCH: Peer(bare_torch, bare=True),
    NUMPY: Peer(of_numpy, ("numpy",)),
    TORCH: Peer(of_torch(ours)),
    EAGER: Peer(of_torch(eager)),
    COMPILED: Peer(of_torch(compiled)),
    **{CHUNKED(n): Peer(of_torch(chunked(n)), chunk=n) for n in CHUNKS},
    DEFAULT: Peer(of_torch(chunked(None))),
}


def installed():
    """The names of those that can be measured here."""
    names = [name for name, peer in PEERS.items() if peer.installed]
    if importlib.util.find_spec("torch"):
        from torch.nn import functional as F

        if not hasattr(F, "linear_cross_entropy"):  # torch < 2.13
            names = [name for name in names if not name.startswith(CHUNKED(""))]
    return names


def ceiling(name, dtype):
    """The products that a call of ours is made of: the peer that makes them, and in which dtype."""
    if name == NUMPY:
        return BARE_NUMPY, "float32"
    from xentropy.torch import _linear_products as rule

    if dtype == "bfloat16" and rule.torch_multiplies_bfloat16():
        return BARE_TORCH, dtype
    return (BARE_NUMPY if rule.numpy_multiplies() else BARE_TORCH), "float32"
