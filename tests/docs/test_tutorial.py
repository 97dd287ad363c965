"""What the tutorial claims, for random distributions; its own numbers are tested as examples."""

import itertools
import re

import numpy as np
import pytest
from helpers import examples
from helpers.examples import ROOT

import xentropy as xe

PAGES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "tutorial").glob("*.md"))]
SEEDS = range(5)
# Both sides are sums of a few float64 numbers of size 1.
EXACTLY = {"rtol": 1e-13, "atol": 1e-14}


def read(path):
    return path.read_text(encoding="utf-8")


def distributions(seed, *shape):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


@pytest.fixture(scope="module")
def huffman():
    """The function of the page."""
    (page,) = [path for path in PAGES if path.stem == "questions"]
    (block,) = [b for b in examples.blocks(read(page)) if "def huffman" in b.code]
    space = {"np": np}
    exec(block.code, space)
    return space["huffman"]


# --- the numbers in the text ---


def numbers(text):
    """Decimal numbers of three digits and more behind the point, which nobody knows by heart."""
    return set(re.findall(r"(?<![\w.])\d+\.\d{3,}(?![\w])", text))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_number_in_the_text_is_in_the_code(path):
    text = read(path)
    code = "".join(block.code for block in examples.blocks(text))
    prose = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    in_code = " ".join(numbers(code)) + code
    assert not [number for number in numbers(prose) if number not in in_code]


# --- counting ---


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_over_observations_is_the_sum_over_classes(seed):
    rng = np.random.default_rng(seed)
    logits, seen = rng.normal(0, 3, 7), rng.integers(7, size=100)
    observed = xe.cross_entropy(np.tile(logits, (100, 1)), seen)
    p = np.bincount(seen, minlength=7) / 100
    np.testing.assert_allclose(observed, xe.cross_entropy(logits, p), **EXACTLY)
    np.testing.assert_allclose(observed, -np.sum(p * np.log(xe.softmax(logits))), **EXACTLY)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_label_has_one_number_under_three_names(seed):
    logits = np.random.default_rng(seed).normal(0, 3, (1, 6))
    one_hot = np.eye(6)[[2]]
    loss = xe.cross_entropy(logits, [2])
    for same in (
        xe.cross_entropy(logits, one_hot),
        xe.kl_divergence(one_hot, logits),
        -np.log(xe.softmax(logits, axis=1)[0, 2]),
    ):
        np.testing.assert_allclose(loss, same, **EXACTLY)


def test_equal_inputs_are_one_row_with_their_shares():
    logits = np.random.default_rng(0).normal(size=4)
    said = np.repeat([1, 2], [300, 700])
    apart = xe.cross_entropy(np.tile(logits, (1000, 1)), said, reduction="sum")
    together = xe.cross_entropy(
        logits[np.newaxis], [[0, 0.3, 0.7, 0]], sample_weight=[1000], reduction="sum"
    )
    np.testing.assert_allclose(apart, together, rtol=1e-12)  # a thousand terms


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_is_one_observation_of_a_vector(seed):
    """By all the vectors there are."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 2, (4, 3)), rng.integers(3, size=4)
    p, q = distributions(seed, 4, 3), xe.softmax(logits, axis=1)
    vectors = list(itertools.product(range(3), repeat=4))
    joint_p, joint_q = (np.prod([d[range(4), v] for v in vectors], axis=1) for d in (p, q))
    np.testing.assert_allclose(joint_q.sum(), 1, **EXACTLY)
    happened = joint_q[vectors.index(tuple(labels))]
    summed = xe.cross_entropy(logits, labels, reduction="sum")
    np.testing.assert_allclose(summed, -np.log(happened), **EXACTLY)
    summed = xe.cross_entropy(logits, p, reduction="sum")
    np.testing.assert_allclose(summed, -np.sum(joint_p * np.log(joint_q)), **EXACTLY)
    np.testing.assert_allclose(xe.cross_entropy(logits, p), summed / 4, **EXACTLY)


# --- questions ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_huffmans_average_is_between_the_entropy_and_one_more(seed, classes, huffman):
    p = distributions(seed, classes)
    questions = huffman(p)
    assert np.sum(0.5**questions) == 1  # a complete code without a common beginning (Kraft)
    entropy = xe.entropy(np.log(p), base=2)
    assert entropy <= np.sum(p * questions) < entropy + 1


DYADIC = [np.array(p) for p in ([0.5, 0.5], [0.5, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125])]
DYADIC += [np.array([0.25, 0.125, 0.125, 0.25, 0.0625, 0.0625, 0.125])]


@pytest.mark.parametrize("q", DYADIC, ids=len)
def test_for_powers_of_one_half_questions_are_surprises(q, huffman):
    np.testing.assert_array_equal(huffman(q), -np.log2(q))
    np.testing.assert_allclose(np.sum(q * huffman(q)), xe.entropy(np.log(q), base=2), **EXACTLY)
    for seed in SEEDS:
        p = distributions(seed, len(q))
        asked = np.sum(p * huffman(q))
        np.testing.assert_allclose(asked, xe.cross_entropy(np.log(q), p, base=2), **EXACTLY)


@pytest.mark.parametrize("seed", SEEDS)
def test_surprises_rounded_up_take_less_than_one_question_more(seed):
    p, q = distributions(seed, 2, 12)
    cross, asked = xe.cross_entropy(np.log(q), p, base=2), np.sum(p * np.ceil(-np.log2(q)))
    assert cross <= asked < cross + 1


def test_what_never_happens_for_the_model_costs_without_bound():
    sure, even = np.array([0.5, 0.5, 0.0, 0.0]), np.full(4, 0.25)
    with np.errstate(divide="ignore"):
        assert xe.kl_divergence(even, np.log(sure)) == np.inf
    assert xe.kl_divergence(sure, np.log(even), base=2) == pytest.approx(1, rel=1e-15)


def test_blocks_come_closer_to_the_entropy(huffman):
    p = np.array([0.4, 0.3, 0.2, 0.1])
    joint, entropy = np.ones(1), xe.entropy(np.log(p), base=2)
    for n in range(1, 7):
        joint = np.outer(joint, p).ravel()
        assert entropy <= np.sum(joint * huffman(joint)) / n < entropy + 1 / n


@pytest.mark.parametrize("seed", SEEDS)
def test_cross_entropy_is_entropy_and_divergence_and_not_symmetric(seed):
    p, q = distributions(seed, 2, 5)
    cross, divergence = xe.cross_entropy(np.log(q), p), xe.kl_divergence(p, np.log(q))
    np.testing.assert_allclose(cross, xe.entropy(np.log(p)) + divergence, **EXACTLY)
    np.testing.assert_allclose(divergence, np.sum(p * np.log(p / q)), rtol=1e-12, atol=1e-14)
    assert divergence > 0
    assert abs(xe.kl_divergence(p, np.log(p))) < 1e-15
    assert abs(cross - xe.cross_entropy(np.log(p), q)) > 1e-3
    assert abs(divergence - xe.kl_divergence(q, np.log(p))) > 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_both_have_the_same_gradient_and_minimum(seed):
    p = distributions(seed, 1, 5)
    logits = np.random.default_rng(seed).normal(size=(1, 5))
    gradient = xe.cross_entropy_with_grad(logits, p)[1]
    h = 1e-5  # the error of the differences is h**2 times a third derivative below 1
    for loss in (lambda x: xe.cross_entropy(x, p), lambda x: xe.kl_divergence(p, x)):
        steps = h * np.eye(5)
        differences = [(loss(logits + step) - loss(logits - step)) / (2 * h) for step in steps]
        np.testing.assert_allclose(differences, gradient[0], rtol=0, atol=1e-9)
        assert loss(np.log(p)) < loss(logits)
    at_minimum = xe.cross_entropy_with_grad(np.log(p), p)[1]
    np.testing.assert_allclose(at_minimum, 0, atol=1e-15)


def test_bits_are_nats_over_ln_2():
    p, q = distributions(0, 2, 5)
    nats, gradient = xe.cross_entropy_with_grad(np.log(q), p)
    bits, larger = xe.cross_entropy_with_grad(np.log(q), p, base=2)
    np.testing.assert_allclose(bits, nats / np.log(2), **EXACTLY)
    np.testing.assert_allclose(larger, gradient / np.log(2), **EXACTLY)
    np.testing.assert_allclose(2**bits, np.exp(nats), **EXACTLY)


# --- training ---


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_is_the_model_minus_the_truth(seed):
    p, x = distributions(seed, 5), np.random.default_rng(seed).normal(0, 3, 5)
    gradient = xe.cross_entropy_with_grad(x, p)[1]
    np.testing.assert_allclose(gradient, xe.softmax(x) - p, **EXACTLY)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-15)
    np.testing.assert_allclose(xe.softmax(x + 100), xe.softmax(x), rtol=1e-13)


@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_binary_cross_entropy_is_the_case_of_two_classes(y):
    for z in (-5.0, 0.0, 0.8, 5.0):
        s = 1 / (1 + np.exp(-z))
        binary = -y * np.log(s) - (1 - y) * np.log(1 - s)
        np.testing.assert_allclose(xe.cross_entropy([z, 0.0], [y, 1 - y]), binary, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_label_smoothing_is_a_mixture_whose_floor_is_its_entropy(seed):
    x = np.random.default_rng(seed).normal(0, 3, 5)
    mixed = 0.9 * np.eye(5)[3] + 0.1 / 5
    loss = xe.cross_entropy(x, 3, label_smoothing=0.1)
    np.testing.assert_allclose(loss, xe.cross_entropy(x, mixed), **EXACTLY)
    floor = xe.cross_entropy(np.log(mixed), 3, label_smoothing=0.1)
    np.testing.assert_allclose(floor, xe.entropy(np.log(mixed)), **EXACTLY)
    assert floor < loss


@pytest.mark.parametrize("seed", SEEDS)
def test_the_expected_loss_is_smallest_for_the_truth(seed):
    p = distributions(seed, 6)
    rng = np.random.default_rng(seed)
    others = np.log(p) + rng.normal(0, rng.uniform(1e-3, 2, (1000, 1)), (1000, 6))
    losses = xe.cross_entropy(others, np.tile(p, (1000, 1)), reduction="none")
    assert losses.min() > xe.cross_entropy(np.log(p), p)


def test_a_confident_prediction_has_the_loss_of_its_tail():
    x = np.array([20, 0], np.float32)
    naive = np.log(np.sum(np.exp(x - x.max()))) + x.max() - x[0]
    assert naive == 0
    assert xe.cross_entropy(x, 0) == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-7)
