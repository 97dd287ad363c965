"""Cross entropy over several processes, by torch.distributed.

::

    from xentropy.torch.parallel import global_normalizer, vocab_parallel_cross_entropy

    normalizer = global_normalizer(target) / torch.distributed.get_world_size()
    loss = cross_entropy(model(x), target, normalizer=normalizer)  # model: DistributedDataParallel

    loss = vocab_parallel_cross_entropy(logits_shard, target)  # each rank has some of the classes
"""

from .. import cross_entropy as _cross_entropy  # noqa: F401  it says what to install without torch
from ._linear import vocab_parallel_linear_cross_entropy
from ._normalizer import global_normalizer
from ._vocabulary import vocab_parallel_cross_entropy

__all__ = [
    "global_normalizer",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_linear_cross_entropy",
]
