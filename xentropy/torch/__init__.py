"""Cross entropy for PyTorch: torch.nn.functional.cross_entropy, computed by xentropy on the CPU.

::

    from xentropy.torch import cross_entropy, CrossEntropyLoss

    loss = cross_entropy(logits, target)     # arguments, results and errors as torch has them
    loss.backward()                          # free: the gradient was computed with the loss

`patch` replaces torch's function in code that one cannot edit. `softmax`, `log_softmax`,
`logsumexp`, `entropy` and `kl_divergence` have gradients as well. Tensors that are not on the CPU
are always passed to torch's own functions.
"""

try:
    import torch  # noqa: F401
except ImportError as _error:
    if _error.name != "torch":  # it is there, but cannot be loaded
        raise
    raise ImportError(
        'xentropy.torch needs PyTorch: pip install "xentropy-cpu[torch]"', name="torch"
    ) from _error

from ._distillation import distillation_loss
from ._linear import linear_cross_entropy
from ._linear_log_probs import linear_selected_log_probs
from ._linear_module import LinearCrossEntropyLoss
from ._log_probs import selected_log_probs
from ._loss import CrossEntropyLoss, cross_entropy
from ._patch import patch, unpatch
from ._softmax import entropy, kl_divergence, log_softmax, logsumexp, softmax
from ._statistics import RowStatistics, row_statistics

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "RowStatistics",
    "cross_entropy",
    "distillation_loss",
    "entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_selected_log_probs",
    "log_softmax",
    "logsumexp",
    "patch",
    "row_statistics",
    "selected_log_probs",
    "softmax",
    "unpatch",
]
