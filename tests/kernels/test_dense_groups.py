"""Short rows whose every class has target mass are computed many at a time; no row may notice."""

import numpy as np
import pytest
from helpers.layouts import FILLER, at_offset, padded, reversed_axis, surroundings
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
CLASSES = [*range(1, 36), 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 255, 256, 257, 319, 320]
CLASSES += [321, 511, 512, 513]
FEW = [1, 2, 3, 5, 10, 16, 17, 33, 100, 200]

# The three ways to masses: as they are given, made of probabilities, made of labels; and labels
# that become dense by what a test adds, or stay with the kernel of class indices.
DENSE = ("probabilities", "smoothed probabilities", "weighted, smoothed labels")
KINDS = (*DENSE, "labels")


def make_case(kind, shape, dtype="float32"):
    """Target and options."""
    options = {"label_smoothing": 0.125} if "smoothed" in kind else {}
    if "weighted" in kind:
        options["weight"] = 0.5 + np.arange(shape[1]) % 5 / 4
    return make_target(kind.split()[-1], shape, dtype=dtype), options


def both(x, target, **options):
    return xe.cross_entropy_with_grad(x, target, reduction="none", **options)


def assert_cut(x, target, cut, expected, **options):
    """A part of a batch has the bits that it has in all of it."""
    for name in {"sample_weight", "grad_output"} & options.keys():
        options[name] = options[name][cut]
    for part in (both(x[cut], target[cut], **options), both(x[cut].copy(), target[cut], **options)):
        for actual, whole in zip(part, expected, strict=True):
            assert_bits(actual, whole[cut], f"{cut} of {x.shape}")


@pytest.mark.parametrize("some", [slice(20), slice(20, 35), slice(35, None)], ids=str)
def test_every_number_of_classes(dtype, some):
    for classes in CLASSES[some]:
        shape, what = (2 * group(classes) + 3, classes), f"{classes} classes"
        x = make_logits(shape, dtype, seed=classes)
        soft = make_target("probabilities", shape, dtype=dtype)
        hard = np.eye(classes, dtype=soft.dtype)[make_target("labels", shape)]
        for target in (soft, hard, np.where(np.arange(shape[0])[:, None] % 3 == 0, hard, soft)):
            loss, _ = assert_plain(x, target, what=what)
            alone = xe.cross_entropy(x, target, reduction="none")
            assert_bits(alone, loss, f"loss alone, {what}")
        for kind in KINDS[1:]:
            target, options = make_case(kind, shape, dtype)
            assert_options(x, target, reduction="none", what=f"{kind}, {what}", **options)


@pytest.mark.parametrize("classes", [2, 3, 10, 17, 100, 300])
@pytest.mark.parametrize("dtype", EXACT)
def test_one_hot_targets_have_the_tails_of_labels(dtype, classes):
    """Their bits too, where the label is the most probable class (labels of up to four classes
    are added up in another way); it need not be."""
    labels = np.arange(group(classes) + 5) * 7 % classes
    x = make_logits((len(labels), classes), dtype, spread=1)
    x[np.arange(len(x)), labels] += np.resize([0, 5, 20, 40, 60, -20], len(x))
    exact = both(x, labels)
    loss, grad = both(x, np.eye(classes, dtype=dtype)[labels])
    assert_ulps(loss, exact[0], 8, "loss")
    at = np.arange(len(x)), labels
    assert_ulps(grad[at], exact[1][at], 8, "gradient of the label")
    likely = x.argmax(axis=1) == labels
    if classes <= 4:
        return
    assert 0 < likely.sum() < len(x)
    assert_bits(loss[likely], exact[0][likely], "loss of the most probable class")
    assert_bits(grad[likely], exact[1][likely], "gradient of the most probable class")


@pytest.mark.parametrize("classes", [5, 10, 33, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_of_equal_maxima_the_first_is_the_most_probable_class(dtype, classes):
    """The bits of labels would not be those of another one."""
    x = np.floor(make_logits((group(classes) + 5, classes), dtype, spread=2))
    labels = x.argmax(axis=1)
    one_hot = both(x, np.eye(classes, dtype=dtype)[labels])
    for actual, exact in zip(one_hot, both(x, labels), strict=True):
        assert_bits(actual, exact, "one-hot targets")


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 33, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_impossible_classes_without_mass_cost_nothing(dtype, classes):
    shape = (2 * group(classes) + 1, classes)
    x = make_logits(shape, dtype)
    p = make_target("probabilities", shape, dtype=dtype)
    gone = np.random.default_rng(0).random(shape) < 0.3
    gone[:, -1] = False
    p[gone] = 0
    x[gone] = -np.inf
    loss, grad = assert_plain(x, p)
    assert np.isfinite(loss).all()
    assert (grad[gone] == 0).all()
    p[::2, 0], x[::2, 0] = 0.25, -np.inf  # mass where there is no probability
    loss, grad = assert_plain(x, p)
    assert (loss[::2] == np.inf).all()
    assert np.isfinite(loss[1::2]).all()


@pytest.mark.parametrize("classes", FEW)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_every_split_of_a_batch(kind, dtype, classes):
    rows = 2 * group(classes) + 17
    x = make_logits((rows, classes), dtype, spread=8)
    target, options = make_case(kind, x.shape, dtype)
    whole = both(x, target, **options)
    rng = np.random.default_rng(classes)
    for size in [1, 2, 15, 16, 17, group(classes), group(classes) + 1, *rng.integers(1, rows, 3)]:
        start = int(rng.integers(0, rows - min(size, rows) + 1))
        assert_cut(x, target, slice(start, start + size), whole, **options)
    for row in range(0, rows, 1 + rows // 50):
        assert_cut(x, target, slice(row, row + 1), whole, **options)


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 16, 30, 100])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", DENSE)
def test_wild_neighbours_change_no_bit(kind, dtype, classes):
    x = wild((2 * group(classes) + 5, classes), dtype)
    target, options = make_case(kind, x.shape, dtype)
    options["sample_weight"] = 0.5 + np.arange(len(x)) % 7
    alone = xe.cross_entropy(x, target, reduction="none", **options)
    options["grad_output"] = 2.0 ** (np.arange(len(x)) % 5)
    whole = both(x, target, **options)
    assert_bits(alone, whole[0], "loss alone")
    for row in range(len(x)):
        assert_cut(x, target, slice(row, row + 1), whole, **options)
    x[np.abs(x) > 1e37] /= 64  # else some losses are no float32
    with np.errstate(invalid="ignore"):
        assert_options(x, target, reduction="none", **options)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 33])
@pytest.mark.parametrize("dtype", EXACT)
def test_a_row_of_nan_takes_nothing_from_the_row_after(dtype, classes):
    x = make_logits((group(classes) + 3, classes), dtype)
    p = make_target("probabilities", x.shape, dtype=dtype)
    x[4::7], x[5::7, 0] = np.nan, -np.inf  # the maximum of nothing but nan may look like -inf
    p[5::7, 0] = 0.25
    whole = both(x, p)
    assert (whole[0][5::7] == np.inf).all()
    for row in range(len(x)):
        assert_cut(x, p, slice(row, row + 1), whole)


@pytest.mark.parametrize("classes", [2, 10, 33])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30, 1e-30])
def test_wild_targets_stay_in_their_rows(classes, value):
    x = make_logits((group(classes) + 20, classes))
    p = make_target("probabilities", x.shape)
    tame = both(x, p)
    p[7::16, 1] = value
    p[3::16, np.argmax(x[3])] = value
    whole = both(x, p)
    hit = (p != make_target("probabilities", x.shape)).any(axis=1)
    for actual, expected in zip(whole, tame, strict=True):
        assert_bits(actual[~hit], expected[~hit])
    for row in np.flatnonzero(hit):
        assert_cut(x, p, slice(row, row + 1), whole)
    if np.isfinite(value):
        assert_options(x, p, reduction="none")
    if value == np.inf:  # of a probable class too
        assert (whole[0][hit] == np.inf).all()


@pytest.mark.parametrize("classes", [2, 10, 33])
@pytest.mark.parametrize("dtype", EXACT)
def test_gradients_beyond_the_largest_number_are_infinite(dtype, classes):
    x = make_logits((group(classes) + 3, classes), dtype)
    ten = 10 * np.eye(classes, dtype=dtype)[make_target("labels", x.shape)]
    upstream = float(np.finfo(dtype).max) * 0.9
    grad = both(x, ten, grad_output=np.full(len(x), upstream))[1]
    tenth = xe.reference.cross_entropy_with_grad(x, ten, reduction="none")[1] / 10
    with np.errstate(over="ignore"):
        exact = (tenth * (10 * 0.9) * np.float64(np.finfo(dtype).max)).astype(dtype)
    np.testing.assert_allclose(grad, exact, rtol=100 * np.finfo(dtype).eps)
    assert np.isinf(grad).any()
    assert np.isfinite(grad).any()


@pytest.mark.parametrize("classes", FEW)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_count(kind, dtype, classes):
    rows = 3 * group(classes) + 1
    x = make_logits((rows, classes), dtype)
    target, options = make_case(kind, x.shape, dtype)
    keep = np.random.default_rng(0).random(rows) < 0.5
    keep[group(classes) : 2 * group(classes)] = False  # a whole group
    loss, grad = both(x, target, **options)
    x[~keep] = np.nan
    if "labels" in kind:
        target[~keep] = -100
    else:
        target[~keep] = np.nan
        options["sample_weight"] = keep.astype("float32")
    for out in (None, np.full_like(x, 7), x):
        again = both(x.copy() if out is None else x, target, out=out, **options)
        assert_bits(again[0], np.where(keep, loss, loss.dtype.type(0)), "loss")
        assert_bits(again[1], np.where(keep[:, None], grad, grad.dtype.type(0)), "gradient")


OPTIONS = {
    "weight": lambda n, c: {"weight": np.linspace(0, 2, c)},
    "sample_weight": lambda n, c: {"sample_weight": np.arange(n) % 5 / 2},
    "grad_output": lambda n, c: {"grad_output": np.arange(n) % 3 - 1.0, "reduction": "none"},
    "huge grad_output": lambda n, c: {"grad_output": 1e30, "reduction": "sum"},
    "tiny grad_output": lambda n, c: {"grad_output": 1e-37, "reduction": "sum"},
    "no grad_output": lambda n, c: {"grad_output": 0.0, "reduction": "sum"},
    "all smooth": lambda n, c: {"label_smoothing": 1.0},
    "z_loss": lambda n, c: {"z_loss": 1e-2},
    "logit_scale": lambda n, c: {"logit_scale": 1 / 0.7},
    "base": lambda n, c: {"base": 2},
    "all": lambda n, c: {
        "weight": np.linspace(0, 2, c),
        "sample_weight": np.arange(n) % 5 / 2,
        "grad_output": np.arange(n) % 3 - 1.0,
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "logit_scale": 0.3,
        "base": 2,
        "reduction": "none",
    },
}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, option, dtype):
    for classes in (2, 3, 10, 17, 40, 100, 256):
        x, what = make_logits((group(classes) + 21, classes), dtype), f"{classes} classes"
        target, options = make_case(kind, x.shape, dtype)
        options |= OPTIONS[option](*x.shape)
        moved = np.finfo(dtype).eps * options.get("logit_scale", 1.0) * np.abs(x).max()
        loss, grad = assert_options(x, target, moved=moved, what=what, **options)
        for out in (np.full_like(x, 7), x):
            again = xe.cross_entropy_with_grad(x, target, out=out, **options)
            assert_bits(again[0], loss, f"loss, {what}")
            assert_bits(again[1], grad, f"gradient, {what}")


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 100])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_keep_bits_and_surroundings(kind, dtype, classes):
    x = make_logits((2 * group(classes) + 3, classes), dtype)
    target, options = make_case(kind, x.shape, dtype)
    loss, grad = both(x, target, **options)
    for k in range(18):
        out = at_offset(np.zeros_like(x), (5 * k + 1) % 18)
        again = both(at_offset(x, k), at_offset(target, (7 * k + 3) % 18), out=out, **options)
        assert_bits(again[0], loss, f"loss, offset {k}")
        assert_bits(again[1], grad, f"gradient, offset {k}")
        assert (surroundings(out)() == FILLER).all(), f"offset {k}: wrote outside"


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("kind", DENSE)
def test_the_layout_of_logits_and_targets_changes_no_bit(kind, dtype, classes):
    x = make_logits((3 * group(classes), classes), dtype)
    target, options = make_case(kind, x.shape, dtype)
    expected = both(x, target, **options)
    layouts = (padded, reversed_axis, np.asfortranarray, lambda a: np.flip(np.flip(a, 0).copy(), 0))
    for of_logits in (np.ascontiguousarray, *layouts):
        for of_target in (np.ascontiguousarray, *layouts):
            again = both(of_logits(x), of_target(target), **options)
            for actual, exact in zip(again, expected, strict=True):
                assert_bits(np.ascontiguousarray(actual), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_streamed_stores_change_no_bit(kind):
    x = make_logits((150_003, 10))
    target, options = make_case(kind, x.shape)
    loss, grad = both(x, target, n_threads=1, **options)
    for out in (np.empty_like(x), at_offset(np.zeros_like(x), 3)):
        again = both(x, target, n_threads=2, out=out, **options)
        assert_bits(again[0], loss)
        assert_bits(again[1], grad)
    assert_cut(x, target, slice(1000, 1100), (loss, grad), **options)
