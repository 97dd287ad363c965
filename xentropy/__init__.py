"""xentropy: fast and exact softmax cross-entropy on the CPU, NumPy in, NumPy out."""

from typing import TYPE_CHECKING

from . import _command  # noqa: F401 - before the imports that take time

try:
    from . import _kernels  # noqa: F401
except ImportError as _error:
    if _error.name != __name__:  # it is there, but cannot be loaded
        raise
    raise ImportError(
        "xentropy is not built: its compiled module is missing. In the source folder run "
        "'pip install -e .'; elsewhere 'pip install xentropy-cpu', and start Python outside "
        "the source folder."
    ) from _error

from ._api import cross_entropy, cross_entropy_with_grad
from ._config import get_num_threads, set_num_threads, show_config
from ._distillation import distillation_loss, distillation_loss_with_grad
from ._divergence import kl_divergence
from ._linear import linear_cross_entropy, linear_cross_entropy_with_grad
from ._linear._log_probs import linear_selected_log_probs, linear_selected_log_probs_grad
from ._log_probs import SelectedLogProbs, selected_log_probs, selected_log_probs_grad
from ._logsumexp import logsumexp
from ._softmax import entropy, log_softmax, softmax
from ._statistics import RowStatistics, row_statistics

if TYPE_CHECKING:
    from ._evaluation import Evaluation, PairedEvaluation

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """What takes time to import, once it is asked for."""
        if name == "__version__":
            from ._config import version

            return globals().setdefault(name, version())
        if name not in ("Evaluation", "PairedEvaluation"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import _evaluation

        return globals().setdefault(name, getattr(_evaluation, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Evaluation",
    "PairedEvaluation",
    "RowStatistics",
    "SelectedLogProbs",
    "__version__",
    "cross_entropy",
    "cross_entropy_with_grad",
    "distillation_loss",
    "distillation_loss_with_grad",
    "entropy",
    "get_num_threads",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_selected_log_probs",
    "linear_selected_log_probs_grad",
    "log_softmax",
    "logsumexp",
    "row_statistics",
    "selected_log_probs",
    "selected_log_probs_grad",
    "set_num_threads",
    "show_config",
    "softmax",
]
