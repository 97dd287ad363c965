"""What must hold for any batch: symmetries of the mathematics, and the same bits always."""

import numpy as np
import pytest
from helpers.support import (
    TARGETS,
    assert_bits,
    assert_plain,
    assert_ulps,
    assert_within,
    eps,
    make_logits,
    make_target,
    plain,
)
from hypothesis import given
from hypothesis import strategies as st

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

FLOATS = st.sampled_from(["float32", "float64"])
ALL_FLOATS = st.sampled_from(["float16", "float32", "float64"])
CLASSES = st.one_of(
    st.integers(1, 40), st.sampled_from([64, 65, 100, 127, 128, 255, 256, 257, 300, 1000, 1025])
)


@st.composite
def batches(draw, floats=FLOATS, kinds=TARGETS, max_rows=40, min_rows=1, inner=True):
    """(logits, target), with or without inner axes, in C or in Fortran order."""
    rows, classes = draw(st.integers(min_rows, max_rows)), draw(CLASSES)
    tail = draw(st.sampled_from([(), (), (3,), (2, 70)])) if inner and classes < 200 else ()
    shape, dtype, seed = (rows, classes, *tail), draw(floats), draw(st.integers(0, 10**6))
    x = make_logits(shape, dtype, seed=seed, spread=draw(st.sampled_from([0.5, 3.0, 20.0])))
    target = make_target(draw(st.sampled_from(kinds)), shape, dtype=dtype, seed=seed)
    return (np.asfortranarray(x) if draw(st.booleans()) and rows > 1 else x), target


def rowwise(x, target, **options):
    return xe.cross_entropy_with_grad(x, target, reduction="none", **options)


def like(x, values):
    """A copy of the values in the memory order of x: C or Fortran."""
    return np.array(values, order="F" if not x.flags.c_contiguous else "C")


@given(batches(), st.sampled_from([0.0, 0.5, -3.0, 100.0, -1000.0]))
def test_a_shift_of_the_logits_changes_nothing(batch, shift):
    x, target = batch
    x = np.round(x * 8) / 8  # so that x + shift is exact
    loss, grad = assert_plain(x, target)
    moved, slope = assert_plain(x + x.dtype.type(shift), target)
    assert_ulps(moved, loss, 2 * plain(x.dtype))  # each is `plain` ulp from the exact value
    if target.ndim != x.ndim:
        assert_ulps(slope, grad, 2 * plain(x.dtype))


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(batch, random):
    x, target = batch
    order = list(range(x.shape[1]))
    random.shuffle(order)
    is_labels = target.ndim != x.ndim
    renamed = np.argsort(order)[target] if is_labels else target[:, order]
    loss, grad = assert_plain(x, target)
    moved, slope = assert_plain(like(x, x[:, order]), renamed)
    assert_ulps(moved, loss, 2 * plain(x.dtype))
    if is_labels:
        assert_ulps(slope, grad[:, order], 2 * plain(x.dtype))


@given(batches(kinds=("labels",)))
def test_gradient_rows_sum_to_zero(batch):
    x, target = batch
    grad = rowwise(x, target)[1].astype(np.float64)
    # every element is `plain` ulp off, an ulp is at most eps times the element
    allowed = plain(x.dtype) * eps(x.dtype) * np.abs(grad).sum(1) + x.shape[1] * 2.0**-149
    assert_within(grad.sum(1), np.zeros_like(grad[:, 0]), allowed)


@given(batches(kinds=("labels",)), st.integers(-4, 4))
def test_a_class_weight_multiplies_its_rows(batch, power):
    x, target = batch
    weight = np.ones(x.shape[1])
    weight[::2] = 2.0**power
    loss, grad = rowwise(x, target)
    weighted, slope = rowwise(x, target, weight=weight)
    factor = weight[target]  # powers of two multiply exactly: two errors of `plain` ulp
    assert_ulps(weighted, factor * loss, 2 * plain(x.dtype))
    factor = np.expand_dims(factor, 1)
    exact = factor * grad.astype(np.float64)
    subnormal = factor * float(np.finfo(x.dtype).smallest_subnormal)  # if grad is subnormal
    assert_within(slope, exact, 2 * plain(x.dtype) * (eps(x.dtype) * np.abs(exact) + subnormal))


@given(batches(inner=False, max_rows=12), st.randoms(use_true_random=False))
def test_a_row_of_weight_k_counts_as_k_rows(batch, random):
    x, target = batch
    times = np.array([random.choice([0, 1, 1, 2, 5]) for _ in x])
    times[0] = max(times[0], 1)
    copies = np.repeat(np.arange(len(x)), times)
    for reduction in ("sum", "mean"):
        loss, grad = xe.cross_entropy_with_grad(
            x, target, sample_weight=times, reduction=reduction, label_smoothing=0.1
        )
        repeated, slope = xe.cross_entropy_with_grad(
            like(x, x[copies]), target[copies], reduction=reduction, label_smoothing=0.1
        )
        # rows are rounded in both calls, once multiplied by k and once added k times
        assert_within(loss, repeated, 2 * plain(x.dtype) * eps(x.dtype) * abs(repeated))
        first = np.cumsum(times) - times
        for row in np.flatnonzero(times):
            each = times[row] * slope[first[row]].astype(np.float64)
            mass = 0.1 / x.shape[1] + (target[row] if target.ndim == 2 else 0)
            size = np.abs(each) + times[row] * mass
            assert_within(grad[row], each, 4 * plain(x.dtype) * eps(x.dtype) * size, f"row {row}")
        assert (grad[times == 0] == 0).all()


@given(batches(ALL_FLOATS, min_rows=2, max_rows=400), st.data())
def test_concatenated_batches_keep_every_bit(batch, data):
    x, target = batch
    cut = data.draw(st.integers(1, len(x) - 1))
    loss, grad = rowwise(x, target)
    for part in (slice(None, cut), slice(cut, None)):
        if x.shape[1] > 1 and len(x[part]) == 1 and not x.flags.c_contiguous:
            continue  # one row has no column order: another kernel serves it
        some, slope = rowwise(like(x, x[part]), target[part])
        assert_bits(some, loss[part], "loss")
        assert_bits(slope, grad[part], "gradient")
    whole = xe.cross_entropy(x, target, reduction="sum")
    parts = [
        xe.cross_entropy(like(x, a), t, reduction="sum")
        for a, t in ((x[:cut], target[:cut]), (x[cut:], target[cut:]))
    ]
    # float64 additions of rows that were rounded alike (in Fortran order: by other kernels)
    other_kernels = 0 if x.flags.c_contiguous else 2 * plain(x.dtype) * eps(x.dtype)
    relative = loss.size * 2.0**-52 + other_kernels
    assert_within(whole, sum(parts), relative * abs(whole))


@given(batches(ALL_FLOATS, max_rows=300), st.randoms(use_true_random=False))
def test_a_row_has_the_same_bits_in_any_position(batch, random):
    x, target = batch
    order = list(range(len(x)))
    random.shuffle(order)
    loss, grad = rowwise(x, target)
    moved, slope = rowwise(like(x, x[order]), target[order])
    assert_bits(moved, loss[order])
    assert_bits(slope, grad[order])


@given(batches(ALL_FLOATS), st.randoms(use_true_random=False))
def test_an_inner_position_has_the_same_bits_in_any_position(batch, random):
    x, target = batch
    order = list(range(x.shape[-1]))
    if x.ndim == 2:
        return
    random.shuffle(order)
    loss, grad = rowwise(x, target)
    moved, slope = rowwise(like(x, x[..., order]), target[..., order])
    assert_bits(moved, loss[..., order])
    assert_bits(slope, grad[..., order])


@given(
    batches(ALL_FLOATS),
    st.sampled_from(["none", "sum", "mean"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.01]),
    st.booleans(),
)
def test_the_loss_alone_has_the_bits_of_the_loss_with_gradient(batch, reduction, smooth, z, weigh):
    x, target = batch
    weight = np.linspace(-0.5, 2, x.shape[1]) if weigh else None
    options = {"reduction": reduction, "label_smoothing": smooth, "z_loss": z}
    loss, _ = xe.cross_entropy_with_grad(x, target, weight, **options)
    assert_bits(xe.cross_entropy(x, target, weight, **options), loss)


# Many short rows, long rows, columns, two rows and one huge row: all large enough for threads.
THREADED = [(70_001, 3), (30_001, 10), (3000, 100), (301, 1000), (2, 300_001), (1, 1_000_003)]
THREADED += [(2, 21, 64, 65), (1, 3, 100_001), (700, 5, 40)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape, kind, order):
    x = np.array(make_logits(shape), order=order)
    target = make_target(kind, shape)
    options = {"label_smoothing": 0.1, "reduction": "mean"} if kind == "labels" else {}
    one = xe.cross_entropy_with_grad(x, target, n_threads=1, **options)
    rows = rowwise(x, target, n_threads=1)
    for threads in (2, 3, 5, 8):
        many = xe.cross_entropy_with_grad(x, target, n_threads=threads, **options)
        assert_bits(many[0], one[0], f"loss, {threads} threads")
        assert_bits(many[1], one[1], f"gradient, {threads} threads")
        each = rowwise(x, target, n_threads=threads)
        assert_bits(each[0], rows[0], f"rows, {threads} threads")
        assert_bits(each[1], rows[1], f"gradient of rows, {threads} threads")
        alone = xe.cross_entropy(x, target, n_threads=threads, **options)
        assert_bits(alone, one[0], f"loss alone, {threads} threads")


@pytest.mark.parametrize("shape", THREADED[::2], ids=str)
def test_threads_and_dtypes(dtype, shape):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    one = xe.cross_entropy_with_grad(x, target, n_threads=1)
    for threads in (2, 5):
        many = xe.cross_entropy_with_grad(x, target, n_threads=threads)
        assert_bits(many[0], one[0])
        assert_bits(many[1], one[1])


@pytest.mark.parametrize("kind", TARGETS)
def test_threads_and_the_divisor_of_the_mean(kind):
    x, target = make_logits((400_001, 3)), make_target(kind, (400_001, 3))
    repeat = np.random.default_rng(0).random(len(x))  # float64: their sum depends on the order
    one = xe.cross_entropy_with_grad(x, target, sample_weight=repeat, n_threads=1)
    for threads in (2, 3, 5):
        many = xe.cross_entropy_with_grad(x, target, sample_weight=repeat, n_threads=threads)
        assert_bits(many[0], one[0], f"loss, {threads} threads")
        assert_bits(many[1], one[1], f"gradient, {threads} threads")
