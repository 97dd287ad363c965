"""Replaces torch's cross entropy by xentropy's, for code that one cannot edit."""

import threading
from typing import Self

from torch.nn import functional

from ._formula import torch_cross_entropy
from ._loss import cross_entropy

_lock = threading.Lock()
_active: list["_Patched"] = []  # patches, in the order in which they began


def patch() -> "_Patched":
    """Replace torch.nn.functional.cross_entropy by `cross_entropy`.

    torch.nn.CrossEntropyLoss looks it up at every call, also for existing instances. A name
    bound earlier by ``from torch.nn.functional import cross_entropy`` remains torch's; graphs
    compiled earlier are not changed. Tensors that are not on the CPU go to torch's function.
    Objects and modes with `__torch_function__`, and torch.fx, are given torch's function.

    Returns
    -------
    context manager
        Its exit restores the function that was there before, once those that began later have
        ended too. The patch holds for all threads.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import patch
    >>> with patch():
    ...     loss = torch.nn.CrossEntropyLoss()(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    >>> f"{loss.item():.2e}"
    '2.06e-09'
    """
    return _Patched().__enter__()


def unpatch() -> None:
    """Restore torch's own function, whatever patches there are.

    Examples
    --------
    >>> import torch
    >>> from xentropy.torch import patch, unpatch
    >>> torchs_own, _ = torch.nn.functional.cross_entropy, patch()
    >>> unpatch()
    >>> torch.nn.functional.cross_entropy is torchs_own
    True
    """
    with _lock:
        _active.clear()
        functional.cross_entropy = torch_cross_entropy


class _Patched:
    """Restores the function at the end of a with statement."""

    def __enter__(self) -> Self:
        with _lock:
            if self not in _active:
                self._before = functional.cross_entropy
                _active.append(self)
                functional.cross_entropy = cross_entropy
        return self

    def __exit__(self, *error: object) -> None:
        with _lock:
            if self not in _active:
                return
            place = _active.index(self)
            _active.remove(self)
            if place == len(_active):
                functional.cross_entropy = self._before
            elif _active[place]._before is cross_entropy:  # what it found was this patch
                _active[place]._before = self._before
