"""Cross entropy over several processes, by torch.distributed.

::

    from xentropy.torch.parallel import global_normalizer

    normalizer = global_normalizer(target) / torch.distributed.get_world_size()
    loss = cross_entropy(model(x), target, normalizer=normalizer)  # model: DistributedDataParallel
"""

from .. import cross_entropy as _cross_entropy  # noqa: F401  it says what to install without torch
from ._normalizer import global_normalizer

__all__ = ["global_normalizer"]
