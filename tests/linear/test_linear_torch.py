"""Linear cross entropy against torch's: in float64 equal, in 16 bits better."""

import numpy as np
import pytest
import torch
from helpers.linear import NAMES, make_layer, make_linear_target
from helpers.support import TARGETS, assert_within
from torch.nn import functional

import xentropy as xe
from bench.studies.linear_errors import ours, torch_chunked, torch_eager, truth
from xentropy import reference

ROWS, FEATURES, CLASSES = 60, 16, 90
HAS_IT = hasattr(functional, "linear_cross_entropy")
needs_it = pytest.mark.skipif(not HAS_IT, reason="this torch has no linear_cross_entropy")
WEIGHT = np.random.default_rng(2).uniform(0.5, 2.0, CLASSES)
OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": WEIGHT},
    "label_smoothing": {"label_smoothing": 0.2, "weight": WEIGHT},
    "ignore_index": {"ignore_index": 7},
}


def torchs(x, layer, bias, target, **options):
    """torch's loss, summed, and gradients in float64."""
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, layer, bias)]
    options = {k: torch.tensor(v) if k == "weight" else v for k, v in options.items()}
    if HAS_IT:
        loss = functional.linear_cross_entropy(
            *tensors[:2], torch.tensor(target), linear_bias=tensors[2], **options
        )
    else:
        logits = functional.linear(*tensors)
        loss = functional.cross_entropy(logits, torch.tensor(target), **options)
    loss.sum().backward()
    return loss.detach().numpy(), [t.grad.numpy() for t in tensors]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", TARGETS)
def test_float64_agrees_with_torch(kind, option):
    """Ours and the specification: to some units of the largest entry, for torch's tails."""
    x, layer, bias = make_layer(ROWS, FEATURES, CLASSES, "float64")
    target = make_linear_target(kind, ROWS, CLASSES, "float64")
    options = OPTIONS[option]
    if kind == "probabilities" and "ignore_index" in options:
        pytest.skip("torch refuses ignore_index for probabilities")
    if kind == "labels":
        target[::6] = options.get("ignore_index", -100)
    loss, grads = torchs(x, layer, bias, target, **options)
    for linear in (xe, reference):
        our_loss, our_grads = linear.linear_cross_entropy_with_grad(
            x, layer, target, linear_bias=bias, **options
        )
        # log_softmax of torch loses some units of the largest logit, about 12
        assert_within(our_loss, loss, 64 * 2.0**-52 * np.abs(loss).max())
        for name, a, b in zip(NAMES, our_grads, grads, strict=True):
            assert_within(a, b, 64 * 2.0**-52 * np.abs(b).max(), name)


def errors(grads, exact):
    """The largest error and the root mean square."""
    off = np.abs(grads - exact)
    return np.array([off.max(), np.sqrt(np.mean(off**2))])


@needs_it
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_16_bit_gradients_are_closer_to_the_truth_than_torchs(stored):
    """Ours are as good as the truth rounded, but for what float32 arithmetic adds: below 1 %.

    torch's are worse, but for the input's by chunks: that one is rounded once too.
    """
    layer = make_layer(96, 64, 2000, stored)
    target = make_linear_target("labels", 96, 2000)
    exact, mine = truth(layer, target), ours(layer, target)
    eager, chunked = torch_eager(layer, target), torch_chunked(layer, target)
    for name in NAMES:
        mine_off = errors(mine[name], exact[name])
        rounding = errors(exact[name].astype(stored).astype(np.float64), exact[name])
        assert (mine_off <= 1.01 * rounding).all(), name
        assert (mine_off < errors(eager[name], exact[name])).all(), name
        if name != "input":
            assert (mine_off < errors(chunked[name], exact[name])).all(), name
