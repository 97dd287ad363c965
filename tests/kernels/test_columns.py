"""The column kernel: class axis strided, rows adjacent in memory."""

import numpy as np
import pytest
from helpers.layouts import FILLER, at_offset, surroundings
from helpers.support import assert_bits, assert_options, assert_plain, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# Around cache lines and vectors of every type; around segments (128 rows) and their halves.
INNER = [*range(1, 34), 47, 48, 49, 63, 64, 65, 70]
SEGMENTS = [127, 128, 129, 143, 144, 145, 255, 256, 257, 300, 385, 4096, 4100, 4111]
# Around the classes that are added up at once (4) and probed (4).
CLASSES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 21, 31, 33, 64, 70]
ALL_OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 1e-3,
    "logit_scale": 1.25,
    "base": 2,
    "reduction": "none",
}


def options_for(shape, seed=0):
    """Every option at once, for logits of this shape; no class weights with smoothing."""
    rng = np.random.default_rng(seed)
    rows = np.delete(shape, 1)
    each = {name: rng.uniform(0.5, 2, rows) for name in ("sample_weight", "grad_output")}
    return {**ALL_OPTIONS, **each}


def both(x, target, **options):
    return xe.cross_entropy_with_grad(x, target, **{"reduction": "none", **options})


def fortran(shape, dtype="float32", **kwargs):
    return np.asfortranarray(make_logits(shape, dtype, **kwargs))


@pytest.mark.parametrize("classes", CLASSES)
def test_every_inner_length(dtype, classes):
    for inner in INNER:
        x = make_logits((2, classes, inner), dtype, seed=classes)
        assert_plain(x, make_target("labels", x.shape), what=f"inner {inner}")


@pytest.mark.parametrize("classes", [2, 5, 21])
def test_every_number_of_segments(dtype, classes):
    for inner in SEGMENTS:
        x = make_logits((1, classes, inner), dtype, seed=inner)
        assert_plain(x, make_target("labels", x.shape), what=f"inner {inner}")
        x = fortran((inner, classes), dtype, seed=inner)
        assert_plain(x, make_target("labels", x.shape), what=f"Fortran {inner}")


@pytest.mark.parametrize("classes", [257, 1000, 1025, 5000, 20_000])
def test_many_classes(dtype, classes):
    for rows in (2, 17, 40):
        x = fortran((rows, classes), dtype, seed=rows)
        assert_plain(x, make_target("labels", x.shape), what=f"{rows} rows")


@pytest.mark.parametrize("shape", [(70, 2), (150, 21), (300, 5), (33, 300), (2, 21, 9, 15)])
def test_every_option(dtype, shape):
    x, target = fortran(shape, dtype), make_target("labels", shape)
    weight = np.linspace(0.1, 2, shape[1])
    every = options_for(shape)
    moved = 8 * float(np.finfo(np.float64 if dtype == np.float64 else np.float32).eps)
    assert_options(x, target, moved=moved, what="all", **every)
    for name, value in every.items():
        assert_options(x, target, moved=moved, what=name, **{"reduction": "none", name: value})
    unsmoothed = {**every, "label_smoothing": 0.0}
    assert_options(x, target, weight=weight, moved=moved, what="weight", **unsmoothed)
    assert_options(x, target, weight=weight, what="weight alone")


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("shape", [(300, 7), (200, 21), (150, 70), (40, 300)])
def test_a_row_has_the_same_bits_wherever_it_is(dtype, shape, options):
    """In any split of the batch, at any place in a segment, alone or in company."""
    x, target = fortran(shape, dtype), make_target("labels", shape)
    options = options_for(shape) if options == "all" else {}
    loss, grad = both(x, target, **options)
    rows = shape[0]
    cuts = [(0, 1), (1, 2), (rows - 1, rows), (3, 20), (5, rows), (0, rows - 1), (7, 7 + rows // 2)]
    for start, stop in cuts:
        cut = slice(start, stop)
        part = {name: v[cut] if np.ndim(v) else v for name, v in options.items()}
        again = both(x[cut], target[cut], **part)
        assert_bits(again[0], loss[cut], f"loss of {start}:{stop}")
        assert_bits(again[1], grad[cut], f"gradient of {start}:{stop}")
        forward = {name: v for name, v in part.items() if name != "grad_output"}
        alone = xe.cross_entropy(x[cut], target[cut], **{"reduction": "none", **forward})
        assert_bits(alone, loss[cut], f"loss alone of {start}:{stop}")


def test_a_pixel_has_the_same_bits_in_any_window(dtype):
    """Also in windows whose rows are not adjacent, or which are one pixel large."""
    x, target = make_logits((2, 9, 20, 40), dtype), make_target("labels", (2, 9, 20, 40))
    loss, grad = both(x, target)
    for cut in (np.s_[:1], np.s_[:, 3:17, 5:], np.s_[1:, 7:8, 9:10], np.s_[:, ::2, ::3]):
        image, *window = cut if isinstance(cut, tuple) else (cut,)
        index = (image, slice(None), *window)
        again = both(x[index], target[cut])
        assert_bits(again[0], loss[cut], f"loss {cut}")
        assert_bits(again[1], grad[index], f"gradient {cut}")


@pytest.mark.parametrize("shape", [(2, 5, 131), (2, 21, 128), (1, 3, 4100), (3, 33, 49)])
def test_addresses_and_kinds_of_output(dtype, shape):
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    loss, grad = assert_plain(x, target)
    for k in range(18):
        out = at_offset(np.zeros_like(x), (5 * k + 1) % 18)
        around = surroundings(out)
        again = both(at_offset(x, k), target, out=out)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(out, grad, f"gradient, offset {k}")
        assert (around() == FILLER).all(), f"offset {k}: wrote outside"
    for out in (np.zeros_like(x), np.zeros_like(x, order="F"), x):
        assert_bits(both(x, target, out=out)[1], grad)


@pytest.mark.parametrize("shape", [(1, 3, 400_001), (30, 21, 2000), (5, 301, 1003), (90, 70, 196)])
@pytest.mark.parametrize("offset", [0, 4, 7])
def test_streamed_stores(shape, offset):
    """More than 4 MB: stores past the cache, of whole lines and of parts of lines."""
    x, target = make_logits(shape), make_target("labels", shape)
    loss, grad = assert_plain(x[:1], target[:1])
    out = at_offset(np.zeros_like(x), offset)
    around = surroundings(out)
    rows, _ = both(x, target, out=out)
    assert (around() == FILLER).all(), "wrote outside"
    assert_bits(rows[:1], loss)
    assert_bits(out[:1], grad)
    for i in range(shape[0]):
        assert_bits(both(x[i : i + 1], target[i : i + 1])[1], out[i : i + 1], f"image {i}")
    assert_bits(both(x, target, out=x)[1], out, "in place")


def test_threads_change_no_bit(dtype):
    x, target = make_logits((3, 21, 9000), dtype), make_target("labels", (3, 21, 9000))
    for reduction in ("none", "mean"):
        loss, grad = both(x, target, reduction=reduction, n_threads=1)
        for threads in (2, 3, 5):
            again = both(x, target, reduction=reduction, n_threads=threads)
            assert_bits(again[0], loss)
            assert_bits(again[1], grad)


@pytest.mark.parametrize("classes", [2, 5, 21, 300])
def test_neighbours_of_any_magnitude(dtype, classes):
    """Rows that are done again, or alone, beside rows that are not: none disturbs another."""
    shape, rng = (200, classes), np.random.default_rng(0)
    calm, target = fortran(shape, dtype), make_target("labels", shape)
    loss, grad = both(calm, target)
    most = {2: 60_000.0}.get(dtype.itemsize, 1e30)
    wild = [np.nan, np.inf, -np.inf, most, -most, min(1e6, most), 200.0, -200.0]
    x, hit = calm.copy(order="F"), rng.random(shape[0]) < 0.3
    hit[:3] = True, False, True
    x[hit, rng.integers(classes, size=hit.sum())] = rng.choice(wild, hit.sum())
    again = assert_plain(x, target)
    assert_bits(again[0][~hit], loss[~hit])
    assert_bits(again[1][~hit], grad[~hit])
    place = both(x, target, out=x)
    assert_bits(place[0], again[0])
    assert_bits(place[1], again[1])


@pytest.mark.parametrize("step", [20.0, 50.0, 100.0, 1e4])
@pytest.mark.parametrize("first", [1, 4, 5, 8, 20])
def test_the_first_classes_may_mislead(dtype, step, first):
    """k is guessed from four logits; those that follow may be far above or below."""
    x = make_logits((150, 21), "float64")
    for sign in (1, -1):
        moved = x.copy()
        moved[::3, :first] += sign * step
        moved = np.asfortranarray(moved.astype(dtype))
        target = make_target("labels", x.shape)
        loss, _ = assert_plain(moved, target)
        alone = xe.cross_entropy(moved, target, reduction="none")
        assert_bits(alone, loss)
        assert_plain(moved, target, grad_output=np.float32(1e30))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 20])
def test_the_first_classes_may_be_masked_out(dtype, count):
    x, target = fortran((150, 21), dtype), make_target("labels", (150, 21))
    x[:, :count] = -np.inf
    assert_plain(x, target % (21 - count) + count)
    with np.errstate(invalid="ignore"):
        assert_plain(x, target)
    for smoothed in (0.0, 0.1):
        at = target % (21 - count) + count
        alone = xe.cross_entropy(x, at, label_smoothing=smoothed, reduction="none")
        assert_bits(both(x, at, label_smoothing=smoothed)[0], alone)


def test_smoothing_over_a_masked_class_costs_inf(dtype):
    x, target = fortran((140, 9), dtype), 1 + make_target("labels", (140, 8))
    x[::3, 0] = -np.inf
    loss, grad = assert_options(x, target, label_smoothing=0.1, reduction="none")
    assert (np.isinf(loss) == (np.arange(140) % 3 == 0)).all()
    assert np.isfinite(grad.astype(float)).all()


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_rows(dtype, hole, smoothing):
    """Ones among others, and whole segments of them: +0, whatever they hold."""
    shape = (2, 21, 700)
    x, target = make_logits(shape, dtype), make_target("labels", shape)
    options = {"label_smoothing": smoothing, "z_loss": 1e-3 if smoothing else 0.0}
    loss, grad = both(x, target, **options)
    gone = np.random.default_rng(1).random(target.shape) < 0.3
    gone[0, 128:260], gone[1, 500:] = True, True
    np.moveaxis(x, 1, -1)[gone] = hole
    rows, slope = both(x, np.where(gone, -100, target), grad_output=-1.0, **options)
    assert (rows[gone] == 0).all()
    lanes = np.moveaxis(slope, 1, -1)
    assert (lanes[gone] == 0).all()
    assert not np.signbit(lanes[gone]).any()
    assert_bits(rows[~gone], loss[~gone])
    assert_bits(-lanes[~gone], np.moveaxis(grad, 1, -1)[~gone])


@pytest.mark.parametrize("margin", [10.0, 40.0, 80.0, 104.0, 120.0, 600.0])
def test_tails(dtype, margin):
    """Confident rows, right and wrong, beside each other: relative precision in both tails."""
    x = np.asfortranarray(make_logits((140, 9), dtype, spread=0.5))
    target = make_target("labels", x.shape)
    sure = (target + np.arange(140) % 2) % 9  # every second row is sure of a wrong class
    x[np.arange(140), sure] += np.dtype(dtype).type(margin)
    assert_plain(x, target)
    assert_bits(xe.cross_entropy(x, target, reduction="none"), both(x, target)[0])


@pytest.mark.parametrize("upstream", [0.0, 1e-44, 1e-38, 1e-30, 1e30, np.inf, np.nan])
def test_rows_of_any_upstream_gradient(dtype, upstream):
    x, target = fortran((140, 9), dtype), make_target("labels", (140, 9))
    g = np.where(np.arange(140) % 3 == 0, upstream, 1.0)
    with np.errstate(invalid="ignore"):
        assert_plain(x, target, grad_output=g)
    assert_bits(both(x, target, grad_output=g)[0], xe.cross_entropy(x, target, reduction="none"))


def test_class_weights_of_zero_and_below(dtype):
    x, target = fortran((140, 9), dtype), make_target("labels", (140, 9))
    weight = np.array([0, 1, -1, 2, 0, 0.5, 1, 1, 3.0])
    loss, grad = assert_options(x, target, weight=weight, reduction="none")
    assert (loss[weight[target] == 0] == 0).all()
    assert (grad[weight[target] == 0] == 0).all()


def test_logits_may_be_transposed_in_any_way(dtype):
    x, target = make_logits((40, 21, 3, 7), dtype), make_target("labels", (40, 21, 3, 7))
    for axes in ((3, 2, 1, 0), (1, 0, 2, 3), (1, 3, 2, 0), (2, 1, 3, 0)):
        other = x.transpose(axes).copy().transpose(np.argsort(axes))
        assert_plain(other, target, what=str(axes))
        assert_plain(other, target, out=np.zeros_like(x), what=f"{axes}, rows out")
        assert_plain(x, target, out=np.zeros_like(other), what=f"out {axes}")


@pytest.mark.parametrize("classes", [255, 256, 700])
def test_smoothed_columns_that_are_done_from_their_maximum(dtype, classes):
    """Such a row is gathered, and its exps then overwrite it: its logits are summed before."""
    far = {"float16": 3e4, "float64": 1e10}.get(dtype.name, 3e6)
    x = make_logits((2, classes, 20), "float64")
    x[0, :, 5] += 1000
    x[1, :, 7] += far
    assert_options(x.astype(dtype), np.zeros((2, 20), int), label_smoothing=0.1, reduction="none")
