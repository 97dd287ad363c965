from typing import Any

from numpy.typing import NDArray

def tiers() -> tuple[str, ...]: ...
def tier() -> str: ...
def use_tier(name: str) -> str | None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...

class CrossEntropy:
    def __init__(
        self,
        logits: NDArray[Any],
        axis: int,
        labels: NDArray[Any] | None,
        probabilities: NDArray[Any] | None,
        weight: NDArray[Any] | None,
        repeat: NDArray[Any] | None,
        *,
        float64: bool,
        ignore_bits: int | None,
        label_smoothing: float,
        z_loss: float,
        logit_scale: float,
        unit: float,
    ) -> None: ...
    def inspect(self, n_threads: int) -> tuple[int, float]: ...
    def run(
        self,
        gradient: NDArray[Any] | None,
        row_loss: NDArray[Any] | None,
        upstream: NDArray[Any] | None,
        upstream_all: float,
        divisor: float,
        streamed: bool,
        n_threads: int,
    ) -> float: ...

def normalize(
    what: str,
    x: NDArray[Any],
    class_axes: tuple[int, ...],
    out: NDArray[Any] | None,
    values: NDArray[Any] | None,
    *,
    float64: bool,
    unit: float,
    n_threads: int,
) -> None: ...
