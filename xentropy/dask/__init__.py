"""Cross entropy of dask arrays, block by block: loss, gradient, statistics and evaluations.

::

    import xentropy.dask

    loss = xentropy.dask.cross_entropy(logits, target)  # dask arrays, chunked by rows in any way
    loss.compute()

All functions are lazy. What they return has the same bits for any chunks, on any scheduler and any
number of workers with the same instruction set, also if a worker is lost and its work is done
again.
"""

try:
    import dask.array  # noqa: F401
except ImportError as _error:
    if (_error.name or "").partition(".")[0] != "dask":  # it is there, but cannot be loaded
        raise
    raise ImportError(
        'xentropy.dask needs dask: pip install "xentropy-cpu[dask]"', name="dask"
    ) from _error

from ._evaluate import evaluate
from ._loss import cross_entropy, cross_entropy_with_grad
from ._statistics import row_statistics

__all__ = ["cross_entropy", "cross_entropy_with_grad", "evaluate", "row_statistics"]
