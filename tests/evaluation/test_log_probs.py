"""Log-probabilities that are rounded, so that their exps do not add up to 1: taken as they are."""

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers.evaluations import batch, bits

import xentropy as xe

FLOAT32 = 1e-6  # of rows computed in float32: a dozen of its roundings


@pytest.fixture(params=[np.float32, np.float64])
def rounded(request):
    """Log-probabilities of two models to one decimal, and targets."""
    arguments = batch(rows=70, dtype=np.float64)
    target = np.where(arguments["target"] < 0, 3, arguments["target"])
    pair = (xe.log_softmax(arguments[name], 1) for name in ("logits", "base_logits"))
    return *((np.round(x, 1) - 0.25).astype(request.param) for x in pair), target


def one(*arguments, **options):
    evaluation = xe.Evaluation(bins=3)
    evaluation.update(*arguments, **options)
    return evaluation.result()


def pair(*arguments, **options):
    paired = xe.PairedEvaluation()
    paired.update(*arguments, **options)
    return paired.result()


def losses_of(x, target):
    return -x.astype(np.float64)[np.arange(len(x)), target]


def test_figures_written_out(rounded):
    x, _, target = rounded
    result, loss, p = one(x, target, log_probs=True), losses_of(x, target), np.exp(x, dtype=float)
    assert result.nats == float(sum(map(Fraction, loss)) / len(loss))
    assert abs(p.sum(axis=1) - 1).min() > 0.05
    tolerance = FLOAT32 if x.dtype == np.float32 else 1e-12
    one_hot = np.eye(x.shape[1])[target]
    confidence, right = p.max(axis=1), x.argmax(axis=1) == target
    bins = np.minimum((confidence * 3).astype(int), 2)
    gaps = np.bincount(bins, right - confidence, 3)
    for value, expected in (
        (result.entropy, -(p * x).sum(axis=1).mean()),
        (result.brier, ((p - one_hot) ** 2).sum(axis=1).mean()),
        (result.calibration_error, np.abs(gaps).sum() / len(x)),
        (result.accuracy[1], right.mean()),
        (result.standard_errors["nats"], loss.std(ddof=1) / math.sqrt(len(x))),
    ):
        assert value == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("base_too", [False, True])
def test_a_pair_written_out(rounded, base_too):
    """As llama.cpp: the sum of b (log b - log p), whatever the b add up to."""
    x, y, target = rounded
    result = pair(x, y, target, log_probs=True, base_log_probs=base_too)
    log_p, base = x.astype(float), y.astype(float)
    base = base if base_too else xe.log_softmax(base, 1)
    loss, base_loss = losses_of(log_p, target), losses_of(base, target)
    dp = np.exp(-loss) - np.exp(-base_loss)
    for value, expected in (
        (result.perplexity, math.exp(loss.mean())),
        (result.base_perplexity, math.exp(base_loss.mean())),
        (result.kl, (np.exp(base) * (base - log_p)).sum(axis=1).mean()),
        (result.delta_p, dp.mean()),
        (result.same_top, (log_p.argmax(axis=1) == base.argmax(axis=1)).mean()),
    ):
        assert value == pytest.approx(expected, rel=1e-12)


def test_of_equal_models_nothing_is_left(rounded):
    x, _, target = rounded
    result = pair(x, x, target, log_probs=True, base_log_probs=True)
    assert (result.kl, result.log_ratio, result.delta_p, result.same_top) == (0, 0, 0, 1)


@pytest.mark.filterwarnings("error")
def test_probabilities_of_0_and_rows_without_any():
    x = np.array([[-np.inf, 0.0], [-np.inf, -np.inf], [0.0, np.nan]])
    assert one(x[:1], [0], log_probs=True).nats == math.inf
    assert one(x[:1], [1], log_probs=True).entropy == 0
    for row in (1, 2):
        assert math.isnan(one(x[[row]], [0], log_probs=True).nats)
        assert math.isnan(pair(x[[row]], x[:1], [0], log_probs=True).kl)


def test_the_layout_does_not_matter(rounded):
    x, y, target = rounded
    expected = bits(one(x, target, log_probs=True))
    shape = (7, 10)
    moved = np.moveaxis(x.reshape(*shape, -1), -1, 1)
    assert bits(one(moved, target.reshape(shape), log_probs=True)) == expected
    ignored = np.concatenate([np.full(len(y), -100), target])
    assert bits(one(np.concatenate([y + 99, x]), ignored, log_probs=True)) == expected


@pytest.mark.parametrize("kind", [xe.Evaluation, xe.PairedEvaluation])
def test_bad_input(kind):
    logits = np.array([[0.0, -9.0], [0.0, 1.0]])
    models = [logits] if kind is xe.Evaluation else [logits, logits]
    evaluation = kind()
    before = bits(evaluation.result())
    wrong = {
        "logits are no log-probabilities: those of row 1 are of .* exp.1.31326": True,
        "log_probs must be True or False, not 1": 1,
    }
    for said, log_probs in wrong.items():
        with pytest.raises((TypeError, ValueError), match=said):
            evaluation.update(*models, [0, 1], log_probs=log_probs)
    for option in ({"logit_scale": 2.0}, {"softcap": 3.0}):
        with pytest.raises(ValueError, match="log_probs = True: log-probabilities are taken as"):
            evaluation.update(*models, [0, 1], log_probs=True, **option)
    assert bits(evaluation.result()) == before
    evaluation.update(*models, [0, -100], log_probs=True)  # the row is not read


def test_the_base_alone_is_wrong():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match="base_logits are no log-probabilities: those of row 0"):
        pair(logits, logits, [0, 1], base_log_probs=True)
