"""Replaces torch's cross entropies by xentropy's, for code that one cannot edit."""

import threading
from typing import Any, Self

from torch.nn import functional

from ._formula import torch_cross_entropy, torch_linear_cross_entropy
from ._linear import linear_cross_entropy
from ._loss import cross_entropy

# Names in torch.nn.functional: torch's function, ours.
_REPLACED: dict[str, tuple[Any, Any]] = {"cross_entropy": (torch_cross_entropy, cross_entropy)}
if torch_linear_cross_entropy is not None:
    _REPLACED["linear_cross_entropy"] = torch_linear_cross_entropy, linear_cross_entropy

_lock = threading.Lock()
_active: list["_Patched"] = []  # patches, in the order in which they began


def patch() -> "_Patched":
    """Replace cross_entropy and linear_cross_entropy in torch.nn.functional by those of xentropy.

    torch's modules look them up at every call, also existing instances. A name
    bound earlier by ``from torch.nn.functional import cross_entropy`` remains torch's; graphs
    compiled earlier are not changed. Tensors that are not on the CPU go to torch's function.
    Objects and modes with `__torch_function__`, and torch.fx, are given torch's function.

    Returns
    -------
    context manager
        Its exit restores the functions that were there before, once those that began later have
        ended too. The patch holds for all threads.

    See Also
    --------
    xentropy.transformers.patch : the same for one model, which need not make all logits then

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
    """Restore torch's own functions, whatever patches there are.

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
        for name, (own, _) in _REPLACED.items():
            setattr(functional, name, own)


class _Patched:
    """Restores the functions at the end of a with statement."""

    def __enter__(self) -> Self:
        with _lock:
            if self not in _active:
                self._before = {name: getattr(functional, name) for name in _REPLACED}
                _active.append(self)
                for name, (_, ours) in _REPLACED.items():
                    setattr(functional, name, ours)
        return self

    def __exit__(self, *error: object) -> None:
        with _lock:
            if self not in _active:
                return
            place = _active.index(self)
            _active.remove(self)
            for name, before in self._before.items():
                if place == len(_active):
                    setattr(functional, name, before)
                elif _active[place]._before[name] is _REPLACED[name][1]:  # it found this patch
                    _active[place]._before[name] = before
