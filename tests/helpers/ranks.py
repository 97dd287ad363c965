"""Processes of torch.distributed on this machine."""

import multiprocessing
import pickle
import traceback
from datetime import timedelta
from pathlib import Path

TIMEOUT = 600  # seconds, for a machine with other work
GONE = 3  # exit status of a rank that ends itself: it has no answer


def run(work, ranks, folder, *arguments):
    """What work(rank, *arguments) returns in each of so many ranks, as a list.

    They meet by a file in `folder`. An error of one of them is that of the test; nobody waits
    longer than TIMEOUT.
    """
    spawned = multiprocessing.get_context("spawn")
    given = [(work, rank, ranks, str(folder), arguments) for rank in range(ranks)]
    processes = [spawned.Process(target=_rank, args=each) for each in given]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(TIMEOUT)
            assert process.exitcode is not None, "a rank is still at work"
    finally:
        for process in processes:
            process.kill()
            process.join()
    there = [rank for rank in range(ranks) if processes[rank].exitcode != GONE]
    found = [pickle.loads(_file(folder, rank).read_bytes()) for rank in there]
    for _, error in found:
        assert error is None, error
    return [outcome for outcome, _ in found]


def _file(folder, rank):
    return Path(folder) / f"rank{rank}"


def _rank(work, rank, ranks, folder, arguments):
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=Path(folder, "store").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT),
    )
    try:
        found = work(rank, *arguments), None
    except BaseException:
        found = None, traceback.format_exc()
    _file(folder, rank).write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()
