"""A loss whose classes are spread over ranks: what each computes of its shard of the logits.

With the log-sum-exp lse_r of the classes of rank r alone, and their target masses q_c::

    D_r = sum_c q_c (lse_r - x_c),    Q_r = sum_c q_c

are sums in which nothing cancels. The ranks exchange them (`_exchange`), and each has, with m the
rank of the largest lse::

    tail = sum_{j != m} exp(lse_j - lse_m)
    lse  = lse_m + log1p(tail)
    lse - lse_r = (lse_m - lse_r) + log1p(tail)
    loss = sum_r [D_r + Q_r (lse - lse_r)]

The gradient in a shard needs no more than these: p_c = exp(x_c - lse), and at the largest logit of
the shard, or at the label, log p_c = (x_c - lse_r) - (lse - lse_r), of which 1 - p_c is computed.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ... import _check, _kernels
from ..._kernels import Options, make_options
from ..._linear._rows import flat, index_of

CHUNK_BYTES = 1 << 19  # of rows whose masses are subtracted while they are in the cache
NO_CLASS = -1


def times(mass: Any, value: Any) -> Any:
    """mass * value, with 0 * (anything but nan) = 0."""
    with np.errstate(invalid="ignore"):
        return np.where((mass == 0) & ~np.isnan(value), 0.0, mass * value)


class Shard:
    """The arguments of one rank, checked; `options.axis` is a number >= 0.

    Of a row that does not count nothing is read.
    """

    def __init__(self, x: Any, target: Any, weight: Any, sample_weight: Any, options: Options):
        self.x = _check.logits(x, _check.OR_LEAVE_OUT)
        self.axis = axis = _check.class_axis(options.axis, self.x)
        shape = self.x.shape
        self.classes = shape[axis]
        self.row_shape = shape[:axis] + shape[axis + 1 :]
        self.rows = math.prod(self.row_shape)
        self.target = _check.target(target, shape, self.row_shape)
        self.has_labels = self.target.dtype.kind in "iu"
        weight = _check.weight(weight, self.classes, self.row_shape)
        self.weight = None if weight is None else np.ascontiguousarray(weight, np.float64)
        repeat = _check.sample_weight(sample_weight, self.row_shape, self.classes)
        self.repeat = None if repeat is None else repeat.reshape(-1).astype(np.float64)
        self.options = options = _check.options(options, axis)
        self.unit = 1.0 if options.base is None else 1.0 / math.log(options.base)
        self.counted = np.ones(self.rows, bool)
        if self.has_labels:
            self.counted &= self.target.reshape(-1) != options.ignore_index
        if self.repeat is not None:
            self.counted &= self.repeat != 0

    @property
    def all_weight(self) -> float:
        """The weight of all classes of this shard."""
        return float(self.classes if self.weight is None else self.weight.sum())

    @property
    def dense(self) -> bool:
        """May every class have a target mass?"""
        return not self.has_labels or self.options.label_smoothing != 0

    def kernel_options(self, **instead: Any) -> Options:
        """Options of a call for rows: a label NO_CLASS is ignored."""
        names = "axis", "logit_scale", "softcap", "n_threads"
        terms = {name: getattr(self.options, name) for name in names} | instead
        return make_options(reduction="none", ignore_index=NO_CLASS, **terms)

    def labels_in(self, first: int, classes: int) -> Any:
        """The labels less `first`; NO_CLASS for what is none of so many classes from there on."""
        labels = self.target.reshape(-1)
        if labels.dtype == np.uint64:  # no class has a number that int64 does not hold
            labels = np.minimum(labels, np.iinfo(np.int64).max)
        labels = labels.astype(np.int64)
        own = self.counted & (labels >= first) & (labels < first + classes)
        return np.where(own, labels - first, NO_CLASS)

    def masses_of(self, labels: Any) -> Any:
        """The weight of the label of each row; 0 if it is not in this shard."""
        weight = 1.0 if self.weight is None else self.weight[labels]
        return np.where(labels == NO_CLASS, 0.0, weight)

    def masses(self, rows: Any, smoothing_share: float, labels: Any) -> Any:
        """The target masses q_c of these rows, (n, classes): float64."""
        weight = np.ones(self.classes) if self.weight is None else self.weight
        share = 1.0 - self.options.label_smoothing
        if not self.has_labels:
            moved = flat(np.moveaxis(self.target, self.axis, -1))
            t = moved[index_of(moved, rows)].reshape(-1, self.classes)
            return weight * (share * t.astype(np.float64) + smoothing_share)
        mass = np.tile(weight * smoothing_share, (len(rows), 1))
        own = np.flatnonzero(labels[rows] != NO_CLASS)
        mass[own, labels[rows][own]] += share * weight[labels[rows][own]]
        return mass

    def chunks(self) -> Any:
        """Numbers of the rows that count, so many at a time as fit into the cache in float64."""
        step = max(1, CHUNK_BYTES // (8 * self.classes))
        numbers = np.flatnonzero(self.counted)
        return (numbers[i : i + step] for i in range(0, len(numbers), step))


class Part(NamedTuple):
    """What one rank knows of every row: float64 arrays (rows,), and kept for the gradient.

    D and Q of the targets before smoothing, and of a target that has mass weight_c at each class;
    the class `at` with `log_p`, its log-probability among the classes of the shard.
    """

    lse: Any
    target_loss: Any
    target_mass: Any
    uniform_loss: Any
    uniform_mass: float
    labels: Any  # in the shard; None for probabilities
    at: Any
    log_p: Any


def part_of(shard: Shard, offset: int) -> Part:
    """The numbers of this shard, whose first class has the number `offset` among all."""
    labels = shard.labels_in(offset, shard.classes) if shard.has_labels else None
    read = np.where(shard.counted, 0, NO_CLASS)
    at = read if labels is None else np.where(labels == NO_CLASS, read, labels)
    if shard.dense:
        options = shard.kernel_options()
        at = taken(_kernels.row_statistics, shard.x, _rows(read, shard), options)[3].reshape(-1)
    lse, log_p = _selected(shard, at)
    if labels is not None:
        own = labels != NO_CLASS
        log_y = _selected(shard, np.where(own, labels, read))[1] if shard.dense else log_p
        mass = shard.masses_of(labels)
        loss = times(mass, np.where(own, 0.0 - log_y, 0.0))
    else:
        loss, mass = _of_probabilities(shard, lse)
    uniform = _uniform_loss(shard, read, lse) if shard.options.label_smoothing else None
    return Part(lse, loss, mass, uniform, shard.all_weight, labels, at, log_p)


def taken(call: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a call of the bindings; its arguments are arrays that have been checked."""
    return _check.taken(call(*arguments, checked=True, **options))


def _rows(values: Any, shard: Shard) -> Any:
    """One value a row, in the shape of the rows."""
    return np.ascontiguousarray(values).reshape(shard.row_shape)


def _selected(shard: Shard, at: Any) -> tuple[Any, Any]:
    """lse, and the log-probability of the class `at` of each row."""
    found = taken(_kernels.selected_log_probs, shard.x, _rows(at, shard), shard.kernel_options())
    log_p, _, lse = (np.asarray(each).reshape(-1) for each in found)
    return lse, np.where(np.isneginf(lse), -np.inf, log_p)


def _of_probabilities(shard: Shard, lse: Any) -> tuple[Any, Any]:
    """D and Q of class probabilities."""
    counted = None if shard.counted.all() else _rows(shard.counted.astype(np.float64), shard)
    arrays = shard.x, shard.target, shard.weight, counted
    loss = _losses(arrays, shard.kernel_options())
    mass = np.zeros(shard.rows)
    moved = flat(np.moveaxis(shard.target, shard.axis, -1))
    weight = np.ones(shard.classes) if shard.weight is None else shard.weight
    for rows in shard.chunks():
        t = moved[index_of(moved, rows)].reshape(-1, shard.classes).astype(np.float64)
        mass[rows] = t @ weight
        for i in np.flatnonzero(np.isneginf(lse[rows])):
            loss[rows[i]] = times(t[i] * weight, np.inf).sum()
    return loss, mass


def _uniform_loss(shard: Shard, read: Any, lse: Any) -> Any:
    """sum_c weight_c (lse_r - x_c): what all label smoothing consists of."""
    arrays = shard.x, _rows(read, shard), shard.weight, None
    loss = shard.classes * _losses(arrays, shard.kernel_options(label_smoothing=1.0))
    weight = np.ones(1) if shard.weight is None else shard.weight
    return np.where(np.isneginf(lse), times(weight, np.inf).sum(), loss)


def _losses(arrays: Any, options: Options) -> Any:
    losses = taken(_kernels.compute_cross_entropy, False, *arrays, options, float64_losses=True)
    return np.asarray(losses).reshape(-1).copy()


class Whole(NamedTuple):
    """The sums over all ranks: of every row, (rows,)."""

    lse: Any
    above: Any  # lse - lse_r of this rank
    loss: Any  # before sample weights; 0 for rows that do not count
    mass: Any  # Q
    smoothing_share: float  # label_smoothing / number of all classes
    divisor: float


def whole_of(shard: Shard, parts: Any, classes: int, me: int) -> Whole:
    """The numbers of whole rows, of `Part`s whose fields have one row for each rank."""
    options = shard.options
    share = options.label_smoothing / classes
    with np.errstate(invalid="ignore", over="ignore"):
        ordered = np.sort(parts.lse, axis=0)  # sums do not depend on which rank has which classes
        peak = ordered[-1]
        log1p_tail = np.log1p(np.exp(ordered[:-1] - peak).sum(axis=0))
        defined = np.isfinite(peak)
        lse = np.where(defined, peak + log1p_tail, peak)
        above = (peak - parts.lse) + log1p_tail
        mass = (1.0 - options.label_smoothing) * parts.target_mass
        each = times(1.0 - options.label_smoothing, parts.target_loss)
        if share:
            mass = mass + share * parts.uniform_mass[:, None]
            each = each + share * parts.uniform_loss
        each = each + np.where(np.isneginf(parts.lse), 0.0, mass * above)
        loss = shard.unit * np.sort(each, axis=0).sum(axis=0) + options.z_loss * lse**2
    loss = np.where(shard.counted, np.where(defined, loss, np.nan), 0.0)
    total = np.sort(mass, axis=0).sum(axis=0)
    return Whole(lse, above[me].copy(), loss, total, share, divisor(shard, parts.target_mass))


def divisor(shard: Shard, target_mass: Any) -> float:
    """What the sum of the losses is divided by."""
    if shard.options.reduction != "mean":
        return 1.0
    if shard.options.normalizer is not None:
        return float(shard.options.normalizer)
    each = target_mass.sum(axis=0) if shard.has_labels else np.ones(shard.rows)
    each = each if shard.repeat is None else each * shard.repeat
    return float(np.where(shard.counted, each, 0.0).sum())


def reduced(shard: Shard, whole: Whole, empty_mean: float) -> Any:
    """The loss: an array of rows for "none", or a number."""
    loss = whole.loss if shard.repeat is None else times(shard.repeat, whole.loss)
    loss = np.where(shard.counted, loss, 0.0)
    if shard.options.reduction == "none":
        return loss.reshape(shard.row_shape)
    own_mean = shard.options.reduction == "mean" and shard.options.normalizer is None
    if own_mean and not shard.counted.any():
        return empty_mean
    with np.errstate(all="ignore"):
        return float(loss.sum() / np.float64(whole.divisor))


def gradient(shard: Shard, part: Part, whole: Whole, upstream: Any, out: Any = None) -> Any:
    """The gradient in the shard's logits: a new array, or `out`, which may be they themselves."""
    with np.errstate(all="ignore"):
        each = np.broadcast_to(np.asarray(upstream, np.float64), shard.row_shape).reshape(-1)
        each = each / np.float64(whole.divisor)  # the upstream gradient of each row
        each = np.where(shard.counted, each if shard.repeat is None else each * shard.repeat, 0.0)
        if shard.dense:
            out = np.empty_like(shard.x) if out is None else out
            _dense_gradient(shard, part, whole, each, out)
            return out
        own = part.labels != NO_CLASS
        mass = part.target_mass
        on_class, on_lse = _upstreams(shard, whole, each, mass)
        log_p = np.where(own, part.log_p - whole.above, 0.0)
    numbers = part.labels, whole.lse, log_p, np.zeros(shard.rows), on_class
    arrays = (_rows(each, shard) for each in numbers)
    options, on_lse = shard.kernel_options(), _rows(on_lse, shard)
    call = _kernels.selected_log_probs_grad
    return taken(call, shard.x, *arrays, None, options, out, grad_lse=on_lse)


def _upstreams(shard: Shard, whole: Whole, each: Any, mass: Any) -> tuple[Any, Any]:
    """Upstream gradients of log p of a class with this mass, and of the lse, for the kernel.

    d/dx_c = g (delta - p_c) + h p_c, with g = -q and h = Q - q: no difference at p_c = 1.
    """
    rest = shard.unit * (whole.mass - mass) + 2.0 * shard.options.z_loss * whole.lse
    return 0.0 - each * (shard.unit * mass), each * rest


def _dense_gradient(shard: Shard, part: Part, whole: Whole, each: Any, out: Any) -> None:
    """The same where every class has a mass: of rows that the cache holds beside their masses.

    The entry at the largest logit is that of `_upstreams`. All other p_c are below 1/2.
    """
    wide = np.float64 if shard.x.dtype.itemsize == 8 else np.float32
    x, to = (flat(np.moveaxis(a, shard.axis, -1)) for a in (shard.x, out))
    options = shard.kernel_options(axis=-1)
    log_p = part.log_p - whole.above
    for rows in shard.chunks():
        values = x[index_of(x, rows)].reshape(-1, shard.classes).astype(wide)
        mass = shard.masses(rows, whole.smoothing_share, part.labels)
        at = part.at[rows]
        of_rows = Whole(*(f[rows] if isinstance(f, np.ndarray) else f for f in whole))
        own = mass[np.arange(len(rows)), at]
        on_class, on_lse = _upstreams(shard, of_rows, each[rows], own)
        mass *= (0.0 - each[rows] * shard.unit)[:, None]
        arrays = at, of_rows.lse, log_p[rows], np.zeros(len(rows)), on_class, None
        upstream = {"grad_lse": on_lse, "grad_logits": mass}
        taken(_kernels.selected_log_probs_grad, values, *arrays, options, values, **upstream)
        to[index_of(to, rows)] = values
    rest = np.flatnonzero(~shard.counted)
    to[index_of(to, rest)] = 0
