"""xentropy.torch.parallel: ranks on gloo compute what one process does on the whole batch."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.data_parallel import batch, everything, model

import xentropy as xe
from xentropy.torch import cross_entropy
from xentropy.torch.parallel import global_normalizer


def divisor(labels, **options):
    """What the mean of one process divides by: the sum of the losses by their mean."""
    logits = np.zeros((len(labels), 7))
    total = xe.cross_entropy(logits, labels, reduction="sum", **options)
    return total / xe.cross_entropy(logits, labels, **options)


@pytest.mark.parametrize("number", [2, 3])
def test_ranks(number, tmp_path):
    """One start of the processes for all that they are to do."""
    found = ranks.run(everything, number, tmp_path, number)
    normalizers, steps, errors = zip(*found, strict=True)
    check_normalizers(normalizers)
    check_steps(steps)
    check_errors(errors)


def check_normalizers(found):
    _, y, by_row, by_class = (each.numpy() for each in batch())
    expected = [
        (y != -100).sum(),
        (np.maximum(y, 0) != 0).sum(),
        divisor(y, weight=by_class, sample_weight=by_row),
        len(y),
        by_row.sum(),
        (y[: 11 if len(found) == 3 else None] != -100).sum(),
    ]
    for rank, normalizers in enumerate(found):
        if rank == 2:
            assert normalizers.pop() == "this process is not in group"
        # 24 additions, two roundings of the divisor
        np.testing.assert_allclose(normalizers, expected[: len(normalizers)], rtol=26 * 2**-53)
        assert normalizers[:5] == found[0][:5]  # on every rank the same bits


def check_steps(found):
    """Loss and gradient of the whole batch in one process, though the first rank has nothing."""
    x, y, by_row, by_class = batch()
    whole = model()
    loss = cross_entropy(whole(x), y, by_class, sample_weight=by_row)
    loss.backward()
    for mean, grad in found:
        assert math.isclose(mean, loss.item(), rel_tol=1e-14)
        np.testing.assert_allclose(grad, whole.weight.grad.numpy(), rtol=1e-12, atol=1e-15)


def check_errors(found):
    """An error of one ends the call on all: none of them waits, and the next call is in order."""
    *others, wrong = found
    assert wrong[:2] == (
        (
            "IndexError",
            "target[1] = -1 is no class; ignore_index=-1 leaves out the rows with this label",
        ),
        ("TypeError", "target must be a tensor, not list"),
    )
    says = f"global_normalizer has failed on rank {len(others)} of the group"
    assert [each[:2] for each in others] == [(("RuntimeError", says),) * 2] * len(others)
    assert [each[2] for each in found] == [(batch()[1] != -100).sum()] * len(found)


# --- in one process ---


def test_the_mean_of_means_is_another():
    """What the normalizer is for: `check_steps` would see it."""
    x, y, by_row, by_class = batch()
    logits = model()(x)
    halves = [
        cross_entropy(logits[part], y[part], by_class, sample_weight=by_row[part])
        for part in (slice(6, 14), slice(14, None))
    ]
    whole = cross_entropy(logits, y, by_class, sample_weight=by_row)
    assert abs(sum(halves) / 2 - whole) > 1e-3


def test_a_process_of_its_own():
    y = torch.tensor([[3, -100], [0, 2]])
    assert global_normalizer(y) == 3.0
    assert global_normalizer(torch.full((4,), -100)) == 0.0
    assert global_normalizer(torch.zeros(2, 5, 3, dtype=torch.bfloat16)) == 6.0
    assert global_normalizer(torch.zeros(5)) == 1.0
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert global_normalizer(y, weight=weights, sample_weight=torch.ones(2, 2) / 2) == 6.5


WRONG = [
    (([1, 2],), {}, TypeError, "target must be a tensor, not list"),
    ((torch.tensor([1, -2]),), {}, IndexError, r"target\[1\] = -2 is no class"),
    ((torch.tensor([True]),), {}, TypeError, "target must be integers"),
    ((torch.tensor([1, 7]),), {"weight": torch.ones(7)}, IndexError, r"target\[1\] = 7 is out of"),
    ((torch.tensor([1, 2]),), {"weight": [1, 2, 3]}, TypeError, "weight must be a tensor, not"),
    (
        (torch.tensor([1]),),
        {"weight": torch.tensor([1, torch.nan])},
        ValueError,
        r"weight\[1\] = nan",
    ),
    ((torch.tensor([1]),), {"sample_weight": torch.ones(2)}, ValueError, "sample_weight has shape"),
    ((torch.zeros(2, 3),), {"axis": 2}, ValueError, "axis = 2 is out of range for target"),
    ((torch.tensor([1]),), {"ignore_index": 0.5}, TypeError, "ignore_index must be an integer"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "says"), WRONG)
def test_bad_input(arguments, options, error, says):
    with pytest.raises(error, match=says):
        global_normalizer(*arguments, **options)


ABSENT = """
import sys
sys.modules["torch"] = None
try:
    import xentropy.torch.parallel
except ImportError as error:
    assert 'pip install "xentropy-cpu[torch]"' in str(error), error
else:
    raise SystemExit("imported")
"""


def test_without_torch_the_error_says_what_to_install():
    subprocess.run([sys.executable, "-c", ABSENT], check=True, timeout=300)
