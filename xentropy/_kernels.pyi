from typing import Any

MOST_THREADS: int
LEAST_SCALE: float
LARGEST_SCALE: float

def tiers() -> tuple[str, ...]: ...
def tier() -> str: ...
def use_tier(name: str) -> str | None: ...
def set_num_threads(n: int) -> None: ...
def limit_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...
def cross_entropy(
    with_grad: bool,
    arguments: tuple[Any, ...],
    grad_output: Any = None,
    out: Any = None,
    *,
    checked: bool = False,
    float64: bool = False,
) -> Any: ...
def exchanged(
    tensors: tuple[Any, ...], exchange: Any, dtypes: dict[Any, Any]
) -> tuple[Any, ...] | None: ...
def normalize(
    what: str, x: Any, axis: Any, out: Any, n_threads: Any, *, checked: bool = False
) -> Any: ...
def reduce_rows(
    what: str,
    x: Any,
    axis: Any,
    keepdims: bool,
    base: Any,
    empty: float,
    n_threads: Any,
    *,
    checked: bool = False,
    float64: bool = False,
) -> Any: ...
