"""`PairedEvaluation`: llama.cpp's formulas written out, closed forms, almost equal models."""

import math
import pickle
import tracemalloc

import mpmath
import numpy as np
import pytest
from helpers.evaluations import batch, bits, counted

import xentropy as xe

CLOSE = 1e-10


def close(value, expected, tolerance=CLOSE):
    assert value == pytest.approx(expected, rel=tolerance, abs=1e-15)


def result_of(*arguments, **options):
    paired = xe.PairedEvaluation()
    paired.update(*arguments, **options)
    return paired.result()


@pytest.fixture
def simple():
    """Rows that all count: (logits, base logits, target)."""
    arguments = batch(rows=151, dtype=np.float64)
    target = np.where(arguments["target"] < 0, 3, arguments["target"])
    return arguments["logits"], arguments["base_logits"], target


class Llama:
    """Of rows of log-probabilities, in float64: sums and their uncertainties as llama.cpp has."""

    def __init__(self, logits, base_logits, target):
        log_p, base = xe.log_softmax(logits, 1), xe.log_softmax(base_logits, 1)
        rows = np.arange(len(target))
        self.nll, self.base = -log_p[rows, target], -base[rows, target]
        self.kl = (np.exp(base) * (base - log_p)).sum(axis=1)
        self.dp = np.exp(-self.nll) - np.exp(-self.base)
        self.same = log_p.argmax(axis=1) == base.argmax(axis=1)

    @staticmethod
    def mean(x):
        mean = x.mean()
        return mean, math.sqrt(((x * x).mean() - mean * mean) / (len(x) - 1))

    def covariance(self):
        product = (self.nll * self.base).mean()
        return (product - self.nll.mean() * self.base.mean()) / (len(self.nll) - 1)


def test_perplexities_as_llama(simple):
    llama, result = Llama(*simple), result_of(*simple)
    errors = result.standard_errors
    (a, da), (b, db), cov = llama.mean(llama.nll), llama.mean(llama.base), llama.covariance()
    ratio_error = math.sqrt(da * da + db * db - 2 * cov)
    u, v = math.exp(a), math.exp(b)
    for name, value, error in (
        ("perplexity", u, u * da),
        ("base_perplexity", v, v * db),
        ("log_ratio", a - b, ratio_error),
        ("ratio", math.exp(a - b), math.exp(a - b) * ratio_error),
        ("difference", u - v, math.sqrt((u * da) ** 2 + (v * db) ** 2 - 2 * u * v * cov)),
    ):
        close(getattr(result, name), value)
        close(errors[name], error)
    close(result.correlation, cov / (da * db))


def test_divergence_and_probabilities_as_llama(simple):
    llama, result = Llama(*simple), result_of(*simple)
    errors = result.standard_errors
    square, of_square = llama.mean(llama.dp**2)
    same = llama.same.mean()
    for name, value, error in (
        ("kl", *llama.mean(llama.kl)),
        ("delta_p", *llama.mean(llama.dp)),
        ("delta_p_rms", math.sqrt(square), of_square / (2 * math.sqrt(square))),
        ("same_top", same, math.sqrt(same * (1 - same) / (len(llama.same) - 1))),
    ):
        close(getattr(result, name), value)
        close(errors[name], error)


def test_percentiles_as_numpy(simple):
    """Of the values rounded to float32."""
    llama, result = Llama(*simple), result_of(*simple)
    shares = {"maximum": 100, "minimum": 0, "median": 50}
    for values, found in (
        (llama.kl, result.kl_percentiles),
        (llama.dp, result.delta_p_percentiles),
    ):
        assert len(found) >= 11
        for at, value in found.items():
            share = shares[at] if at in shares else float(at.removesuffix(" %"))
            close(value, np.percentile(values, share), 1e-6)


def test_groups(simple):
    """The error of the logarithm of the ratio: residuals of the differences, summed by group."""
    group = np.random.default_rng(0).integers(9, size=len(simple[2]))
    llama, result = Llama(*simple), result_of(*simple, group=group)
    for name, x in (("log_ratio", llama.nll - llama.base), ("kl", llama.kl)):
        sums = np.bincount(group, x - x.mean())
        close(result.group_errors[name], math.sqrt(9 / 8 * (sums**2).sum()) / len(x))
    assert "± by 9 groups" in str(result)


def test_equal_models(simple):
    logits, _, target = simple
    result = result_of(logits, logits, target)
    assert result.ratio == result.same_top == 1
    assert result.log_ratio == result.difference == result.kl == result.delta_p == 0
    close(result.correlation, 1)
    for name in ("log_ratio", "ratio", "difference", "kl", "delta_p", "same_top"):
        assert result.standard_errors[name] == 0


def exact_kl(base, logits):
    with mpmath.workdps(60):
        b, p = ([mpmath.exp(mpmath.mpf(float(v))) for v in row] for row in (base, logits))
        b, p = ([v / mpmath.fsum(row) for v in row] for row in (b, p))
        return float(mpmath.fsum(v * mpmath.log(v / w) for v, w in zip(b, p, strict=True)))


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_divergence_of_almost_equal_models(step):
    """Relatively exact; differences of 1e-6 have 9 or 10 digits left in float64."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 50)) * 3
    logits = base + step * rng.normal(size=base.shape)
    expected = exact_kl(base[0], logits[0])
    assert result_of(logits, base, [0]).kl == pytest.approx(expected, rel=1e-14 / step)


def test_divergence_of_probabilities_that_are_0():
    x = np.array([[0.0, 0.0, -np.inf], [0.0, -np.inf, 0.0], [0.0, -900.0, -np.inf]])
    y = np.array([[0.0, -np.inf, -np.inf], [0.0, 0.0, -np.inf], [0.0, -1000.0, 0.0]])
    kl = [result_of(a[None], b[None], [0]).kl for a, b in zip(x, y, strict=True)]
    close(kl[0], math.log(2))
    assert kl[1:] == [math.inf, math.inf]
    log_p, base = np.array([[0.0, 0.0, -800.0]]), np.array([[0.0, -900.0, -900.0]])
    close(result_of(log_p, base, [0]).kl, math.log(2))


@pytest.mark.filterwarnings("error")
def test_nan_and_infinite_losses():
    rows = np.array([[np.nan, 1, 2], [0, 1, 2], [-np.inf, 0, 1]])
    result = result_of(rows, rows, [0, 0, 0])
    assert result.same_top == 2 / 3
    assert math.isnan(result.kl)
    assert math.isnan(result.kl_percentiles["median"])
    infinite = result_of(rows[1:], rows[1:], [0, 0])
    assert (infinite.perplexity, infinite.ratio, infinite.delta_p) == (math.inf, 1, 0)


def test_nothing_counted():
    empty = xe.PairedEvaluation().result()
    assert empty.tokens == 0
    assert math.isnan(empty.kl)
    assert math.isnan(empty.kl_percentiles["maximum"])


def test_minus_zero_is_zero():
    """Sorting leaves the order of -0 and 0 to chance; bits must not depend on it."""
    from xentropy._evaluation._paired import percentiles

    found = percentiles([np.float32([0.0]), np.float32([-0.0])])
    assert {math.copysign(1, value) for value in found.values()} == {1}


def test_memory_does_not_grow_with_the_rows():
    """48 MB of logits, of which all rows are the same memory: a copy in float64 would be 96 MB."""
    logits = np.broadcast_to(np.arange(200_000, dtype=np.float32) / 1e4, (60, 200_000))
    tracemalloc.start()
    result_of(logits, logits, np.arange(60), n_threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 8 * 1.6e6  # on each thread, of rows in float64


def test_result_is_a_table_and_a_dictionary():
    result = counted(xe.PairedEvaluation, batch()).result()
    for words in ("perplexity / base", "KL divergence", "99.9 %", "change of p", "same top class"):
        assert words in str(result)
    assert f"{result.kl:,.6f}" in str(result)
    assert result.to_dict()["kl_percentiles"] == result.kl_percentiles
    assert bits(pickle.loads(pickle.dumps(result))) == bits(result)
