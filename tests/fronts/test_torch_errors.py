"""xentropy.torch refuses what torch refuses, with its types of errors, and accepts what it does."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

from xentropy.torch import cross_entropy

X, Y, P = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.full((4, 3), 1 / 3)
IMAGES, PIXELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
REFUSED = {
    "scalar logits": ((torch.tensor(1.0), torch.tensor(0)), {}, "scalar"),
    "integer logits": ((X.long(), Y), {}, r"swapped.*if not, give input.float\(\)"),
    "complex logits": ((X.to(torch.complex64), Y), {}, r"^input must be (?!.*swapped).*complex64"),
    "bool logits": ((X.bool(), Y), {}, "^input must be .*swapped"),
    "float8 logits": ((X.to(torch.float8_e4m3fn), Y), {}, "^input must be .*float8_e4m3fn"),
    "sparse logits": ((X.to_sparse(), Y), {}, "^input must be a dense tensor"),
    "int32 labels": ((X, Y.int()), {}, "int32"),
    "bool labels": ((X, Y.bool()), {}, "bool"),
    "byte labels of images": ((IMAGES, PIXELS.to(torch.uint8)), {}, "^target must be int64.*uint8"),
    "int8 labels of images": ((IMAGES, PIXELS.to(torch.int8)), {}, "^target must be int64.*int8"),
    "int16 labels": ((X, Y.short()), {}, "^target must be int64.*int16"),
    "complex labels": ((X, Y.to(torch.complex64)), {}, "^target must be int64.*complex64"),
    "complex probabilities": ((X, P.to(torch.complex64)), {}, "^target must be .*complex64"),
    "float8 probabilities": ((X, P.to(torch.float8_e4m3fn)), {}, "^target must be .*float8"),
    "sparse labels": ((X, Y.to_sparse()), {}, "^target must be a dense tensor"),
    "float labels": ((X, Y.float()), {}, "target"),
    "batch": ((X, Y[:3]), {}, r"target has shape \(3,\)"),
    "column": ((X, Y[:, None]), {}, "target has shape"),
    "scalar target": ((X, torch.tensor(1)), {}, "target has shape"),
    "two for one": ((X[0], Y[:2]), {}, "target has shape"),
    "batch of images": ((IMAGES, PIXELS[:1]), {}, "target has shape"),
    "pixels": ((IMAGES, PIXELS[:, :3]), {}, "target has shape"),
    "dimensions": ((IMAGES, PIXELS[:, 0]), {}, "target has shape"),
    "volume": ((torch.zeros(2, 3, 4, 2, 2), torch.zeros(2, 4, 2, 3).long()), {}, "target has"),
    "integer probabilities": ((X, P.long()), {}, r"must be floating: give target.float\(\)"),
    "probabilities": ((X, P[:, :2]), {}, "probabilities"),
    "label 3": ((X, torch.tensor([0, 1, 3, 0])), {}, r"target\[2\] = 3 is out of range for 3"),
    "label -1": ((X, torch.tensor([0, 1, -1, 0])), {}, r"target\[2\] = -1 is out of range"),
    "pixel": ((IMAGES, PIXELS + 3), {}, r"target\[0, 0, 0\] = 3"),
    "no classes": ((torch.zeros(4, 0), Y), {}, "no classes"),
    "array": ((X.numpy(), Y), {}, "input must be a tensor, not ndarray"),
    "list": ((X, [0, 1, 2, 0]), {}, "target must be a tensor, not list"),
    "None": ((X, None), {}, "target must be a tensor"),
    "devices": ((X, Y.to("meta")), {}, "different devices: cpu, meta"),
    "weight float64": ((X, Y, torch.ones(3).double()), {}, "weight must be torch.float32"),
    "weight shape": ((X, Y, torch.ones(2)), {}, r"weight has shape \(2,\)"),
    "weight of images": ((IMAGES, PIXELS, torch.ones(2)), {}, "weight has shape"),
    "weight of probabilities": ((X, P, torch.ones(1, 3)), {}, "weight has shape"),
    "weight complex": (
        (X, Y, torch.ones(3).to(torch.complex64)),
        {},
        "^weight must be .*complex64",
    ),
    "weight array": ((X, Y, torch.ones(3).numpy()), {}, "weight must be a tensor, not ndarray"),
    "weight list": ((X, Y, [1.0, 1.0, 1.0]), {}, "weight must be a tensor"),
    "weight with gradient": ((X, Y, torch.ones(3, requires_grad=True)), {}, None),
    "smoothing": ((X, Y), {"label_smoothing": 1.1}, "label_smoothing = 1.1"),
    "smoothing text": ((X, Y), {"label_smoothing": "a"}, "label_smoothing must be a number"),
    "reduction": ((X, Y), {"reduction": "avg"}, "reduction = 'avg'"),
    "ignore 1.0": ((X, Y), {"ignore_index": 1.0}, "ignore_index must be an integer"),
    "ignore with probabilities": ((X, P), {"ignore_index": 1}, "ignore_index"),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_errors_have_torchs_type_and_our_words(name, graph):
    arguments, options, words = REFUSED[name]
    if graph and torch.is_tensor(arguments[0]) and arguments[0].is_floating_point():
        arguments = (arguments[0].clone().requires_grad_(), *arguments[1:])
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever it is
        F.cross_entropy(*arguments, **options)
    with pytest.raises(theirs.type, match=words) as ours:
        cross_entropy(*arguments, **options)
    assert ours.type is theirs.type


# torch's own tests look for these words of torch, where two arguments are wrong.
TORCHS_WORDS = {
    "smoothing and batch": ((X[:3], Y), {"label_smoothing": 1.2}, r"must be between 0\.0"),
    "smoothing of probabilities": ((X, P), {"label_smoothing": 1.2}, r"must be between 0\.0"),
    "batch": ((X[:3], Y), {}, r"Expected input batch_size \(3\) to match target batch_size \(4\)"),
    "weight": (
        (X, Y, torch.ones(2)),
        {},
        "weight tensor should be defined either for all 3 classes",
    ),
}


@pytest.mark.parametrize("name", TORCHS_WORDS)
def test_torchs_words_follow_ours(name):
    arguments, options, words = TORCHS_WORDS[name]
    for function in (F.cross_entropy, cross_entropy):
        with pytest.raises((RuntimeError, ValueError), match=words):
            function(*arguments, **options)


def test_of_two_faults_torchs_is_named():
    with pytest.raises(RuntimeError, match=r"^label_smoothing = 1\.2"):
        cross_entropy(X[:3], Y, label_smoothing=1.2)
    with pytest.raises(ValueError, match=r"^reduction = 'avg'"):
        cross_entropy(X.tolist(), None, reduction="avg")


FAULTS = {
    "input": [X.long(), X.to(torch.complex64), X[0], IMAGES, None, X.to_sparse(), X[:, :0]],
    "target": [Y.int(), Y[:3], P, P.long(), PIXELS, PIXELS.to(torch.uint8), Y + 3, None, Y.float()],
    "weight": [torch.ones(2), torch.ones(3).double(), [1.0, 1.0, 1.0]],
    "label_smoothing": [1.2, "a"],
    "reduction": ["avg", None],
    "ignore_index": [1, 1.5],
}


@pytest.mark.parametrize("pair", list(itertools.combinations(FAULTS, 2)), ids="-".join)
def test_calls_with_two_faults_raise_what_torch_raises(pair):
    for values in itertools.product(*(FAULTS[name] for name in pair)):
        arguments = {"input": X, "target": Y} | dict(zip(pair, values, strict=True))
        outcomes = []
        for function in (F.cross_entropy, cross_entropy):
            try:
                loss = function(**arguments)
                outcomes.append((loss.dtype, loss.shape))
            except Exception as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], values


ACCEPTED = {
    "one label for one row": ((X[0] + torch.arange(3), Y[:1]), {}),
    "weight nan": ((X, Y, torch.tensor([float("nan"), 1, 1])), {}),
    "smoothing below 0": ((X, Y), {"label_smoothing": -0.1}),
    "smoothing a tensor": ((X, Y), {"label_smoothing": torch.tensor(0.1)}),
    "integer weight of probabilities": ((X, P, torch.tensor([1, 2, 3])), {}),
    "no classes, probabilities": ((X[:, :0], P[:, :0]), {}),
    "sparse probabilities": ((X, P.to_sparse()), {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_torch_accepts_is_accepted(name):
    arguments, options = ACCEPTED[name]
    ours, theirs = cross_entropy(*arguments, **options), F.cross_entropy(*arguments, **options)
    assert torch.allclose(ours, theirs, equal_nan=True)
    assert ours.dtype == theirs.dtype


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_logits_are_named():
    nested = torch.nested.nested_tensor([X[0], X[0, :2]])
    with pytest.raises(RuntimeError, match=r"^input must be a dense tensor, not nested"):
        cross_entropy(nested, Y[:2])


def test_a_wrong_option_of_ours_is_named():
    for option, value in (("z_loss", -1.0), ("base", 1.0), ("softcap", 0.0), ("axis", 2)):
        with pytest.raises(ValueError, match=option):
            cross_entropy(X, Y, **{option: value})
    with pytest.raises(ValueError, match="sample_weight has shape"):
        cross_entropy(X, Y, sample_weight=torch.ones(3))


def test_a_wrong_option_of_ours_is_named_wherever_it_is_computed():
    x, y = X.to("meta"), Y.to("meta")
    wrong = {"z_loss": -1.0, "base": 1.0, "logit_scale": 0.0, "softcap": 0.0, "normalizer": 0}
    for option, value in wrong.items():
        with pytest.raises(ValueError, match=option):
            cross_entropy(x, y, **{option: value})
        with pytest.raises(ValueError, match=option):
            torch.func.grad(lambda a, k: cross_entropy(a, Y, **k))(X, {option: value})
    with pytest.raises(ValueError, match="sample_weight has shape"):
        cross_entropy(x, y, sample_weight=y[:3])


@pytest.mark.parametrize(
    "legacy",
    [
        {"size_average": False},
        {"size_average": True, "reduce": False},
        {"reduction": "elementwise_mean"},
    ],
    ids=str,
)
def test_legacy_arguments_warn_as_torch_does(legacy):
    said = []
    for function in (F.cross_entropy, cross_entropy):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = function(X + torch.arange(3), Y, **legacy)
        said.append((loss, [(w.category, str(w.message)) for w in caught]))
    assert said[0][1] == said[1][1] != []
    assert torch.allclose(said[0][0], said[1][0])
