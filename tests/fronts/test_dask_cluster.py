"""xentropy.dask on processes: two workers of dask.distributed compute the bits of one process."""

import os

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
from helpers.clusters import killed_once
from helpers.evaluations import batch, bits
from helpers.tiers import HERE

import xentropy.dask as xd
from xentropy import _kernels

ROWS, CLASSES = 4000, 50


@pytest.fixture(scope="module")
def client():
    """Of a cluster with two workers, each a process with one thread."""
    quiet = {
        "distributed.worker.profile.enabled": False,
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,  # of workers that are killed
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def best_tier():
    """That of new processes, as the workers are."""
    before = _kernels.use_tier(HERE[-1])
    yield
    _kernels.use_tier(before)


def results(logits, arguments):
    """Everything there is of a batch, to be computed at once."""
    target, weight = arguments["target"], arguments["sample_weight"]
    mean = xd.cross_entropy_with_grad(logits, target, sample_weight=weight)
    rows = xd.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)
    others = {name: arguments[name] for name in ("group", "bytes")}
    evaluation = xd.evaluate(logits, target, sample_weight=weight, **others)
    return [*mean, rows, *xd.row_statistics(logits, target), evaluation]


def as_bits(computed):
    *arrays, evaluation = computed
    return [np.asarray(each).tobytes() for each in arrays] + [bits(evaluation.result())]


def in_one_process(arguments):
    """One block, one thread."""
    logits = da.from_array(arguments["logits"], chunks=(ROWS, CLASSES))
    return as_bits(dask.compute(*results(logits, arguments), scheduler="synchronous"))


def test_two_workers(client):
    arguments = batch(ROWS, CLASSES)
    logits = da.from_array(arguments["logits"], chunks=(300, CLASSES))
    found = client.gather(client.compute(results(logits, arguments)))
    assert as_bits(found) == in_one_process(arguments)


def test_a_worker_that_is_killed(client, tmp_path):
    """In the middle: its work is done again, by the other one or its successor."""
    arguments = batch(ROWS, CLASSES)
    mark = tmp_path / "killed"
    before = set(client.run(os.getpid).values())
    blocks = da.from_array(arguments["logits"], chunks=(300, CLASSES)).blocks
    meta = np.empty((0, 0), np.float32)  # or this process would ask for a block to see one
    last = blocks[-1].map_blocks(killed_once, mark=str(mark), meta=meta)
    logits = da.concatenate([blocks[:-1], last])
    found = client.gather(client.compute(results(logits, arguments)))
    assert mark.exists()
    client.wait_for_workers(2, timeout=60)
    assert len(before - set(client.run(os.getpid).values())) == 1
    assert as_bits(found) == in_one_process(arguments)


def test_errors_arrive_with_their_places(client):
    arguments = batch(ROWS, CLASSES)
    arguments["target"][3456] = CLASSES
    logits = da.from_array(arguments["logits"], chunks=(300, CLASSES))
    loss = client.compute(xd.cross_entropy(logits, arguments["target"]))
    with pytest.raises(IndexError, match=r"^target\[3456\] = 50 is out of range for 50 classes"):
        loss.result()
