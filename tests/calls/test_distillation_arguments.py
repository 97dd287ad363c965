"""distillation_loss: weights, reductions, kinds of teachers, kl_divergence of logits, mistakes."""

import numpy as np
import pytest
from helpers.bad_arguments import masked, refused
from helpers.divergences import BETAS, assert_gradient, assert_loss, pair
from helpers.support import assert_bits, assert_within, bits16

import xentropy as xe
from bench.accuracy import long_reference
from xentropy import reference

pytestmark = pytest.mark.usefixtures("tier")

LONG = long_reference()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_kl_divergence_of_two_matrices_of_logits(dtype, reduction):
    x, y = pair((20, 40), dtype)
    options = {"reduction": reduction, "base": 2}
    found = xe.kl_divergence(y, x, target_logits=True, **options)
    wanted = reference.kl_divergence(y, x, target_logits=True, **options)
    assert_loss(found, wanted, "float32")
    t = xe.softmax(y.astype("f8"), 1)
    assert_within(found, reference.kl_divergence(t, x, **options), 1e-6 * np.abs(wanted))
    close = (x.astype("f8") + 1e-5 * y.astype("f8")).astype("f8")
    assert xe.kl_divergence(close, x.astype("f8"), target_logits=True) > 0
    turned = xe.kl_divergence(y.T, x.T, axis=0, target_logits=True, **options)
    assert_bits(turned, found)


def test_mistakes_of_kl_divergence():
    x = np.zeros((3, 4), "f4")
    call = {"target": x[:, :2], "logits": x, "target_logits": True}
    refused(xe.kl_divergence, call, ValueError, ["target", r"\(3, 2\)", "logits"])
    call = {"target": x, "logits": x, "target_logits": "yes"}
    refused(xe.kl_divergence, call, TypeError, ["target_logits"])
    call = {"target": x, "logits": x, "target_logits": True, "base": 1}
    refused(xe.kl_divergence, call, ValueError, ["base = 1"])


def test_weights_and_reductions(dtype):
    x, y = pair((12, 30), dtype)
    rows = xe.distillation_loss(x, y, reduction="none").astype("f8")
    weights = np.arange(12) % 4 / 2
    mean = xe.distillation_loss(x, y, sample_weight=weights)
    assert mean == pytest.approx((rows * weights).sum() / weights.sum(), rel=1e-6)
    assert xe.distillation_loss(x, y, reduction="sum") == pytest.approx(rows.sum(), rel=1e-6)
    assert xe.distillation_loss(x, y, normalizer=7) == pytest.approx(rows.sum() / 7, rel=1e-6)
    mask = weights > 0
    masked_mean = xe.distillation_loss(x, y, sample_weight=mask)
    assert masked_mean == pytest.approx(rows[mask].mean(), rel=1e-6)


def test_rows_of_weight_0_are_not_read(dtype):
    for shape in ((6, 9), (6, 700)):
        x, y = pair(shape, dtype)
        x, y = x.copy(), y.copy()
        weights = np.array([1, 0, 2, 0, 1, 0.5])
        before = xe.distillation_loss_with_grad(x, y, sample_weight=weights)
        x[1], y[3] = np.nan, np.inf
        after = xe.distillation_loss_with_grad(x, y, sample_weight=weights)
        assert before[0] == after[0]
        assert_bits(after[1], before[1])
        assert not after[1][[1, 3]].astype("f4").any()


def test_no_row():
    x = np.zeros((0, 3), "f4")
    assert np.isnan(xe.distillation_loss(x, x))
    assert xe.distillation_loss(x, x, empty_mean=0) == 0
    assert xe.distillation_loss(x, x, reduction="none").shape == (0,)
    x = np.zeros((2, 3))
    loss, grad = xe.distillation_loss_with_grad(x, x, sample_weight=[0, 0], empty_mean=0)
    assert loss == 0
    assert not grad.any()
    assert np.isnan(xe.distillation_loss(np.full((2, 3), np.nan), x, empty_mean=0))


def test_a_teacher_of_log_probabilities(dtype):
    x, y = pair((9, 40), dtype)
    wide = "f8" if dtype == np.float64 else "f4"
    log_probs = xe.log_softmax(y.astype(wide), 1)
    for beta in BETAS:
        options = {"beta": beta, "temperature": 2.0, "reduction": "none"}
        found = xe.distillation_loss_with_grad(x, teacher_log_probs=log_probs, **options)
        wanted = reference.distillation_loss_with_grad(x, teacher_log_probs=log_probs, **options)
        assert_loss(found[0], wanted[0], "float32")
        assert_gradient(found[1], wanted[1], dtype if bits16(dtype) else "float32")


def test_different_types_meet():
    x, y = pair((5, 30), "float32")
    found = xe.distillation_loss_with_grad(x, y.astype("f8"), reduction="none")
    wanted = LONG.distillation_loss_with_grad(x, y, reduction="none")
    assert found[0].dtype == found[1].dtype == np.float32
    assert_gradient(found[1], wanted[1], "float32", ulps=1)
    half = xe.distillation_loss(x, y.astype("f2"))
    assert half == xe.distillation_loss(x, y.astype("f2").astype("f4"))


X, Y, R = np.zeros((3, 4), "f4"), np.ones((3, 4), "f4"), np.ones(3)
MISTAKES = [
    ({"teacher_logits": None}, TypeError, ["teacher_logits", "teacher_log_probs", "none"]),
    ({"teacher_log_probs": Y}, TypeError, ["teacher_logits", "teacher_log_probs", "both"]),
    ({"logits": masked(X)}, TypeError, ["logits", "masked"]),
    ({"teacher_logits": masked(X)}, TypeError, ["teacher_logits", "masked"]),
    ({"logits": X.astype(int)}, TypeError, ["logits", "int64"]),
    ({"teacher_logits": X.astype(int)}, TypeError, ["teacher_logits", "int64"]),
    ({"logits": X[:, :0]}, ValueError, ["no classes"]),
    ({"teacher_logits": Y[:2]}, ValueError, ["teacher_logits", r"\(2, 4\)", r"\(3, 4\)"]),
    ({"teacher_logits": np.ones((3, 6), "f4")}, ValueError, [r"give teacher_logits\[:, :4\]"]),
    ({"teacher_logits": Y[:, :2]}, ValueError, ["teacher_logits", r"give logits\[:, :2\]"]),
    ({"beta": -0.1}, ValueError, ["beta = -0.1", r"\[0, 1\]"]),
    ({"beta": 1.5}, ValueError, ["beta = 1.5"]),
    ({"beta": np.nan}, ValueError, ["beta = nan"]),
    ({"beta": "a"}, TypeError, ["beta"]),
    ({"temperature": 0}, ValueError, ["temperature = 0"]),
    ({"temperature": -1}, ValueError, ["temperature = -1"]),
    ({"temperature": None}, TypeError, ["temperature"]),
    ({"axis": 2}, ValueError, ["axis = 2"]),
    ({"sample_weight": R[:2]}, ValueError, ["sample_weight", r"\(2,\)"]),
    ({"sample_weight": np.array([1, np.nan, 1])}, ValueError, [r"sample_weight\[1\] = nan"]),
    ({"reduction": "batchmean"}, ValueError, ["reduction", "rows"]),
    ({"normalizer": 0}, ValueError, ["normalizer"]),
    ({"empty_mean": 0, "reduction": "sum"}, ValueError, ["empty_mean"]),
    ({"n_threads": 0}, ValueError, ["n_threads"]),
]
OF_GRADIENT = [
    ({"grad_output": R}, ValueError, ["grad_output", "scalar"]),
    ({"out": np.zeros((3, 4))}, TypeError, ["out", "float64", "float32"]),
    ({"out": Y, "teacher_logits": Y}, ValueError, ["out overlaps teacher_logits"]),
    ({"out": X[::-1]}, ValueError, ["out overlaps logits"]),
    ({"teacher_grad": 3}, TypeError, ["teacher_grad"]),
    (
        {"teacher_grad": True, "teacher_logits": None, "teacher_log_probs": Y},
        ValueError,
        ["teacher_grad", "log-probabilities|teacher_log_probs"],
    ),
]


@pytest.mark.parametrize(("spoiled", "error", "says"), MISTAKES)
def test_mistakes(spoiled, error, says):
    for function in (xe.distillation_loss, xe.distillation_loss_with_grad):
        refused(function, {"logits": X, "teacher_logits": Y, **spoiled}, error, says)


@pytest.mark.parametrize(("spoiled", "error", "says"), OF_GRADIENT)
def test_mistakes_of_the_gradient(spoiled, error, says):
    call = {"logits": X, "teacher_logits": Y, **spoiled}
    refused(xe.distillation_loss_with_grad, call, error, says)
