"""The reader of a file, chosen by its first bytes."""

import math
import os
from collections.abc import Mapping

from . import _npy, _safetensors
from ._llama import MAGIC as LLAMA_MAGIC
from ._llama import LlamaLogits
from ._mapped import Mapped
from ._rows import Logits, Targets

Path = str | os.PathLike[str]
KNOWN = ".npy, .safetensors and llama.cpp's log-probabilities"
# What else people have, and how they get there.
OTHERS = {
    b"PK\x03\x04": "a zip archive, such as .npz or PyTorch's .pt: save one array by numpy.save",
    b"GGUF": "GGUF, a model: llama-perplexity --save-all-logits FILE writes its log-probabilities",
    b"\x89HDF": "HDF5: save one array of it by numpy.save",
    b"\x80\x02": "a pickle, which is never read: save the array by numpy.save",
    b"\x80\x04": "a pickle, which is never read: save the array by numpy.save",
}


def format_of(mapped: Mapped) -> str:
    """ "npy", "llama" or "safetensors"; what the name says must be true."""
    start = mapped.bytes(0, 9)
    if start.startswith(_npy.MAGIC):
        found = "npy"
    elif start.startswith(LLAMA_MAGIC):
        found = "llama"
    elif start[8:9] == b"{":
        found = "safetensors"
    else:
        what = next((text for magic, text in OTHERS.items() if start.startswith(magic)), "")
        said = f"is {what}" if what else f"starts with {start[:8]!r}"
        raise mapped.error(f"{said}; known are {KNOWN}")
    suffix = os.path.splitext(mapped.path)[1].lower()
    if suffix in (".npy", ".safetensors") and suffix[1:] != found:
        raise mapped.error(f"is called {suffix}, but starts with {start!r}")
    return found


def only_for(
    mapped: Mapped, format: str, formats: tuple[str, ...], given: Mapping[str, object]
) -> None:
    """Raise if an argument was given that means nothing for this format."""
    for name, value in given.items():
        if value is not None and format not in formats:
            raise mapped.error(f"{name} = {value!r} goes with {' and '.join(formats)} files only")


def open_logits(
    path: Path,
    *,
    axis: int | None = None,
    dtype: str | None = None,
    name: str | None = None,
    target_name: str | None = None,
) -> Logits:
    """Open the logits of a .npy, .safetensors or llama.cpp file.

    Parameters
    ----------
    path : str or path
        The file; its format is told by its first bytes.
    axis : int, optional
        The class axis of the array, 1 by default.
    dtype : "bfloat16", optional
        That uint16 numbers are bits of bfloat16.
    name, target_name : str, optional
        Tensors of a .safetensors file. Without a name the only tensor of floating numbers is
        taken, and for targets the only one of integers in the shape of the rows.

    Returns
    -------
    Logits
        bfloat16 is that of ml_dtypes; where this is not installed, rows are float32, which is
        exact.

    Raises
    ------
    FileFormatError
        The file is not what its header says, or not what is asked for.
    OSError
        There is no such file, or it may not be read.
    """
    if dtype not in (None, "bfloat16"):
        raise ValueError(f"dtype = {dtype!r} is not 'bfloat16', nor left out")
    mapped = Mapped(path)
    format = format_of(mapped)
    only_for(mapped, format, ("npy", "safetensors"), {"axis": axis, "dtype": dtype})
    only_for(mapped, format, ("safetensors",), {"name": name, "target_name": target_name})
    axis = 1 if axis is None else axis
    if format == "npy":
        return _npy.logits(mapped, axis, dtype)
    if format == "llama":
        return LlamaLogits(mapped)
    return _safetensors.logits(mapped, axis, dtype, name, target_name)


def open_targets(
    path: Path, row_shape: tuple[int, ...] | None = None, *, name: str | None = None
) -> Targets:
    """Open a file with one integer a row: targets, or numbers of groups.

    Parameters
    ----------
    path : str or path
        .npy, .safetensors, or llama.cpp's file, whose targets are the tokens in it.
    row_shape : tuple of int, optional
        Shape of the rows. That of the integers must be the same, or one of both have one
        dimension and the same number.
    name : str, optional
        A tensor of a .safetensors file; without it the only one of integers.

    Raises
    ------
    FileFormatError, OSError
        As for `open_logits`.
    """
    mapped = Mapped(path)
    format = format_of(mapped)
    only_for(mapped, format, ("safetensors",), {"name": name})
    found: Targets
    if format == "npy":
        found = _npy.targets(mapped)
    elif format == "llama":
        found = LlamaLogits(mapped).target_source  # type: ignore[assignment]
    else:
        found = _safetensors.targets(mapped, name)
    if row_shape is None or found.shape == row_shape:
        return found
    flat = 1 in (len(found.shape), len(row_shape))
    if not flat or found.n_rows != math.prod(row_shape):
        raise mapped.error(f"has the shape {found.shape}, but the rows {row_shape}")
    return found
