"""The metric of the guide to evaluations, in what torchmetrics does with metrics."""

import copy
import pickle

import numpy as np
import pytest
from helpers import examples
from helpers.evaluations import batch

import xentropy as xe

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

GUIDE = examples.ROOT / "docs" / "guides" / "evaluate.md"
NAMES = "perplexity", "calibration_error"


@pytest.fixture
def metric():
    """An object of the class that the guide defines."""
    blocks = examples.blocks(GUIDE.read_text(encoding="utf-8"))
    (code,) = (block.code for block in blocks if "torchmetrics.Metric" in block.code)
    space = {"xe": xe, "np": np}
    exec(code.partition("\n\n\nmetric = ")[0], space)
    return space["TokenMetrics"]()


@pytest.fixture
def parts():
    """(logits, target) of tensors, some of them."""
    given = batch()
    x, y = (torch.from_numpy(given[name]) for name in ("logits", "target"))
    return list(zip(x.split(17), y.split(17), strict=True))


def figures(*parts):
    whole = xe.Evaluation()
    for logits, target in parts:
        whole.update(logits, target)
    result = whole.result()
    return {name: torch.tensor(getattr(result, name)) for name in NAMES}


def test_forward_gives_the_figures_of_the_batch(metric, parts):
    for part in parts:
        assert metric(*part) == figures(part)
    assert metric.compute() == figures(*parts)
    metric.reset()
    metric.update(*parts[0])
    assert metric.compute() == figures(parts[0])


def test_gathered_from_other_processes(metric, parts):
    other = copy.deepcopy(metric)
    for k, part in enumerate(parts):
        (metric if k % 2 else other).update(*part)
    (theirs,) = other.pickled
    metric.dist_sync_fn = lambda mine, group: [mine, theirs]
    metric.distributed_available_fn = lambda: True
    assert metric.compute() == figures(*parts)
    metric.update(*parts[0])  # after that, it counts for itself again
    assert len(list(metric.parts())) == 1


def test_checkpoints(metric, parts):
    metric.update(*parts[0])
    state = metric.state_dict()
    assert state == {}  # torchmetrics keeps states out of checkpoints unless told otherwise
    metric.persistent(True)
    again = copy.deepcopy(metric)
    again.reset()
    again.load_state_dict(pickle.loads(pickle.dumps(metric.state_dict())))
    again.update(*parts[1])
    assert again.compute() == figures(*parts[:2])
