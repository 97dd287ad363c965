"""The ranks of a process group, and one all-gather of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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


def gathered(numbers: Any, group: dist.ProcessGroup | None) -> Any:
    """The float64 numbers of all ranks, one row for each."""
    mine = torch.from_numpy(numbers)
    every = mine.new_empty((dist.get_world_size(group), len(mine)))
    dist.all_gather(list(every.unbind()), mine, group=group)
    return every.numpy()


def exchanged(
    mine: Callable[[], tuple[Any, Any]],
    length: Callable[[], int],
    group: dist.ProcessGroup | None,
) -> tuple[Any, Any]:
    """(the messages of all ranks, what else `mine` has returned).

    If `mine` raises, this rank sends nan to the others, who wait for so many numbers, and raises.
    """
    try:
        message, others = mine()
    except (TypeError, ValueError, IndexError) as error:
        _send_nan(length, group)
        raise type(error)(in_torchs_words(error)) from error
    return gathered(message, group), others


def _send_nan(length: Callable[[], int], group: dist.ProcessGroup | None) -> None:
    try:
        numbers = torch.full((length(),), math.nan, dtype=torch.float64).numpy()
    except (
        Exception
    ):  # arguments so wrong that they have no length; torch's timeout ends the others
        return
    gathered(numbers, group)
