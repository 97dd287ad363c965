from collections.abc import Callable
from typing import Any

from ._types import FloatArray, Rows

MOST_THREADS: int
LEAST_SCALE: float
LARGEST_SCALE: float

def tiers() -> tuple[str, ...]: ...
def tier() -> str: ...
def use_tier(name: str) -> str | None: ...
def set_num_threads(n: int) -> None: ...
def limit_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def empty(shape: tuple[int, ...], dtype: Any) -> Any: ...
def config() -> dict[str, Any]: ...

class Options:
    NAMES: tuple[str, ...]
    axis: Any
    ignore_index: Any
    reduction: Any
    normalizer: Any
    label_smoothing: Any
    z_loss: Any
    logit_scale: Any
    softcap: Any
    base: Any
    n_threads: Any

def make_options(
    *,
    axis: Any = 1,
    ignore_index: Any = -100,
    reduction: Any = "mean",
    normalizer: Any = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    logit_scale: Any = 1.0,
    softcap: Any = None,
    base: Any = None,
    n_threads: Any = None,
) -> Options: ...

# Results of the functions below: None if an argument is not plain, so that it has to be converted
# or refused.

def compute_cross_entropy(
    with_grad: bool,
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    options: Options,
    grad_output: Any = None,
    out: Any = None,
    *,
    checked: bool = False,
    float64: bool = False,
    float64_losses: bool = False,
) -> Any: ...  # of `Loss`, or with_grad (loss, gradient); or None

SMALL_BYTES: int

class Tensors:
    def __init__(
        self,
        types: set[Any],
        exchange: Any,
        bfloat16: Any,
        empty_like: Callable[[Any], Any],
        from_array: Callable[[Any], Any],
    ) -> None: ...
    def on_cpu(self, tensors: tuple[Any, ...]) -> bool: ...
    def arrays(self, tensors: tuple[Any, ...]) -> tuple[Any, ...] | None: ...
    def cross_entropy(
        self,
        with_grad: bool,
        tensors: tuple[Any, ...],
        options: Options,
        grad_output: Any,
        out: Any,
        checked: bool,
    ) -> Any: ...
    def one_loss(
        self, with_grad: bool, tensors: tuple[Any, ...], options: Options, like: Any
    ) -> Any: ...
    def number(self, tensor: Any) -> float | None: ...
    def put(self, tensor: Any, value: float) -> bool: ...

def normalize(
    what: str, x: Any, axis: Any, out: Any, n_threads: Any, *, checked: bool = False
) -> FloatArray | None: ...
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
) -> Rows | None: ...
def row_statistics(
    logits: Any,
    target: Any,
    options: Options,
    *,
    checked: bool = False,
    float64: bool = False,
) -> tuple[Any, ...] | None: ...  # the fields of `RowStatistics`
def distillation(
    with_grad: bool,
    logits: Any,
    teacher: Any,
    beta: float,
    scaled_teacher: bool,
    sample_weight: Any,
    options: Options,
    grad_output: Any = None,
    out: Any = None,
    few: Any = None,
    *,
    checked: bool = False,
    float64_losses: bool = False,
) -> Any: ...  # of `Loss`, or with_grad (loss, gradient); or None
def selected_log_probs(
    logits: Any, index: Any, options: Options, *, checked: bool = False
) -> tuple[Any, Any, Any] | None: ...  # log_prob, entropy, lse in float64
def selected_log_probs_grad(
    logits: Any,
    index: Any,
    lse: Any,
    log_prob: Any,
    entropy: Any,
    grad_log_prob: Any,
    grad_entropy: Any,
    options: Options,
    out: Any = None,
    *,
    grad_lse: Any = None,
    grad_logits: Any = None,
    checked: bool = False,
) -> FloatArray | None: ...
def label_error(target: Any, row: int, classes: int, name: str = "target") -> IndexError: ...
def xla_handlers() -> dict[str, Any]: ...
