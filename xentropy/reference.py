"""The specification: every function of xentropy in readable float64 NumPy.

Nothing here is fast; everything is meant to be read, and verified on paper. The compiled
kernels are tested against these functions, option by option.

All functions work on *rows*: one row is the C logits of one observation. With
probabilities ``p = softmax(logits)`` and a target distribution ``t`` over the classes::

    entropy          H(t)      = -sum_c t_c log t_c
    cross entropy    H(t, p)   = -sum_c t_c log p_c
    KL divergence    KL(t||p)  = H(t, p) - H(t)

If ``t`` is one-hot (the target is a class index y) one term of the cross entropy is
left, ``-log p_y``: the negative log-likelihood.

Tails stay exact because ``-log p`` and ``1 - p`` of the most probable class m are
never computed as a difference of near-equal numbers. With::

    tail_sum = sum_{c != m} exp(x_c - x_m)

they are ``-log p_m = log1p(tail_sum)`` and ``1 - p_m = tail_sum / (1 + tail_sum)``.
"""

import numpy as np

__all__ = [
    "cross_entropy",
    "cross_entropy_target_grad",
    "cross_entropy_with_grad",
    "distillation_loss",
    "distillation_loss_with_grad",
    "entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_selected_log_probs",
    "linear_selected_log_probs_grad",
    "log_softmax",
    "logsumexp",
    "row_statistics",
    "selected_log_probs",
    "selected_log_probs_grad",
    "softmax",
]


def _rows(array, axis):
    """The array as float64 rows (R, C), and the shape of an array with one value per row."""
    array = np.asarray(array)
    if array.ndim == 1:
        axis = 0
    moved = np.moveaxis(array, axis, -1).astype(np.float64)
    return moved.reshape(-1, moved.shape[-1]), moved.shape[:-1]


def _unrows(rows, shape, axis):
    """Undo `_rows`: values (R, C) back to an array whose classes lie along `axis`."""
    whole = rows.reshape((*shape, rows.shape[-1]))
    return np.moveaxis(whole, -1, axis if shape else 0)


class _Rows:
    """Softmax of every row: p, 1 - p, -log p and log-sum-exp."""

    def __init__(self, x):
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            at = np.arange(len(x)), np.argmax(x, axis=1)
            peak = x[at]
            shifted = x - peak[:, None]
            e = np.exp(shifted)
            e[at] = 0.0
            tail_sum = e.sum(axis=1)
            e[at] = np.where(np.isnan(shifted[at]), np.nan, 1.0)
            total = tail_sum + e[at]
            self.p = e / total[:, None]
            self.not_p = 1.0 - self.p
            self.not_p[at] = tail_sum / total
            self.lse = peak + np.log1p(tail_sum)
            self.neg_log_p = np.log1p(tail_sum)[:, None] - shifted
            non_finite = ~np.isfinite(peak)
            for value in (self.p, self.not_p, self.neg_log_p):
                value[non_finite] = np.nan
            self.lse[non_finite] = peak[non_finite]  # -inf, +inf or nan


def _times(mass, value):
    """mass * value, with 0 * (anything but nan) = 0, as in 0 log 0 = 0."""
    with np.errstate(invalid="ignore"):
        product = mass * value
    return np.where((mass == 0) & ~np.isnan(value), 0.0, product)


def _unit(base):
    """One nat in units of the result: 1 / log(base)."""
    return 1.0 if base is None else 1.0 / np.log(base)


def _target_mass(x, shape, target, weight, ignore_index, label_smoothing, axis):
    """(target mass, weight of the row in the mean, whether the row counts).

    mass_c = weight_c * ((1 - label_smoothing) * t_c + label_smoothing / C)
    """
    rows, classes = x.shape
    weight = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    target = np.asarray(target)
    if target.dtype.kind in "iu":
        labels = target.reshape(-1)
        counted = np.array([int(label) != ignore_index for label in labels], bool)
        safe = np.where(counted, labels, 0).astype(np.int64)
        t = np.zeros((rows, classes))
        t[np.arange(rows), safe] = 1.0
        row_weight = weight[safe]
    else:
        t = _rows(target, axis)[0]
        counted = np.ones(rows, bool)
        row_weight = np.ones(rows)
    mass = weight * ((1.0 - label_smoothing) * t + label_smoothing / classes)
    return mass, row_weight, counted


def cross_entropy_with_grad(
    logits,
    target,
    weight=None,
    *,
    sample_weight=None,
    ignore_index=-100,
    reduction="mean",
    normalizer=None,
    empty_mean=np.nan,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    axis=1,
    base=None,
    grad_output=None,
):
    """Loss and its gradient in the logits, as `xentropy.cross_entropy_with_grad`.

    With x = logit_scale * logits, p = softmax(x), unit = 1 / log(base) and the target
    masses q_c = weight_c * ((1 - label_smoothing) * t_c + label_smoothing / C)::

        loss = sample_weight * (unit * sum_c q_c (lse - x_c) + z_loss * lse**2)

    and, because d lse / d x_c = p_c, with Q = sum_c q_c::

        d loss / d logits_c = sample_weight * logit_scale
                              * (unit * (Q p_c - q_c) + 2 * z_loss * lse * p_c)

    With a softcap c the scaled logits are capped: x = c * tanh(logit_scale * logits / c), and the
    gradient has the factor d x_c / (logit_scale * d logits_c) = 1 - tanh^2 = 1 / cosh^2.

    A row of sample weight k counts as k equal rows would: weight 0 removes it. The mean over no row
    is `empty_mean`.
    """
    x, shape = _rows(logits, axis)
    mass, row_weight, counted = _target_mass(
        x, shape, target, weight, ignore_index, label_smoothing, axis
    )
    repeat = _per_row(sample_weight, shape)
    counted = counted & (repeat != 0)
    x, slope = _capped(np.where(counted[:, None], x, 0.0) * logit_scale, softcap)
    loss, grad = _loss_and_grad(x, mass, _unit(base), z_loss)
    grad = grad * slope
    loss = np.where(counted, repeat * loss, 0.0)

    divisor = _divisor(reduction, normalizer, counted, repeat, row_weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        upstream = _per_row(grad_output, shape) * (repeat * logit_scale / divisor)
        grad = np.where(counted[:, None], upstream[:, None] * grad, 0.0)
        grad = _unrows(grad, shape, axis)
        if reduction == "none":
            return loss.reshape(shape)[()], grad
        if reduction == "mean" and normalizer is None and not counted.any():
            return float(empty_mean), grad
        return float(np.float64(loss.sum()) / divisor), grad


def _capped(x, softcap):
    """softcap * tanh(x / softcap), and its slope 4 e / (1 + e)^2 with e = exp(-2 |x| / softcap)."""
    if softcap is None:
        return x, 1.0
    e = np.exp(-2.0 * np.abs(x) / softcap)
    return softcap * np.tanh(x / softcap), 4.0 * e / (1.0 + e) ** 2


def _divisor(reduction, normalizer, counted, repeat, row_weight):
    """What the sum of the losses is divided by."""
    if reduction != "mean":
        return 1.0
    if normalizer is not None:
        return normalizer
    return np.sum(np.where(counted, repeat * row_weight, 0.0))


def _per_row(value, shape):
    """One number per row: a scalar for all rows; 1 for None."""
    value = 1.0 if value is None else np.asarray(value, np.float64)
    return np.broadcast_to(value, shape).reshape(-1)


def _loss_and_grad(x, mass, unit, z_loss):
    """Loss and gradient of every row in the scaled logits x, before weights and reduction."""
    rows = _Rows(x)
    loss = unit * _times(mass, rows.neg_log_p).sum(axis=1)
    # Q p_c - q_c = (Q - q_c) p_c - q_c (1 - p_c): no cancellation where p_c is almost 1.
    rest = mass.sum(axis=1, keepdims=True) - mass
    grad = unit * (rest * rows.p - mass * rows.not_p)
    if z_loss:
        loss = loss + z_loss * rows.lse**2
        grad = grad + 2.0 * z_loss * rows.lse[:, None] * rows.p
    return loss, grad


def cross_entropy(logits, target, weight=None, **options):
    """The loss of `cross_entropy_with_grad` alone."""
    return cross_entropy_with_grad(logits, target, weight, **options)[0]


def cross_entropy_target_grad(
    logits,
    target,
    weight=None,
    *,
    sample_weight=None,
    reduction="mean",
    normalizer=None,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    axis=1,
    base=None,
    grad_output=None,
):
    """Gradient of the loss in class probabilities t.

    The loss is linear in t: with p = softmax(x), x the scaled (and capped) logits, and
    unit = 1 / log(base)::

        d loss / d t_c = sample_weight * unit * weight_c * (1 - label_smoothing) * -log p_c

    for "mean" over its divisor, the summed sample weights or `normalizer`, neither of which
    depends on t. Nor does `z_loss`. Of t itself the gradient needs only the shape.
    """
    x, shape = _rows(logits, axis)
    if np.shape(target) != np.shape(logits):
        raise ValueError("only class probabilities have a gradient")
    weight = np.ones(x.shape[1]) if weight is None else np.asarray(weight, np.float64)
    repeat = _per_row(sample_weight, shape)
    counted = repeat != 0
    x, _ = _capped(np.where(counted[:, None], x, 0.0) * logit_scale, softcap)
    grad = _times(weight * (1.0 - label_smoothing), _unit(base) * _Rows(x).neg_log_p)
    with np.errstate(invalid="ignore", divide="ignore"):
        divisor = _divisor(reduction, normalizer, counted, repeat, 1.0)
        upstream = _per_row(grad_output, shape) * (repeat / divisor)
        grad = np.where(counted[:, None], upstream[:, None] * grad, 0.0)
    return _unrows(grad, shape, axis)


def linear_cross_entropy_with_grad(
    input, linear_weight, target, *, linear_bias=None, ignore_index=-100, **options
):
    """Loss and gradients of a linear layer, as `xentropy.linear_cross_entropy_with_grad`.

    The logits of a row x of `input` are linear_weight @ x + linear_bias, and with the gradient
    G of `cross_entropy_with_grad` in the logits of all rows, (N, V)::

        d loss / d input         = G @ linear_weight
        d loss / d linear_weight = G.T @ input
        d loss / d linear_bias   = the sum of G over the rows

    A row that does not count is as a row of zeros: it may hold anything.
    """
    x, shape = _rows(input, -1)
    layer = np.asarray(linear_weight, np.float64)
    target = np.asarray(target)
    counted = _per_row(options.get("sample_weight"), shape) != 0
    if target.dtype.kind in "iu":
        labels = target.reshape(-1)
        counted &= np.array([int(label) != ignore_index for label in labels], bool)
    x = np.where(counted[:, None], x, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = x @ layer.T + (0.0 if linear_bias is None else np.asarray(linear_bias, np.float64))
        loss, grad = cross_entropy_with_grad(
            _unrows(logits, shape, -1), target, axis=-1, ignore_index=ignore_index, **options
        )
        grad = _rows(grad, -1)[0]
        grads = _unrows(grad @ layer, shape, -1), grad.T @ x, grad.sum(axis=0)
    return loss, (*grads[:2], None if linear_bias is None else grads[2])


def linear_cross_entropy(input, linear_weight, target, **options):
    """The loss of `linear_cross_entropy_with_grad` alone."""
    return linear_cross_entropy_with_grad(input, linear_weight, target, **options)[0]


def _flattened(x, axis):
    """Rows (R, C) over one axis, several or all (None); their shape, axes and the inverse."""
    x = np.asarray(x)
    x = x.astype(np.result_type(x, np.float64))  # complex numbers stay
    axes = range(x.ndim) if axis is None else np.atleast_1d(axis)
    axes = sorted(a % x.ndim for a in axes)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    row_shape = moved.shape[: x.ndim - len(axes)]
    rows = moved.reshape(int(np.prod(row_shape)), -1)

    def back(values):
        return np.moveaxis(values.reshape(moved.shape), range(x.ndim - len(axes), x.ndim), axes)

    return rows, row_shape, axes, back


def softmax(x, axis=None):
    """exp(x_c) / sum_j exp(x_j) over `axis` (all axes if None)."""
    rows, _, _, back = _flattened(x, axis)
    return back(_Rows(rows).p)


def log_softmax(x, axis=None):
    """log(softmax(x)), exact where a probability is almost 1."""
    rows, _, _, back = _flattened(x, axis)
    return back(-_Rows(rows).neg_log_p)


def logsumexp(x, axis=None, b=None, *, keepdims=False, return_sign=False):
    """log S, S = sum_c b_c exp(x_c), over `axis` (all axes if None); b is 1 if None.

    x and b broadcast; a term of weight 0 is not there. With `return_sign`: ``log|S|`` and the sign
    of S, for a complex S its phase ``S / |S|``. Without it, S < 0 has no logarithm (nan), and that
    of a complex S is the one whose imaginary part is in (-pi, pi].
    """
    x, weights = np.broadcast_arrays(x, 1.0 if b is None else b)
    (rows, shape, axes, _), weights = _flattened(x, axis), _flattened(weights, axis)[0]
    lse, sign = _log_and_sign(rows, weights)
    if b is None and not np.iscomplexobj(rows):
        lse = _Rows(rows).lse
    if not return_sign:
        real = not np.iscomplexobj(sign)
        lse = np.where(sign < 0, np.nan, lse) if real else lse + 1j * np.angle(sign + 0)  # no -0
    both = lse.reshape(shape), sign.reshape(shape)
    both = [np.expand_dims(each, tuple(axes)) if keepdims else each[()] for each in both]
    return tuple(both) if return_sign else both[0]


def _log_and_sign(x, weights):
    """log|S| and S / |S| of every row, S = sum_c weights_c exp(x_c) = exp(peak) * total."""
    counted = weights != 0
    peak = np.max(np.where(counted, x.real, -np.inf), axis=1, keepdims=True, initial=-np.inf)
    x = np.where(np.isinf(peak) & np.isfinite(x), 0.0, x)  # beside infinite terms: any number
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        terms = np.where(counted, weights * np.exp(np.where(counted, x - peak, 0.0)), 0.0)
        total = terms.sum(axis=1)
        return peak[:, 0] + np.log(np.abs(total)), np.sign(total)


def entropy(logits, *, axis=-1, base=None):
    """H(softmax(logits)) = -sum_c p_c log p_c of every row."""
    rows, shape, _, _ = _flattened(logits, axis)
    s = _Rows(rows)
    return (_unit(base) * _times(s.p, s.neg_log_p).sum(axis=1)).reshape(shape)[()]


def kl_divergence(target, logits, *, reduction="mean", axis=1, base=None, target_logits=False):
    """KL(target || softmax(logits)) = sum_c t_c (log t_c - log p_c) of every row.

    `target_logits`: the target is softmax(target).
    """
    if target_logits:
        loss = distillation_loss(logits, target, reduction=reduction, axis=axis)
        return _unit(base) * loss
    x, shape = _rows(logits, axis)
    t, _ = _rows(target, axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = _times(t, np.log(t)) + _times(t, _Rows(x).neg_log_p)
    rows = _unit(base) * each.sum(axis=1)
    if reduction == "none":
        return rows.reshape(shape)[()]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(rows.sum() if reduction == "sum" else np.float64(rows.sum()) / len(rows))


def row_statistics(
    logits, target=None, *, axis=1, ignore_index=-100, logit_scale=1.0, softcap=None
):
    """Numbers of every row, as `xentropy.row_statistics`: a dictionary of arrays by name.

    With m the class of the largest logit x_m::

        max_log_prob = log p_m = -log1p(tail_sum)
        entropy      = log1p(tail_sum) + sum_c p_c (x_m - x_c)
        sum_squares  = sum_c p_c^2
        rank         = how many classes come before the target, by logit and then by index

    No term of these sums is negative: nothing cancels.
    """
    x, shape = _rows(logits, axis)
    labels = np.zeros(len(x), int) if target is None else np.asarray(target).reshape(-1)
    counted = np.array([target is None or int(label) != ignore_index for label in labels], bool)
    y = np.where(counted, labels, 0).astype(np.int64)[:, None]
    x, _ = _capped(np.where(counted[:, None], x, 0.0) * logit_scale, softcap)
    rows, at = _Rows(x), np.argmax(x, axis=1)[:, None]
    own, log1p_tail = np.take_along_axis(x, y, 1), np.take_along_axis(rows.neg_log_p, at, 1)
    with np.errstate(invalid="ignore"):
        away = np.take_along_axis(x, at, 1) - x
    before = (x > own) | ((x == own) & (np.arange(x.shape[1]) < y))
    rank = np.where(np.isnan(x).any(axis=1), x.shape[1], before.sum(axis=1))
    numbers = {
        "lse": (rows.lse, np.nan),
        "loss": (np.take_along_axis(rows.neg_log_p, y, 1)[:, 0], 0.0),
        "entropy": (log1p_tail[:, 0] + _times(rows.p, away).sum(axis=1), np.nan),
        "argmax": (at[:, 0], -1),
        "max_log_prob": (0.0 - log1p_tail[:, 0], np.nan),
        "rank": (rank, -1),
        "sum_squares": ((rows.p**2).sum(axis=1), np.nan),
    }
    found = {k: np.where(counted, v, other).reshape(shape)[()] for k, (v, other) in numbers.items()}
    return found if target is not None else found | {"loss": None, "rank": None}


def distillation_loss_with_grad(
    logits,
    teacher_logits=None,
    *,
    teacher_log_probs=None,
    teacher_index=None,
    missing="tail",
    beta=0.0,
    temperature=1.0,
    sample_weight=None,
    reduction="mean",
    normalizer=None,
    empty_mean=np.nan,
    axis=1,
    grad_output=None,
):
    """Loss and its gradient in the logits, as `xentropy.distillation_loss_with_grad`.

    With S = softmax(logits / temperature), T the teacher and M = (1 - beta) S + beta T, a row costs

        beta = 0    sum T log(T/S)
        beta = 1    sum S log(S/T)
        between     beta sum T log(T/M) + (1 - beta) sum S log(S/M)

    and because d S_c / d x_j = S_c ([c = j] - S_j), its gradient is, divided by temperature,

        beta = 0    S sum(T) - T
        beta = 1    S (log(S/T) - the loss)
        between     (1 - beta) S (log(S/M) - sum S log(S/M))

    T is softmax(teacher_logits / temperature), or the softmax of log-probabilities. With an index
    these are the log-probabilities of some classes, and the others have what `missing` says:
    nothing ("zero"; "renormalize": then these are divided by their sum), or the rest ("tail"), one
    class more of S and T. That is as if T divided its rest among them as S does: log(S/T) is then
    the same for all. If S has nothing there, T has its rest in a class that is none of the logits'.
    """
    x, shape = _rows(logits, axis)
    repeat = _per_row(sample_weight, shape)
    counted = repeat != 0
    x = np.where(counted[:, None], x, 0.0) / temperature
    log_s = -_Rows(x).neg_log_p
    if teacher_index is not None:
        log_s, log_t = _sparse_teacher(log_s, teacher_log_probs, teacher_index, missing, axis)
    elif teacher_log_probs is not None:
        log_t = -_Rows(_rows(teacher_log_probs, axis)[0]).neg_log_p
    else:
        log_t = -_Rows(_rows(teacher_logits, axis)[0] / temperature).neg_log_p
    loss, grad = _divergence(log_s, log_t, beta, missing if teacher_index is not None else "")
    loss = np.where(counted, repeat * loss, 0.0)
    divisor = _divisor(reduction, normalizer, counted, repeat, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        upstream = _per_row(grad_output, shape) * (repeat / temperature / divisor)
        grad = np.where(counted[:, None], upstream[:, None] * grad, 0.0)
        grad = _unrows(grad[:, : x.shape[1]], shape, axis)
        if reduction == "none":
            return loss.reshape(shape)[()], grad
        if reduction == "mean" and normalizer is None and not counted.any():
            return float(empty_mean), grad
        return float(np.float64(loss.sum()) / divisor), grad


def distillation_loss(logits, teacher_logits=None, **options):
    """The loss of `distillation_loss_with_grad` alone."""
    return distillation_loss_with_grad(logits, teacher_logits, **options)[0]


def _with_a_class(log_s):
    """The same with one class more, of probability 0 (nan in rows without a softmax)."""
    excluded = np.where(np.isnan(log_s[:, :1]), np.nan, -np.inf)
    return np.concatenate([log_s, excluded], axis=1)


def _sparse_teacher(log_s, log_probs, index, missing, axis):
    """log S and log T of all classes, and of one that S excludes, from log T of some."""
    log_s = _with_a_class(log_s)
    given, index = _rows(log_probs, axis)[0], _rows(index, axis)[0].astype(np.int64)
    log_t = np.full_like(log_s, -np.inf)
    all_given = given.shape[1] == log_s.shape[1] - 1  # there is no tail, but for rounding
    if missing == "renormalize" or (missing == "tail" and all_given):
        given = -_Rows(given).neg_log_p
    if missing == "tail" and not all_given:
        others = log_s.copy()
        np.put_along_axis(others, index, -np.inf, axis=1)
        others[np.isneginf(others).all(axis=1), -1] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            rest = np.log1p(-np.minimum(np.exp(given).sum(axis=1, keepdims=True), 1.0))
            log_t = np.where(others > -np.inf, rest - _Rows(others).neg_log_p, -np.inf)
    np.put_along_axis(log_t, index, given, axis=1)
    return log_s, log_t


def _relative_terms(p, log_p, q, log_q):
    """The terms of KL(P||Q) = sum P log(P/Q), each plus Q - P: none is negative.

    With z = log(P/Q) a term is P (exp(-z) - 1 + z). Near 0 it is a series, as that cancels.
    """
    z = np.where(p > 0, log_p - log_q, 0.0)
    series = 1.0
    for n in (8, 7, 6, 5, 4, 3):
        series = 1 - z / n * series
    each = p * np.where(np.abs(z) < 0.01, z * z / 2 * series, np.expm1(-z) + z)
    each = np.where(z < -1, q - p + p * z, each)  # exp(-z) may overflow where p has underflown
    each = np.where((p > 0) | np.isnan(p), each, q)
    return np.where((log_p > -np.inf) & np.isneginf(log_q), np.inf, each)  # p may underflow


def _divergence(log_s, log_t, beta, missing):
    """Loss and gradient of every row, before weights and reduction.

    A row without a softmax has neither, and an infinite sum S log(S/T) no gradient.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        loss, grad = _plain_divergence(log_s, log_t, beta, missing)
    undefined = np.isnan(log_s).any(axis=1) | ~(log_t < np.inf).all(axis=1)
    loss = np.where(undefined, np.nan, loss)
    no_slope = undefined | ((beta == 1) & np.isinf(loss))
    return loss, np.where(no_slope[:, None], np.nan, grad)


def _plain_divergence(log_s, log_t, beta, missing):
    """The same by the formulas, of rows with a softmax."""
    s, t = np.exp(log_s), np.exp(log_t)
    more = (t.sum(axis=1) - 1) * (missing == "zero")  # than 1 the teacher has
    if beta == 0:
        loss = _relative_terms(t, log_t, s, log_s).sum(axis=1) + more
        return loss, s * (1 + more)[:, None] - t
    if beta == 1:
        loss = _relative_terms(s, log_s, t, log_t).sum(axis=1) - more
        ratio = np.where(np.isneginf(log_s), 0.0, log_s - log_t)
        return loss, _times(s, ratio - loss[:, None])
    log_m = np.logaddexp(np.log1p(-beta) + log_s, np.log(beta) + log_t)
    m = np.exp(log_m)
    loss = beta * _relative_terms(t, log_t, m, log_m)
    loss = (loss + (1 - beta) * _relative_terms(s, log_s, m, log_m)).sum(axis=1)
    of_s = np.where(s > 0, log_s - log_m, 0.0)
    own = _times(s, of_s).sum(axis=1, keepdims=True)
    return loss, (1 - beta) * _times(s, of_s - own)


def _selection(logits, index, axis, ignore_index, logit_scale, softcap):
    """Scaled and capped rows, their slopes, classes (R, k), which of them count, and shapes."""
    x, shape = _rows(logits, axis)
    index = np.asarray(index)
    several = index.ndim == np.ndim(logits)
    axis = axis if index.ndim > 1 else 0
    labels = np.moveaxis(index, axis, -1) if several else index[..., None]
    labels = labels.reshape(len(x), -1)
    counted = np.array([[int(y) != ignore_index for y in row] for row in labels], bool)
    counted = counted.reshape(labels.shape)
    read = counted.any(axis=1)
    x, slope = _capped(np.where(read[:, None], x, 0.0) * logit_scale, softcap)

    def back(values):
        values = values.reshape((*shape, values.shape[-1]))
        return np.moveaxis(values, -1, axis) if several else values[..., 0]

    return x, slope, np.where(counted, labels, 0).astype(np.int64), counted, read, shape, back


def selected_log_probs(logits, index, *, axis=1, ignore_index=-100, logit_scale=1.0, softcap=None):
    """(log_prob, entropy, lse), as `xentropy.selected_log_probs`.

    With x the scaled and capped logits of a row and y a class selected: log p_y = x_y - lse, and
    the entropy is that of p. A class that does not count, and the numbers of a row without any
    other, are 0.
    """
    x, _, labels, counted, read, shape, back = _selection(
        logits, index, axis, ignore_index, logit_scale, softcap
    )
    rows = _Rows(x)
    log_prob = np.where(counted, 0.0 - np.take_along_axis(rows.neg_log_p, labels, 1), 0.0)
    entropy = np.where(read, _times(rows.p, rows.neg_log_p).sum(axis=1), 0.0)
    lse = np.where(read, rows.lse, 0.0)
    return back(log_prob)[()], entropy.reshape(shape)[()], lse.reshape(shape)[()]


def selected_log_probs_grad(
    logits,
    index,
    grad_log_prob,
    grad_entropy=0.0,
    *,
    axis=1,
    ignore_index=-100,
    logit_scale=1.0,
    softcap=None,
):
    """Gradient of sum_j g_j log p_{y_j} + h H in the logits, of every row.

    d log p_y / d x_c = delta_{cy} - p_c, and dH / dx_c = -p_c (log p_c + H), so with G the sum of
    all g, and g_c that of those with y_j = c::

        d / d logits_c = logit_scale * slope_c * (g_c (1 - p_c) - (G - g_c) p_c
                                                  - h p_c (log p_c + H))

    log p_c + H is computed as the sum over d of p_d (x_c - x_d).
    """
    x, slope, labels, counted, read, shape, _ = _selection(
        logits, index, axis, ignore_index, logit_scale, softcap
    )
    rows = _Rows(x)
    several = np.ndim(index) == np.ndim(logits)
    g = np.broadcast_to(np.asarray(grad_log_prob, np.float64), np.shape(index))
    g = np.moveaxis(g, axis if g.ndim > 1 else 0, -1) if several else g
    g = np.where(counted, g.reshape(labels.shape), 0.0)
    own = np.zeros(x.shape)
    np.add.at(own, (np.arange(len(x))[:, None], labels), g)
    others = np.stack([np.where(labels != c, g, 0.0).sum(axis=1) for c in range(x.shape[1])], 1)
    h = _per_row(grad_entropy, shape)[:, None]
    with np.errstate(invalid="ignore"):
        grad = own * rows.not_p - others * rows.p - h * _times(rows.p, _centred(x, rows.p))
    grad = np.where(read[:, None], grad * slope * logit_scale, 0.0)
    return _unrows(grad, shape, axis)


def _centred(x, p):
    """sum_d p_d (x_c - x_d) of every class c with p_c > 0: no difference of almost equal sums."""
    x = np.where(np.isneginf(x), 0.0, x)
    with np.errstate(invalid="ignore"):
        columns = [_times(p, x[:, c, None] - x).sum(axis=1) for c in range(x.shape[1])]
    return np.stack(columns, 1)


def _linear_selection(input, linear_weight, index, linear_bias, ignore_index):
    """Rows of the input that count (others are 0), the layer, and logits in the input's shape."""
    x, shape = _rows(input, -1)
    layer = np.asarray(linear_weight, np.float64)
    labels = np.asarray(index).reshape(len(x), -1)
    read = np.array([any(int(y) != ignore_index for y in row) for row in labels], bool)
    x = np.where(read[:, None], x, 0.0)
    bias = 0.0 if linear_bias is None else np.asarray(linear_bias, np.float64)
    return x, layer, _unrows(x @ layer.T + bias, shape, -1)


def linear_selected_log_probs(
    input, linear_weight, index, *, linear_bias=None, ignore_index=-100, **options
):
    """`selected_log_probs` of the logits of a linear layer, whose rows that do not count are 0."""
    logits = _linear_selection(input, linear_weight, index, linear_bias, ignore_index)[2]
    return selected_log_probs(logits, index, axis=-1, ignore_index=ignore_index, **options)


def linear_selected_log_probs_grad(
    input,
    linear_weight,
    index,
    grad_log_prob,
    grad_entropy=0.0,
    *,
    linear_bias=None,
    ignore_index=-100,
    **options,
):
    """Its gradients in input, weight and bias, as those of `linear_cross_entropy_with_grad`."""
    arrays = input, linear_weight, index, linear_bias, ignore_index
    x, layer, logits = _linear_selection(*arrays)
    options = {"axis": -1, "ignore_index": ignore_index, **options}
    grad = selected_log_probs_grad(logits, index, grad_log_prob, grad_entropy, **options)
    grad = _rows(grad, -1)[0]
    of_bias = None if linear_bias is None else grad.sum(axis=0)
    return _unrows(grad @ layer, np.shape(input)[:-1], -1), grad.T @ x, of_bias
