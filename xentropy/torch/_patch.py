"""xentropy's cross entropy in the place of torch's, for code that one cannot edit."""

from torch.nn import functional

from ._formula import torch_cross_entropy
from ._loss import cross_entropy


def patch():
    """Put `cross_entropy` in the place of torch.nn.functional.cross_entropy.

    torch.nn.CrossEntropyLoss, old instances too, looks it up there at every call. Who did
    ``from torch.nn.functional import cross_entropy`` before keeps torch's; graphs compiled
    before keep what they were compiled with. Tensors that are not on the CPU go to torch's.

    Returns
    -------
    context manager
        On its exit the function that was there before comes back. It holds for all threads.

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
    """Put torch's own function back."""
    functional.cross_entropy = torch_cross_entropy


class _Patched:
    """Undoes a patch at the end of a with statement."""

    def __init__(self, before):
        self._before = before

    def __enter__(self):
        return self

    def __exit__(self, *error):
        functional.cross_entropy = self._before
