"""Losses that are recorded: their inputs, options, bounds."""

import pytest
import torch
import torch.nn.functional as F

# What torch says about its own tracers.
DEPRECATED = [
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
TORCHS = F.cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 5, generator=GENERATOR), torch.tensor([0, 1, 2, 3, 4, 0])
X2, Y2 = torch.randn(9, 5, generator=GENERATOR), torch.tensor([4, 1, -100, 3, 0, 0, 2, 2, 1])
ROWS = torch.tensor([1, 0.5, 0, 2, 1, 1, 3, 1, 1])
CLASSES = torch.tensor([1, 0.5, 0, 2, 1])
OPTIONS = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.1, "weight": CLASSES},
    {"ignore_index": 1, "weight": CLASSES},
    {"z_loss": 0.1, "label_smoothing": 0.1},
    {"z_loss": 1, "base": 2, "weight": CLASSES},  # ints where TorchScript distinguishes
    {"logit_scale": 2, "normalizer": 7},
    {"softcap": 2},
    {"softcap": 1.5, "logit_scale": 0.5, "label_smoothing": 0.1},
    {"reduction": "none", "base": 3.0, "weight": CLASSES, "label_smoothing": 0.3},
    {"axis": -1, "n_threads": 1, "inplace": True},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")


def without_ignored(options):
    """The second input, whose label -100 is to be a label where another is ignored."""
    return X2, Y2.clamp(min=0) if options.get("ignore_index", -100) >= 0 else Y2


def assert_close(ours, exact):
    """Sums of a few float32 terms below 16, in another order."""
    assert ours.dtype == exact.dtype
    assert torch.allclose(ours, exact, rtol=1e-6, atol=1e-6)
