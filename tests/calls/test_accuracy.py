"""Loss and gradient to 4 units in the last place from 2 classes to 200,000, however the logits lie.

Confident rows of every margin are in test_tails.py, row lengths and counts in test_exactness.py.
"""

import numpy as np
import pytest
from helpers.confident import confident_rows
from helpers.support import assert_plain, assert_ulps, make_logits, make_target, plain
from helpers.tiers import HERE

import xentropy as xe
from bench import exactness

pytestmark = pytest.mark.usefixtures("tier")

CLASSES = (2, 3, 4, 5, 10, 100, 320, 321, 1000, 32_000, 200_000)
SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
ELEMENTS = 3000  # of a batch, if its rows are shorter


@pytest.fixture(params=["float32", "float64"])
def wide(request):
    return np.dtype(request.param)


def layouts_of(x):
    """As rows and, where the column kernel serves so many classes, as columns."""
    yield np.ascontiguousarray(x)
    if x.shape[1] <= 1000:
        yield np.asfortranarray(x)


@pytest.mark.parametrize("classes", CLASSES)
def test_scales_of_the_logits(wide, classes):
    for scale in SCALES:
        x = make_logits((max(1, ELEMENTS // classes), classes), wide, seed=classes, spread=scale)
        for laid_out in layouts_of(x):
            assert_plain(laid_out, make_target("labels", x.shape), what=f"scale {scale}")


@pytest.mark.parametrize("classes", CLASSES[:-1])
def test_offsets_that_all_logits_share(wide, classes):
    """Beyond 1e6 the logits are further apart, and an exp must start from their difference."""
    for offset in (1e2, 1e4, 1e6, 1e8, 1e17, -1e2, -1e4, -1e6, -1e8, -1e17):
        x = make_logits((max(1, ELEMENTS // classes), classes), "float64", seed=classes) + offset
        for laid_out in layouts_of(x.astype(wide)):
            assert_plain(laid_out, make_target("labels", x.shape), what=f"offset {offset}")


@pytest.mark.parametrize("classes", [2, 10, 321, 1000])
def test_targets_too_far_below_for_an_exp(wide, classes):
    """The loss is a difference of logits, whatever their offset: not of their roundings."""
    margins = np.arange(100.0, 3000.0, 50.0)
    for offset in (0, 1e2, 1e4, 1e6, -1e6):
        x = np.full((len(margins), classes), offset, wide)
        x[:, 0] += margins.astype(wide)
        for laid_out in layouts_of(x):
            loss = xe.cross_entropy(laid_out, np.ones(len(x), int), reduction="none")
            assert_ulps(loss, margins, plain(wide), f"offset {offset}")


@pytest.mark.parametrize("classes", [2, 3, 10, 320, 321, 1000])
def test_logits_next_to_the_largest_number(wide, classes):
    """Their difference overflows: the loss is 6e38 in float64, and inf once it is float32."""
    huge = 3e38 if wide == np.float32 else 1.7e308
    x = make_logits((6, classes), wide)
    for row, (at_target, elsewhere) in enumerate(
        [(huge, 0), (0, huge), (-huge, 0), (huge, -huge), (-huge, huge), (huge, huge)]
    ):
        x[row, 0] = at_target
        x[row, 1:] = elsewhere or x[row, 1:]
    for laid_out in layouts_of(x):
        with np.errstate(over="ignore"):  # of the oracle, where its answer becomes float32
            assert_plain(laid_out, np.zeros(len(x), int), what="loss of class 0")


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 321, 1000])
def test_subnormal_gradients_are_kept(wide, classes):
    """Down to the smallest number there is."""
    first, last = (87, 104) if wide == np.float32 else (708, 746)
    margins = np.arange(first, last, 0.5)
    exact_loss, exact_grad = confident_rows(margins, classes)
    x = np.zeros((len(margins), classes), wide)
    x[:, 0] = margins
    for laid_out in layouts_of(x):
        loss, grad = xe.cross_entropy_with_grad(laid_out, np.zeros(len(x), int), reduction="none")
        assert_ulps(grad, exact_grad, plain(wide), "gradient")
        assert_ulps(loss, exact_loss, plain(wide), "loss")
        assert ((grad > 0) & (grad < np.finfo(wide).tiny)).any()


ROWS = 10**7
SKEWS = {
    "alike": lambda u: 4 * u - 2,
    "skewed": lambda u: 60 * u - 3,  # one in twenty has almost all of the loss
    "one row": lambda u: np.where(u == u.max(), -(2.0**20), 3),  # and below its rounding the others
}


@pytest.mark.parametrize("tier", HERE[-1:], indirect=True)  # all add up in one place
@pytest.mark.parametrize("skew", SKEWS)
def test_the_mean_of_ten_million_rows(tier, skew):
    """Of logits [m, 0]: to a unit of float32, not of its 24 bits times the number of rows."""
    margins = SKEWS[skew](np.random.default_rng(0).random(ROWS, np.float32)).astype(np.float32)
    x = np.zeros((ROWS, 2), np.float32)
    x[:, 0] = margins
    losses = np.logaddexp(0, -margins.astype(np.float64))
    exact = float(losses.sum(dtype=np.longdouble)) / ROWS  # 2**-64 a step, and pairwise
    for reduction, divisor in (("mean", 1), ("sum", ROWS)):
        mean = xe.cross_entropy(x, np.zeros(ROWS, np.uint8), reduction=reduction) / divisor
        assert_ulps(np.float32(mean), exact, 1, reduction)


def test_the_command_that_compares_libraries_finds_4_units_here():
    for scenario, errors in exactness.measure(["xentropy"]).items():
        assert max(errors["xentropy"]) <= plain("float32"), scenario
