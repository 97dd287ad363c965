"""Linear cross entropy, all options with one another, against the reference."""

import numpy as np
import pytest
from helpers.linear import NAMES, allowed_errors, make_layer, make_linear_target, rounded
from helpers.support import DTYPES, TARGETS, assert_bits, assert_within, case

import xentropy as xe
from xentropy import reference

ROWS, FEATURES, CLASSES = 45, 7, 33
SIZES = ROWS, FEATURES, CLASSES
RNG = np.random.default_rng(5)
WEIGHT = np.where(np.arange(CLASSES) % 7, RNG.uniform(0.5, 2.0, CLASSES), -0.25)
SAMPLE_WEIGHT = np.where(np.arange(ROWS) % 4, RNG.uniform(0.5, 2.0, ROWS), 0.0)
UPSTREAM = RNG.normal(size=ROWS)

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "upstream": {"reduction": "none", "grad_output": UPSTREAM},
    "weight": {"weight": WEIGHT},
    "sample_weight": {"sample_weight": SAMPLE_WEIGHT},
    "ignore_index": {"ignore_index": 3},
    "normalizer": {"normalizer": 2.5},
    "label_smoothing": {"label_smoothing": 0.3},
    "z_loss": {"z_loss": 0.1},
    "logit_scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 2.5},
    "base": {"base": 2},
    "grad_output": {"grad_output": -1.5},
    "rows": {
        "weight": WEIGHT,
        "sample_weight": SAMPLE_WEIGHT,
        "reduction": "none",
        "grad_output": UPSTREAM,
        "z_loss": 0.01,
    },
    "everything": {
        "weight": WEIGHT,
        "sample_weight": SAMPLE_WEIGHT,
        "ignore_index": 3,
        "normalizer": 2.5,
        "label_smoothing": 0.3,
        "z_loss": 0.1,
        "logit_scale": 0.7,
        "softcap": 5.0,
        "base": 10,
        "grad_output": 3.0,
    },
}
CHUNKS = {"one": None, "of 16 rows": 16, "of a row": 0}  # rows that logits_bytes holds


def check(x, layer, target, what="", **options):
    """Loss and gradients are within their bounds, and the loss alone has the same bits."""
    ours = dict(options)
    loss, grads = xe.linear_cross_entropy_with_grad(x, layer, target, **ours)
    options.pop("logits_bytes", None)
    exact, exact_grads = reference.linear_cross_entropy_with_grad(x, layer, target, **options)
    dtype = np.float64 if 8 in (x.itemsize, layer.itemsize) else np.float32
    loss_off, off = allowed_errors(x, layer, target, dtype, **options)
    assert_within(loss, exact, rounded(loss_off, exact, np.asarray(loss).dtype), f"loss {what}")
    arguments = {"input": x, "linear_weight": layer, "linear_bias": options.get("linear_bias")}
    for name, grad, exact_grad, bound in zip(NAMES, grads, exact_grads, off, strict=True):
        if exact_grad is None:
            assert grad is None
            continue
        assert grad.dtype == arguments[name].dtype.newbyteorder("=")
        assert_within(grad, exact_grad, rounded(bound, exact_grad, grad.dtype), f"{name} {what}")
    ours.pop("grad_output", None)
    assert_bits(xe.linear_cross_entropy(x, layer, target, **ours), loss, f"loss alone {what}")
    return loss, grads


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", TARGETS)
def test_options(dtype, kind, option, chunks):
    x, weight, bias = make_layer(*SIZES, dtype)
    target = make_linear_target(kind, ROWS, CLASSES, dtype)
    if kind == "labels":
        target[::5] = -100 if OPTIONS[option].get("ignore_index") is None else 3
    itemsize = 8 if dtype == np.float64 else 4
    held = CHUNKS[chunks]
    logits_bytes = None if held is None else max(1, held * CLASSES * itemsize)
    options = dict(OPTIONS[option], logits_bytes=logits_bytes)
    check(x, weight, target, "with bias", linear_bias=bias, **options)
    check(x, weight, target, "without bias", **options)


@pytest.mark.parametrize("features", [1, 2, 65])
@pytest.mark.parametrize("classes", [1, 2, 500])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_sizes(rows, classes, features):
    for kind in TARGETS:
        layer = make_layer(rows, features, classes)
        target = make_linear_target(kind, rows, classes)
        check(*layer[:2], target, kind, linear_bias=layer[2])


@pytest.mark.parametrize("dtypes", [("f4", "f8"), ("f8", "f4"), ("f2", "f4"), ("bfloat16", "f2")])
def test_mixed_dtypes(dtypes):
    """Computed in float64 if input or weight is; every gradient has its argument's dtype."""
    x, weight, bias = make_layer(*SIZES)
    target = make_linear_target("labels", ROWS, CLASSES)
    for bias_dtype in DTYPES:
        options = {"linear_bias": bias.astype(bias_dtype), "logits_bytes": 16 * CLASSES * 8}
        check(x.astype(dtypes[0]), weight.astype(dtypes[1]), target, bias_dtype, **options)


def test_rows_that_do_not_count_are_not_read():
    """They hold nan, and count nowhere; in runs, alternately, all of them."""
    x, weight, bias = make_layer(*SIZES)
    numbers = np.arange(ROWS)
    masks = {
        "first": numbers < 20,
        "last": numbers >= 20,
        "runs": numbers // 7 % 2 == 0,
        "every second": numbers % 2 == 0,
        "one left": numbers != 9,
        "none": numbers < 0,
    }
    for name, left_out in masks.items():
        for held in (1, 8, ROWS):
            with case((name, held)):
                labels = make_linear_target("labels", ROWS, CLASSES)
                kept = ~left_out
                options = {"linear_bias": bias, "logits_bytes": held * CLASSES * 4}
                expected = xe.linear_cross_entropy_with_grad(
                    x[kept], weight, labels[kept], **options
                )
                spoiled = x.copy()
                spoiled[left_out] = np.nan
                ignored = np.where(left_out, -100, labels)
                weights = np.where(left_out, 0.0, 1.0)
                answers = (
                    xe.linear_cross_entropy_with_grad(spoiled, weight, ignored, **options),
                    xe.linear_cross_entropy_with_grad(
                        spoiled, weight, labels, sample_weight=weights, **options
                    ),
                )
                for loss, grads in answers:
                    assert loss == pytest.approx(expected[0], rel=1e-14)  # sums of 45 float64
                    assert_bits(grads.input[kept], expected[1].input)
                    assert not grads.input[left_out].any()
                    assert_bits(grads.linear_weight, expected[1].linear_weight)
                    assert_bits(grads.linear_bias, expected[1].linear_bias)


def test_probabilities_of_rows_that_do_not_count():
    x, weight, _ = make_layer(*SIZES)
    p = make_linear_target("probabilities", ROWS, CLASSES)
    for step in (2, 3, 40):
        sample_weight = (np.arange(ROWS) % step != 0) * 1.0
        kept = sample_weight > 0
        spoiled = p.copy()
        spoiled[~kept] = np.nan
        options = {"logits_bytes": 8 * CLASSES * 4, "reduction": "none"}
        loss, grads = xe.linear_cross_entropy_with_grad(
            x, weight, spoiled, sample_weight=sample_weight, **options
        )
        expected = xe.linear_cross_entropy_with_grad(x[kept], weight, p[kept], **options)
        assert_bits(loss[kept], expected[0])
        assert_bits(grads.linear_weight, expected[1].linear_weight)


def test_no_rows_and_no_row_that_counts():
    weight, labels = make_layer(*SIZES)[1], np.full(4, -100)
    for x, target in ((np.ones((0, FEATURES), "f4"), labels[:0]), (np.ones((4, 7), "f4"), labels)):
        for reduction, expected in (("mean", np.nan), ("sum", 0.0)):
            loss, grads = xe.linear_cross_entropy_with_grad(x, weight, target, reduction=reduction)
            assert_within(loss, expected, 0)
            assert not grads.input.any()
            assert not grads.linear_weight.any()
        for options in ({"empty_mean": 0.5}, {"normalizer": 2, "empty_mean": 0.5}):
            loss, _ = xe.linear_cross_entropy_with_grad(x, weight, target, **options)
            assert loss == (0.0 if "normalizer" in options else 0.5)
        rows = xe.linear_cross_entropy(x, weight, target, reduction="none")
        assert_bits(rows, np.zeros(len(x), "f4"))


EMPTY = [
    ({"target": np.full(4, -100)}, {}),
    ({"target": np.zeros(4, int)}, {"sample_weight": np.zeros(4)}),
    ({"target": np.full((4, 5), 0.2)}, {"sample_weight": np.zeros(4)}),
    ({"target": np.array([0, -100, 1, -100])}, {"sample_weight": np.array([0.0, 1, 0, 1])}),
]


@pytest.mark.parametrize(("target", "options"), EMPTY)
def test_the_mean_over_no_row_is_what_one_wants(target, options):
    x, weight, bias = make_layer(4, FEATURES, 5)
    options = {"linear_bias": bias, **target, **options}
    for module in (xe, reference):
        loss, grads = module.linear_cross_entropy_with_grad(x, weight, **options, empty_mean=0)
        assert (loss, type(loss)) == (0.0, float)
        assert not any(grad.any() for grad in grads)
        assert module.linear_cross_entropy(x, weight, **options, empty_mean=-1.5) == -1.5
    assert xe.linear_cross_entropy(x, weight, **options, empty_mean=5, normalizer=2.0) == 0


def test_a_mean_over_rows_is_not_changed():
    x, weight, _ = make_layer(4, FEATURES, 5)
    labels = np.array([0, -100, 3, 4])
    plain = xe.linear_cross_entropy(x, weight, labels)
    assert xe.linear_cross_entropy(x, weight, labels, empty_mean=0) == plain
    assert np.isnan(xe.linear_cross_entropy(x * np.nan, weight, labels, empty_mean=0))
    assert xe.linear_cross_entropy(x[:0], weight, labels[:0], empty_mean=2) == 2
    undefined = xe.linear_cross_entropy(x, weight, labels, weight=np.zeros(5), empty_mean=0)
    assert np.isnan(undefined)  # rows count, their weights are 0


def test_the_layer_of_no_features_has_its_bias_alone():
    bias = np.array([0.5, -1.0, 2.0])
    x, weight, target = np.ones((4, 0)), np.ones((3, 0)), np.array([0, 1, 2, 1])
    loss, grads = xe.linear_cross_entropy_with_grad(x, weight, target, linear_bias=bias)
    exact, exact_grad = reference.cross_entropy_with_grad(np.tile(bias, (4, 1)), target)
    assert_within(loss, exact, 8 * 2.0**-52)  # four rows, a few roundings
    assert_within(grads.linear_bias, exact_grad.sum(axis=0), 8 * 2.0**-52)
    assert grads.input.shape == (4, 0)
    assert grads.linear_weight.shape == (3, 0)


WANTED = [(), *[(n,) for n in NAMES], NAMES[:2], NAMES[1:], NAMES[::-1], set(NAMES), {"input": 1}]


@pytest.mark.parametrize("wanted", WANTED, ids=range(len(WANTED)))
def test_wanted(wanted):
    x, weight, bias = make_layer(*SIZES)
    target = make_linear_target("labels", ROWS, CLASSES)
    options = {"linear_bias": bias, "logits_bytes": 20 * CLASSES * 4}
    whole_loss, whole = xe.linear_cross_entropy_with_grad(x, weight, target, **options)
    loss, grads = xe.linear_cross_entropy_with_grad(x, weight, target, wanted=wanted, **options)
    assert loss == whole_loss
    for name in NAMES:
        if name in wanted:
            assert_bits(getattr(grads, name), getattr(whole, name), name)
        else:
            assert getattr(grads, name) is None


def test_what_is_not_wanted_costs_no_product(monkeypatch):
    x, weight, _ = make_layer(*SIZES)
    target = make_linear_target("labels", ROWS, CLASSES)
    counted, multiply = [], np.matmul

    def matmul(*arguments, **named):
        counted.append(1)
        return multiply(*arguments, **named)

    monkeypatch.setattr(np, "matmul", matmul)
    for wanted, products in (((), 1), (("input",), 2), (("linear_weight",), 2), (NAMES, 3)):
        counted.clear()
        xe.linear_cross_entropy_with_grad(x, weight, target, wanted=wanted)
        assert len(counted) == products
    counted.clear()
    xe.linear_cross_entropy_with_grad(x, weight, np.full(ROWS, -100))
    assert not counted


def test_leading_axes():
    """(H,) and (B, S, H), with targets to match."""
    x, weight, bias = make_layer(24, FEATURES, CLASSES)
    for kind in TARGETS:
        target = make_linear_target(kind, 24, CLASSES)
        options = {"linear_bias": bias, "logits_bytes": 7 * CLASSES * 4}
        flat_loss, flat = xe.linear_cross_entropy_with_grad(
            x, weight, target, reduction="none", **options
        )
        shape = 2, 3, 4
        loss, grads = xe.linear_cross_entropy_with_grad(
            x.reshape(*shape, FEATURES),
            weight,
            target.reshape(shape + target.shape[1:]),
            reduction="none",
            **options,
        )
        assert_bits(loss, flat_loss.reshape(shape))
        assert_bits(grads.input, flat.input.reshape(*shape, FEATURES))
        assert_bits(grads.linear_weight, flat.linear_weight)
        check(x[:1], weight, target[:1], kind, linear_bias=bias)
        one, one_grads = xe.linear_cross_entropy_with_grad(
            x[0], weight, target[0], linear_bias=bias
        )
        same, same_grads = xe.linear_cross_entropy_with_grad(
            x[:1], weight, target[:1], linear_bias=bias
        )
        assert one == same
        assert_bits(one_grads.input, same_grads.input[0])


def test_a_normalizer_accumulates_micro_batches():
    x, weight, _ = make_layer(*SIZES, "float64")
    target = make_linear_target("labels", ROWS, CLASSES)
    whole, grads = xe.linear_cross_entropy_with_grad(x, weight, target)
    parts = [
        xe.linear_cross_entropy_with_grad(x[i : i + 9], weight, target[i : i + 9], normalizer=45)
        for i in range(0, 45, 9)
    ]
    assert_within(sum(p[0] for p in parts), whole, 8 * 2.0**-52 * whole)  # five additions
    total = sum(p[1].linear_weight for p in parts)
    _, off = allowed_errors(x, weight, target, "float64")
    assert_within(total, grads.linear_weight, 2 * off[1])
