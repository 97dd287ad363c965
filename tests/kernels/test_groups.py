"""Short rows are computed many at a time; no row may notice."""

import itertools

import numpy as np
import pytest
from helpers.layouts import FILLER, at_offset, surroundings
from helpers.short_rows import group, wild
from helpers.support import (
    EXACT,
    assert_bits,
    assert_options,
    assert_plain,
    assert_ulps,
    make_logits,
    make_target,
)

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# Of EXACT alone: 16-bit rows pass through the same kernel, as float32.
CLASSES = [*range(1, 71), 100, 127, 128, 191, 192, 193, 255, 256, 319, 320, 321]


def both(x, target, **options):
    return xe.cross_entropy_with_grad(x, target, reduction="none", **options)


@pytest.mark.parametrize("dtype", EXACT)
def test_every_number_of_classes(dtype):
    for classes in CLASSES:
        shape = (2 * group(classes) + 3, classes)
        x, labels = make_logits(shape, dtype, seed=classes), make_target("labels", shape)
        loss, _ = assert_plain(x, labels, what=f"{classes} classes")
        alone = xe.cross_entropy(x, labels, reduction="none")
        assert_bits(alone, loss, f"loss alone, {classes} classes")


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 10, 16, 17, 33, 64, 100, 200])
@pytest.mark.parametrize("dtype", EXACT)
def test_every_split_of_a_batch(dtype, classes):
    rows = 2 * group(classes) + 17
    x = make_logits((rows, classes), dtype, spread=8)
    labels = make_target("labels", x.shape)
    loss, grad = both(x, labels)
    rng = np.random.default_rng(classes)
    sizes = [1, 2, 15, 16, 17, group(classes) - 1, group(classes), group(classes) + 1]
    for size in [*sizes, *rng.integers(1, rows, 5)]:
        start = int(rng.integers(0, rows - min(size, rows) + 1))
        cut = slice(start, start + size)
        part = both(x[cut], labels[cut])
        assert_bits(part[0], loss[cut], f"loss of {cut}")
        assert_bits(part[1], grad[cut], f"gradient of {cut}")
        assert_bits(both(x[cut].copy(), labels[cut])[1], grad[cut], f"gradient of {cut}, copied")
    for row in range(0, rows, 7):
        one = both(x[row : row + 1], labels[row : row + 1])
        assert_bits(one[0], loss[row : row + 1], f"loss of row {row}")
        assert_bits(one[1], grad[row : row + 1], f"gradient of row {row}")


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 16, 30, 100])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=str)
def test_wild_neighbours_change_no_bit(dtype, classes, options):
    x = wild((2 * group(classes) + 5, classes), dtype)
    labels = make_target("labels", x.shape)
    loss, grad = both(x, labels, **options)
    alone = xe.cross_entropy(x, labels, reduction="none", **options)
    assert_bits(alone, loss, "loss alone")
    for row in range(len(x)):
        one = both(x[row : row + 1], labels[row : row + 1], **options)
        assert_bits(one[0], loss[row : row + 1], f"loss of row {row}: {x[row]}")
        assert_bits(one[1], grad[row : row + 1], f"gradient of row {row}: {x[row]}")
    if not options:
        with np.errstate(invalid="ignore"):
            assert_plain(x, labels)


@pytest.mark.parametrize("classes", [2, 4, 10, 31, 128])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("spread", [30, 100, 1000])
def test_rows_of_very_different_maxima(dtype, classes, spread):
    x = make_logits((group(classes) + 9, classes), dtype, spread=spread)
    assert_plain(x, make_target("labels", x.shape))


# What one row in a group of ordinary ones differs in, by so many octaves: all of its logits, the
# target's, another, all but the target's, another while all are low, or its upstream gradient. A
# group shares a power of two that suits its first rows; one row alone has its own. The steps are
# fine where float32 changes over from one to the other.
COARSE = [*range(-1400, 1401, 50)]
STEPS = {
    "all": [*range(-90, 91), *COARSE],
    "target": [*range(-150, 151, 2), *COARSE],
    "other": [*range(-150, 151, 2), *COARSE],
    "others": [*range(-260, 20, 2), *COARSE],
    "other, all low": [*range(-150, 51, 2), *COARSE],
    "upstream": [*range(-140, 121, 2), *range(-1000, 1001, 50)],
}


def shifted(x, row, target, what, octaves):
    """A copy of x in which one row differs."""
    x = x.copy()
    step = x.dtype.type(octaves * np.log(2))
    other = (target + 1) % x.shape[1]
    if what in ("all", "others"):
        x[row] += step
    if what == "target":
        x[row, target] += step
    if what == "others":
        x[row, target] -= step
    if what == "other, all low":
        x[row] -= x.dtype.type((45 if x.dtype == np.float32 else 430) * np.log(2))
    if what.startswith("other,") or what == "other":
        x[row, other] += step
    return x


def assert_alone(x, target, row, what, **options):
    """A row has the same bits in a group and as the only one."""
    loss, grad = both(x, target, **options)
    if "grad_output" in options:
        options["grad_output"] = options["grad_output"][row : row + 1]
    one = both(x[row : row + 1], target[row : row + 1], **options)
    assert_bits(one[0], loss[row : row + 1], f"loss, {what}")
    assert_bits(one[1], grad[row : row + 1], f"gradient, {what}")


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"logit_scale": 0.7}], ids=str
)
@pytest.mark.parametrize("what", STEPS)
def test_a_power_of_two_that_rows_share_shows_in_no_bit(dtype, options, what):
    for classes, step in itertools.product((5, 10, 40, 300), STEPS[what]):
        ordinary = make_logits((16, classes), dtype, spread=1)
        target = make_target("labels", ordinary.shape)
        x, upstream = shifted(ordinary, 5, target[5], what, step), np.ones(16)
        if what == "upstream":
            upstream[5] = 2.0 ** (step if dtype == "float64" or step < 120 else 120)
        where = f"{classes} classes, {what} {step}"
        assert_alone(x, target, 5, where, grad_output=upstream, **options)


@pytest.mark.parametrize("dtype", EXACT)
def test_logits_so_large_that_their_powers_of_two_lose_digits(dtype):
    ordinary = make_logits((16, 10), dtype, spread=1)
    target = make_target("labels", ordinary.shape)
    for most in (360, 2**19, 2**20, 2**30):  # of every tier and type, see exp.h
        for share in (-1.001, -1, -0.999, -0.6, -0.4, 0.4, 0.6, 0.999, 1, 1.001):
            x = (ordinary + most * share * np.log(2)).astype(dtype)
            for step in (-20, -1, 1, 20):
                assert_alone(shifted(x, 5, target[5], "all", step), target, 5, (most, share, step))


@pytest.mark.parametrize("offset", [-1000, -200, -90, 90, 200, 1000])
@pytest.mark.parametrize("dtype", EXACT)
def test_rows_that_do_not_count_far_from_zero(dtype, offset):
    x = make_logits((100, 10), dtype) + np.dtype(dtype).type(offset)
    target = make_target("labels", x.shape)
    target[10::7] = -100  # the first rows say where the others are
    counts = target >= 0
    loss, grad = both(x, target)
    assert np.all(loss[~counts] == 0)
    assert np.all(grad[~counts] == 0)
    expected = both(x[counts], target[counts])
    assert_bits(loss[counts], expected[0], "loss")
    assert_bits(grad[counts], expected[1], "gradient")


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("dtype", EXACT)
def test_a_z_loss_that_cancels_the_gradient_of_the_others(dtype, smoothing):
    # unit * q + 2 z lse is 0 where z = -1 / (2 lse): found to the last bit, and around it
    x, target = np.full((16, 8), -4, dtype), np.zeros(16, int)
    low, high = 0.1, 1.0
    while np.nextafter(low, high) != high:
        z = (low + high) / 2
        positive = both(x, target, z_loss=z)[1][0, 1] > 0
        low, high = (z, high) if positive else (low, z)
    for z in (np.nextafter(low, 0), low, high, np.nextafter(high, 1)):
        assert_alone(x, target, 5, z, z_loss=z, label_smoothing=smoothing)
        assert np.all(np.isfinite(both(x, target, z_loss=z, label_smoothing=smoothing)[1]))


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 50, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_rows_that_do_not_count(dtype, classes):
    rows = 3 * group(classes) + 1
    x, labels = make_logits((rows, classes), dtype), make_target("labels", (rows, classes))
    keep = np.random.default_rng(0).random(rows) < 0.5
    keep[group(classes) : 2 * group(classes)] = False  # a whole group
    loss, grad = both(x, labels)
    x[~keep] = np.nan
    labels[~keep] = -100
    for out in (None, np.full_like(x, 7), x):
        again = both(x.copy(), labels) if out is None else both(x, labels, out=out)
        assert_bits(again[0], np.where(keep, loss, loss.dtype.type(0)), "loss")
        assert_bits(again[1], np.where(keep[:, None], grad, grad.dtype.type(0)), "gradient")


OPTIONS = {
    "weight": lambda n, c: {"weight": np.linspace(0, 2, c)},
    "sample_weight": lambda n, c: {"sample_weight": np.arange(n) % 5 / 2},
    "grad_output": lambda n, c: {"grad_output": np.arange(n) % 3 - 1.0, "reduction": "none"},
    "large grad_output": lambda n, c: {"grad_output": 1e12, "reduction": "sum"},
    "tiny grad_output": lambda n, c: {"grad_output": 1e-37, "reduction": "sum"},
    "label_smoothing": lambda n, c: {"label_smoothing": 0.1},
    "all smooth": lambda n, c: {"label_smoothing": 1.0},
    "z_loss": lambda n, c: {"z_loss": 1e-2},
    "logit_scale": lambda n, c: {"logit_scale": 1 / 0.7},
    "base": lambda n, c: {"base": 2},
    "ignore_index": lambda n, c: {"ignore_index": 1},
    "all": lambda n, c: {
        "sample_weight": np.arange(n) % 5 / 2,
        "grad_output": np.arange(n) % 3 - 1.0,
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "logit_scale": 0.3,
        "base": 2,
        "ignore_index": 0,
        "reduction": "none",
    },
}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(dtype, option):
    for classes in (2, 3, 4, 10, 16, 17, 40, 100, 256):
        rows, what = group(classes) + 21, f"{classes} classes"
        x, labels = make_logits((rows, classes), dtype), make_target("labels", (rows, classes))
        options = OPTIONS[option](rows, classes)
        moved = np.finfo(dtype).eps * options.get("logit_scale", 1.0) * np.abs(x).max()
        loss, grad = assert_options(x, labels, moved=moved, what=what, **options)
        place = xe.cross_entropy_with_grad(x, labels, out=x, **options)
        assert_bits(place[0], loss, f"loss in place, {what}")
        assert_bits(place[1], grad, f"gradient in place, {what}")


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_offsets_keep_bits_and_surroundings(dtype, classes):
    rows = 2 * group(classes) + 3
    x, labels = make_logits((rows, classes), dtype), make_target("labels", (rows, classes))
    loss, grad = both(x, labels)
    for k in range(18):
        out = at_offset(np.zeros_like(x), (5 * k + 1) % 18)
        again = both(at_offset(x, k), at_offset(labels, k % 7), out=out)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(again[1], grad, f"gradient, offset {k}")
        assert (surroundings(out)() == FILLER).all(), f"offset {k}: wrote outside"


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_strided_rows_have_the_bits_of_contiguous_ones(dtype, classes):
    wide = make_logits((3 * group(classes), classes + 5), dtype)
    x, labels = wide[:, 2 : 2 + classes], make_target("labels", (len(wide), classes))
    loss, grad = both(x.copy(), labels)
    out = np.full_like(wide, 7)
    again = both(x, labels, out=out[:, 2 : 2 + classes])
    assert_bits(again[0], loss, "loss")
    assert_bits(again[1].copy(), grad, "gradient")
    assert (out[:, :2] == 7).all()
    assert (out[:, 2 + classes :] == 7).all()
    assert_bits(both(x[::-1], labels[::-1])[1], grad[::-1], "gradient, reversed")


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", ">i4", ">i8"]
)
def test_labels_of_every_type(dtype):
    x, labels = make_logits((5000, 10)), make_target("labels", (5000, 10))
    expected = both(x, labels)
    for given in (labels.astype(dtype), np.repeat(labels.astype(dtype), 2)[::2]):
        got = both(x, given)
        assert_bits(got[0], expected[0])
        assert_bits(got[1], expected[1])
    for row in (0, 1, 4095, 4999):
        wrong = labels.astype(dtype)
        wrong[row] = 10
        with pytest.raises(IndexError, match=rf"target\[{row}\] = 10 "):
            xe.cross_entropy(x, wrong)


@pytest.mark.parametrize("margin", [1, 10, 40, 69, 80, 87, 100])
def test_confident_rows_beside_doubtful_ones(margin):
    x = np.zeros((200, 10), "float32")
    x[::2, 3] = margin
    x[1::2] = make_logits((100, 10))
    labels = np.full(200, 3)
    loss, _ = assert_plain(x, labels)
    assert_ulps(loss[0], np.log1p(9 * np.exp(-np.float64(margin))), 4)
