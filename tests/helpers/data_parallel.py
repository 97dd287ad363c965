"""What the ranks of the tests of xentropy.torch.parallel do: where a new process can import it."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from xentropy.torch import cross_entropy
from xentropy.torch.parallel import global_normalizer

FEATURES, CLASSES = 7, 7


def batch(seed=0, rows=24):
    """Inputs, labels of which the first are masked, and weights of rows and classes."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=made, dtype=torch.float64)
    y = torch.randint(CLASSES, (rows,), generator=made)
    y[: rows // 3] = -100
    y[-2] = -100
    by_row = torch.rand(rows, generator=made, dtype=torch.float64)
    return x, y, by_row, torch.rand(CLASSES, generator=made, dtype=torch.float64)


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(FEATURES, CLASSES, dtype=torch.float64)


def part(values, rank, ranks):
    """The rows of a rank, of unequal numbers: those of the first are all masked."""
    edges = [0, *(len(values) // 3 + 3 * r * r for r in range(ranks - 1)), len(values)]
    return values[edges[rank] : edges[rank + 1]]


def arguments(rank, ranks):
    """Inputs, labels and sample weights of a rank; the class weights."""
    *rows, by_class = batch()
    return *(part(each, rank, ranks) for each in rows), by_class


def normalizers(rank, ranks):
    """Of labels and probabilities, with weights and without; within the first two ranks."""
    x, y, by_row, by_class = arguments(rank, ranks)
    p = x.softmax(dim=1).T  # classes first
    first_two = dist.new_group([0, 1])
    found = [
        global_normalizer(y),
        global_normalizer(y.clamp(min=0), ignore_index=0),
        global_normalizer(y, sample_weight=by_row, weight=by_class),
        global_normalizer(p, axis=0),
        global_normalizer(p, axis=0, sample_weight=by_row, weight=by_class),
    ]
    if rank < 2:
        found.append(global_normalizer(y, first_two))
    else:
        try:
            global_normalizer(y, first_two)
        except ValueError as error:
            found.append(str(error))
    return found


def step(rank, ranks):
    """The mean loss, and the gradient that DistributedDataParallel leaves."""
    x, y, by_row, by_class = arguments(rank, ranks)
    wrapped = DistributedDataParallel(model())
    total = global_normalizer(y, sample_weight=by_row, weight=by_class)
    call = {"weight": by_class, "sample_weight": by_row, "normalizer": total / ranks}
    loss = cross_entropy(wrapped(x), y, **call)
    loss.backward()
    mean = loss.detach() / ranks
    dist.all_reduce(mean)
    return mean.item(), wrapped.module.weight.grad.numpy()


def error_of_one(rank, ranks):
    """What each rank gets where the labels of the last are wrong, or none; then all go on."""
    _, y, _, _ = arguments(rank, ranks)
    wrong, found = y.clone(), []
    wrong[1] = -1
    for mistake in (wrong, y.tolist()):
        try:
            global_normalizer(mistake if rank == ranks - 1 else y)
        except (IndexError, RuntimeError, TypeError) as error:
            found += [(type(error).__name__, str(error))]
    return *found, global_normalizer(y)


def everything(rank, ranks):
    """One start of the processes for all of it."""
    return normalizers(rank, ranks), step(rank, ranks), error_of_one(rank, ranks)
