"""Files that the safetensors package has written."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from xentropy._files import open_logits, open_targets


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("metadata", [None, {"format": "pt", "more": "ä" * 100}])
def test_floats_and_integers(tmp_path, dtype, metadata):
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(dtype)
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        target = np.arange(5).astype(kind)
        path = tmp_path / f"{kind}.safetensors"
        save_file({"logits": logits, "labels": target, "more": np.ones(3, "int8")}, path, metadata)
        found = open_logits(path)
        assert found.dtype == logits.dtype
        np.testing.assert_array_equal(found.rows(1, 5), logits[1:])
        np.testing.assert_array_equal(found.targets(1, 4), target[1:4])
        np.testing.assert_array_equal(open_targets(path, (5,), name="labels").rows(0, 5), target)


def test_bfloat16(tmp_path):
    """Which NumPy's part of the package does not write: PyTorch's does."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    path = tmp_path / "logits.safetensors"
    save_file({"logits": logits}, path)
    rows = open_logits(path).rows(0, 4)
    assert rows.dtype == bfloat16
    np.testing.assert_array_equal(rows.astype(np.float32), logits.float().numpy())
