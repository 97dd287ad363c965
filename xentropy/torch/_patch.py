"""Replaces torch's cross entropy by xentropy's, for code that one cannot edit."""

from torch.nn import functional

from ._formula import torch_cross_entropy
from ._loss import cross_entropy


def patch():
    """Replace torch.nn.functional.cross_entropy by `cross_entropy`.

    torch.nn.CrossEntropyLoss looks it up at every call, also for existing instances. A name
    bound earlier by ``from torch.nn.functional import cross_entropy`` remains torch's; graphs
    compiled earlier are not changed. Tensors that are not on the CPU go to torch's function.

    Returns
    -------
    context manager
        Its exit restores the function that was there before. The patch holds for all threads.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import patch
    >>> with patch():
    ...     loss = torch.nn.CrossEntropyLoss()(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    >>> f"{loss.item():.2e}"
    '2.06e-09'
    """
    before = functional.cross_entropy
    functional.cross_entropy = cross_entropy
    return _Patched(before)


def unpatch():
    """Restore torch's own function."""
    functional.cross_entropy = torch_cross_entropy


class _Patched:
    """Restores the function at the end of a with statement."""

    def __init__(self, before):
        self._before = before

    def __enter__(self):
        return self

    def __exit__(self, *error):
        functional.cross_entropy = self._before
