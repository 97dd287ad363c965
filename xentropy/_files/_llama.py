"""llama.cpp's log-probabilities: `llama-perplexity --save-all-logits`, in native byte order.

Bytes: magic (8); int32 n_ctx, n_vocab, n_chunk; int32 tokens[n_chunk][n_ctx]; rows. A chunk has a
row for each token behind its first half. A row is float32 scale and minimum, then n_vocab uint16 q,
padded to an even number: log p = scale * q + minimum.
"""

import numpy as np

from ._mapped import Mapped
from ._rows import Array, Logits, Targets, rows_of

MAGIC = b"_logits_"
HEADER = 20
SCALE = 4  # uint16 of a row before the numbers
# What rounding may add to a log-probability of 0. The format itself rounds to 1e-4 of a nat.
ABOVE_ZERO = 0.01


class LlamaLogits(Logits):
    """The rows of such a file, decoded when they are asked for."""

    is_log_probs = True

    def __init__(self, mapped: Mapped) -> None:
        n_ctx, n_vocab, n_chunk = sizes_of(mapped)
        first = n_ctx // 2
        per_chunk = n_ctx - 1 - first
        super().__init__(mapped.path, n_vocab, (n_chunk, per_chunk), np.float32)
        at = HEADER + 4 * n_ctx * n_chunk
        self._error = mapped.error
        self._coded = mapped.array(np.uint16, (self.n_rows, width(n_vocab)), at)
        tokens = mapped.array(np.int32, (n_chunk, n_ctx, 1), HEADER)
        self._predicted = tokens[:, first + 1 :]
        self.target_source = Targets(mapped.path, self.row_shape, self._tokens)

    def _read(self, start: int, stop: int) -> Array:
        coded = self._coded[start:stop]
        scale, low = coded[:, :SCALE].view(np.float32).T[:, :, None]
        self._check(scale[:, 0], low[:, 0], start)
        log_p = coded[:, SCALE : SCALE + self.n_classes].astype(np.float32)
        log_p *= scale
        log_p += low
        return log_p

    def _check(self, scale: Array, low: Array, start: int) -> None:
        """Raise unless the rows are of numbers from a finite minimum to about 0."""
        with np.errstate(all="ignore"):
            high = 65535 * scale.astype(np.float64) + low
            wrong = ~((scale >= 0) & np.isfinite(low) & (high <= ABOVE_ZERO))
        if wrong.any():
            i = int(wrong.argmax())
            raise self._error(
                f"row {start + i} has scale {scale[i]} and minimum {low[i]}: "
                "not those of log-probabilities"
            )

    def _tokens(self, start: int, stop: int) -> Array:
        """The tokens that rows [start, stop) predict."""
        tokens = rows_of(self._predicted, start, stop)[:, 0]
        wrong = (tokens < 0) | (tokens >= self.n_classes)
        if wrong.any():
            i = int(wrong.argmax())
            raise self._error(
                f"row {start + i} predicts token {tokens[i]}, not in [0, {self.n_classes})"
            )
        return tokens


def width(n_vocab: int) -> int:
    """Numbers of 16 bits in a row."""
    return SCALE + 2 * ((n_vocab + 1) // 2)


def sizes_of(mapped: Mapped) -> tuple[int, int, int]:
    """n_ctx, n_vocab and n_chunk, of a file that has as many bytes as they say."""
    if mapped.size < HEADER:
        raise mapped.error(f"has {mapped.size} bytes, less than the {HEADER} of the header")
    n_ctx, n_vocab, n_chunk = map(int, mapped.array(np.int32, (3,), len(MAGIC)))
    said = f"n_ctx = {n_ctx}, n_vocab = {n_vocab}, n_chunk = {n_chunk}"
    if n_ctx < 3 or n_vocab < 1 or n_chunk < 1:
        raise mapped.error(f"the header says {said}: no row")
    start = HEADER + 4 * n_ctx * n_chunk
    chunk = 2 * width(n_vocab) * (n_ctx - 1 - n_ctx // 2)
    if start + chunk * n_chunk != mapped.size:
        whole = min(max(mapped.size - start, 0) // chunk, n_chunk)
        raise mapped.error(
            f"the header says {said}, {start + chunk * n_chunk} bytes, but the file has "
            f"{mapped.size}, or {whole} whole chunks"
        )
    return n_ctx, n_vocab, n_chunk
