"""Vocabulary-parallel loss in processes joined by gloo: few starts, many cases in each."""

import numpy as np
import pytest
import torch
from helpers import failing_ranks, ranks
from helpers import vocabulary_layers as layers
from helpers import vocabulary_ranks as team
from helpers.shards import TERMS, in_shards
from helpers.support import assert_bits, case

import xentropy.torch as xt
from xentropy.torch._arrays import array
from xentropy.torch.parallel import vocab_parallel_cross_entropy


def assert_cases(every):
    """Loss and gradient have the bits of the same shards in one process, on every rank."""
    size = len(every)
    for (kind, terms, how, dtype), (loss, _) in every[0].items():
        with case((kind, terms, how, dtype)):
            logits, target, options = team.arguments(kind, terms, dtype)
            first, sizes = team.shards(size, how)
            upstream = np.linspace(-1, 1, 5, dtype=np.float32) if loss.dim() else 1.0
            tensors = {n: array(v) for n, v in options.items() if isinstance(v, torch.Tensor)}
            options |= tensors
            expected, gradient = in_shards(
                array(logits), array(target), first, sizes, upstream, **options
            )
            found = [each[kind, terms, how, dtype] for each in every]
            wide = torch.promote_types(dtype, target.dtype) if kind != "labels" else dtype
            expected = torch.as_tensor(expected, dtype=torch.float64).to(wide).double()
            for each, _ in found:
                assert_bits(each.double(), expected)
            for rank, (_, own) in enumerate(found):
                part = gradient[:, first[rank] : first[rank] + sizes[rank]]
                assert_bits(array(own.double()), part.astype(np.float64))


def assert_mistakes(every):
    for found in every:
        assert found.pop("fine") == (None, "")
        assert found.pop("no class")[0] is IndexError
        for name in ("other labels", "other options"):
            kind, text = found.pop(name)
            assert kind is ValueError
            assert "is not that of rank 0" in text
        kind, text = found.pop("no range")
        assert (kind, "starts at class 1, not 4" in text) == (ValueError, True)
    kinds = [found.pop("bad weight")[0] for found in every]
    assert kinds == [ValueError if rank == 1 else RuntimeError for rank in range(len(every))]
    for found in every:
        for name in ("no tensor", "integers"):
            assert found.pop(name)[0] is TypeError, name
        for name, (kind, _) in found.items():
            assert kind is ValueError, name


def assert_autograd(every):
    x = torch.linspace(0, 1, 12).reshape(3, 4)
    whole = torch.cat([x * (rank + 1) for rank in range(len(every))], 1).requires_grad_()
    loss = xt.cross_entropy(whole, torch.tensor([0, 5, 1]))
    loss.backward()
    for rank, found in enumerate(every):
        own = whole.grad[:, 4 * rank : 4 * rank + 4]
        assert found["collectives"] == 2  # the first while the logits are read
        torch.testing.assert_close(found["gradient"], own)
        torch.testing.assert_close(found["twice"], 2 * own)
        for name in ("no_grad", "integers"):
            torch.testing.assert_close(found[name], loss.detach())
        assert_no_second_derivative(found, "cross_entropy", found["gradient"])
        assert_bits(found["checkpoint"], found["gradient"])
        places, gradient = found["in place"]
        assert places == [True]
        assert_bits(gradient, found["gradient"])
        assert "leaf" in found["in place of a leaf"][1]
        assert found["autocast"] is torch.float32
        assert found["numbers"][0] == found["numbers"][1]
        for name in ("scale", "target", "weight", "sample_weight"):
            name, (kind, text) = {"scale": "logit_scale"}.get(name, name), found[name]
            says = f"{name} requires a gradient, and has none here; give {name}.detach()"
            assert (kind, text) == (ValueError, says)


def assert_no_second_derivative(found, name, expected):
    gradient, kind, text = found["second derivative"]
    torch.testing.assert_close(gradient, expected)
    says = f"vocab_parallel_{name} has no derivative of its gradient (create_graph=True) across "
    says += f"ranks; xentropy.torch.{name} has one: gather the shards for it"
    assert (kind, text) == (RuntimeError, says)


def assert_dtensors(every):
    logits, target, _ = team.arguments("labels", "plain")
    x, target = logits[:, :11].clone().requires_grad_(), target % 11
    loss = xt.cross_entropy(x, target, torch.linspace(0, 1, 11))
    loss.backward()
    for found in every:
        torch.testing.assert_close(found["loss"], loss.detach())
        torch.testing.assert_close(found["gradient"], x.grad)
        torch.testing.assert_close(found["local"], xt.cross_entropy(x, target).detach())
        dense = xt.cross_entropy(x, logits.softmax(1)[:, :11]).detach()
        torch.testing.assert_close(found["dense"], dense)
        for name in ("replicated", "rows", "labels"):
            assert found[name][0] is ValueError, name
            assert "must be placed" in found[name][1], name
        assert "offset of its own" in found["group"][1]
        assert found["target"][0] is TypeError
    kinds = [found["replicated on the last"][0] for found in every]
    assert kinds == [RuntimeError] * (len(every) - 1) + [ValueError]


def assert_layers(every):
    """As the linear loss of one process, but for the order of sums."""
    size = len(every)
    for (kind, terms, how, dtype), (loss, *_) in every[0].items():
        with case((kind, terms, how, dtype)):
            hidden, weight, bias, target, options = layers.layer(kind, terms, dtype)
            leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
            expected = xt.linear_cross_entropy(
                *leaves[:2], target, linear_bias=leaves[2], **options
            )
            upstream = torch.linspace(-1, 1, 5) if loss.dim() else torch.tensor(0.7)
            expected.backward(upstream.to(expected.dtype))
            first, sizes = team.shards(size, how)
            for rank, (loss, of_hidden, *of_layer) in enumerate(
                (e[kind, terms, how, dtype]) for e in every
            ):
                own = slice(first[rank], first[rank] + sizes[rank])
                assert_bits(loss.double(), every[0][kind, terms, how, dtype][0].double())
                close = {"rtol": 2e-5, "atol": 2e-6} if dtype is torch.float32 else {}
                if dtype is torch.bfloat16:  # products of one process may be in bfloat16
                    close = {"rtol": 0.05, "atol": 0.02}
                torch.testing.assert_close(loss, expected.detach().to(loss.dtype), **close)
                torch.testing.assert_close(of_hidden, leaves[0].grad, **close)
                for part, leaf in zip(of_layer, leaves[1:], strict=True):
                    torch.testing.assert_close(part, leaf.grad[own], **close)


def assert_layers_otherwise(every):
    size = len(every)
    x, w = torch.zeros(3, 2, requires_grad=True), torch.zeros(4 * size, 2, requires_grad=True)
    loss = xt.linear_cross_entropy(x, w, torch.tensor([0, 1, -100]))
    loss.backward()
    for rank, found in enumerate(every):
        assert found["no class"][0] is IndexError
        assert found["bad weight"][0] is (ValueError if rank else RuntimeError)
        for name in ("bad shape", "target"):
            assert found[name][0] is ValueError, name
        of_input, of_weight = found["frozen"]
        torch.testing.assert_close(found["loss"], loss.detach())
        torch.testing.assert_close(of_input, x.grad)
        torch.testing.assert_close(of_weight, w.grad[4 * rank : 4 * rank + 4])
        assert found["nothing"] == 0
        assert_no_second_derivative(found, "linear_cross_entropy", of_weight)
        torch.testing.assert_close(found["checkpoint"], of_weight)
        # The all-reduces of the gradient of two rows, and what tells that no rank has failed.
        assert found["collectives"] == [3, 0]
        torch.testing.assert_close(found["twice"], 4 * found["frozen"][1])


def assert_layers_of_dtensors(every):
    hidden, weight, bias, target, _ = layers.layer("labels", "plain")
    leaves = [t.clone().requires_grad_() for t in (hidden, weight[:11], bias[:11])]
    weights = {"weight": torch.linspace(0, 1, 11), "sample_weight": torch.linspace(1, 2, 5)}
    layer = {"linear_bias": leaves[2]}
    loss = xt.linear_cross_entropy(*leaves[:2], target % 11, **layer, **weights)
    loss.backward()
    plain = xt.linear_cross_entropy(hidden, weight[:11], target % 11)
    dense = xt.linear_cross_entropy(hidden, weight[:11], torch.full((5, 11), 1 / 11))
    for found in every:
        torch.testing.assert_close(found["loss"], loss.detach())
        for gradient, leaf in zip(found["gradients"], leaves, strict=True):
            torch.testing.assert_close(gradient, leaf.grad)
        assert found["places"]
        torch.testing.assert_close(found["local"], plain)
        torch.testing.assert_close(found["dense"], dense)
        for name, says in {
            "hidden": "hidden must be placed",
            "columns": "weight_shard must be placed",
            "plain": "weight_shard must be a DTensor where",
            "offset": "weight_shard is a DTensor: it has a group and an offset",
        }.items():
            assert says in found[name][1]


def assert_rows_that_differ(every):
    """Every rank says which rank differs from the first, and none waits for it."""
    last = len(every) - 1
    for rank, found in enumerate(every):
        for (_, what, *_), (kind, text) in found.items():
            if what == "fine":
                assert kind is None
            elif what == "rows":
                says = "rank 1 has 4 rows, and rank 0 3: all ranks must have the same rows"
                assert (kind, text) == (ValueError, says)
            elif what == "failed" and rank < last:
                assert (kind, text) == (
                    RuntimeError,
                    f"the loss has failed on rank {last} of the group",
                )
            elif what == "failed":
                assert "logit_scale is on meta" in text
            else:
                assert kind is ValueError
                assert f"of rank {last} is not that of rank 0" in text


@pytest.mark.parametrize("size", [2, 4])
def test_cases(size, tmp_path):
    assert_cases(ranks.run(team.every_case, size, tmp_path, size))


def test_all_else(tmp_path):
    parts = team.every_case, team.every_mistake, team.autograd, team.dtensors, team.other_rows
    parts += layers.every_layer, layers.layers_otherwise, layers.linear_dtensors
    found = ranks.run(team.several, 3, tmp_path, 3, parts)
    assert_cases([each["every_case"] for each in found])
    assert_mistakes([each["every_mistake"] for each in found])
    assert_autograd([each["autograd"] for each in found])
    assert_dtensors([each["dtensors"] for each in found])
    assert_layers([each["every_layer"] for each in found])
    assert_layers_otherwise([each["layers_otherwise"] for each in found])
    assert_layers_of_dtensors([each["linear_dtensors"] for each in found])
    assert_rows_that_differ([each["other_rows"] for each in found])


def test_a_rank_that_dies_ends_the_others(tmp_path):
    (((own, _), (kind, text)),) = ranks.run(team.dies, 2, tmp_path, 2)
    assert own is ValueError  # what it does wrong itself comes first
    assert issubclass(kind, RuntimeError)
    assert "gloo" in text  # torch's


def test_a_rank_that_fails_says_so_to_the_others(tmp_path):
    """Whenever it is; and the group is as good as before."""
    every = ranks.run(failing_ranks.every_failure, 2, tmp_path, 2)
    failure = RuntimeError, "the loss has failed on rank 1 of the group"
    for name, fails in failing_ranks.CASES.items():
        with case(name):
            assert every[1][name] == (fails.error, "none is left")
            assert every[0][name] == (failure if fails.reaches else (None, ""))
            assert [found[name, "after"] for found in every] == [(None, "")] * 2


def test_a_rank_that_is_interrupted_waits_for_none_that_has_failed(tmp_path):
    found = ranks.run(failing_ranks.two_failures, 2, tmp_path, 2)
    errors = [kind for (kind, _), _ in found]
    assert errors == [KeyboardInterrupt, MemoryError]
    assert [after for _, after in found] == [(None, "")] * 2


@pytest.mark.parametrize("terms", TERMS)
def test_a_group_of_one(terms):
    logits, target, options = team.arguments("labels", terms)
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = (
        vocab_parallel_cross_entropy(x, target, **options),
        xt.cross_entropy(y, target, **options),
    )
    assert_bits(*(loss.detach() for loss in losses))
    for loss in losses:
        loss.sum().backward()
    assert_bits(x.grad, y.grad)
    for loss, leaf in (vocab_parallel_cross_entropy, x), (xt.cross_entropy, y):
        total = loss(leaf, target, **options).sum()
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
        leaf.grad = torch.autograd.grad(gradient.square().sum(), leaf)[0]
    assert_bits(x.grad, y.grad)
    with pytest.raises(ValueError, match="offset = 3, but a group of one rank has all classes"):
        vocab_parallel_cross_entropy(x, target, offset=3)
