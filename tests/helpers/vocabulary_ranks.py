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
        "no class": _error(loss, x, w, torch.tensor([0, 4 * ranks, 1])),
        "bad weight": _error(
            loss, x, w, y, weight=torch.tensor([1.0, torch.inf if rank else 1, 1, 1])
        ),
        "bad shape": _error(loss, x, w.T, y),
        "target": _error(loss, x, w, torch.full((3, 4), 0.1).requires_grad_()),
    }
    frozen, leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
    loss(x, leaf, y).backward()
    loss(frozen, w, y).backward()
    with torch.no_grad():
        found["loss"] = loss(frozen, leaf, y)
    found["frozen"] = frozen.grad, leaf.grad
    found["second derivative"] = second_derivative(lambda t: loss(x, t, y), leaf)
    found["checkpoint"] = _checkpointed(lambda t, y: loss(x, t, y), w, y)
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


def _error(call, *arguments, **options):
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
        name: _error(loss, **{"logits_shard": x, "target": y, **call})
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
    found["checkpoint"] = _checkpointed(loss, x, y)
    found["in place"] = _in_place(loss, x, y)
    found["in place of a leaf"] = _error(loss, leaf, y, inplace=True)
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = loss(x.bfloat16(), y).dtype
    scale = torch.tensor(2.0)
    found["numbers"] = (
        loss(x, y, logit_scale=scale, normalizer=scale),
        loss(x, y, logit_scale=2.0, normalizer=2.0),
    )
    found["scale"] = _error(loss, x, y, logit_scale=scale.requires_grad_())
    found["target"] = _error(loss, x, torch.full_like(x, 0.25).requires_grad_())
    for name, size in ("weight", 4), ("sample_weight", 3):
        found[name] = _error(loss, x, y, **{name: torch.ones(size, requires_grad=True)})
    found["integers"] = loss(x, y.to(torch.uint8))
    return found


def second_derivative(loss, leaf):
    """The gradient of create_graph=True, and the error where it is differentiated."""
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    return gradient.detach(), *_error(torch.autograd.grad, gradient.square().sum(), leaf)


def _checkpointed(loss, x, y):
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
    found["replicated"] = _error(loss, whole, target)
    found["replicated on the last"] = _error(loss, whole if rank == ranks - 1 else x, target)
    found["rows"] = _error(loss, distribute_tensor(logits, mesh, [Shard(0)]), target)
    found["labels"] = _error(loss, x, distribute_tensor(target, mesh, [Shard(0)]))
    found["group"] = _error(loss, x, target, offset=0)
    found["target"] = _error(loss, logits, labels)
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
    found["hidden"] = _error(
        loss, **placed | {"hidden": distribute_tensor(hidden, mesh, [Shard(0)])}
    )
    found["columns"] = _error(
        loss, **placed | {"weight_shard": distribute_tensor(weight[:11], mesh, [Shard(1)])}
    )
    found["plain"] = _error(loss, **placed | {"weight_shard": weight[:11]})
    found["offset"] = _error(loss, **placed, offset=0)
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
            found[name, "rows", weight is None] = _error(loss, *longer, y, weight=weight)
        y3 = y[:3]
        found[name, "weight"] = _error(loss, *layer, y3, weight=torch.ones(4) if last else None)
        found[name, "smoothing"] = _error(loss, *layer, y3, label_smoothing=0.1 if last else 0)
        device = torch.zeros((), device="meta") if last else 2.0
        found[name, "failed"] = _error(loss, *layer, y3, logit_scale=device)
        found[name, "fine"] = _error(loss, *layer, y3)
    loss, (hidden, layer) = forms["linear"]
    hidden = hidden.requires_grad_(last)
    found["linear", "gradient"] = _error(loss, hidden, layer, y3)
    return found


def everything(rank, ranks):
    parts = every_case, every_mistake, autograd, dtensors
    parts += every_layer, layers_otherwise, linear_dtensors, other_rows
    return {part.__name__: part(rank, ranks) for part in parts}


def dies(rank, ranks):
    """The second rank is gone before the others call."""
    from xentropy.torch.parallel import vocab_parallel_cross_entropy as loss

    if rank == 1:
        os._exit(GONE)
    return _error(loss, torch.zeros(3, 4), torch.tensor([0, 1, 2]))
