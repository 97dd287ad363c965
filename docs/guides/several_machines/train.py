"""Train on the ranks of torch.distributed, by the mean over the rows of all."""

import gc

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from xentropy.torch import cross_entropy
from xentropy.torch.parallel import global_normalizer


def train(rank, ranks):
    """The mean loss after 20 steps."""
    torch.manual_seed(0)
    x = torch.randn(256, 20, dtype=torch.float64)
    y = (x @ torch.randn(20, 5, dtype=torch.float64)).argmax(dim=1)
    y[:100] = -100  # padding, which the first ranks have most of
    x, y = x.tensor_split(ranks)[rank], y.tensor_split(ranks)[rank]

    model = DistributedDataParallel(torch.nn.Linear(20, 5, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        count = global_normalizer(y)  # labels on all ranks, without padding
        # DistributedDataParallel divides summed gradients by the number of ranks.
        loss = cross_entropy(model(x), y, normalizer=count / ranks)
        loss.backward()
        optimizer.step()

    mean = loss.detach() / ranks
    dist.all_reduce(mean)  # the sum
    return mean.item()


dist.init_process_group("gloo")
mean = train(dist.get_rank(), dist.get_world_size())
if dist.get_rank() == 0:
    print(f"loss after 20 steps: {mean:.6f}")
gc.collect()  # the model, which holds the group: its threads must end before Python
dist.destroy_process_group()
