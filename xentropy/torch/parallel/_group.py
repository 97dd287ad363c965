"""The ranks of a process group, and their all-gathers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from .._refusals import in_torchs_words

Found = TypeVar("Found")


def size_of(group: dist.ProcessGroup | None) -> int:
    """How many ranks there are."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 1
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in group")
    return dist.get_world_size(group)


def gathering(
    numbers: Any, group: dist.ProcessGroup | None, device: Any = None
) -> Callable[[], Any]:
    """An all-gather, begun: a call waits for the float64 numbers of all ranks, a row for each."""
    mine = torch.from_numpy(numbers).to(device)
    every = mine.new_empty((dist.get_world_size(group), len(mine)))
    work = dist.all_gather(list(every.unbind()), mine, group=group, async_op=True)

    def wait() -> Any:
        work.wait()
        return every.numpy(force=True)

    return wait


def gathered(numbers: Any, group: dist.ProcessGroup | None, device: Any = None) -> Any:
    """The float64 numbers of all ranks, one row for each."""
    return gathering(numbers, group, device)()


def send_failure(length: int, group: dist.ProcessGroup | None, device: Any = None) -> None:
    """Take part in an all-gather of so many numbers, the first of which are never nan, by nan."""
    gathered(np.full(length, math.nan), group, device)


def check_failures(every: Any, what: str = "the loss") -> None:
    """Raise if a rank has sent its failure."""
    failed = np.isnan(every[:, 0])
    if failed.any():
        raise RuntimeError(f"{what} has failed on rank {failed.argmax()} of the group")


def exchanged(
    mine: Callable[[], tuple[Any, Found]], length: int, group: dist.ProcessGroup | None
) -> tuple[Callable[[], Any], Found]:
    """(a call that waits for the numbers of all ranks, what else `mine` has returned).

    If `mine` raises, this rank sends its failure to the others, who wait for so many numbers, and
    raises.
    """
    try:
        numbers, others = mine()
    except Exception as error:
        send_failure(length, group)
        if isinstance(error, TypeError | ValueError | IndexError):
            raise type(error)(in_torchs_words(error)) from error
        raise
    wait = gathering(numbers, group)

    def checked() -> Any:
        every = wait()
        check_failures(every)
        return every

    return checked, others


def attempted(work: Callable[[], Found]) -> Callable[[], Found]:
    """A call that returns what `work`, which is done now, returns, or raises its error."""
    try:
        found = work()
    except Exception as error:
        failure = error

        def fail() -> Found:
            raise failure

        return fail
    return lambda: found
