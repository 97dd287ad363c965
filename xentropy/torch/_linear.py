"""The public linear loss, and the choice of how a call is computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import functional
from torch.overrides import has_torch_function_variadic

from .. import _check
from .._kernels import Options, make_options
from .._linear._arguments import PARAMETERS
from . import _numbers, _operator
from ._arrays import FLOATS
from ._formula import torch_linear_cross_entropy
from ._linear_operator import eager_linear_cross_entropy as operator
from ._loss import TRACED, cross_entropy, is_exporting
from ._recorded import or_empty
from ._refusals import in_torchs_words, no_tensor
from ._routing import PLAIN
from ._tracing import Overrides, overridden

Layer = tuple[Tensor, Tensor, Tensor | None]  # input, linear_weight, linear_bias
Others = tuple[Tensor, Tensor | None, Tensor | None]  # target, weight, sample_weight

OVERRIDES = Overrides(
    "linear_cross_entropy",
    torch_linear_cross_entropy,
    ("input", "linear_weight", "target"),
    ("input", "linear_weight", "target", "linear_bias", "weight", "sample_weight"),
)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    empty_mean: float = math.nan,
    z_loss: float = 0.0,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    base: float | None = None,
    logits_bytes: int | None = None,
    n_threads: int | None = None,
) -> Tensor:
    r"""torch.nn.functional.linear_cross_entropy (torch 2.13), never holding all of the logits.

    The loss of `cross_entropy` for ``torch.nn.functional.linear(input, linear_weight,
    linear_bias)``. Its formulas and memory are those of `xentropy.linear_cross_entropy_with_grad`.
    It needs no torch 2.13. The parameters up to `options`, the result and the types of errors are
    torch's.

    The gradients of a mean and a sum are computed with the loss, and kept: ``loss.backward()``
    returns them, and may be called again. For reduction="none" backward makes the logits a second
    time. Of what requires no gradient (frozen hidden states, a frozen output layer) no product is
    computed.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64
        Shape (N, H), or (H,) for a single row.
    linear_weight : Tensor (C, H) of the same dtype
        Of shape (C, d1, ..., H) too, as torch has it; then all logits are made.
    target : Tensor
        Class indices, int64: shape (N,), or () for a single row. Or class probabilities,
        floating: shape of the logits.
    linear_bias : Tensor (C,), optional
        Added to the logits.
    weight : Tensor (C,), optional
        Weight of each class, finite.
    reduction : {"mean", "sum", "none"}
        As torch has it.
    ignore_index : int, optional
        Rows with this label cost 0, get gradient 0, and are in no product. None is -100.
    label_smoothing : float in [0, 1]
        As torch has it.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Its `batch_chunk_size` sets `logits_bytes`, for so many rows. The rest has no effect:
        sums are at least as exact as its "accurate", and graphs can be retained.
    sample_weight, normalizer, empty_mean, z_loss, logit_scale, base, n_threads
        As for `cross_entropy` of this module.
    softcap, logits_bytes
        As in `xentropy.linear_cross_entropy`.

    Returns
    -------
    Tensor
        Shape () for "mean" and "sum", for "none" one loss a row. Dtype of `input`; float32 under
        autocast, which computes in its own dtype.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As torch raises them for the same arguments.

    Notes
    -----
    float32 and float64 products are made by NumPy's BLAS or by torch, whichever is faster on
    processors of this kind; `xentropy.show_config` says which. bfloat16 products are torch's where
    the processor has instructions for them; each is rounded to bfloat16, but over several chunks
    the gradient of the weight is summed in float32 and rounded once. bfloat16 rows are one chunk
    if their logits need no more memory than `logits_bytes` and that sum together: it is faster.
    NumPy's BLAS has threads of its own: OMP_NUM_THREADS limits both.

    All logits are made, by torch, for other devices, tensor subclasses, transforms of torch.func,
    forward-mode derivatives, torch.jit, derivatives of the gradient (create_graph), and gradients
    in `target`, `weight`, `sample_weight`, `normalizer` or `logit_scale`.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import linear_cross_entropy
    >>> hidden = torch.eye(3, 2, requires_grad=True)
    >>> layer = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> loss = linear_cross_entropy(hidden, layer, torch.tensor([0, 1, -100]))
    >>> loss.backward()
    >>> f"{loss.item():.6f}", hidden.grad.shape
    ('1.006409', torch.Size([3, 2]))
    """
    call = (
        has_torch_function_variadic(
            input, linear_weight, target, linear_bias, weight, sample_weight
        )
        and locals()
    )
    if call and (answer := overridden(linear_cross_entropy, call, OVERRIDES)) is not NotImplemented:
        return answer
    layer = input, linear_weight, linear_bias
    _check_tensors(layer, target)
    _check_shapes(*layer)
    _check_ignore_index(ignore_index, input, linear_weight, target)
    numbers = normalizer, label_smoothing, z_loss, logit_scale, softcap, base, n_threads
    record = _record(ignore_index, reduction, numbers)
    if logits_bytes is None and getattr(options, "batch_chunk_size", None) is not None:
        itemsize = 2 if input.dtype is torch.bfloat16 else max(4, input.itemsize)
        logits_bytes = options.batch_chunk_size * len(linear_weight) * itemsize
    return _or_empty(layer, (target, weight, sample_weight), record, logits_bytes, empty_mean)


linear_cross_entropy.__prepare_scriptable__ = lambda: torch_linear_cross_entropy  # type: ignore[attr-defined]


def _record(ignore_index: int | None, reduction: str, numbers: tuple[Any, ...]) -> Options:
    """The options as one record."""
    normalizer, label_smoothing, z_loss, logit_scale, softcap, base, n_threads = numbers
    return (_operator.TracedOptions if is_compiling() else make_options)(
        axis=1,
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        softcap=softcap,
        base=base,
        n_threads=n_threads,
    )


def _check_tensors(layer: Layer, target: Tensor) -> None:
    """Raise for what is no tensor."""
    for name, tensor in zip((*PARAMETERS, "target"), (*layer, target), strict=True):
        if not isinstance(tensor, Tensor) and (name != "linear_bias" or tensor is not None):
            raise no_tensor(name, tensor)


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise where torch's function does, as it does."""
    if input.dim() not in (1, 2):
        raise RuntimeError(f"input has shape {tuple(input.shape)}, not (N, H) or (H,); reshape it")
    if weight.dim() < 2:
        raise RuntimeError(f"linear_weight has shape {tuple(weight.shape)}, not (C, H)")
    if input.shape[-1] != weight.shape[-1]:
        turned = input.shape[-1] == weight.shape[0]
        hint = ": is it transposed?" if turned else ""
        raise RuntimeError(
            f"linear_weight has shape {tuple(weight.shape)}, not (C, {input.shape[-1]}), "
            f"for input of shape {tuple(input.shape)}{hint}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        shapes = f"{tuple(bias.shape)}, not {tuple(weight.shape[:-1])}"
        raise RuntimeError(f"linear_bias has shape {shapes}, one per class")
    if weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"linear_weight of shape {tuple(weight.shape)} needs input of shape (N, H), "
            f"not {tuple(input.shape)}"
        )


def _check_ignore_index(given: int | None, input: Tensor, weight: Tensor, target: Tensor) -> None:
    """Raise as torch does: class probabilities have no label to ignore."""
    if given is not None and target.shape == _logits_shape(input, weight):
        raise RuntimeError(
            f"ignore_index = {given} cannot be specified when target contains probabilities"
        )


def _logits_shape(input: Tensor, weight: Tensor) -> torch.Size:
    return input.shape[:-1] + weight.shape[:-1]


def _or_empty(
    layer: Layer, others: Others, options: Options, logits_bytes: int | None, empty_mean: float
) -> Tensor:
    """The loss, with `empty_mean` for the mean over no row."""
    if empty_mean != empty_mean:
        return _routed(layer, others, options, logits_bytes)
    _check.empty_mean(empty_mean, options.reduction)
    loss = _routed(layer, others, options, logits_bytes)
    if options.normalizer is not None:
        return loss
    target, _, sample_weight = others
    return or_empty(loss, target, sample_weight, options.ignore_index, empty_mean)


def _routed(layer: Layer, others: Others, options: Options, logits_bytes: int | None) -> Tensor:
    """By chunks, or by all logits where chunks cannot be."""
    layer, dtype = _autocast(layer)
    if not _by_chunks(layer, others, options):
        _check_dtypes(layer)
        return by_logits(layer, others, options)
    try:
        return _operator_call(layer, others, options, logits_bytes, dtype)
    except (TypeError, ValueError) as error:  # torch's errors, of other types
        return _refused(error, layer, others, options)


def _autocast(layer: Layer) -> tuple[Layer, torch.dtype]:
    """The layer as torch.nn.functional.linear gets it, and the dtype of the loss."""
    if not torch.is_autocast_enabled("cpu") or not layer[0].is_cpu:
        return layer, layer[0].dtype
    dtype = torch.get_autocast_dtype("cpu")
    input, weight, bias = layer
    bias = None if bias is None else _cast(bias, dtype)
    layer = _cast(input, dtype), _cast(weight, dtype), bias
    return layer, torch.promote_types(layer[0].dtype, torch.float32)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = tensor.dtype is torch.float64 or not tensor.is_floating_point()
    return tensor if kept else tensor.to(dtype)


def _check_dtypes(layer: Layer) -> None:
    """Raise where torch's product of plain tensors does; autocast has been applied."""
    input = layer[0]
    for name, tensor in zip(PARAMETERS[1:], layer[1:], strict=True):
        if tensor is None or type(tensor) not in PLAIN or not tensor.is_cpu:
            continue
        if tensor.dtype != input.dtype:
            raise RuntimeError(f"{name} must be {input.dtype} as input, not {tensor.dtype}")


def _by_chunks(layer: Layer, others: Others, options: Options) -> bool:
    """Can the operator compute this call, with all gradients that are required?"""
    tensors = [t for t in (*layer, *others) if t is not None]
    kinds = TRACED if is_compiling() else PLAIN
    if not all(type(t) in kinds and t.is_cpu and t.layout is torch.strided for t in tensors):
        return False
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if (not is_compiling() and _get_tracing_state() is not None) or is_exporting():
        return False
    input, weight, _ = layer
    same = all(t is None or t.dtype == input.dtype for t in layer)
    if weight.dim() > 2 or not same or input.dtype not in FLOATS:
        return False
    target = others[0]
    probable = target.dtype in FLOATS and target.shape == _logits_shape(input, weight)
    labels = target.dtype is torch.int64 and target.shape == input.shape[:-1]
    derived = *others, *_numbers.tensors(options)
    wanted = is_grad_enabled() and any(t is not None and t.requires_grad for t in derived)
    return (probable or labels) and not wanted


def _operator_call(
    layer: Layer, others: Others, options: Options, logits_bytes: int | None, dtype: torch.dtype
) -> Tensor:
    _numbers.check(options, layer[0].device)
    if others[0].is_floating_point():  # torch promotes it with probabilities and their weights
        for tensor in (t for t in others[:2] if t is not None):
            dtype = torch.promote_types(dtype, tensor.dtype)
    given = _operator.given_numbers(options, _operator.NUMBERS)
    wanted = [
        name
        for name, tensor in zip(PARAMETERS, layer, strict=True)
        if tensor is not None and tensor.requires_grad and is_grad_enabled()
    ]
    return operator(
        *layer,
        *others,
        options.ignore_index,
        options.reduction,
        options.n_threads,
        logits_bytes,
        given["names"],
        given["numbers"],
        dtype,
        " ".join(wanted),
    )[0]


def by_logits(layer: Layer, others: Others, options: Options) -> Tensor:
    """The loss of all logits, which torch makes."""
    input, weight, bias = layer
    shape = _logits_shape(input, weight)
    weight = weight.reshape(-1, weight.shape[-1])
    logits = functional.linear(input, weight, None if bias is None else bias.reshape(-1))
    target, class_weight, sample_weight = others
    given = {name: getattr(options, name) for name in Options.NAMES}
    return cross_entropy(
        logits.reshape(shape), target, class_weight, sample_weight=sample_weight, **given
    )


def _refused(error: Exception, layer: Layer, others: Others, options: Options) -> Tensor:
    """torch's type of error for a call that the core has refused, with the core's message."""
    input, weight, bias = layer
    target, class_weight, sample_weight = others
    if input.dim() == 2 and len(input) > 1:  # one row is wrong as all are
        rows = len(input)
        input, target = input[:1], target[:1] if target.shape[:1] == (rows,) else target
        if sample_weight is not None and sample_weight.shape == (rows,):
            sample_weight = sample_weight[:1]
    try:
        with torch.no_grad():
            by_logits((input, weight, bias), (target, class_weight, sample_weight), options)
    except Exception as theirs:
        raise type(theirs)(in_torchs_words(error)) from error
    raise error
