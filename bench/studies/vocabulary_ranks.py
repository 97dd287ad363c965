"""Vocabulary-parallel losses on gloo, one process a rank: time, collectives and bytes of a step.

    python -m bench.studies.vocabulary_ranks [--ranks 2] [--rows 2048] [--classes 64000]

A step is the loss and its gradient, float32. Peers: torch's loss_parallel, and the formula that
takes three all-reduces (the maximum, the logit of the label, the sum of exponentials), in torch's
operations. Each rank has one thread; the time is that of the slowest, the median of the rounds,
in which all take turns. The bytes are those of the tensors that a rank gives to the collectives of
a step, as many times as they are sent on: by the arithmetic of bench.studies.parallel, whose figure
for a row is beside them.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from . import parallel

SENT = {"allreduce_": parallel.all_reduce, "allgather_": parallel.all_gather}
SENT |= {"all_reduce": parallel.all_reduce, "all_gather_into_tensor": parallel.all_gather}
ON_PAPER = {"xentropy": "one all-gather"} | dict.fromkeys(
    ("loss_parallel", "three all-reduces"), "three all-reduces"
)


class Collectives(TorchDispatchMode):
    """Counts those of this process, and the bytes that it sends in them."""

    def __init__(self):
        super().__init__()
        self.number = self.sent = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        from torch.distributed.tensor import DTensor

        if DTensor in types:
            return NotImplemented  # the operations on its local tensors come here
        name = operation._schema.name.partition("::")[2]
        if operation.namespace in {"c10d", "_c10d_functional"} and name in SENT:
            given = arguments[1] if name == "allgather_" else arguments[0]
            tensors = given if isinstance(given, list) else [given]
            size = sum(tensor.nbytes for tensor in tensors)
            self.number += 1
            self.sent += SENT[name](size, dist.get_world_size())[1]
        return operation(*arguments, **(options or {}))


def three_collectives(shard, target, first):
    """Loss and gradient in a shard: the gradient is written over the exponentials."""
    peak = shard.amax(1)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    e = shard - peak[:, None]
    own = (target >= first) & (target < first + shard.shape[1])
    local = torch.where(own, target - first, 0)
    at = torch.where(own, e.gather(1, local[:, None])[:, 0], 0)
    dist.all_reduce(at)
    total = e.exp_().sum(1)
    dist.all_reduce(total)
    loss = (total.log() - at).mean()
    e.div_(total[:, None])
    rows = torch.arange(len(e))
    e[rows[own], local[own]] -= 1
    return loss, e.div_(len(e))


def steps(rank, ranks, rows, classes):
    """The step of each of the three, by name."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    from xentropy.torch.parallel import vocab_parallel_cross_entropy

    size = classes // ranks
    mesh = init_device_mesh("cpu", (ranks,))
    shard = torch.randn(rows, size, generator=torch.Generator().manual_seed(rank)) * 3
    target = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(99))
    whole = DTensor.from_local(shard, mesh, [Shard(1)])

    def ours():
        leaf = shard.detach().requires_grad_()
        loss = vocab_parallel_cross_entropy(leaf, target)
        loss.backward()
        return loss.detach(), leaf.grad

    def torchs():
        leaf = whole.detach().requires_grad_()
        with loss_parallel():
            loss = F.cross_entropy(leaf, target)
            loss.backward()
        return loss.detach().full_tensor(), leaf.grad.to_local()

    return {
        "xentropy": ours,
        "loss_parallel": torchs,
        "three all-reduces": lambda: three_collectives(shard, target, rank * size),
    }


def measure(rank, ranks, store, rows, classes, rounds, results):
    torch.set_num_threads(1)
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=wait)
    found = {}
    calls = steps(rank, ranks, rows, classes)
    exact, gradient = calls["three all-reduces"]()
    for name, step in calls.items():
        with Collectives() as counted:
            loss, own = step()
        found[name] = counted.number, counted.sent / rows, []
        torch.testing.assert_close(loss, exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-9)
    for _ in range(rounds):
        for name, step in calls.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            found[name][-1].append(time.perf_counter() - start)
    results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("ranks", 2), ("rows", 2048), ("classes", 64000), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results, store = spawned.Queue(), f"file://{folder}/store"
        common = given.ranks, store, given.rows, given.classes, given.rounds, results
        team = [spawned.Process(target=measure, args=(r, *common)) for r in range(given.ranks)]
        for process in team:
            process.start()
        found = [results.get(timeout=300) for _ in team]
        for process in team:
            process.join()
    print(f"{given.ranks} ranks, {given.rows} rows, {given.classes} classes, float32")
    for name, (collectives, sent, _) in found[0].items():
        slowest = [max(times) for times in zip(*(each[name][-1] for each in found), strict=True)]
        figures = f"{statistics.median(slowest) * 1e3:8.1f} ms  {collectives} collectives"
        paper = parallel.WAYS[ON_PAPER[name]](1, given.ranks)[1]
        print(f"{name:18} {figures}  {sent:.2f} bytes a row ({paper:g} on paper)")


if __name__ == "__main__":
    main()
