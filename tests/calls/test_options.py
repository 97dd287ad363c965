"""Every option with every other, for labels and probabilities, against the reference."""

from itertools import combinations

import numpy as np
import pytest
from helpers.layouts import at_offset, every_second
from helpers.support import (
    TARGETS,
    assert_bits,
    assert_options,
    assert_plain,
    assert_ulps,
    assert_within,
    eps,
    make_logits,
    make_target,
)
from hypothesis import given
from hypothesis import strategies as st

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")


def settings_for(classes, rows):
    """One telling value of every option, for logits of `classes` and loss shape `rows`."""
    rng = np.random.default_rng(classes)
    upstream = rng.normal(size=rows).astype("float32")
    repeat = rng.choice(np.float32([0, 0.25, 1, 3]), size=rows)
    repeat.flat[0] = 1
    signed = np.linspace(2, -0.5, classes).astype("float32")
    return {
        "weight": {"weight": rng.uniform(0.5, 2, classes).astype("float32")},
        "weight of both signs": {"weight": signed},
        "integer weight": {"weight": np.arange(1, classes + 1)},
        "sample_weight": {"sample_weight": repeat},
        "sample_weight of both signs": {"sample_weight": 2 * repeat - 1},
        "ignore_index": {"ignore_index": 1},
        "none": {"reduction": "none"},
        "sum": {"reduction": "sum"},
        "normalizer": {"normalizer": -7.5},
        "label_smoothing": {"label_smoothing": 0.1},
        "only smoothing": {"label_smoothing": 1.0},
        "z_loss": {"z_loss": 0.01},
        "logit_scale": {"logit_scale": 0.5},  # a power of two: scaling rounds nothing
        "softcap": {"softcap": 2.5},
        "first axis": {"axis": 0},
        "last axis": {"axis": -1},
        "base": {"base": 2},
        "grad_output": {"grad_output": -0.25},
        "grad_output per row": {"reduction": "none", "grad_output": upstream},
        "out": {"out": "given"},
        "in place": {"out": "logits"},
        "n_threads": {"n_threads": 2},
    }


NAMES = list(settings_for(3, (2,)))


def merged(names, settings):
    """The options of several settings, or None where two of them exclude each other."""
    options = {}
    for name in names:
        for key, value in settings[name].items():
            if key in options and options[key] is not value and name != "grad_output per row":
                return None
            options[key] = value
    if "normalizer" in options and options.get("reduction", "mean") != "mean":
        return None
    if np.ndim(options.get("grad_output", 0)) and options["reduction"] != "none":
        return None
    return options


PAIRS = [p for p in combinations(NAMES, 2) if merged(p, settings_for(3, (2,))) is not None]

# A group of short rows, long rows, columns; their layout and dtype.
SHAPES = [
    ((9, 6), "float32", np.ascontiguousarray),
    ((4, 300), "float32", np.ascontiguousarray),
    ((2, 5, 33), "float32", np.ascontiguousarray),
    ((9, 6), "float64", np.asfortranarray),
    ((3, 70), "float64", every_second),
    ((5, 20), "float16", np.ascontiguousarray),
    ((2, 7, 19), "bfloat16", np.ascontiguousarray),
]


def run(names, kind, shape, dtype, layout, seed=0):
    """One call with these settings; `shape` has the classes on axis 1, `axis` moves them."""
    options = merged(names, settings_for(shape[1], shape[:1] + shape[2:]))
    axis = options.get("axis", 1)
    shape = np.moveaxis(np.empty(shape), 1, axis).shape
    x = layout(make_logits(shape, dtype, seed=seed))
    target = make_target(kind, shape, axis, dtype=dtype, seed=seed)
    where = options.pop("out", None)
    if where == "given":
        options["out"] = at_offset(np.zeros(shape, x.dtype), 1)
    what = f"{' + '.join(names)}, {kind}, {shape} {np.dtype(dtype)} {layout.__name__}"
    loss, grad = assert_options(x, target, what=what, **options)
    if where == "logits":
        place = xe.cross_entropy_with_grad(x, target, out=x, **options)
        assert_bits(place[0], loss, what)
        assert_bits(x, grad, what)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", dict(PAIRS))
def test_pair(name, kind):
    for pair in PAIRS:
        for shape, dtype, layout in SHAPES if pair[0] == name else ():
            run(pair, kind, shape, dtype, layout)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_alone(name, kind):
    for shape, dtype, layout in SHAPES:
        run((name,), kind, shape, dtype, layout)


@given(
    names=st.sets(st.sampled_from(NAMES), max_size=9),
    kind=st.sampled_from(TARGETS),
    case=st.sampled_from(SHAPES),
    rows=st.integers(1, 40),
    classes=st.integers(2, 80),
    seed=st.integers(0, 1000),
)
def test_any_set(names, kind, case, rows, classes, seed):
    names = sorted(names)
    while merged(names, settings_for(classes, (rows,))) is None:
        names.pop()
    shape = (rows, classes, *case[0][2:])
    run(tuple(names), kind, shape, case[1], case[2], seed)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scale", [2.0**-99, 2.0**-10, 2.0, 2.0**99])
def test_extreme_logit_scales(dtype, kind, scale):
    scale = min(scale, 2.0**14) if dtype == np.float16 else scale  # the gradient's limit
    for shape in ((9, 6), (4, 300), (2, 5, 33)):
        x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
        assert_options(x, target, logit_scale=scale, what=str(shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-99, -60, -17, -1, 1, 20, 70])
def test_a_power_of_two_that_the_logits_undo_changes_no_loss(dtype, power):
    """Whatever is clamped, and in which units: rows have classes far below the others."""
    for shape in ((9, 2), (9, 3), (40, 10), (7, 300), (5, 1500), (2, 5, 33)):
        x, target = make_logits(shape, dtype), np.ones(np.delete(shape, 1), int)
        x[::2, 0] -= 1e5
        x[1::2, 0] -= 90
        x[-1, 0] = -np.inf
        options = {"reduction": "none", "z_loss": 1e-3}
        loss = xe.cross_entropy(x, target, **options)
        scaled = np.ldexp(x, -power).astype(dtype)
        assert_bits(xe.cross_entropy(scaled, target, logit_scale=2.0**power, **options), loss)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.7, 1.3, 7.0])
def test_a_logit_scale_that_rounds(dtype, kind, scale):
    for shape in ((9, 6), (4, 300), (2, 5, 33)):
        x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
        options = {"logit_scale": scale, "reduction": "none"}
        # scale and scale * x are rounded: two scaled logits move by eps * |scale * x| each
        moved = 2 * eps(dtype) * scale * np.abs(x.astype(np.float64)).max()
        assert_options(x, target, moved=moved, what=str(shape), **options)


def test_a_normalizer_accumulates_micro_batches():
    x, target = make_logits((64, 10), "float64"), make_target("labels", (64, 10))
    whole, grad = xe.cross_entropy_with_grad(x, target)
    parts = [
        xe.cross_entropy_with_grad(x[i : i + 16], target[i : i + 16], normalizer=64)
        for i in range(0, 64, 16)
    ]
    assert_within(sum(p[0] for p in parts), whole, 4 * 2.0**-52 * whole)  # four additions
    assert_ulps(np.concatenate([p[1] for p in parts]), grad, 1)  # 1 / 64 is exact


def test_mean_divides_by_the_weight_of_the_rows_that_count():
    x, target = make_logits((5, 3), "float64"), np.array([0, 1, 2, -100, 1])
    weight, repeat = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 0.0, 5.0, 0.5])
    options = {"weight": weight, "sample_weight": repeat}
    total = xe.cross_entropy(x, target, reduction="sum", **options)
    mean = xe.cross_entropy(x, target, **options)
    assert_within(mean, total / (1 * 1 + 2 * 3 + 2 * 0.5), 2.0**-51 * mean)
    t = make_target("probabilities", x.shape, dtype="float64")
    total = xe.cross_entropy(x, t, reduction="sum", **options)
    assert_within(xe.cross_entropy(x, t, **options), total / 9.5, 2.0**-51 * abs(total))


def test_labels_are_compared_before_they_are_cast():
    x = make_logits((3, 4))
    target = np.array([1, 2**64 - 100, 3], np.uint64)
    ignored = xe.cross_entropy(x, target, ignore_index=2**64 - 100, reduction="none")
    assert ignored[1] == 0
    assert (ignored[[0, 2]] > 0).all()
    small = xe.cross_entropy(x, np.array([1, 255, 3], np.uint8), ignore_index=255)
    assert small == xe.cross_entropy(x, np.array([1, -100, 3]))


@pytest.mark.parametrize("label", [0, 3, 200, -1, -(2**63), 2**63 - 1])
def test_any_label_can_be_the_ignored_one(label):
    x, target = make_logits((3, 4)), np.array([1, label, 2])
    rows, grad = xe.cross_entropy_with_grad(x, target, ignore_index=label, reduction="none")
    assert rows[1] == 0
    assert (grad[1] == 0).all()
    assert (rows[[0, 2]] > 0).all()


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("scale", [1e-3, 0.7, 1.3, 7.0])
def test_a_logit_scale_costs_no_digit(dtype, kind, scale):
    """Neither the scale nor its product with a logit is rounded: both are kept in two parts."""
    for shape in ((9, 6), (4, 300), (2, 5, 33)):
        x = make_logits(shape, dtype, spread=100)
        target = make_target(kind, shape, dtype=dtype)
        assert_plain(x, target, logit_scale=scale, what=str(shape))


@pytest.mark.parametrize("shape", [(5, 6), (5, 300), (1, 300, 17)], ids=str)
def test_a_logit_scale_costs_no_digit_far_from_zero(shape):
    """Of a target whose exp has lost bits too, where the loss is a difference of logarithms."""
    x = np.round(make_logits(shape, np.float64))
    x[:, 1] -= 2000
    target = np.ones(np.delete(shape, 1), int)
    near = assert_plain(x, target, logit_scale=0.7)
    far = xe.cross_entropy_with_grad(x + 1e6, target, logit_scale=0.7, reduction="none")
    for there, here in zip(far, near, strict=True):
        assert_ulps(there, here, 8)


@pytest.mark.parametrize("ignored", [2**8 + 1, 2**16 + 1, 2**32 + 1, 2**32 - 1, -(2**32) + 1])
def test_ignore_index_is_compared_with_all_its_bits(ignored):
    x, target = make_logits((3, 4)), np.array([1, 1, 3])
    rows, grad = xe.cross_entropy_with_grad(x, target, ignore_index=ignored, reduction="none")
    assert (rows > 0).all()
    assert (grad != 0).all()
    assert xe.cross_entropy(x, target, ignore_index=ignored) == xe.cross_entropy(x, target)
