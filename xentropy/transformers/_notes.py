"""What made logits be computed after all: counted, and logged once."""

import logging
from collections import Counter

_log = logging.getLogger("xentropy.transformers")
_counts: Counter[str] = Counter()


def materialised() -> dict[str, int]:
    """Which operations have computed logits that were deferred, and how often.

    Each costs memory of the size of the logits, as without `patch`. The first time, the logger
    ``xentropy.transformers`` says so on level DEBUG.

    Returns
    -------
    dict of str to int
        Calls by name of the operation, of all models of this process since its start. Output
        layers that cannot defer stand there as ``"output layer <type>"``.

    Examples
    --------
    >>> from xentropy.transformers import materialised
    >>> before = materialised()
    >>> # ... a training, whose logits nobody is to need ...
    >>> materialised() == before
    True
    """
    return dict(_counts)


def note(name: str) -> None:
    _counts[name] += 1
    if _counts[name] == 1:
        _log.debug("logits are computed, and take their memory: %s", name)
