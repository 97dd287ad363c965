"""Options that may be tensors of one number: a trainer's item count, a learnable temperature."""

import torch

from .. import _check
from .._kernels import Options, make_options
from ._arrays import BITS16

NAMES = "normalizer", "logit_scale"


def tensors(options):
    """Those of them that are tensors."""
    return [v for v in (options.normalizer, options.logit_scale) if isinstance(v, torch.Tensor)]


def check(options, device):
    """Raise unless each is one real number that logits on this device can be combined with."""
    for name in ("z_loss", "softcap", "base"):
        if isinstance(getattr(options, name), torch.Tensor):
            raise TypeError(f"{name} must be a number, not a tensor")
    for name in (*NAMES, "label_smoothing"):
        value = getattr(options, name)
        if not isinstance(value, torch.Tensor):
            continue
        if value.numel() != 1:
            shape = tuple(value.shape)
            raise ValueError(f"{name} must be one number, not a tensor of shape {shape}")
        if value.dtype is torch.bool or value.is_complex():
            raise TypeError(f"{name} must be a number, not a tensor of {value.dtype}")
        if value.device != device and value.device.type != "cpu":
            raise RuntimeError(f"{name} is on {value.device}, but input on {device}")
    if options.reduction != "mean" and isinstance(options.normalizer, torch.Tensor):
        _check.normalizer(1, options.reduction)


def scalar(value):
    """A tensor of one number without dimensions, so that it widens no type; others unchanged."""
    return value.reshape(()) if isinstance(value, torch.Tensor) else value


def by_value(compute, arrays, options, inplace):
    """`compute(arrays, options)` with Python's numbers, and derivatives in those that want them.

    As logits * (logit_scale / its value) and loss * (the value of normalizer / normalizer): both
    factors are 1, so nothing but a derivative of any order comes of them.
    """
    check(options, arrays[0].device)
    given = {name: getattr(options, name) for name in Options.NAMES}
    normalizer, scale = (given[name] for name in NAMES)
    for name in NAMES:
        if isinstance(given[name], torch.Tensor):
            given[name] = given[name].item()
    if _derived(scale):
        if inplace:
            raise RuntimeError(
                "inplace=True would overwrite logits that the gradient in logit_scale needs"
            )
        arrays = _Scaled.apply(arrays[0], scale), *arrays[1:]
    loss = compute(arrays, make_options(**given))
    if _derived(normalizer):
        loss = loss * (normalizer.detach() / normalizer).reshape(()).to(loss.dtype)
    return loss


def _derived(value):
    return isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled()


class _Scaled(torch.autograd.Function):
    """logits * (scale / its value), without a pass over the logits: forward returns a view.

    The gradient in scale, sum(upstream * logits) / scale, is one pass over both in backward.
    """

    @staticmethod
    def forward(ctx, logits, scale):
        ctx.save_for_backward(logits, scale)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, upstream):
        logits, scale = ctx.saved_tensors
        value = scale.detach()
        # What is not finite has gradient 0 (unread, or probability 0), or else it is nan.
        wide = torch.float32 if logits.dtype in BITS16 else logits.dtype
        each = upstream.to(wide) * logits.to(wide).nan_to_num(0, 0, 0)
        of_scale = each.sum(dtype=torch.float64) / value.reshape(())
        of_scale = of_scale.to(scale.dtype).reshape(scale.shape)
        if torch.is_grad_enabled():  # create_graph
            upstream = upstream * (scale / value).reshape(()).to(upstream.dtype)
        return upstream, of_scale
