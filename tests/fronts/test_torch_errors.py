"""xentropy.torch refuses what torch refuses, with its types of errors, and accepts what it does."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from xentropy.torch import cross_entropy

X, Y, P = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.full((4, 3), 1 / 3)
IMAGES, PIXELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
REFUSED = {
    "scalar logits": ((torch.tensor(1.0), torch.tensor(0)), {}, "scalar"),
    "integer logits": ((X.long(), Y), {}, "swapped"),
    "complex logits": ((X.to(torch.complex64), Y), {}, "complex64"),
    "int32 labels": ((X, Y.int()), {}, "int32"),
    "bool labels": ((X, Y.bool()), {}, "bool"),
    "byte labels of images": ((IMAGES, PIXELS.to(torch.uint8)), {}, None),
    "float labels": ((X, Y.float()), {}, "target"),
    "batch": ((X, Y[:3]), {}, r"target has shape \(3,\)"),
    "column": ((X, Y[:, None]), {}, "target has shape"),
    "scalar target": ((X, torch.tensor(1)), {}, "target has shape"),
    "two for one": ((X[0], Y[:2]), {}, "target has shape"),
    "batch of images": ((IMAGES, PIXELS[:1]), {}, "target has shape"),
    "pixels": ((IMAGES, PIXELS[:, :3]), {}, "target has shape"),
    "dimensions": ((IMAGES, PIXELS[:, 0]), {}, "target has shape"),
    "volume": ((torch.zeros(2, 3, 4, 2, 2), torch.zeros(2, 4, 2, 3).long()), {}, "target has"),
    "integer probabilities": ((X, P.long()), {}, "probabilities must be floating"),
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


def test_a_wrong_option_of_ours_is_named():
    for option, value in (("z_loss", -1.0), ("base", 1.0), ("logit_scale", 0.0), ("axis", 2)):
        with pytest.raises(ValueError, match=option):
            cross_entropy(X, Y, **{option: value})
    with pytest.raises(ValueError, match="sample_weight has shape"):
        cross_entropy(X, Y, sample_weight=torch.ones(3))


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
