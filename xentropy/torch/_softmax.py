"""The softmax family for tensors: what is public, and the choice of how a call is computed."""

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from .. import _check
from . import _softmax_autograd as recorded
from ._arrays import FLOATS
from ._distillation import distillation_loss
from ._refusals import no_tensor
from ._routing import on_kernels
from ._softmax_autograd import LEAST_LOG, divergence, normalized, reduced, unit_of, wide

# As they were at import, in case these functions are put in their place.
TORCH = {"softmax": functional.softmax, "log_softmax": functional.log_softmax}
LOGSUMEXP = torch.logsumexp


def softmax(input: Tensor, dim: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    r"""torch.nn.functional.softmax, computed by xentropy where the tensor is on the CPU.

    .. math:: p_c = e^{x_c} / \sum_j e^{x_j}

    Parameters
    ----------
    input : Tensor
        Of any shape and strides; float16, bfloat16, float32 or float64 without a copy, all
        else as torch has it.
    dim : int
        The class axis, whose results add up to 1. None is deprecated: torch's implicit choice,
        with its warning.
    dtype : torch.dtype, optional
        The input is cast to it first.

    Returns
    -------
    Tensor
        Shape, dtype (or `dtype`) and memory format of the input. 16-bit tensors are computed
        in float32 and rounded once. A row with nan, +inf or nothing but -inf becomes nan.

    Raises
    ------
    TypeError, IndexError, NotImplementedError
        As torch raises them: the input is no tensor, or not floating; `dim` is no int, or out of
        range.

    Notes
    -----
    The gradient is torch's, :math:`p_c (g_c - \sum_j g_j p_j)` from the result, which is kept;
    its error is an epsilon of the upstream gradient g. `log_softmax` is exact in its tails,
    and so is its gradient.

    Tensor subclasses, other devices, torch.compile, tracers, modes, transforms of torch.func,
    forward-mode derivatives and derivatives of the gradient use torch's own function or formula;
    so it is with all functions of this module.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import softmax
    >>> softmax(torch.tensor([1.0, 1.0, -torch.inf], dtype=torch.bfloat16), dim=0)
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.bfloat16)
    """
    return _normalized("softmax", recorded.softmax, input, dim, dtype)


def log_softmax(input: Tensor, dim: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    r"""torch.nn.functional.log_softmax, computed by xentropy where the tensor is on the CPU.

    .. math:: \ln p_c = x_c - \ln \sum_j e^{x_j}

    in nats. Exact also where the probability is almost 1, and there torch gives 0: float32 logits
    ``[20, 0]`` get -2.06e-9 first. So is the gradient :math:`g_c - p_c \sum_j g_j` in the
    input: at this class it is computed from 1 - p.

    Parameters, result and errors are those of `softmax`. Kept for backward is the input, which
    must not be modified until then; autograd says so if it is.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import log_softmax
    >>> logits = torch.tensor([20.0, 0.0], requires_grad=True)
    >>> log_p = log_softmax(logits, dim=0)
    >>> log_p[0].backward()
    >>> f"{log_p[0].item():.2e}", [f"{g:.2e}" for g in logits.grad.tolist()]
    ('-2.06e-09', ['2.06e-09', '-2.06e-09'])
    """
    return _normalized("log_softmax", recorded.log_softmax, input, dim, dtype)


def logsumexp(input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    r"""torch.logsumexp, computed by xentropy where the tensor is on the CPU.

    .. math:: \mathrm{lse}(x) = \ln \sum_c e^{x_c}

    in nats; its gradient is `softmax`.

    Parameters
    ----------
    input : Tensor
        As for `softmax`; other dtypes as torch has them.
    dim : int or tuple of ints
        What is summed over.
    keepdim : bool, default False
        Keep the reduced dimensions, with length 1.

    Returns
    -------
    Tensor
        Dtype of the input; 16-bit tensors are computed in float32 and rounded once. -inf for
        nothing but -inf and for no elements, inf if there is a +inf, nan if there is a nan. The
        gradient of such rows is nan, but 0 in what is finite or -inf beside a +inf.

    Raises
    ------
    TypeError, IndexError, RuntimeError
        As torch raises them for a `dim` that is no int, out of range or given twice.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import logsumexp
    >>> logsumexp(torch.zeros(2, 4, dtype=torch.bfloat16), dim=(0, 1))
    tensor(2.0781, dtype=torch.bfloat16)
    """
    if on_kernels(input) and input.dtype in FLOATS and type(keepdim) is bool:
        dims = class_dims(dim, input.dim())
        if dims is not None:
            if torch.is_grad_enabled() and input.requires_grad:
                return recorded.logsumexp(input, dims, keepdim)
            return reduced("logsumexp", input, dims, keepdim).to(input.dtype)
    return LOGSUMEXP(input, dim, keepdim=keepdim)


def entropy(logits: Tensor, dim: int = -1, base: float | None = None) -> Tensor:
    r"""Entropy of softmax(logits), with its gradient.

    .. math:: H = -\sum_c p_c \log_b p_c, \qquad
              \frac{\partial H}{\partial x_c} = -p_c (\log_b p_c + H)

    Parameters
    ----------
    logits : Tensor
        float16, bfloat16, float32 or float64, any shape and strides.
    dim : int, default -1
        The class axis.
    base : float > 1, optional
        b: None gives nats, 2 bits.

    Returns
    -------
    Tensor
        One value a row, dtype of the logits; 16-bit tensors are computed in float32 and rounded
        once. A class of probability 0 (a logit of -inf) contributes 0, also to the gradient.
        nan for a row with nan, +inf or nothing but -inf; 0 without classes, as the sum of nothing.

    Raises
    ------
    TypeError, IndexError, ValueError
        The logits are no tensor, or not floating; `dim` is no int, or out of range; `base` is no
        number, or not above 1.

    References
    ----------
    :math:`H` is that of `xentropy.entropy` and of ``torch.distributions.Categorical``.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import entropy
    >>> entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [20.0, 0.0, 0.0, 0.0]]), base=2)
    tensor([2.0000e+00, 1.8734e-07])
    """
    if not isinstance(logits, torch.Tensor):
        return _overridden(entropy, {"logits": logits}, dim=dim, base=base)
    _floating(logits=logits)
    base = _check.base(base)
    if on_kernels(logits) and logits.dtype in FLOATS and type(dim) is int:
        dims = class_dims(dim, logits.dim())
        if dims is not None:
            if torch.is_grad_enabled() and logits.requires_grad:
                return recorded.entropy(logits, dims, base)
            return reduced("entropy", logits, dims, base=base, empty=0.0).to(logits.dtype)
    return _entropy_by_torch(logits, dim, base)


def kl_divergence(
    target: Tensor,
    logits: Tensor,
    *,
    dim: int = 1,
    reduction: str = "mean",
    base: float | None = None,
    target_logits: bool = False,
) -> Tensor:
    r"""Kullback-Leibler divergence of class probabilities from the softmax of logits.

    .. math:: \mathrm{KL}(t \| p) = \sum_c t_c (\log_b t_c - \log_b p_c)

    `xentropy.kl_divergence` with gradients in both arguments:

    .. math:: \frac{\partial \mathrm{KL}}{\partial x_c} = \frac{p_c \sum_j t_j - t_c}{\ln b},
              \qquad
              \frac{\partial \mathrm{KL}}{\partial t_c} = \log_b t_c - \log_b p_c + 1 / \ln b

    A class with t = 0 contributes nothing, and its gradient in t is 0: the one-sided derivative is
    infinite, but a softmax that made t multiplies it by t.

    Parameters
    ----------
    target : Tensor
        Class probabilities t, float16, bfloat16, float32 or float64; they need not add up to 1.
    logits : Tensor
        Of the same shape, not log-probabilities of which ``torch.nn.functional.kl_div`` wants its
        input (which may be passed: their softmax is what they are the logarithm of).
    dim : int, default 1
        The class axis. For one dimension the default means 0.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of rows, as "batchmean" of ``kl_div`` does for matrices.
    base : float > 1, optional
        b: None gives nats, 2 bits.
    target_logits : bool, default False
        `target` holds logits, of which t is the softmax: the divergence and the gradients of
        `distillation_loss`, never negative and relatively exact near 0.

    Returns
    -------
    Tensor
        Shape () for "mean" and "sum", for "none" one value a row. The promoted dtype of both;
        float32 for 16-bit tensors under autocast. Computed in float64, as the difference of
        cross entropy and entropy: it may be some 1e-15 below 0.

    Raises
    ------
    TypeError, IndexError, ValueError
        An argument is no tensor, or not floating; `dim` is no int, or out of range; the shapes
        differ; `reduction` has another name; `base` is no number, or not above 1.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import kl_divergence
    >>> logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    >>> kl = kl_divergence(torch.tensor([[1.0, 0.0]]), logits)
    >>> kl.backward()
    >>> f"{kl.item():.2e}", [f"{g:.2e}" for g in logits.grad[0].tolist()]
    ('2.06e-09', ['-2.06e-09', '2.06e-09'])
    """
    if not isinstance(target, torch.Tensor) or not isinstance(logits, torch.Tensor):
        given = {"target": target, "logits": logits}
        options = {"dim": dim, "reduction": reduction, "base": base}
        return _overridden(kl_divergence, given, **options, target_logits=target_logits)
    _floating(target=target, logits=logits)
    base, reduction = _check.base(base), _check.reduction(reduction)
    if _check.flag(target_logits, "target_logits"):
        _check.same_shape(target, logits.shape, "target", "logits, as `logits`")
        return unit_of(base) * distillation_loss(logits, target, reduction=reduction, axis=dim)
    if not torch.jit.is_tracing():  # it would record the comparison
        _check.same_shape(target, logits.shape, "target", "class probabilities, as the logits")
    if dim == 1 and logits.dim() == 1:
        dim = 0
    dtype = torch.promote_types(target.dtype, logits.dtype)
    device = logits.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.promote_types(dtype, torch.float32)
    dims = class_dims(dim, logits.dim()) if type(dim) is int else None
    supported = target.dtype in FLOATS and logits.dtype in FLOATS
    if dims is None or not supported or not on_kernels(target, logits):
        return _divergence_by_torch(target, logits, dim, reduction, base, dtype)
    arguments = dims[0], reduction, base, dtype
    if torch.is_grad_enabled() and (target.requires_grad or logits.requires_grad):
        return recorded.kl(target, logits, *arguments)
    return divergence(target, logits, *arguments)


def _normalized(name, apply, input, dim, dtype):
    """softmax or log_softmax: by the kernels, with autograd's record if needed, or by torch."""
    if on_kernels(input) and (dtype is None or type(dtype) is torch.dtype):
        if dim is None:
            dim = functional._get_softmax_dim(name, input.dim(), 4)
        x = input if dtype is None else input.to(dtype)
        dims = class_dims(dim, x.dim()) if type(dim) is int else None
        if dims is not None and x.dtype in FLOATS:
            if torch.is_grad_enabled() and x.requires_grad:
                return apply(x, dims)
            return normalized(name, x, dims)
    if not isinstance(input, torch.Tensor) and not has_torch_function((input,)):
        raise no_tensor("input", input)
    try:
        return TORCH[name](input, dim, 5, dtype)
    except NotImplementedError as error:
        if not isinstance(input, torch.Tensor) or input.is_floating_point():
            raise
        raise NotImplementedError(f"input must be floating, not {input.dtype}") from error


def class_dims(dim, ndim):
    """Dimensions as a tuple of numbers >= 0; None for what torch is to judge."""
    if type(dim) is int:
        return (dim % ndim,) if -ndim <= dim < ndim else None
    if not isinstance(dim, tuple | list):
        return None
    if not all(type(each) is int and -ndim <= each < ndim for each in dim):
        return None
    found = {each % ndim for each in dim}
    return tuple(sorted(found)) if len(found) == len(dim) > 0 else None


def _overridden(function, arguments, **options):
    """The call of a function that torch does not have on arguments that are no tensors."""
    if not has_torch_function(tuple(arguments.values())):
        for name, value in arguments.items():
            if not isinstance(value, torch.Tensor):
                raise no_tensor(name, value)
    values = tuple(arguments.values())
    return handle_torch_function(function, values, *values, **options)


def _floating(**tensors):
    """Raise if one of them is not."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, not {tensor.dtype}")


def _entropy_by_torch(logits, dim, base):
    """`entropy` in torch's operations."""
    log_p = torch.log_softmax(wide(logits), dim).clamp(min=LEAST_LOG)
    return (unit_of(base) * (0 - (log_p.exp() * log_p).sum(dim))).to(logits.dtype)


def _divergence_by_torch(target, logits, dim, reduction, base, dtype):
    """`kl_divergence` in torch's operations."""
    log_p, t = torch.log_softmax(wide(logits), dim), wide(target)
    absent = t == 0
    each = t.masked_fill(absent, 1).log() - log_p.masked_fill(absent, 0)
    rows = unit_of(base) * (t * each).sum(dim)
    total = {"none": lambda: rows, "sum": rows.sum, "mean": rows.mean}[reduction]
    return total().to(dtype)


# TorchScript compiles calls of these to its own operators.
_register_builtin(softmax, "aten::softmax")
_register_builtin(log_softmax, "aten::log_softmax")
_register_builtin(logsumexp, "aten::logsumexp")
