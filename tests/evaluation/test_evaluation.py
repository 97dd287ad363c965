"""`Evaluation`: closed forms, other libraries, formulas written out."""

import math
import tracemalloc

import numpy as np
import pytest
from helpers.evaluations import batch, bits, counted, given
from ml_dtypes import bfloat16

import xentropy as xe

CLOSE = 1e-12  # of a float64 formula over some dozens of rows
FLOAT32 = 1e-6  # of rows computed in float32: a dozen of its roundings


def close(value, expected, tolerance=CLOSE):
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.fixture
def simple():
    """Rows that all count, without weights: (logits, target, probabilities)."""
    arguments = batch(rows=80, dtype=np.float64)
    target = np.where(arguments["target"] < 0, 3, arguments["target"])
    return arguments["logits"], target, xe.softmax(arguments["logits"], axis=1)


def result_of(*arguments, top=(1, 5), bins=15, **options):
    evaluation = xe.Evaluation(top, bins)
    evaluation.update(*arguments, **options)
    return evaluation.result()


# --- closed forms ---


def test_uniform_logits():
    result = result_of(np.zeros((6, 8), np.float32), np.arange(6), bytes=9)
    close(result.nats, math.log(8))
    close(result.bits, 3)
    close(result.perplexity, 8)
    close(result.bits_per_byte, 6 * 3 / 9)
    close(result.entropy, math.log(8))
    close(result.brier, 1 - 1 / 8)
    assert result.accuracy == {1: 1 / 6, 5: 5 / 6}  # equal logits: in the order of classes
    close(result.calibration_error, 1 / 6 - 1 / 8)
    assert result.standard_errors["nats"] == 0  # of equal numbers, whatever they are


def test_confident_rows_keep_their_digits():
    """float32 logits [30, 0]: all is a small probability, or twice its square."""
    result = result_of(np.array([[30, 0], [30, 0]], np.float32), [0, 0])
    small = 1 / (1 + math.exp(30))
    for value, expected in (
        (result.nats, -math.log1p(-small)),
        (result.entropy, small * 30 - math.log1p(-small)),
        (result.calibration_error, small),
        (result.brier, 2 * small**2),
    ):
        assert value == pytest.approx(expected, rel=FLOAT32)


@pytest.mark.parametrize(("others", "times"), [([0, 0, 0, 0], 5 / 4), ([9, 0, 0, 0], 2)])
def test_bounds_of_the_brier_score(others, times):
    """The squares beside that of the target are lost: they are between those of these rows."""
    logits = np.array([50.0, *others])
    p = xe.softmax(logits)
    exact = times * p[1:].sum() ** 2
    result = result_of(logits[None], [0])
    assert 5 / 4 * (1 - 1e-6) <= result.brier / p[1:].sum() ** 2 <= 2 * (1 + 1e-6)
    assert 5 / 8 <= result.brier / exact <= 8 / 5


def test_nothing_counted():
    empty = xe.Evaluation().result()
    assert empty.tokens == 0
    assert math.isnan(empty.nats)
    assert math.isnan(empty.calibration_error)
    ignored = xe.Evaluation()
    ignored.update(np.zeros((3, 4)), [-100] * 3, sample_weight=np.ones(3))
    assert bits(ignored.result()) == bits(empty)


def test_a_single_row_has_no_error():
    result = result_of(np.array([1.0, 2.0, 4.0]), 2, group="a")
    close(result.nats, math.log1p(math.exp(-2) + math.exp(-3)))
    assert math.isnan(result.standard_errors["nats"])
    assert math.isnan(result.group_errors["nats"])


@pytest.mark.filterwarnings("error")
def test_rows_without_a_softmax():
    rows = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf] * 3, [0, 1, 2]])
    result = result_of(rows, [0, 0, 0, 2], top=[1])
    assert result.accuracy == {1: 0.25}
    for value in (result.nats, result.entropy, result.brier, result.calibration_error):
        assert math.isnan(value)


@pytest.mark.filterwarnings("error")
def test_a_target_of_probability_0():
    result = result_of(np.array([[-np.inf, 0.0], [1.0, 0.0]]), [0, 0])
    assert result.nats == result.perplexity == math.inf
    close(result.brier, (2 + 2 / (1 + math.e) ** 2) / 2)
    close(result.entropy, xe.entropy(np.array([1.0, 0.0])) / 2)


# --- other libraries ---


def test_is_the_cross_entropy(simple):
    logits, target, _ = simple
    result = result_of(logits, target)
    close(result.nats, xe.cross_entropy(logits, target))
    close(result.bits, xe.cross_entropy(logits, target, base=2))
    close(result.entropy, xe.entropy(logits).mean())


def test_as_sklearn(simple):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, target, p = simple
    classes = np.arange(logits.shape[1])
    result = result_of(logits, target, top=(1, 3, 5))
    close(result.nats, metrics.log_loss(target, p, labels=classes))
    for k, share in result.accuracy.items():
        close(share, metrics.top_k_accuracy_score(target, p, k=k, labels=classes))
    close(result.brier, metrics.brier_score_loss(target, p, labels=classes, scale_by_half=False))


def test_errors_as_scipy(simple):
    stats = pytest.importorskip("scipy.stats")
    logits, target, p = simple
    result = result_of(logits, target, bytes=1000)
    losses = xe.cross_entropy(logits, target, reduction="none")
    hits = p.argmax(axis=1) == target
    one_hot = np.eye(p.shape[1])[target]
    expected = {
        "nats": losses,
        "bits": losses / math.log(2),
        "entropy": xe.entropy(logits),
        "top_1": hits,
        "brier": ((p - one_hot) ** 2).sum(axis=1),
    }
    for name, values in expected.items():
        close(result.standard_errors[name], stats.sem(values), 1e-10)
    close(result.standard_errors["perplexity"], result.perplexity * stats.sem(losses), 1e-10)
    per_byte = len(target) / (1000 * math.log(2))
    close(result.standard_errors["bits_per_byte"], per_byte * stats.sem(losses), 1e-10)


# --- formulas written out ---


def test_calibration_error_written_out(simple):
    logits, target, p = simple
    result = result_of(logits, target, bins=4)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == target
    expected = 0.0
    for low, shown in zip(np.arange(4) / 4, result.reliability, strict=True):
        rows = (confidence >= low) & (confidence < low + 0.25)
        assert (shown.low, shown.high, shown.weight) == (low, low + 0.25, rows.sum())
        if rows.any():
            close(shown.confidence, confidence[rows].mean())
            close(shown.accuracy, right[rows].mean())
            expected += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
        else:
            assert shown.accuracy is shown.confidence is None
    close(result.calibration_error, expected)


def test_edges_of_the_bins():
    """A bin has its lower end; the last one has 1 as well."""
    rows = np.array([[0.0, 0.0], [1000.0, 0.0]])
    weights = [each.weight for each in result_of(rows, [0, 1], bins=2).reliability]
    assert weights == [0, 2]


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_by_group_are_the_sandwich(weighted):
    """Of least squares on a constant, with the meat summed by group (clustered, CR1)."""
    arguments = batch(rows=90, dtype=np.float64)
    if not weighted:
        arguments["sample_weight"] = np.ones(90)
    result = counted(xe.Evaluation, arguments).result()
    rows = (arguments["target"] >= 0) & (arguments["sample_weight"] > 0)
    w, group, size = (arguments[name][rows] for name in ("sample_weight", "group", "bytes"))
    w = w.astype(np.float64)
    x = xe.cross_entropy(arguments["logits"][rows], arguments["target"][rows], reduction="none")
    mean = (w * x).sum() / w.sum()
    clusters, n = np.unique(group, return_inverse=True)
    scores = np.bincount(n, w * (x - mean))
    g, rows = len(clusters), len(x)
    assert result.groups == g
    by_row = np.sqrt(rows / (rows - 1) * ((w * (x - mean)) ** 2).sum()) / w.sum()
    by_group = np.sqrt(g / (g - 1) * (scores**2).sum()) / w.sum()
    close(result.standard_errors["nats"], by_row, 1e-10)
    close(result.group_errors["nats"], by_group, 1e-10)
    per_byte = (w * x).sum() / (w * size).sum()
    scores = np.bincount(n, w * (x - per_byte * size))
    error = np.sqrt(g / (g - 1) * (scores**2).sum()) / (w * size).sum()
    close(result.bits_per_byte, per_byte / math.log(2), 1e-10)
    close(result.group_errors["bits_per_byte"], error / math.log(2), 1e-10)


def test_groups_of_one_row_are_rows():
    arguments = batch() | {"group": np.arange(60)}
    result = counted(xe.Evaluation, arguments).result()
    for name, error in result.group_errors.items():
        if name != "bits_per_byte":  # the bytes vary, too
            close(error, result.standard_errors[name], 1e-10)


def test_weights_are_repeated_rows():
    """For every mean; a standard error would not be the same."""
    arguments = batch(dtype=np.float64)
    times = np.random.default_rng(1).integers(0, 4, 60)
    weighted = counted(xe.Evaluation, arguments | {"sample_weight": times}).result()
    repeated = {name: np.repeat(value, times, axis=0) for name, value in arguments.items()}
    again = counted(xe.Evaluation, repeated | {"sample_weight": np.ones(times.sum())}).result()
    for name in ("nats", "entropy", "brier", "calibration_error", "bits_per_byte", "weight"):
        close(getattr(weighted, name), getattr(again, name))
    assert weighted.tokens == ((times > 0) & (arguments["target"] >= 0)).sum()


def test_scale_and_softcap():
    arguments = given(xe.Evaluation, batch(dtype=np.float64))
    logits = arguments.pop("logits")
    ours = result_of(logits, **arguments, logit_scale=0.5, softcap=2.0)
    capped = result_of(2 * np.tanh(logits * 0.5 / 2), **arguments)
    assert ours.accuracy == capped.accuracy
    for name in ("nats", "entropy", "brier", "calibration_error"):  # the tanh is the kernels'
        assert getattr(ours, name) == pytest.approx(getattr(capped, name), rel=1e-14)


@pytest.mark.parametrize("classes", [11, 400])  # short rows, and long ones
@pytest.mark.parametrize("dtype", ["float16", bfloat16, ">f4", "float32"])
def test_dtypes(dtype, classes):
    """The figures are those of the same numbers in float32, and about those in float64."""
    arguments = batch(classes=classes)
    narrow = arguments["logits"].astype(dtype)
    found, same, wide = (
        counted(xe.Evaluation, arguments | {"logits": logits}).result()
        for logits in (narrow, narrow.astype(np.float32), narrow.astype(np.float64))
    )
    assert bits(found) == bits(same)
    assert found.accuracy == wide.accuracy
    for name in ("nats", "entropy", "brier", "calibration_error"):
        close(getattr(found, name), getattr(wide, name), FLOAT32)
    for name, error in found.standard_errors.items():
        close(error, wide.standard_errors[name], FLOAT32)


def test_memory_does_not_grow_with_the_rows():
    """240 MB of logits, of which all rows are the same memory."""
    logits = np.broadcast_to(np.arange(200_000, dtype=np.float32) / 1e4, (300, 200_000))
    evaluation = xe.Evaluation()
    evaluation.update(logits[:1], [0])
    tracemalloc.start()
    evaluation.update(logits, np.arange(300))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_layouts():
    """The class axis anywhere, and gaps between the numbers."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 7, 3, 5)).astype(np.float32)
    target = rng.integers(7, size=(4, 3, 5))
    weight = rng.random((4, 3, 5))
    expected = bits(result_of(logits, target, sample_weight=weight))
    last = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    flat = last.reshape(-1, 7), target.reshape(-1)
    assert bits(result_of(last, target, sample_weight=weight, axis=-1)) == expected
    assert bits(result_of(*flat, sample_weight=weight.reshape(-1))) == expected
    gaps = np.zeros((60, 14), np.float32)[:, ::2]
    gaps[...] = flat[0]
    assert bits(result_of(gaps, flat[1], sample_weight=weight.reshape(-1))) == expected


def test_one_number_for_the_whole_update():
    arguments = batch(rows=12)
    arguments |= {"bytes": 50, "group": "a"}
    evaluation = xe.Evaluation()
    evaluation.update(**given(xe.Evaluation, arguments))
    masked = arguments | {"target": np.full(12, -100), "bytes": 7}
    evaluation.update(**given(xe.Evaluation, masked))
    result = evaluation.result()
    assert result.bytes == 57
    assert result.groups == 1


def test_one_number_of_bytes_for_several_groups():
    """The error by group is then that of the nats, in another unit."""
    arguments = batch()
    arguments.pop("bytes")
    expected = counted(xe.Evaluation, arguments).result()
    evaluation = xe.Evaluation()
    evaluation.update(**given(xe.Evaluation, arguments | {"bytes": 500}))
    none = np.zeros(0, int)  # text without a row
    evaluation.update(np.zeros((0, 11)), none, group=none, sample_weight=none, bytes=7)
    result = evaluation.result()
    assert result.bytes == 507
    a_byte = expected.weight / (507 * math.log(2))
    close(result.bits_per_byte, expected.nats * a_byte)
    for errors in ("standard_errors", "group_errors"):
        nats = getattr(expected, errors)["nats"]
        close(getattr(result, errors)["bits_per_byte"], nats * a_byte)


# --- the result ---


def test_result_is_frozen_a_table_and_a_dictionary():
    result = counted(xe.Evaluation, batch()).result()
    with pytest.raises(AttributeError):
        result.nats = 0.0
    table = str(result)
    for words in ("nats a token", "bits a byte", "perplexity", "top-5 accuracy", "± by 7 groups"):
        assert words in table
    assert f"{result.perplexity:,.6f}" in table
    assert len({len(line) for line in table.splitlines()[:3]}) == 1
    assert result.to_dict()["accuracy"] == result.accuracy
    assert result.to_dict()["reliability"][14]["high"] == 1.0


def test_a_result_without_groups_and_bytes():
    result = result_of(np.eye(3), [0, 1, 1])
    assert (result.groups, result.bytes, result.bits_per_byte) == (None, None, None)
    assert result.group_errors == {}
    assert "byte" not in str(result)
    assert "group" not in str(result)
