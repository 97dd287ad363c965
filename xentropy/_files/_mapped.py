"""A file as read-only memory, and arrays in it."""

import math
import mmap
import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_DIMENSIONS = 32
MOST_ELEMENTS = 2**63 - 1


class FileFormatError(ValueError):
    """A file that is not what its name, its header or its reader says."""


def kind_of(mode: int) -> str:
    """What is there that is no regular file."""
    names = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


class Mapped:
    """The bytes of a regular file that is not empty."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        # A pipe without a writer would otherwise wait for one.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.error(f"is {kind_of(status.st_mode)}, not a file")
            if status.st_size == 0:
                raise self.error("is empty")
            self.size = status.st_size
            self.memory = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def error(self, text: str) -> FileFormatError:
        """The error that names the file."""
        return FileFormatError(f"{self.path}: {text}")

    def bytes(self, start: int, count: int) -> bytes:
        """Some bytes, fewer where the file ends."""
        return self.memory[start : start + count]

    def array(
        self, dtype: DTypeLike, shape: Sequence[int], offset: int, fortran: bool = False
    ) -> NDArray[Any]:
        """A view of the memory, which must be there."""
        return np.ndarray(tuple(shape), dtype, self.memory, offset, order="F" if fortran else "C")

    def check_shape(self, shape: Sequence[int], what: str) -> int:
        """The number of elements; every length must be positive."""
        if len(shape) > MOST_DIMENSIONS:
            raise self.error(f"{what} has {len(shape)} dimensions, not at most {MOST_DIMENSIONS}")
        if not all(1 <= n <= MOST_ELEMENTS for n in shape):
            raise self.error(f"{what} has the shape {shown(shape)}: it is empty or impossible")
        elements = math.prod(shape)
        if elements > MOST_ELEMENTS:
            raise self.error(f"{what} has the shape {shown(shape)}: more than 2**63 elements")
        return elements


def shown(shape: Sequence[int]) -> str:
    """A shape for an error, whatever a file says of it."""
    lengths = [str(n) if abs(n) < 10**30 else "..." for n in shape[:MOST_DIMENSIONS]]
    return f"({', '.join(lengths)}{',' * (len(shape) == 1)})"
