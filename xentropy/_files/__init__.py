"""Logits and targets in files: .npy, .safetensors, and llama.cpp's log-probabilities.

`open_logits` and `open_targets` read the header alone and check it against the size of the file;
`rows(start, stop)` then gives a part. Files are memory-mapped: what a part costs is independent of
the file's size. A file must not shrink while it is open: the system ends a process that reads
mapped memory behind the end of its file (SIGBUS), and no library can turn that into an error.
"""

from ._mapped import FileFormatError
from ._open import open_logits, open_targets
from ._rows import Logits, Targets

__all__ = ["FileFormatError", "Logits", "Targets", "open_logits", "open_targets"]
