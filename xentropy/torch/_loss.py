"""The public function and module, and the choice of how a call is computed."""

import functools
import math

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _are_functorch_transforms_active,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import _reduction
from torch.overrides import has_torch_function_variadic

from .. import _check
from .._kernels import make_options
from . import _numbers, _operator
from ._arrays import BITS16, FLOATS, TENSORS, as_tensors
from ._autograd import apply, check_in_place
from ._recorded import or_empty, recorded_cross_entropy
from ._refusals import as_torch_has_it, by_torch
from ._routing import PLAIN
from ._tracing import overridden, traced, unrecorded

# Since torch 2.7.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

INT64 = torch.int64
older = _reduction.legacy_get_string  # the reduction of torch's two older arguments
TRACED = {*PLAIN, FakeTensor}  # torch.export calls with fake tensors


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    empty_mean: float = math.nan,
    z_loss: float = 0.0,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    axis: int = 1,
    base: float | None = None,
    n_threads: int | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""torch.nn.functional.cross_entropy, computed by xentropy where the tensors are on the CPU.

    The first eight parameters, the result and the types of errors are torch's. The formulas of
    loss and gradient are those of `xentropy.cross_entropy_with_grad`. Nothing is copied: the
    kernels read the logits where they lie, in any strides.

    If the logits require a gradient, the mean and the sum compute it in the same pass and keep
    it: one tensor of the size of the logits. ``loss.backward()`` returns it unchanged; an
    upstream gradient other than 1 costs one more pass. For reduction="none" it is computed in
    backward.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64
        Logits, shape (C,), (N, C) or (N, C, d1, ...). Float16 and bfloat16 are computed in
        float32 and summed in float64, also under autocast.
    target : Tensor
        Class indices, int64: shape (), (N,) or (N, d1, ...). Or class probabilities,
        floating: shape of the logits; they may require a gradient.
    weight : Tensor (C,), optional
        Weight of each class, finite, in the dtype of the logits.
    size_average, reduce : bool, optional
        Deprecated by torch, with its warning; they overrule `reduction`.
    ignore_index : int, default -100
        Rows with this label cost 0, get gradient 0 and are not read.
    reduction : {"mean", "sum", "none"}
        As torch has it.
    label_smoothing : float in [0, 1]
        As torch has it.
    sample_weight : Tensor, optional
        Weight of each row, finite: shape of the labels. Rows of weight 0 are not read.
    normalizer, logit_scale : float or Tensor of one number
        As in `xentropy.cross_entropy`. A tensor may require a gradient: that in `logit_scale` takes
        one more pass over logits and gradient in backward, 2 reads; that in `normalizer` none.
    empty_mean : float, default nan
        The mean if no row counts: 0 keeps a batch that is masked altogether from making the loss
        nan. It costs one more pass over the labels.
    z_loss, softcap, axis, base, n_threads
        As in `xentropy.cross_entropy`.
    inplace : bool, default False
        The gradient overwrites the logits' storage, so the step needs no memory of their size.
        Autograd raises in backward if another operation has saved the logits. Nothing is
        overwritten if the logits require no gradient, nor in compiled graphs. With float16
        logits mind loss scaling: it is applied after the gradient has been rounded.

    Returns
    -------
    Tensor
        Shape () for "mean" and "sum", for "none" one loss a row. Dtype of the logits (with
        class probabilities promoted with theirs); float32 for 16-bit logits under autocast.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError, NotImplementedError
        As torch raises them for the same arguments; the message names the argument, and ends
        with torch's own.
    RuntimeError
        `inplace` would overwrite a leaf that requires a gradient, or logits that share memory
        with each other; in backward, logits that have been modified since.

    Notes
    -----
    Tensors on other devices, tensor subclasses, forward-mode derivatives, transforms of
    torch.func, derivatives of the gradient and gradients in `weight` or `sample_weight` are
    computed by torch's own function, with the options above in torch's operations on top of it.
    Under vmap in backward (``is_grads_batched``, ``jacobian(vectorize=True)``) each gradient of the
    batch is computed by itself.

    In torch.compile, torch.export and under dispatch modes the operators
    ``torch.ops.xentropy.cross_entropy`` and ``cross_entropy_backward`` are called, or torch's own
    function if a tensor other than the logits requires a gradient. Numbers that change from step to
    step are compiled once, as Python's or as tensors. torch.jit and torch.onnx record torch's own
    operations, with every option. Objects and modes with `__torch_function__`, torch.fx among them,
    see the call of this function.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import cross_entropy
    >>> logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0]))
    >>> loss.backward()
    >>> f"{loss.item():.2e}", [f"{g:.2e}" for g in logits.grad[0].tolist()]
    ('2.06e-09', ['-2.06e-09', '2.06e-09'])
    """
    call = has_torch_function_variadic(input, target, weight, sample_weight) and locals()
    if call and (answer := overridden(cross_entropy, call)) is not NotImplemented:
        return answer
    compiling = is_compiling()
    options = (_operator.TracedOptions if compiling else make_options)(
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction if size_average is reduce is None else older(size_average, reduce),
        normalizer=normalizer,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_scale=logit_scale,
        softcap=softcap,
        base=base,
        n_threads=n_threads,
    )
    return _routed((input, target, weight, sample_weight), options, inplace, compiling, empty_mean)


cross_entropy.__prepare_scriptable__ = lambda: recorded_cross_entropy  # type: ignore[attr-defined]


def _recorded(tensors, options):
    """In a graph of torch.jit, which has none of the checks; so they are made here."""
    with torch.no_grad():
        unrecorded(_routed, tensors, options, False, False)
    return traced(tensors, options, torch.onnx.is_in_onnx_export())


def _or_empty(tensors, options, inplace, compiling, empty_mean):
    """The loss, with `empty_mean` for the mean over no row."""
    _check.empty_mean(empty_mean, options.reduction)
    loss = _routed(tensors, options, inplace, compiling)
    if options.normalizer is not None:
        return loss
    return or_empty(loss, tensors[1], tensors[3], options.ignore_index, empty_mean)


def _routed(tensors, options, inplace, compiling, empty_mean=math.nan):
    """By the kernels at once, as an operator in a graph, or by torch's own function."""
    if empty_mean == empty_mean:
        return _or_empty(tensors, options, inplace, compiling, empty_mean)
    if not compiling and _is_tracing():  # by torch.jit: a graph of torch's own operations
        return _recorded(tensors, options)
    supported = _are_traced(tensors) if compiling else TENSORS.on_cpu(tensors)
    dtype = _loss_dtype(tensors, options.ignore_index) if supported else None
    if dtype is None or _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return by_torch(tensors, options)
    if compiling or _len_torch_dispatch_stack():
        return _traced(tensors, options, dtype)
    if options.normalizer is not None or type(options.logit_scale) is not float:
        return _with_numbers(tensors, options, dtype, inplace)
    return _eager(tensors, options, dtype, inplace)


def _are_traced(tensors):
    """`TENSORS.on_cpu` where torch compiles, fake tensors among them."""
    return all(t is None or (type(t) in TRACED and t.is_cpu) for t in tensors)


def _loss_dtype(tensors, ignore_index):
    """The dtype of the loss as torch has it; None if torch's own function has to compute it.

    The dtypes are such that the kernels do not support them, or torch does not.
    """
    logits, target, weight, _ = tensors
    if logits is None or target is None or logits.dtype not in FLOATS:
        return None
    dtype, labels = logits.dtype, target.dtype
    if dtype in BITS16:
        dtype = _widened(dtype)
    if labels is INT64 or (labels is torch.uint8 and logits.dim() <= 2):
        return dtype if weight is None or _widened(weight.dtype) is dtype else None
    if labels not in FLOATS or ignore_index >= 0:
        return None
    dtype = torch.promote_types(dtype, _widened(labels))
    return dtype if weight is None else torch.promote_types(dtype, _widened(weight.dtype))


def _widened(dtype):
    """The type to which autocast converts for this function."""
    return torch.float32 if dtype in BITS16 and torch.is_autocast_enabled("cpu") else dtype


def _traced(tensors, options, dtype):
    """In a graph or under a dispatch mode: the operator, differentiable in the logits alone."""
    _numbers.check(options, tensors[0].device)
    derived = *tensors[1:], *_numbers.tensors(options)
    wanted = is_grad_enabled() and any(x is not None and x.requires_grad for x in derived)
    if not wanted or torch.onnx.is_in_onnx_export():  # which has no gradients, nor all of torch's
        return _operator.call(tensors, options, dtype)
    special = options.label_smoothing != 0 or tensors[1].is_floating_point()
    if special and is_exporting():  # ONNX may be made of the program
        return traced(tensors, options, for_onnx=True)
    return by_torch(tensors, options)


def _with_numbers(tensors, options, dtype, inplace):
    """`_eager`, where `normalizer` and `logit_scale` may be tensors."""
    if not _numbers.tensors(options):
        return _eager(tensors, options, dtype, inplace)
    call = functools.partial(_eager, dtype=dtype, inplace=inplace)
    return _numbers.by_value(call, tensors, options, inplace)


def _eager(tensors, options, dtype, inplace):
    """Computed by the kernels now, with autograd's record if a gradient is required."""
    logits, target, weight, sample_weight = tensors
    try:
        if not is_grad_enabled():
            return as_tensors(False, tensors, options, dtype)
        if weight is not None and weight.requires_grad:
            return by_torch(tensors, options)
        if sample_weight is not None and sample_weight.requires_grad:
            return by_torch(tensors, options)
        derived = target if target.requires_grad else None
        if derived is None and not logits.requires_grad:
            return as_tensors(False, tensors, options, dtype)
        if inplace:
            check_in_place(logits, derived)
        return apply(logits, derived, (tensors, options, dtype, inplace))
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        return as_torch_has_it(error, tensors, options)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss, computed by `cross_entropy` of this module.

    Loads and saves as torch's: its state is `weight`. The options beside torch's are those of
    `cross_entropy`; `sample_weight` goes with the call, ``loss(input, target, sample_weight)``.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import CrossEntropyLoss
    >>> loss = CrossEntropyLoss(base=2)
    >>> loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    tensor(2.)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        normalizer: float | Tensor | None = None,
        empty_mean: float = math.nan,
        z_loss: float = 0.0,
        logit_scale: float | Tensor = 1.0,
        softcap: float | None = None,
        axis: int = 1,
        base: float | None = None,
        n_threads: int | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.normalizer = normalizer
        self.empty_mean = empty_mean
        self.z_loss = z_loss
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.axis = axis
        self.base = base
        self.n_threads = n_threads
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of these logits and targets."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            normalizer=self.normalizer,
            empty_mean=self.empty_mean,
            z_loss=self.z_loss,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            axis=self.axis,
            base=self.base,
            n_threads=self.n_threads,
            inplace=self.inplace,
        )
