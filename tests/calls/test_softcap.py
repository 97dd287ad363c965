"""The softcap: c tanh(x / c) of the scaled logits, for every kernel, layout and option."""

import numpy as np
import pytest
from helpers.layouts import LAYOUTS
from helpers.support import (
    CAP_ULPS,
    EXACT,
    SLOPE_ULPS,
    TARGETS,
    assert_bits,
    assert_options,
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

# Groups, long rows, one chunk and more, columns in place and staged.
SHAPES = [(9, 6), (70, 10), (4, 300), (3, 700), (2, 20_000), (2, 5, 33), (3, 7, 5, 9), (6,)]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_dtypes_and_targets(dtype, shape, kind):
    x, target = make_logits(shape, dtype, spread=20), make_target(kind, shape, dtype=dtype)
    for cap in (0.01, 2.5, 30.0, 1e4):
        assert_options(x, target, reduction="none", softcap=cap, what=f"softcap {cap}")


@pytest.mark.parametrize("scale", [1e-3, 0.7, 7.0, 100.0])
def test_the_cap_is_that_of_the_scaled_logits(dtype, scale):
    for shape in SHAPES:
        x, target = make_logits(shape, dtype), make_target("labels", shape)
        options = {"softcap": 1.5 * scale, "logit_scale": scale, "reduction": "none"}
        assert_options(x, target, what=f"{shape}", **options)


@pytest.mark.parametrize("cap", [1.0, 30.0, 0.3])
@pytest.mark.parametrize("exact_dtype", EXACT)
def test_a_capped_logit(exact_dtype, cap):
    """A row of two classes of which one is 0: far from 0 its loss is the capped logit itself."""
    rng = np.random.default_rng(5)
    y = np.concatenate([rng.uniform(-25, 25, 300), np.linspace(8, 40, 60)])
    x = (y * cap).astype(exact_dtype)
    pairs = np.stack([x, np.zeros_like(x)], 1)
    target = (x > 0).astype(int)  # the smaller logit
    exact = np.log1p(np.exp(cap * np.abs(np.tanh(x.astype(np.longdouble) / cap))))
    loss = xe.cross_entropy(pairs, target, reduction="none", softcap=cap)
    assert_within(loss, exact, (CAP_ULPS + 4) * eps(exact_dtype) * exact)


@pytest.mark.parametrize("cap", [1.0, 30.0, 0.3])
@pytest.mark.parametrize("exact_dtype", EXACT)
def test_the_slope_keeps_its_digits_where_the_tanh_is_1(exact_dtype, cap):
    """The gradient of such a row is slope * (p - t), and p is exact: exp(-2 |y|) is not lost."""
    most = 40 if exact_dtype == "float32" else 300
    x = (np.linspace(0.01, most, 700) * cap).astype(exact_dtype)
    rows = np.stack([x, x], 1)  # p = 1/2 whatever the cap is
    grad = xe.cross_entropy_with_grad(rows, np.zeros(len(x), int), reduction="sum", softcap=cap)[1]
    exact = 0.5 / np.cosh(x.astype(np.longdouble) / cap) ** 2
    assert_ulps(grad[:, 1], exact, 2 * SLOPE_ULPS)
    assert_bits(grad[:, 0], -grad[:, 1])


@pytest.mark.parametrize("kind", TARGETS)
def test_a_cap_far_above_the_logits_changes_no_bit(dtype, kind):
    """c tanh(x / c) is x to the last bit, and the slope 1."""
    for shape in SHAPES:
        x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
        options = {"reduction": "none", "label_smoothing": 0.1, "logit_scale": 0.7}
        plain = xe.cross_entropy_with_grad(x, target, **options)
        with_cap = xe.cross_entropy_with_grad(x, target, softcap=1e20, **options)
        assert_bits(with_cap[0], plain[0], f"loss {shape}")
        assert_bits(with_cap[1], plain[1], f"gradient {shape}")


def test_saturated_logits_are_at_the_cap(dtype):
    """Infinite or just large: the cap itself, and no gradient. nan stays nan, in its row."""
    x = np.array([[np.inf, 1.0, -np.inf], [-np.inf, -np.inf, -np.inf], [np.nan, 0, 1]], dtype)
    x = np.concatenate([x, np.array([[6e4, 1.0, -6e4]], dtype)])
    target = np.array([2, 0, 1, 0])
    loss, grad = xe.cross_entropy_with_grad(x, target, reduction="none", softcap=2.0)
    at_cap = np.array([[2.0, 2 * np.tanh(0.5), -2.0]] * 4)
    at_cap[1] = -2.0
    expected = xe.cross_entropy(at_cap, target, reduction="none")
    assert_within(loss[[0, 1, 3]].astype(np.float64), expected[[0, 1, 3]], 8 * eps(dtype))
    assert np.isnan(loss[2])
    assert np.isnan(grad[2]).all()
    assert (grad[[0, 0, 1, 3, 3], [0, 2, 1, 0, 2]] == 0).all()
    assert (grad[[0, 3], 1] != 0).all()


@pytest.mark.parametrize("exact_dtype", EXACT)
def test_no_capped_logit_is_above_the_cap(exact_dtype):
    x = np.geomspace(1, 1e4, 5000).astype(exact_dtype)
    for cap in (1.0, 7.3, 30.0):
        rows = np.stack([x, np.full_like(x, np.inf)], 1)
        loss = xe.cross_entropy(rows, np.ones(len(x), int), reduction="none", softcap=cap)
        assert (loss <= np.log(2) * (1 + 2 * eps(exact_dtype))).all()
        assert len(set(loss[x > 20 * cap].tolist())) == 1


@pytest.mark.parametrize("shape", [(9, 6), (4, 300), (3, 700), (3, 5, 33)], ids=str)
def test_layouts(dtype, shape):
    values, target = make_logits(shape, dtype), make_target("labels", shape)
    options = {"reduction": "none", "softcap": 2.5}
    for layout, lay in LAYOUTS.items():
        x = lay(values)
        loss, grad = assert_options(x, target, what=layout, **options)
        for out in (np.empty_like(x), lay(values)):
            if out.flags.writeable:
                again = xe.cross_entropy_with_grad(x, target, out=out, **options)
                assert_bits(again[0], loss, layout)
                assert_bits(out.astype(grad.dtype), grad, layout)
        if x.flags.writeable:
            xe.cross_entropy_with_grad(x, target, out=x, **options)
            assert_bits(x.astype(grad.dtype), grad, layout)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(40, 6), (9, 300), (5, 700), (4, 5, 33), (2, 70_000)], ids=str)
def test_rows_that_do_not_count_are_0_whatever_they_hold(dtype, shape, kind):
    x = make_logits(shape, dtype).copy()
    target = make_target(kind, shape, dtype=dtype)
    repeat = np.ones(np.delete(shape, 1), np.float32)
    repeat.flat[1::3] = 0
    left_out = np.broadcast_to(np.expand_dims(repeat, 1) == 0, shape)
    options = {"softcap": 2.5, "sample_weight": repeat, "reduction": "none"}
    clean = xe.cross_entropy_with_grad(x, target, **options)
    x[left_out] = np.nan
    loss, grad = xe.cross_entropy_with_grad(x, target, **options)
    assert_bits(loss, clean[0])
    assert_bits(grad, clean[1])
    assert (grad[left_out] == 0).all()
    assert not np.signbit(grad[left_out]).any()


THREADED = [
    (30_001, 10),
    (301, 1000),
    (2, 300_001),
    (1, 1_000_003),
    (2, 21, 64, 65),
    (1, 3, 100_001),
]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype, shape, kind):
    """Also where threads share a row: (2, 300_001), (1, 1_000_003)."""
    if np.prod(shape) > 500_000 and (kind == "probabilities" or dtype == "bfloat16"):
        pytest.skip("no kernel of its own, and slow")
    x, target = make_logits(shape, dtype), make_target(kind, shape, dtype=dtype)
    options = {"softcap": 2.5, "reduction": "none"}
    one = xe.cross_entropy_with_grad(x, target, n_threads=1, **options)
    for threads in (2, 5):
        many = xe.cross_entropy_with_grad(x, target, n_threads=threads, **options)
        assert_bits(many[0], one[0], f"loss, {threads} threads")
        assert_bits(many[1], one[1], f"gradient, {threads} threads")
        alone = xe.cross_entropy(x, target, n_threads=threads, **options)
        assert_bits(alone, one[0], f"loss alone, {threads} threads")


def test_a_row_that_threads_share_may_be_ignored(dtype):
    x = np.full((1, 300_000), np.nan).astype(dtype)
    loss, grad = xe.cross_entropy_with_grad(x, [-100], softcap=2.0, reduction="sum", n_threads=5)
    assert loss == 0
    assert (grad == 0).all()


@st.composite
def calls(draw):
    rows, classes = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 7, 33, 300, 321, 600]))
    tail = draw(st.sampled_from([(), (3,), (2, 17)])) if classes < 50 else ()
    shape, dtype = (rows, classes, *tail), draw(st.sampled_from(["float16", "float32", "float64"]))
    seed, spread = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.1, 3.0, 100.0]))
    x = make_logits(shape, dtype, seed=seed, spread=spread)
    target = make_target(draw(st.sampled_from(TARGETS)), shape, dtype=dtype, seed=seed)
    options = {
        "softcap": draw(st.floats(1e-3, 1e3)),
        "logit_scale": draw(st.sampled_from([1.0, 0.5, 4.0])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "z_loss": draw(st.sampled_from([0.0, 1e-2])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "base": draw(st.sampled_from([None, 2])),
        "weight": draw(st.sampled_from([None, np.linspace(0.5, 2, classes)])),
    }
    return (np.asfortranarray(x) if draw(st.booleans()) else x), target, options


@given(calls())
def test_any_options(call):
    x, target, options = call
    assert_options(x, target, **options)
