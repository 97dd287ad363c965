"""torch.nn.functional.cross_entropy as the oracle of xentropy.torch, and its inputs."""

import torch
import torch.nn.functional as F

from xentropy.torch import cross_entropy


def seeded(*shape, dtype=torch.float32, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64) * spread
    return x.to(dtype).requires_grad_()


def labels(shape, classes=None, seed=1):
    rows = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes or shape[min(1, len(shape) - 1)], rows, generator=generator)


def probabilities(shape, dtype=torch.float32, seed=2):
    return seeded(*shape, dtype=dtype, seed=seed).detach().softmax(min(1, len(shape) - 1))


def logits_and_labels(rows=6, classes=5, dtype=torch.float32):
    return seeded(rows, classes, dtype=dtype), torch.arange(rows) % classes


def gradients(function, logits, target, upstream=None, **options):
    """(loss, gradient in the logits, gradient in the target or None)."""
    logits = logits.detach().requires_grad_()
    if target.is_floating_point():
        target = target.detach().requires_grad_()
    loss = function(logits, target, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return loss.detach(), logits.grad, target.grad


def exact_gradient(x, y, upstream, **options):
    """In the logits, by torch in float64."""
    x = x.detach().double().requires_grad_()
    loss = F.cross_entropy(x, y, **options)
    return torch.autograd.grad(loss, x, upstream.double().expand_as(loss))[0]


def as_float64(value):
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def error(actual, exact, cancels):
    """Distances in units of the last place of |exact|, in `actual`'s type.

    Where it `cancels` (p - q with q no 0 or 1) the unit is that of the largest entry: no float is
    exact relative to a difference of its like.
    """
    size = exact.abs().max() if cancels else exact.abs()
    info = torch.finfo(actual.dtype)
    unit = info.eps * 2.0 ** size.clamp(min=info.tiny).log2().floor()
    distance = (actual.double() - exact).abs() / unit
    return torch.where(actual.double() == exact, 0, distance).nan_to_num(nan=0.0)


def assert_no_worse(actual, theirs, exact, cancels, what=""):
    """Type, shape and nans are torch's; the error is not above torch's by more than 4 ulp.

    4 ulp is what the kernels promise without torch as a witness (tests/helpers/support.py).
    """
    assert (actual.dtype, actual.shape) == (theirs.dtype, theirs.shape), what
    assert torch.equal(actual.isnan(), exact.isnan()), what
    if actual.numel():
        worst = error(actual, exact, cancels).max().item()
        peer = error(theirs, exact, cancels).max().item()
        assert worst <= peer + 4, f"{what}: {worst} ulp, torch {peer}"


def assert_as_torch(logits, target, what="", **options):
    ours = gradients(cross_entropy, logits, target, **options)
    theirs = gradients(F.cross_entropy, logits, target, **options)
    wide = {name: as_float64(value) for name, value in options.items()}
    exact = gradients(F.cross_entropy, as_float64(logits), as_float64(target), **wide)
    cancels = target.is_floating_point() or options.get("label_smoothing", 0) > 0
    for name, a, t, e in zip(("loss", "gradient", "in target"), ours, theirs, exact, strict=True):
        assert (a is None) == (t is None)
        if a is None:
            continue
        if a.dtype == torch.float64:  # torch is no more exact than a few eps of logits below 16
            assert torch.allclose(a, t, rtol=1e-13, atol=1e-14, equal_nan=True), what
        else:
            assert_no_worse(a, t, e, cancels, f"{name} {what}")
