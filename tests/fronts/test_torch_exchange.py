"""The memory of tensors as arrays and as numbers, without a copy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import gradients, labels, probabilities, seeded

from xentropy import _kernels
from xentropy.torch import CrossEntropyLoss, _arrays, cross_entropy

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
QUICK = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="before 2.10 torch has no C exchange",
)
SLOW = _kernels.Tensors(_arrays.PLAIN, None, None, torch.empty_like, _arrays.tensor)


# --- arrays ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_copied(dtype):
    for x in (seeded(6, 8, dtype=dtype), seeded(8, 6, dtype=dtype).T, seeded(6, 16)[:, ::2]):
        x = x.to(dtype)
        for a in (_arrays.array(x), *_arrays.arrays((x,))):
            assert a.ctypes.data == x.data_ptr()
            assert a.strides == tuple(s * x.element_size() for s in x.stride())
            t = _arrays.tensor(a)
            assert (t.data_ptr(), t.dtype, t.stride()) == (x.data_ptr(), x.dtype, x.stride())


@QUICK
def test_the_quick_arrays_keep_their_tensors_and_are_torchs():
    tensors = (
        seeded(3, 4).detach(),
        torch.tensor(3),
        None,
        seeded(2, 3, 4).detach().expand(5, 2, 3, 4),
    )
    found = _arrays.TENSORS.arrays(tensors)
    for t, a in zip(tensors, found, strict=True):
        if t is None:
            assert a is None
            continue
        b = t.numpy()
        assert a.base is t
        assert (a.dtype, a.shape, a.strides, a.flags.aligned) == (b.dtype, b.shape, b.strides, True)
        assert np.array_equal(a, b)


@QUICK
def test_tensors_with_no_quick_array_take_the_other_way():
    x, y = seeded(4, 3).detach(), labels((4, 3))
    for odd in (torch._neg_view(x), x.to_sparse(), x[:0], x.to("meta"), x.to(torch.uint8)):
        assert _arrays.TENSORS.arrays((y, odd)) is None
    assert torch.equal(cross_entropy(torch._neg_view(x), y), cross_entropy(-x, y))
    p = probabilities((4, 3))
    assert torch.equal(cross_entropy(x, torch._neg_view(-p)), cross_entropy(x, p))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_before_torch_had_quick_arrays_the_bits_were_the_same(monkeypatch, dtype):
    x, y, weight = seeded(7, 5, dtype=dtype), labels((7, 5)), torch.linspace(0.5, 2, 5).to(dtype)
    quick = gradients(cross_entropy, x, y, weight=weight)
    monkeypatch.setattr(_arrays, "TENSORS", SLOW)
    for a, b in zip(gradients(cross_entropy, x, y, weight=weight)[:2], quick[:2], strict=True):
        assert torch.equal(a, b)


# --- numbers ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_read_and_written_where_they_are(dtype):
    for value in (0.1, -3.0, torch.inf, torch.nan):
        x = torch.tensor(value, dtype=dtype)
        zero = torch._efficientzerotensor(())
        for each in (x, torch._neg_view(x), torch.stack([x, -x])[1], zero):
            assert np.array_equal(_arrays.number(each), each.item(), equal_nan=True)
        y = _arrays.loss_tensor(value, dtype)
        assert (y.dtype, y.shape, y.requires_grad) == (dtype, (), False)
        assert torch.equal(y.nan_to_num(5), x.nan_to_num(5))


@QUICK
def test_numbers_that_are_not_there_are_neither_read_nor_written():
    x = torch.tensor(2.0)
    for odd in (x.half(), x.int(), x[None], x.to_sparse(), x.to("meta")):
        assert _arrays.TENSORS.number(odd) is None
        assert not _arrays.TENSORS.put(odd, 3)
    for tensors, each in ((_arrays.TENSORS, torch._neg_view(x)), (SLOW, x)):
        assert tensors.number(each) is None
    assert x == 2


@pytest.mark.parametrize("tensors", [_arrays.TENSORS, SLOW], ids=["quick", "slow"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_loss_too_large_for_its_type_is_infinite(monkeypatch, dtype, tensors):
    """Python's numbers and torch's own .fill_() would raise."""
    monkeypatch.setattr(_arrays, "TENSORS", tensors)
    huge = 0.9 * torch.finfo(dtype).max
    x, y = torch.tensor([[huge, -huge]], dtype=dtype), torch.tensor([1])
    for reduction in ("mean", "sum"):
        for given in (x, x.clone().requires_grad_()):
            assert cross_entropy(given, y, reduction=reduction) == torch.inf
            assert CrossEntropyLoss(reduction=reduction)(given, y) == torch.inf
    assert F.cross_entropy(x, y) == torch.inf


def test_a_loss_is_an_ordinary_tensor_whatever_was_active_at_the_first(monkeypatch):
    x, y = seeded(4, 3), labels((4, 3))
    expected = cross_entropy(x, y)
    monkeypatch.setattr(_arrays, "LIKE", {})
    with torch.inference_mode(), torch.device("meta"):
        assert cross_entropy(x.detach(), y).device.type == "cpu"
    loss = cross_entropy(x, y)
    loss.backward()
    assert loss == expected
    assert not cross_entropy(x.detach(), y).is_inference()
