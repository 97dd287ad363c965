"""Hugging Face's .safetensors.

Bytes: length of the header (8, little-endian), header, tensors. The header is a JSON object:
{name: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}, offsets from its end. The
tensors must fill the rest of the file without a gap or an overlap: a format for one purpose, so
https://huggingface.co/docs/safetensors says.
"""

import json
from typing import Any, NamedTuple

from ._mapped import MOST_ELEMENTS, FileFormatError, Mapped, shown
from ._rows import Array, ArrayLogits, Logits, Targets, class_axis_last, integers_of, is_bits

LONGEST_HEADER = 4 << 20  # bytes: some 40,000 tensors; parsed it takes up to 30 times as much
MOST_NAMES = 20  # that an error lists
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
    **{"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
}


class Tensor(NamedTuple):
    """What the header says of a tensor; offsets from the start of the file."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.name[:100]!r} {shown(self.shape)} {self.dtype[:20]}"


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names must differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:100]!r} is there twice")
    return found


def header_of(mapped: Mapped) -> tuple[dict[str, Any], int]:
    """The JSON object of the header, and the offset of the tensors."""
    length = int.from_bytes(mapped.bytes(0, 8), "little")
    if 8 + length > mapped.size:
        raise mapped.error(f"the header has {length} bytes, but the file {mapped.size} in all")
    if length > LONGEST_HEADER:
        raise mapped.error(f"the header has {length} bytes, more than {LONGEST_HEADER}")
    try:
        header = json.loads(mapped.bytes(8, length).decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise mapped.error("the header is nested too deeply") from None
    except ValueError as error:  # of JSON, of UTF-8, of `unique`, of integers with many digits
        raise mapped.error(f"the header is no JSON object: {error}") from None
    if not isinstance(header, dict):
        raise mapped.error(f"the header is JSON, but no object: {type(header).__name__}")
    header.pop("__metadata__", None)
    return header, 8 + length


def integers(value: object) -> bool:
    """Is it a list of integers that an array can have?"""
    return isinstance(value, list) and all(
        type(n) is int and 0 <= n <= MOST_ELEMENTS for n in value
    )


def tensor_of(mapped: Mapped, name: str, entry: Any, start: int) -> Tensor:
    """An entry of the header, checked but for its dtype."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and integers(shape) and integers(offsets) and len(offsets) == 2):
        said = f"{entry!r:.200}"
        raise mapped.error(f"tensor {name[:100]!r} has no dtype, shape and data_offsets: {said}")
    return Tensor(name, dtype, shape, start + offsets[0], start + offsets[1])


def tensors_of(mapped: Mapped) -> list[Tensor]:
    """What is in the file, in the order of the memory."""
    header, start = header_of(mapped)
    found = [tensor_of(mapped, name, entry, start) for name, entry in header.items()]
    found.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = start
    for tensor in found:
        if tensor.begin != at or tensor.end < at:
            raise mapped.error(
                f"{tensor} has the bytes [{tensor.begin}, {tensor.end}) of the file, "
                f"but must begin at {at}, where the one before it ends"
            )
        at = tensor.end
    if at != mapped.size:
        raise mapped.error(f"the header says {at} bytes in all, but the file has {mapped.size}")
    return found


def listed(tensors: list[Tensor]) -> str:
    """The tensors for an error, some of them if there are many."""
    lines = [str(tensor) for tensor in tensors[:MOST_NAMES]]
    more = len(tensors) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "") or "no tensor at all"


def pick(
    mapped: Mapped, tensors: list[Tensor], name: str | None, fit: list[Tensor], what: str
) -> Tensor:
    """The tensor `name`, or without a name the only one that fits."""
    found = fit if name is None else [tensor for tensor in tensors if tensor.name == name]
    if len(found) == 1:
        return found[0]
    said = (
        f"has no tensor {name!r}" if name is not None else f"has {len(fit)} candidates for {what}"
    )
    give = "" if name is not None else "; give the name of one"
    raise mapped.error(
        f"{said}{give}; there are: {listed(fit if name is None and len(fit) > 1 else tensors)}"
    )


def array_of(mapped: Mapped, tensor: Tensor) -> Array:
    """A tensor as a view of the file's memory."""
    if tensor.dtype not in DTYPES:
        raise mapped.error(f"{tensor}: the dtype is not one of {', '.join(DTYPES)}")
    dtype = DTYPES[tensor.dtype]
    wanted = mapped.check_shape(tensor.shape, f"tensor {tensor.name[:100]!r}") * int(dtype[-1])
    if wanted != tensor.end - tensor.begin:
        raise mapped.error(f"{tensor} takes {wanted} bytes, but has {tensor.end - tensor.begin}")
    return mapped.array(dtype, tensor.shape, tensor.begin)


def logits(
    mapped: Mapped, axis: int, dtype: str | None, name: str | None, target_name: str | None
) -> Logits:
    """The logits of a .safetensors file, with the targets in it."""
    tensors = tensors_of(mapped)
    kinds = ("F64", "F32", "F16", "BF16", *(["U16"] if dtype else []))
    fit = [tensor for tensor in tensors if tensor.dtype in kinds and tensor.shape]
    tensor = pick(mapped, tensors, name, fit, "logits")
    array = array_of(mapped, tensor)
    bits = tensor.dtype == "BF16" or is_bits(mapped, array.dtype, dtype, str(tensor))
    if array.ndim == 0:
        raise mapped.error(f"{tensor} is a single number, without a class axis")
    found = ArrayLogits(mapped.path, class_axis_last(mapped, array, axis), bits)
    shapes = found.row_shape, (found.n_rows,)
    try:
        others = [each for each in tensors if each is not tensor]
        found.target_source = targets(mapped, target_name, others, shapes)
    except FileFormatError as error:
        if target_name is not None:
            raise
        found.target_source = error
    return found


def targets(
    mapped: Mapped,
    name: str | None,
    tensors: list[Tensor] | None = None,
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> Targets:
    """The integers of a .safetensors file: a tensor by name, or the only one, of such a shape."""
    tensors = tensors_of(mapped) if tensors is None else tensors
    fit = [
        tensor
        for tensor in tensors
        if tensor.dtype[:1] in ("I", "U")
        and tensor.shape
        and (shapes is None or tuple(tensor.shape) in shapes)
    ]
    tensor = pick(mapped, tensors, name, fit, "targets")
    return integers_of(mapped, array_of(mapped, tensor), str(tensor))
