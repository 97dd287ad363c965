"""Entropy, cross entropy and KL divergence: what the textbook says, on the public functions.

Every test is one sentence of the theory. `p` and `q` are distributions over four classes;
a model's distribution q is given to the functions as logits, with q = softmax(logits).
"""

from math import log

import numpy as np
import pytest

import xentropy as xe

pytestmark = pytest.mark.usefixtures("tier")

P = np.array([0.5, 0.25, 0.125, 0.125])
Q = np.array([0.1, 0.2, 0.3, 0.4])


def close(value):
    """Equal but for the rounding of a few float64 operations."""
    return pytest.approx(value, rel=1e-14, abs=1e-15)


def cross_entropy(p, q):
    """H(p, q) of two distributions: the model's logits are log q."""
    return xe.cross_entropy(np.log(q), p)


def test_entropy_is_minus_sum_p_log_p():
    assert xe.entropy(np.log(P)) == close(-np.sum(P * np.log(P)))


def test_a_uniform_distribution_has_the_largest_entropy_log_c():
    for classes in (1, 2, 6, 1000):
        assert xe.entropy(np.zeros(classes)) == close(log(classes))
    assert xe.entropy(np.log(P)) < log(4)


def test_a_certain_outcome_has_entropy_zero():
    assert xe.entropy(np.array([0.0, -np.inf, -np.inf])) == 0


def test_a_biased_coin_has_the_binary_entropy():
    for heads in (0.5, 0.9, 0.01):
        coin = np.array([heads, 1 - heads])
        expected = -heads * np.log2(heads) - (1 - heads) * np.log2(1 - heads)
        assert xe.entropy(np.log(coin), base=2) == pytest.approx(expected, rel=1e-13)


def test_cross_entropy_is_minus_sum_p_log_q():
    assert cross_entropy(P, Q) == close(-np.sum(P * np.log(Q)))


def test_cross_entropy_is_not_symmetric():
    assert abs(cross_entropy(P, Q) - cross_entropy(Q, P)) > 0.01


def test_the_cross_entropy_of_p_with_itself_is_its_entropy():
    assert cross_entropy(P, P) == close(xe.entropy(np.log(P)))


def test_cross_entropy_is_never_below_the_entropy():
    rng = np.random.default_rng(0)
    for _ in range(100):
        p, q = rng.dirichlet(np.ones(4), size=2)
        assert cross_entropy(p, q) > xe.entropy(np.log(p))


def test_kl_divergence_is_cross_entropy_minus_entropy():
    kl = xe.kl_divergence(P, np.log(Q))
    assert kl == close(cross_entropy(P, Q) - xe.entropy(np.log(P)))
    assert kl == close(np.sum(P * np.log(P / Q)))


def test_kl_divergence_is_zero_only_between_equal_distributions():
    assert xe.kl_divergence(P, np.log(P)) == close(0)
    assert xe.kl_divergence(P, np.log(Q)) > 0.1
    assert xe.kl_divergence(Q, np.log(P)) > 0.1


def test_one_hot_cross_entropy_is_the_negative_log_likelihood():
    for label in range(4):
        one_hot = np.eye(4)[label]
        assert cross_entropy(one_hot, Q) == close(-log(Q[label]))
        assert xe.cross_entropy(np.log(Q), label) == close(-log(Q[label]))


def test_the_kl_divergence_from_a_one_hot_target_is_its_cross_entropy():
    one_hot = np.eye(4)[2]  # its entropy is 0
    assert xe.kl_divergence(one_hot, np.log(Q)) == close(cross_entropy(one_hot, Q))


OBSERVED = np.array([0, 3, 3, 1, 3, 2, 0, 3])


def test_sum_is_the_joint_negative_log_likelihood_of_independent_observations():
    models = np.random.default_rng(1).dirichlet(np.ones(4), size=8)
    likelihood = np.prod(models[np.arange(8), OBSERVED])
    assert xe.cross_entropy(np.log(models), OBSERVED, reduction="sum") == close(-log(likelihood))


def test_mean_is_the_cross_entropy_of_the_empirical_distribution_and_the_model():
    empirical = np.bincount(OBSERVED, minlength=4) / len(OBSERVED)
    every_row_the_same_model = np.tile(np.log(Q), (8, 1))
    mean = xe.cross_entropy(every_row_the_same_model, OBSERVED)
    assert mean == close(cross_entropy(empirical, Q))


def test_the_most_likely_model_is_the_empirical_distribution():
    empirical = np.bincount(OBSERVED, minlength=4) / len(OBSERVED)
    fitted = np.tile(np.log(empirical), (8, 1))
    _, grad = xe.cross_entropy_with_grad(fitted, OBSERVED)
    assert grad.sum(0) == close(np.zeros(4))


def test_kl_divergence_and_cross_entropy_have_the_same_gradient():
    logits, step = np.log(Q), 1e-6
    _, grad = xe.cross_entropy_with_grad(logits, P)
    for c in range(4):
        nudge = step * np.eye(4)[c]
        rise = xe.kl_divergence(P, logits + nudge) - xe.kl_divergence(P, logits - nudge)
        # a central difference: step**2, and rounding / step
        assert rise / (2 * step) == pytest.approx(grad[c], abs=1e-9)


def test_the_gradient_is_what_the_model_believes_minus_what_is_true():
    _, grad = xe.cross_entropy_with_grad(np.log(Q), P)
    assert grad == close(Q - P)


def test_bits_are_nats_divided_by_log_2():
    assert xe.cross_entropy(np.log(Q), P, base=2) == close(cross_entropy(P, Q) / log(2))
    assert xe.entropy(np.log(P), base=2) == close(xe.entropy(np.log(P)) / log(2))
    assert xe.kl_divergence(P, np.log(Q), base=2) == close(xe.kl_divergence(P, np.log(Q)) / log(2))


def test_with_base_2_the_loss_is_the_expected_code_length():
    """The ideal code for a class of probability 2**-n has n bits: here 0, 10, 110, 111."""
    code = ["0", "10", "110", "111"]
    lengths = np.array([len(word) for word in code])
    assert xe.entropy(np.log(P), base=2) == close(np.sum(P * lengths))
    # data from Q, coded with the code made for P, costs H(Q, P) bits a symbol
    assert xe.cross_entropy(np.log(P), Q, base=2) == close(np.sum(Q * lengths))
    # and KL(Q || P) bits more than the best code
    wasted = np.sum(Q * lengths) - xe.entropy(np.log(Q), base=2)
    assert xe.kl_divergence(Q, np.log(P), base=2) == close(wasted)


def test_softmax_is_undone_by_the_logarithm_up_to_a_constant():
    logits = np.array([2.0, -1.0, 0.5, 0.0])
    difference = logits - np.log(xe.softmax(logits))
    assert difference == close(np.full(4, xe.logsumexp(logits)))


def test_perplexity_of_a_fair_die_is_six():
    assert np.exp(xe.cross_entropy(np.zeros(6), 3)) == close(6)
