"""The softmax family on the kernels, and its gradients.

What a gradient costs in passes over memory the size of the input, reads + writes, in float32:

* softmax: 2 + 1, by torch's kernel, from the result.
* log_softmax: 2 + 1, from the input. With upstream gradient g it is g_c - p_c sum(g): that of the
  cross entropy with class probabilities -g, whose kernel has exact tails.
* logsumexp: 2 + 2, the kernel's softmax, scaled.
* entropy: 6 + 5, torch's operations on the kernel's log_softmax.
* kl_divergence: 2 + 1 in the logits, that of the cross entropy; torch's operations in the target.

Kept until then is the result of softmax, else the input: in 16 bits a gradient made of the rounded
logarithms would be wrong in its first digits.

torch's operations compute the same formulas where the gradient is to have a graph (create_graph),
where the upstream gradient is batched, and where backward is itself recorded in a graph.
"""

import math

import numpy as np
import torch

from .. import _kernels
from .._divergence import kl_divergence
from .._kernels import make_options
from ._arrays import BITS16, SMALL_BYTES, array, arrays, compute, loss_tensor, tensor
from ._routing import direct_apply, on_kernels

MINUS_ONE = torch.tensor(-1.0, device="cpu")
# The logarithm of nothing: exp of it is 0 in float64 too, and 0 times it is no nan.
LEAST_LOG = -1e4


def wide(x):
    """16-bit tensors as float32: results are rounded once, at the end."""
    return x.float() if x.dtype in BITS16 else x


def normalized(what, x, dims):
    """softmax or log_softmax by the kernels, laid out as x is."""
    small = x.nbytes < SMALL_BYTES and x.is_contiguous()
    place = torch.empty_like(x) if small else None
    source, out = arrays((x, place))
    result = _kernels.normalize(what, source, dims, out, None, checked=True)
    return tensor(result) if place is None else place


def reduced(what, x, dims, keepdim=False, base=None, empty=-math.inf):
    """One value a row by the kernels, float32 or float64; `empty` for rows without elements."""
    (source,) = arrays((x,))
    values = _kernels.reduce_rows(what, source, dims, keepdim, base, empty, None, checked=True)
    return tensor(np.asarray(values))


def divergence(target, logits, dim, reduction, base, dtype):
    """xentropy.kl_divergence of tensors."""
    t, x = array(target), array(logits)
    value = kl_divergence(t, x, reduction=reduction, axis=dim, base=base)
    return loss_tensor(value, dtype)


def _largest(values):
    """The largest of them, or nan if one is nan. (torch's own max takes five times as long.)"""
    values = values.numpy()
    return values.item(values.argmax()) if values.size else -math.inf


def torch_softmax_over(x, dims):
    """softmax over several dimensions in torch's operations."""
    if len(dims) == 1:
        return torch.softmax(x, dims[0])
    return (x - torch.logsumexp(x, dims, keepdim=True)).exp()


def needs_torch(*tensors):
    """Must a gradient be computed by torch's operations?"""
    return torch.is_grad_enabled() or not on_kernels(*tensors)


class Softmax(torch.autograd.Function):
    """apply(x, dims)"""

    @staticmethod
    def forward(ctx, x, dims):
        p = normalized("softmax", x, dims)
        ctx.save_for_backward(p)
        (ctx.dim,) = dims
        return p

    @staticmethod
    def backward(ctx, upstream):
        (p,) = ctx.saved_tensors
        return torch._softmax_backward_data(upstream, p, ctx.dim, p.dtype), None


class LogSoftmax(torch.autograd.Function):
    """apply(x, dims)"""

    @staticmethod
    def forward(ctx, x, dims):
        ctx.save_for_backward(x)
        (ctx.dim,) = dims
        return normalized("log_softmax", x, dims)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        if needs_torch(upstream, x) or not x.numel():
            g = wide(upstream)
            total = g.sum(ctx.dim, keepdim=True)
            return (g - torch.softmax(wide(x), ctx.dim) * total).to(x.dtype), None
        options = make_options(axis=ctx.dim, reduction="sum")
        return compute(True, (x, upstream, None, None), options, MINUS_ONE, trusted=True)[1], None


class LogSumExp(torch.autograd.Function):
    """apply(x, dims, keepdim)"""

    @staticmethod
    def forward(ctx, x, dims, keepdim):
        ctx.save_for_backward(x)
        ctx.dims, ctx.keepdim = dims, keepdim
        lse = reduced("logsumexp", x, dims, keepdim)
        ctx.largest = _largest(lse)
        return lse.to(x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        for dim in () if ctx.keepdim else ctx.dims:
            upstream = upstream.unsqueeze(dim)
        by_torch = needs_torch(upstream, x)
        if by_torch:
            p = torch_softmax_over(wide(x), ctx.dims)
        else:
            p = normalized("softmax", wide(x), ctx.dims)
        if not ctx.largest < math.inf:
            # exp(x - lse), which is 0 beside an infinite logit, where a softmax is nan
            infinite = x.amax(ctx.dims, keepdim=True) == math.inf
            p = p.masked_fill(infinite & (x < math.inf), 0)
        return (p * upstream if by_torch else p.mul_(upstream)).to(x.dtype), None, None


class Entropy(torch.autograd.Function):
    """apply(x, dims, base)"""

    @staticmethod
    def forward(ctx, x, dims, base):
        entropy = reduced("entropy", x, dims, base=base, empty=0.0)
        ctx.save_for_backward(x, entropy)
        ctx.dims, ctx.unit = dims, unit_of(base)
        return entropy.to(x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        """-upstream p (unit log p + entropy)"""
        x, entropy = ctx.saved_tensors
        dim = ctx.dims[0]
        down = -wide(upstream).unsqueeze(dim)
        if needs_torch(upstream, x):
            log_p = torch.log_softmax(wide(x), dim).clamp(min=LEAST_LOG)
            p = log_p.exp()
            surprise = log_p - (p * log_p).sum(dim, keepdim=True)
            return (ctx.unit * down * p * surprise).to(x.dtype), None, None
        log_p = normalized("log_softmax", wide(x), ctx.dims).clamp_(min=LEAST_LOG)
        p = log_p.exp()
        rest = down * entropy.unsqueeze(dim)
        p.mul_(torch.addcmul(rest, log_p, ctx.unit * down, out=log_p))
        return p.to(x.dtype), None, None


class KLDivergence(torch.autograd.Function):
    """apply(target, logits, dim, reduction, base, dtype of the result)"""

    @staticmethod
    def forward(ctx, target, logits, dim, reduction, base, dtype):
        ctx.save_for_backward(target, logits)
        ctx.options = make_options(axis=dim, reduction=reduction, base=base)
        return divergence(target, logits, dim, reduction, base, dtype)

    @staticmethod
    def backward(ctx, upstream):
        target, logits = ctx.saved_tensors
        options = ctx.options
        plain = not needs_torch(upstream, target, logits)
        rows = _upstream_of_rows(upstream, target, options)
        of_target = of_logits = None
        if ctx.needs_input_grad[0]:
            of_target = _of_target(target, logits, rows, options.axis, plain)
        if ctx.needs_input_grad[1] and plain:
            of_logits = compute(True, (logits, target, None, None), options, upstream)[1]
        elif ctx.needs_input_grad[1]:
            p, t = torch.softmax(wide(logits), options.axis), wide(target)
            total = t.sum(options.axis, keepdim=True)
            of_logits = (rows * (total * p - t)).to(logits.dtype)
        return of_target, of_logits, None, None, None, None


def _upstream_of_rows(upstream, target, options):
    """The gradient in each row's divergence in nats; broadcasts over the classes."""
    rows = unit_of(options.base) * wide(upstream)
    if options.reduction == "none":
        return rows.unsqueeze(options.axis)
    count = target.numel() // target.size(options.axis) if options.reduction == "mean" else 1
    return rows / max(count, 1)


def _of_target(target, logits, rows, dim, plain):
    """rows (log t - log p + 1), and 0 where t is 0."""
    x, t = wide(logits), wide(target)
    log_p = normalized("log_softmax", x, (dim,)) if plain else torch.log_softmax(x, dim)
    absent = t == 0
    each = t.masked_fill(absent, 1).log() - log_p + 1
    return (rows * each.masked_fill(absent, 0)).to(target.dtype)


def unit_of(base):
    """One nat in the unit of the result."""
    return 1.0 if base is None else 1 / math.log(base)


softmax = direct_apply(Softmax)
log_softmax = direct_apply(LogSoftmax)
logsumexp = direct_apply(LogSumExp)
entropy = direct_apply(Entropy)
kl = direct_apply(KLDivergence)
