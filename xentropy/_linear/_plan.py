"""How many rows and classes are worked on at a time.

A matrix product over few rows runs far below its full rate: it has to read the whole weight of
the linear layer for them. Chunks of some 512 rows and more lose a few percent. Chunks are of
about equal size, because a small one at the end would cost as much as a large one.
"""

# Rows of a chunk that are enough for the products, whatever the number of classes is ...
ENOUGH_ROWS = 1024
# ... and elements that outweigh the overhead of a chunk, where a row has few.
ENOUGH_ELEMENTS = 1 << 21
# Bytes of the logits of a chunk, unless the caller says otherwise.
LOGITS_BYTES = 256 << 20
# Elements of a tile, some classes of the layer's weight or its gradient: 8 MB in float32.
TILE_ELEMENTS = 1 << 21
# Sizes of chunks are multiples of it where they can: products work on blocks of rows.
ROW_BLOCK = 16


def chunk_rows(rows: int, features: int, classes: int, itemsize: int, logits_bytes: int) -> int:
    """Rows of every chunk but the last, at least 1: the logits fit into `logits_bytes` from there.

    It depends on `logits_bytes` only where that holds fewer rows than are enough.
    """
    enough = max(ENOUGH_ROWS, ENOUGH_ELEMENTS // max(features, classes, 1))
    most = max(1, min(enough, logits_bytes // (classes * itemsize)))
    chunks = max(1, -(-rows // most))
    even = -(-rows // chunks)
    return max(1, min(most, -(-even // ROW_BLOCK) * ROW_BLOCK, rows))


def tile_classes(features: int, classes: int) -> int:
    """Classes of a tile of (classes, features)."""
    return max(1, min(classes, TILE_ELEMENTS // max(features, 1)))
