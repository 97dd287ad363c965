"""The same of the linear form: a layer whose classes are spread over the ranks."""

import torch
import torch.distributed as dist

from .shards import TERMS
from .support import TARGETS, make_logits
from .vocabulary_ranks import (
    CLASSES,
    DTYPES,
    arguments,
    checkpointed,
    error_of,
    second_derivative,
    shards,
)


def layer(kind, terms, dtype=torch.float32):
    """Hidden states, weight and bias of all classes, target, and options with tensors."""
    _, target, options = arguments(kind, terms)
    numbers = torch.from_numpy(make_logits((5 + CLASSES, 7), seed=5).copy()).to(dtype)
    return numbers[:5], numbers[5:] / 4, numbers[5:, 0], target, options


def linear_on_rank(function, rank, ranks, kind, terms, how="even", dtype=torch.float32, **more):
    """(loss, gradients) of this rank's part of a layer."""
    hidden, weight, bias, target, options = layer(kind, terms, dtype)
    first, sizes = (each[rank] for each in shards(ranks, how))
    own = slice(first, first + sizes)
    if "weight" in options:
        options["weight"] = options["weight"][own]
    target = target[:, own] if kind == "probabilities" else target
    leaves = [t.clone().requires_grad_() for t in (hidden, weight[own], bias[own])]
    more |= {} if how == "even" else {"offset": first}
    loss = function(*leaves[:2], target, bias_shard=leaves[2], **options, **more)
    loss.backward(torch.linspace(-1, 1, 5).to(loss.dtype) if loss.dim() else torch.tensor(0.7))
    return loss.detach(), *(leaf.grad for leaf in leaves)


def every_layer(rank, ranks):
    """Answers of the linear form by name of the case."""
    from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy as loss

    found = {}
    for kind in TARGETS:
        for terms in TERMS:
            call = kind, terms, "even", torch.float32
            found[call] = linear_on_rank(loss, rank, ranks, *call, logits_bytes=100)
        for dtype in DTYPES:
            call = kind, "plain", "even", dtype
            found[call] = linear_on_rank(loss, rank, ranks, *call)
        for terms in ("all", "weight"):
            call = kind, terms, "uneven", torch.float32
            found[call] = linear_on_rank(loss, rank, ranks, *call, logits_bytes=60)
    return found


def layers_otherwise(rank, ranks):
    """Mistakes, and gradients that are not wanted."""
    from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy as loss

    x, w, y = torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, -100])
    found = {
        "no class": error_of(loss, x, w, torch.tensor([0, 4 * ranks, 1])),
        "bad weight": error_of(
            loss, x, w, y, weight=torch.tensor([1.0, torch.inf if rank else 1, 1, 1])
        ),
        "bad shape": error_of(loss, x, w.T, y),
        "target": error_of(loss, x, w, torch.full((3, 4), 0.1).requires_grad_()),
    }
    frozen, leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
    loss(x, leaf, y).backward()
    loss(frozen, w, y).backward()
    with torch.no_grad():
        found["loss"] = loss(frozen, leaf, y)
    found["frozen"] = frozen.grad, leaf.grad
    found["second derivative"] = second_derivative(lambda t: loss(x, t, y), leaf)
    found["checkpoint"] = checkpointed(lambda t, y: loss(x, t, y), w, y)
    found["collectives"] = _collectives_of_backward(loss, x, w, y)
    twice = leaf.detach().requires_grad_()
    of = loss(x, twice, y, reduction="none")
    for _ in range(2):
        of.sum().backward(retain_graph=True)
    found["twice"] = twice.grad
    found["nothing"] = loss(x, w, torch.full((3,), -100), empty_mean=0.0)
    return found


def _collectives_of_backward(loss, x, w, y):
    """Where the losses of rows have two chunks: of hidden states with a gradient, and without."""
    group, found = dist.distributed_c10d._get_default_group(), []
    for needed in (True, False):
        hidden, layer = x.clone().requires_grad_(needed), w.clone().requires_grad_()
        losses = loss(hidden, layer, y, reduction="none", logits_bytes=1)
        before = group._get_sequence_number_for_group()
        losses.sum().backward()
        found.append(group._get_sequence_number_for_group() - before)
    return found


def linear_dtensors(rank, ranks):
    """A layer whose weight is sharded along the classes, of any number."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from xentropy.torch.parallel import vocab_parallel_linear_cross_entropy as loss

    mesh = init_device_mesh("cpu", (ranks,))
    hidden, weight, bias, target, _ = layer("labels", "plain")
    dense, target = weight.new_full((5, 11), 1 / 11), target % 11
    names = ["hidden", "weight_shard", "bias_shard", "target", "weight", "sample_weight"]
    by_class, by_row = torch.linspace(0, 1, 11), torch.linspace(1, 2, 5)
    given = hidden, weight[:11], bias[:11], target, by_class, by_row
    parts = Replicate(), Shard(0), Shard(0), Replicate(), Shard(0), Replicate()
    each = zip(names, given, parts, strict=True)
    placed = {name: distribute_tensor(t, mesh, [place]) for name, t, place in each}
    leaves = [placed[name].requires_grad_() for name in names[:3]]
    of = loss(**placed)
    of.backward()
    found = {"loss": of.detach(), "gradients": [leaf.grad.full_tensor() for leaf in leaves]}
    found["places"] = [tuple(leaf.grad.placements) for leaf in leaves] == [(p,) for p in parts[:3]]
    found["local"] = loss(hidden, placed["weight_shard"], target).detach()
    shard = {"target": distribute_tensor(dense, mesh, [Shard(1)])}
    found["dense"] = loss(hidden, placed["weight_shard"], **shard).detach()
    found["hidden"] = error_of(
        loss, **placed | {"hidden": distribute_tensor(hidden, mesh, [Shard(0)])}
    )
    found["columns"] = error_of(
        loss, **placed | {"weight_shard": distribute_tensor(weight[:11], mesh, [Shard(1)])}
    )
    found["plain"] = error_of(loss, **placed | {"weight_shard": weight[:11]})
    found["offset"] = error_of(loss, **placed, offset=0)
    return found
