"""A row that several threads share: to the bit what one thread makes of it."""

import numpy as np
import pytest
from helpers.support import assert_bits, assert_plain, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

# Threads share a row from 65,536 logits on, in parts of 16,384, if there are two for each row.
PART = 16_384
CLASSES = (65_536, 65_537, 5 * PART - 1, 128_256)

OPTIONS = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-3},
    "logit_scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 3.0, "logit_scale": 0.7},
    "weight": {"weight": "class"},
    "an ignored row": {"sample_weight": np.array([0.0, 1.5])},
    "grad_output": {"grad_output": np.array([2.0, -1.0])},
    "factors that are no normal numbers": {"grad_output": np.array([1e30, 1e-30])},
}


def both(x, y, threads, **options):
    loss, grad = xe.cross_entropy_with_grad(x, y, reduction="none", n_threads=threads, **options)
    options.pop("out", None)
    options.pop("grad_output", None)
    alone = xe.cross_entropy(x, y, reduction="none", n_threads=threads, **options)
    total = xe.cross_entropy(x, y, reduction="sum", n_threads=threads, **options)
    of_rows = {name: options[name] for name in ("logit_scale", "softcap") if name in options}
    statistics = xe.row_statistics(x, y, n_threads=threads, **of_rows)._asdict()
    return {"loss": loss, "gradient": grad, "loss alone": alone, "sum": total, **statistics}


def assert_same(x, y, what="", **options):
    expected = both(x, y, 1, **options)
    for threads in (4, 7):
        for name, value in both(x, y, threads, **options).items():
            assert_bits(value, expected[name], f"{name}, {threads} threads {what}")


@pytest.mark.parametrize("name", OPTIONS)
def test_threads_change_no_bit(dtype, name):
    for classes in CLASSES[:2] if name != "plain" else CLASSES:
        x = make_logits((2, classes), dtype, spread=4)
        options = dict(OPTIONS[name])
        if "weight" in options:
            options["weight"] = np.linspace(0.5, 2, classes)
        assert_same(x, np.array([classes - 1, PART]), str(classes), **options)


def test_rows_whose_range_is_guessed_wrong(dtype):
    x = make_logits((2, CLASSES[1]), dtype)
    x[0, :100] = -np.inf  # nothing to guess from
    x[1, PART + 7] = 30_000  # far above the first logits
    assert_same(x, np.array([3 * PART, 5]))
    x[1, 2 * PART] = np.nan
    assert_same(x, np.array([3 * PART, 5]))


def test_parts_are_added_in_their_order(dtype):
    """One after the other they are lost beside the first; together they would not be."""
    x = np.full((1, 8 * PART), -100, dtype)
    x[0, ::PART] = -37  # three quarters of half a unit in the last place of 1, in float64
    x[0, :2] = 0
    assert_same(x, np.array([1]))


def test_exact_for_targets_in_every_part():
    x = make_logits((1, CLASSES[2]))
    for y in (0, PART - 1, PART, 3 * PART + 77, CLASSES[2] - 1):
        assert_plain(x, np.array([y]), n_threads=4)


def test_any_place_for_the_gradient(dtype):
    x = make_logits((1, 2_200_001), dtype)  # large enough to be streamed, whatever the dtype
    y = make_target("labels", x.shape)
    expected = xe.cross_entropy_with_grad(x, y, n_threads=1)[1]
    for offset in (0, 1, 5):
        room = np.zeros(x.size + 64, dtype)
        out = room[offset : offset + x.size].reshape(x.shape)
        xe.cross_entropy_with_grad(x, y, out=out, n_threads=3)
        assert_bits(out, expected, f"at {offset}")
        assert not room[:offset].any()
        assert not room[offset + x.size :].any()
    xe.cross_entropy_with_grad(x, y, out=x, n_threads=3)
    assert_bits(x, expected, "in place")
