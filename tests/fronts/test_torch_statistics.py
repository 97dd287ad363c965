"""xentropy.torch.row_statistics, and tensors in evaluations."""

import builtins

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.evaluations import batch, bits  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

import xentropy as xe  # noqa: E402
import xentropy.torch as xt  # noqa: E402
from xentropy.torch import _statistics  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float64: 1e-12}  # else of some roundings of float32


def rows_and_labels(dtype=torch.float32, shape=(12, 7)):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    y = torch.arange(x.numel() // shape[1]).reshape(shape[:1] + shape[2:]) % shape[1]
    y.view(-1)[3] = -100
    return x.to(dtype), y


def assert_same(found, expected, rtol):
    for name, a, b in zip(xt.RowStatistics._fields, found, expected, strict=True):
        if b is None:
            assert a is None, name
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.allclose(a, b, rtol=rtol, atol=rtol / 10, equal_nan=True), name


def of_arrays(x, y, **options):
    """xentropy.row_statistics of the numbers of tensors."""
    wide = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    found = xe.row_statistics(wide.numpy(), None if y is None else y.numpy(), **options)
    return [None if f is None else torch.from_numpy(np.asarray(f)) for f in found]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", [True, False])
def test_is_that_of_arrays(dtype, target):
    x, y = rows_and_labels(dtype)
    y = y if target else None
    expected = of_arrays(x, y, logit_scale=0.5, softcap=4.0)
    found = xt.row_statistics(x, y, logit_scale=0.5, softcap=4.0)
    assert_same(found, expected, rtol=0)
    by_torch = _statistics._by_torch(x, y, 1, -100, 0.5, 4.0)
    assert_same(by_torch, expected, TOLERANCE.get(dtype, 2e-6))


@pytest.mark.parametrize("dim", [1, -1, 0])
def test_any_dimension(dim):
    x, y = rows_and_labels(shape=(4, 7, 3))
    x = x.movedim(1, dim)
    expected = of_arrays(x, y, axis=dim)
    assert_same(xt.row_statistics(x, y, dim=dim), expected, rtol=0)
    assert_same(_statistics._by_torch(x, y, dim, -100, 1.0, None), expected, 2e-6)


def test_one_row():
    x = torch.tensor([1.0, 3.0, 3.0])
    found = xt.row_statistics(x, torch.tensor(2))
    assert (found.argmax.item(), found.rank.item(), found.loss.shape) == (1, 1, ())
    assert_same(_statistics._by_torch(x, torch.tensor(2), 0, -100, 1.0, None), found, 2e-6)


def test_rows_without_a_softmax_and_ties():
    inf, nan = torch.inf, torch.nan
    rows = [[nan, 1, nan], [1, inf, inf], [-inf, -inf, -inf], [0, -inf, 0], [2, 2, 2], [0, -200, 1]]
    x, y = torch.tensor(rows), torch.tensor([0, 2, 1, 1, 2, -100])
    found = xt.row_statistics(x, y)
    assert_same(found, of_arrays(x, y), rtol=0)
    assert_same(_statistics._by_torch(x, y, 1, -100, 1.0, None), found, 2e-6)


def test_results_have_no_gradient_and_the_logits_may():
    x, y = rows_and_labels()
    found = xt.row_statistics(x.requires_grad_(), y)
    by_torch = _statistics._by_torch(x, y, 1, -100, 1.0, None)
    with torch.no_grad():
        assert_same(found, xt.row_statistics(x, y), rtol=0)
    assert not any(each.requires_grad for each in (*found, *by_torch))


def test_compiled_without_a_break():
    torch.compiler.reset()
    x, y = rows_and_labels()
    compiled = torch.compile(
        lambda a, b: xt.row_statistics(a, b, logit_scale=2.0), fullgraph=True, backend="aot_eager"
    )
    assert_same(compiled(x, y), xt.row_statistics(x, y, logit_scale=2.0), 2e-6)


def test_other_devices():
    x, y = (each.to("meta") for each in rows_and_labels())
    assert [each.device.type for each in xt.row_statistics(x, y)] == ["meta"] * 7
    with FakeTensorMode():
        assert xt.row_statistics(torch.zeros(3, 4)).lse.shape == (3,)


def test_vmap():
    x, y = rows_and_labels(shape=(5, 7, 3))
    found = torch.func.vmap(xt.row_statistics)(x.movedim(1, 2), y)
    assert_same(found, xt.row_statistics(x, y), 2e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (([[1.0]],), {}, TypeError, "logits must be a tensor, not list"),
        ((torch.zeros(2, 3), [0, 1]), {}, TypeError, "target must be a tensor, not list"),
        ((torch.zeros(2, 3, dtype=int),), {}, TypeError, "logits must be floating, not torch.int"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {}, TypeError, "target must be integers"),
        ((torch.zeros(2, 3), torch.tensor([0, 3])), {}, IndexError, r"target\[1\] = 3 is out of"),
        ((torch.zeros(2, 3), torch.tensor([0])), {}, ValueError, r"target has shape \(1,\)"),
        ((torch.zeros(2, 3),), {"dim": 2}, IndexError, "Dimension out of range"),
        ((torch.zeros(2, 3),), {"softcap": -1.0}, ValueError, "softcap = -1.0"),
        (
            (torch.zeros(2, 3, device="meta"), torch.zeros(3, dtype=int, device="meta")),
            *({}, ValueError, r"target has shape torch.Size\(\[3\]\), not"),
        ),
    ],
)
def test_errors(arguments, options, error, says):
    with pytest.raises(error, match=says):
        xt.row_statistics(*arguments, **options)


# --- evaluations ---


def evaluated(kind, *arguments, **options):
    evaluation = kind()
    evaluation.update(*arguments, **options)
    return bits(evaluation.result())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluations_take_tensors(dtype, monkeypatch):
    given = {name: value for name, value in batch().items() if name != "group"}
    x, y = (torch.from_numpy(given.pop(name)).to(dtype) for name in ("logits", "base_logits"))
    target, size = torch.from_numpy(given["target"]), torch.from_numpy(given["bytes"])
    weight, group = torch.from_numpy(given["sample_weight"]), torch.arange(60) // 9
    more = {"sample_weight": weight, "group": group}
    arrays = {name: value.numpy() for name, value in more.items()}
    wide = [each.to(torch.promote_types(dtype, torch.float32)).numpy() for each in (x, y)]
    one = evaluated(xe.Evaluation, wide[0], target.numpy(), **arrays, bytes=size.numpy())
    two = evaluated(xe.PairedEvaluation, *wide, target.numpy(), **arrays)
    real = builtins.__import__

    def without_ml_dtypes(name, *others):
        if name == "ml_dtypes":
            raise ImportError(name)
        return real(name, *others)

    for importing in (real, without_ml_dtypes):
        monkeypatch.setattr(builtins, "__import__", importing)
        x.requires_grad_()
        assert evaluated(xe.Evaluation, x, target, **more, bytes=size) == one
        assert evaluated(xe.PairedEvaluation, x, y, target, **more) == two
