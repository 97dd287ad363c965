"""The ranks of a process group, and their all-gathers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .._refusals import in_torchs_words


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


def exchanged(
    mine: Callable[[], tuple[Any, Any]], length: int, group: dist.ProcessGroup | None
) -> tuple[Callable[[], Any], Any]:
    """(a call that waits for the numbers of all ranks, what else `mine` has returned).

    If `mine` raises, this rank sends nan to the others, who wait for so many numbers, and raises.
    """
    try:
        numbers, others = mine()
    except Exception as error:
        gathered(np.full(length, math.nan), group)
        if isinstance(error, TypeError | ValueError | IndexError):
            raise type(error)(in_torchs_words(error)) from error
        raise
    return gathering(numbers, group), others
