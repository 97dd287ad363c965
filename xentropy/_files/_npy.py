"""NumPy's .npy.

Bytes: magic, version (2), length of the header (2 or 4), header, array. The header is a literal of
Python. A regular expression reads it, because a parser of Python can be driven out of memory or of
stack, and an array of objects or records is refused by it in the same step.
"""

import re

import numpy as np

from ._mapped import Mapped
from ._rows import Array, ArrayLogits, Logits, Targets, class_axis_last, integers_of, is_bits

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, as for numpy.load
# No two repetitions in a row can take the same character: the time is linear.
SHAPE = r"\(\s*(?:\d+\s*(?:,\s*\d+\s*)*(?:,\s*)?)?\)"
ITEM = rf"'(descr|fortran_order|shape)'\s*:\s*('[^']*'|True|False|{SHAPE})\s*"
HEADER = re.compile(rf"\{{\s*{ITEM},\s*{ITEM},\s*{ITEM}(?:,\s*)?\}}", re.ASCII)
DTYPE = re.compile(r"'[<>|=]?(?:f[248]|[iu][1248]|V2)'")  # V2: ml_dtypes' bfloat16, as saved


def header_of(mapped: Mapped) -> tuple[dict[str, str], int]:
    """The three items of the header, and the offset of the array."""
    start = mapped.bytes(0, 12)
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise mapped.error(f"is .npy of version {version}; known are 1.0, 2.0 and 3.0")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    offset = 8 + width + length
    if offset > mapped.size:
        raise mapped.error(f"the header has {length} bytes, but the file {mapped.size} in all")
    if length > LONGEST_HEADER:
        raise mapped.error(f"the header has {length} bytes, more than {LONGEST_HEADER}")
    text = mapped.bytes(8 + width, length).decode("latin-1")
    found = HEADER.fullmatch(text.strip())
    items = found.groups() if found else ()
    named = dict(zip(items[::2], items[1::2], strict=True))
    if len(named) != 3:
        said = text.strip()[:200]
        raise mapped.error(f"the header is not that of one array of plain numbers: {said!r}")
    return named, offset


def array_of(mapped: Mapped) -> Array:
    """The array of the file, as a view of its memory."""
    named, offset = header_of(mapped)
    descr, order, shape = (named[key] for key in ("descr", "fortran_order", "shape"))
    if not DTYPE.fullmatch(descr):
        raise mapped.error(f"has the dtype {descr[:200]}; known are floats and integers")
    if order not in ("True", "False") or shape[0] != "(":
        raise mapped.error(f"the header says fortran_order = {order[:50]}, shape = {shape[:50]}")
    lengths = [int(n[:30]) for n in re.findall(r"\d+", shape)]  # more digits are too many anyway
    dtype = np.dtype(descr[1:-1])
    wanted = mapped.check_shape(lengths, "the array") * dtype.itemsize
    if offset + wanted != mapped.size:
        raise mapped.error(
            f"the header says shape {tuple(lengths)} of {dtype}, {wanted} bytes, "
            f"but {mapped.size - offset} bytes follow it"
        )
    return mapped.array(dtype, lengths, offset, order == "True")


def logits(mapped: Mapped, axis: int, dtype: str | None) -> Logits:
    """The logits of a .npy file."""
    array = array_of(mapped)
    bits = is_bits(mapped, array.dtype, dtype, "the array")
    if array.ndim == 0:
        raise mapped.error("the array is a single number, without a class axis")
    return ArrayLogits(mapped.path, class_axis_last(mapped, array, axis), bits)


def targets(mapped: Mapped) -> Targets:
    """The integers of a .npy file."""
    return integers_of(mapped, array_of(mapped), "the array")
