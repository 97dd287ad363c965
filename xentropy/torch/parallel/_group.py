"""The ranks of a process group, and the collectives in which all take part, whatever fails."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist

Found = TypeVar("Found")


class Sum(NamedTuple):
    """Of a tensor over all ranks."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Step = int | Sum  # int: an all-gather of so many float64 numbers, the first of which is never nan


def size_of(group: dist.ProcessGroup | None) -> int:
    """How many ranks there are."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 1
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in group")
    return dist.get_world_size(group)


class Collectives:
    """The collectives that a rank has before it, in the order in which every rank takes part.

    What is raised in its `with` block, from the first collective to the last, reaches all ranks:
    this one takes part in what the others wait for until an all-gather of nan has told them. What
    is still to come is added (`plan`) before the all-gather that precedes it. A group of one has
    no collectives.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        steps: Iterable[Step],
        what: str = "the loss",
        device: Any = None,
    ) -> None:
        self.group, self.size = group, size_of(group)
        self._what, self._device = what, device
        self._left = deque(steps if self.size > 1 else ())
        self._sums: list[Any] = []
        self._begun: Callable[[], Any] | None = None  # waits for the all-gather under way

    def __enter__(self) -> Collectives:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            with suppress(Exception):  # the group is broken: what is raised is what came first
                self._fail()

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return dist.get_rank(self.group)

    def plan(self, steps: Iterable[Step]) -> None:
        """Add what follows."""
        self._left.extend(steps)

    @contextmanager
    def known_to_all(self, *errors: type[Exception]) -> Iterator[None]:
        """Errors of these types every rank raises here: none waits for this one."""
        try:
            yield
        except errors:
            self._left.clear()
            raise

    def gathering(self, numbers: Any) -> Callable[[], Any]:
        """An all-gather, begun: a call waits for the numbers of all ranks, a row for each."""
        wait = self._begun = self._sent(numbers)

        def checked() -> Any:
            with self.known_to_all(RuntimeError):
                every = wait()
                self._check_failures(every)
            self._begun = None
            return every

        return checked

    def gathered(self, numbers: Any) -> Any:
        """The numbers of all ranks, a row for each."""
        return self.gathering(numbers)()

    def sum(self, mine: torch.Tensor) -> None:
        """Begin to add the tensors of all ranks to this one."""
        self._left.popleft()
        with self.known_to_all(RuntimeError):
            work = dist.all_reduce(mine, group=self.group, async_op=True)
        self._sums.append(work)

    def finish_sums(self) -> None:
        """Wait for the sums, and for the last all-gather: has a rank failed?"""
        wait = self.gathering(np.zeros(1))
        for work in self._sums:
            work.wait()
        self._sums.clear()
        wait()

    def _sent(self, numbers: Any) -> Callable[[], Any]:
        mine = torch.from_numpy(numbers).to(self._device)
        every = mine.new_empty((self.size, len(mine)))
        places = list(every.unbind())
        self._left.popleft()
        with self.known_to_all(RuntimeError):  # the group is broken
            work = dist.all_gather(places, mine, group=self.group, async_op=True)

        def wait() -> Any:
            work.wait()
            return every.numpy(force=True)

        return wait

    def _check_failures(self, every: Any) -> None:
        failed = np.isnan(every[:, 0])
        if failed.any():
            rank = failed.argmax()
            raise RuntimeError(f"{self._what} has failed on rank {rank} of the group")

    def _fail(self) -> None:
        """Take part in what the others wait for, until they learn that this rank has failed.

        They wait for nothing where another has failed as well, of which this one, interrupted say,
        has not learnt.
        """
        if self._left and self._begun is not None and np.isnan(self._begun()[:, 0]).any():
            return
        while self._left:
            step = self._left[0]
            if isinstance(step, int):
                self._sent(np.full(step, math.nan))()
                return
            self.sum(torch.from_numpy(np.zeros(*step)))
            self._sums.pop().wait()


def attempted(work: Callable[[], Found]) -> Callable[[], Found]:
    """A call that returns what `work`, which is done now, returns, or raises its error."""
    try:
        found = work()
    except BaseException as error:
        failure = error

        def fail() -> Found:
            raise failure

        return fail
    return lambda: found
