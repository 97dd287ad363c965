"""Rows that the row kernel settles together: to the bit what it makes of each alone."""

import numpy as np
import pytest
from helpers.support import assert_bits, make_logits, make_target

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

ROWS = 37  # packs of up to 16, and some rows more
IGNORED = -100

OPTIONS = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1, "logit_scale": 0.7},
    "z_loss": {"z_loss": 1e-3},
    "weight": {"weight": True},
    "of rows": {"sample_weight": np.linspace(0, 2, ROWS), "grad_output": np.linspace(-1, 1, ROWS)},
    "factors that are no normal numbers": {"grad_output": np.resize([1e-44, 1, 1e30], ROWS)},
    "masses": {"weight": True, "label_smoothing": 0.1},
}
OF_PROBABILITIES = ("plain", "of rows", "factors that are no normal numbers", "masses", "z_loss")


def rows_of_all_kinds(classes, dtype):
    """Rows that vectors settle, between those that they leave to scalar code."""
    x, y = make_logits((ROWS, classes), dtype, spread=4), np.arange(ROWS) * 7 % classes
    y[::11] = IGNORED
    x[1, :100] = -np.inf  # nothing to guess k from
    x[4, -1] = 3e4  # k is guessed wrong
    x[6, 6], x[8, 3], x[10] = np.nan, np.inf, -np.inf
    x[14, y[14]] = -300  # a target whose exp has lost bits
    x[15, y[15]] = 60  # a tail of the smallest exps
    x[17, y[17]] = -np.inf
    return x, y


def assert_as_alone(x, target, options):
    if "weight" in options:
        options["weight"] = np.linspace(0.5, 2, x.shape[1])
    loss, gradient = xe.cross_entropy_with_grad(x, target, **options)
    assert_bits(xe.cross_entropy(x, target, **_of_loss(options)), loss, "loss alone")
    for r in range(ROWS):
        of_row = {name: v[r : r + 1] for name, v in options.items() if np.shape(v) == (ROWS,)}
        row = x[r : r + 1], target[r : r + 1]
        alone = xe.cross_entropy_with_grad(*row, **options | of_row)
        assert_bits(loss[r : r + 1], alone[0], f"loss of row {r}")
        assert_bits(gradient[r : r + 1], alone[1], f"gradient of row {r}")


def _of_loss(options):
    return {name: value for name, value in options.items() if name != "grad_output"}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("classes", [321, 1500])
def test_no_bit_depends_on_other_rows(dtype, classes, name):
    x, y = rows_of_all_kinds(classes, dtype)
    assert_as_alone(x, y, dict(OPTIONS[name], reduction="none", ignore_index=IGNORED))


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@pytest.mark.parametrize("classes", [321, 1500])
def test_no_bit_of_dense_rows_does(dtype, classes, name):
    x, y = rows_of_all_kinds(classes, dtype)
    p = make_target("probabilities", x.shape, dtype=dtype)
    p[1, :100] = 0  # no mass where there is no probability
    p[2], p[3] = 0, np.arange(classes) == y[3]
    p[5, 5], p[7, 7] = np.inf, np.nan
    assert_as_alone(x, p, dict(OPTIONS[name], reduction="none"))
