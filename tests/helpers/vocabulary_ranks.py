"""What the ranks of a vocabulary-parallel loss do, in processes of their own (`ranks.run`)."""

import os

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from .ranks import GONE
from .shards import TERMS
from .support import TARGETS, make_logits, make_target

CLASSES = 12
DTYPES = torch.float16, torch.bfloat16, torch.float64


def arguments(kind, terms, dtype=torch.float32):
    """Logits of all classes, target, and options with tensors."""
    shape, options = (5, CLASSES), dict(TERMS[terms])
    logits = torch.from_numpy(make_logits(shape).copy()).to(dtype)
    target = torch.from_numpy(make_target(kind, shape).copy())
    if kind == "labels":
        target[2] = -100
    if options.pop("weight", False):
        options["weight"] = torch.linspace(0, 2, CLASSES)
    if options.pop("sample_weight", False):
        options["sample_weight"] = torch.tensor([0.5, 2, 1, 0, 1])
    return logits, target, options


def shards(ranks, how):
    """The first class of each rank, and how many it has."""
    sizes = [CLASSES // ranks] * ranks
    if how == "uneven":
        sizes = [1] * (ranks - 1) + [CLASSES - ranks + 1]
    first = [sum(sizes[:rank]) for rank in range(ranks)]
    return (first[::-1], sizes[::-1]) if how == "turned" else (first, sizes)


def on_rank(function, rank, ranks, kind, terms, how="even", dtype=torch.float32, **more):
    """(loss, gradient) of this rank's shard."""
    logits, target, options = arguments(kind, terms, dtype)
    first, sizes = (each[rank] for each in shards(ranks, how))
    own = slice(first, first + sizes)
    if "weight" in options:
        options["weight"] = options["weight"][own]
    target = target[:, own] if kind == "probabilities" else target
    shard = logits[:, own].clone().requires_grad_()
    offset = None if how == "even" else first
    loss = function(shard, target, offset=offset, **options, **more)
    loss.backward(torch.linspace(-1, 1, 5).to(loss.dtype) if loss.dim() else None)
    return loss.detach(), shard.grad


def every_case(rank, ranks):
    """Answers by name of the case."""
    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    found = {}
    for kind in TARGETS:
        for terms in TERMS:
            found[kind, terms, "even", torch.float32] = on_rank(loss, rank, ranks, kind, terms)
        for dtype in DTYPES:
            call = kind, "plain", "even", dtype
            found[call] = on_rank(loss, rank, ranks, *call)
        for how in ("uneven", "turned"):
            call = kind, "all", how, torch.float32
            found[call] = on_rank(loss, rank, ranks, *call)
    return found


def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    return None, ""


def every_mistake(rank, ranks):
    """What each rank raises; after each of these the group is as good as before."""
    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    x, y, first = torch.zeros(3, 4), torch.tensor([0, 1, -100]), rank == 0
    calls = {
        "no class": {"target": torch.tensor([0, 4 * ranks, 1])},
        "other labels": {"target": torch.tensor([0, int(first), 1])},
        "other options": {"z_loss": 0.1 if first else 0.2},
        "no range": {"offset": rank},
        "bad weight": {"weight": torch.tensor([1.0, torch.inf if rank == 1 else 1, 1, 1])},
        "bad target": {"target": torch.zeros(3)},
        "bad shape": {"target": torch.tensor([0, 1])},
        "bad option": {"label_smoothing": 2.0},
        "no tensor": {"sample_weight": [1.0, 1.0, 1.0]},
        "integers": {"logits_shard": x.int()},
        "negative offset": {"offset": -1},
        "fine": {},
    }
    return {
        name: error_of(loss, **{"logits_shard": x, "target": y, **call})
        for name, call in calls.items()
    }


def autograd(rank, ranks):
    """What goes beyond one call of backward."""
    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    found, x, y = {}, torch.linspace(0, 1, 12).reshape(3, 4) * (rank + 1), torch.tensor([0, 5, 1])
    group = dist.distributed_c10d._get_default_group()
    before = group._get_sequence_number_for_group()
    leaf = x.clone().requires_grad_()
    of = loss(leaf, y)
    of.backward(retain_graph=True)
    found["collectives"] = group._get_sequence_number_for_group() - before
    found["gradient"] = leaf.grad.clone()
    of.backward()
    found["twice"] = leaf.grad
    found["no_grad"] = _no_grad(loss, leaf, y)
    found["second derivative"] = second_derivative(lambda t: loss(t, y), leaf)
    found["checkpoint"] = checkpointed(loss, x, y)
    found["in place"] = _in_place(loss, x, y)
    found["in place of a leaf"] = error_of(loss, leaf, y, inplace=True)
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = loss(x.bfloat16(), y).dtype
    scale = torch.tensor(2.0)
    found["numbers"] = (
        loss(x, y, logit_scale=scale, normalizer=scale),
        loss(x, y, logit_scale=2.0, normalizer=2.0),
    )
    found["scale"] = error_of(loss, x, y, logit_scale=scale.requires_grad_())
    found["target"] = error_of(loss, x, torch.full_like(x, 0.25).requires_grad_())
    for name, size in ("weight", 4), ("sample_weight", 3):
        found[name] = error_of(loss, x, y, **{name: torch.ones(size, requires_grad=True)})
    found["integers"] = loss(x, y.to(torch.uint8))
    return found


def second_derivative(loss, leaf):
    """The gradient of create_graph=True, and the error where it is differentiated."""
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    return gradient.detach(), *error_of(torch.autograd.grad, gradient.square().sum(), leaf)


def checkpointed(loss, x, y):
    """The gradient where saved tensors may be unpacked once."""
    leaf = x.detach().clone().requires_grad_()
    checkpoint(loss, leaf, y, use_reentrant=False).backward()
    return leaf.grad


def _no_grad(loss, leaf, y):
    with torch.no_grad():
        return loss(leaf, y)


def _in_place(loss, x, y):
    leaf = x.clone().requires_grad_()
    logits = leaf * 1
    place = logits.data_ptr()
    logits.register_hook(lambda gradient: places.append(gradient.data_ptr() == place))
    places = []
    loss(logits, y, inplace=True).backward()
    return places, leaf.grad


def dtensors(rank, ranks):
    """DTensors along the class axis, of a number of classes that is not a multiple of the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    mesh = init_device_mesh("cpu", (ranks,))
    logits, target, _ = arguments("labels", "plain")
    dense, weight = logits.softmax(1)[:, :11], torch.linspace(0, 1, 11)
    x = distribute_tensor(logits[:, :11], mesh, [Shard(1)]).requires_grad_()
    target = target % 11
    labels = distribute_tensor(target, mesh, [Replicate()])
    weights = distribute_tensor(weight, mesh, [Shard(0)])
    of = loss(x, labels, weight=weights)
    of.backward()
    found = {"loss": of.detach(), "gradient": x.grad.full_tensor()}
    found["dense"] = loss(x, distribute_tensor(dense, mesh, [Shard(1)])).detach()
    found["local"] = loss(x, target).detach()
    whole = distribute_tensor(logits, mesh, [Replicate()])
    found["replicated"] = error_of(loss, whole, target)
    found["replicated on the last"] = error_of(loss, whole if rank == ranks - 1 else x, target)
    found["rows"] = error_of(loss, distribute_tensor(logits, mesh, [Shard(0)]), target)
    found["labels"] = error_of(loss, x, distribute_tensor(target, mesh, [Shard(0)]))
    found["group"] = error_of(loss, x, target, offset=0)
    found["target"] = error_of(loss, logits, labels)
    return found


def other_rows(rank, ranks):
    """Ranks whose messages would differ in size; after each of these the group is as before."""
    from xentropy.torch import parallel

    rows, last = 3 + (rank == 1), rank == ranks - 1
    y = torch.zeros(rows, dtype=torch.int64)
    forms = {
        "logits": (parallel.vocab_parallel_cross_entropy, (torch.zeros(3, 4),)),
        "linear": (
            parallel.vocab_parallel_linear_cross_entropy,
            (torch.zeros(3, 2), torch.zeros(4, 2)),
        ),
    }
    found = {}
    for name, (loss, layer) in forms.items():
        longer = torch.zeros(rows, layer[0].shape[1]), *layer[1:]
        for weight in None, torch.ones(4):
            found[name, "rows", weight is None] = error_of(loss, *longer, y, weight=weight)
        y3 = y[:3]
        found[name, "weight"] = error_of(loss, *layer, y3, weight=torch.ones(4) if last else None)
        found[name, "smoothing"] = error_of(loss, *layer, y3, label_smoothing=0.1 if last else 0)
        device = torch.zeros((), device="meta") if last else 2.0
        found[name, "failed"] = error_of(loss, *layer, y3, logit_scale=device)
        found[name, "fine"] = error_of(loss, *layer, y3)
    loss, (hidden, layer) = forms["linear"]
    hidden = hidden.requires_grad_(last)
    found["linear", "gradient"] = error_of(loss, hidden, layer, y3)
    return found


def several(rank, ranks, parts):
    """The answers of these functions, by their names."""
    return {part.__name__: part(rank, ranks) for part in parts}


def dies(rank, ranks):
    """The second rank is gone before the others call."""
    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["met"])  # or the other may still be joining the group
        os._exit(GONE)
    store.set("met", "")
    x, y = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    return error_of(loss, x, y, label_smoothing=2.0), error_of(loss, x, y)
