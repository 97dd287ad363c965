"""torch's own test cases for cross entropy, run on xentropy.torch."""

import pytest
from helpers.torch_oracle import assert_as_torch
from torch.testing._internal import common_methods_invocations as cases

CASES = next(case for case in cases.op_db if case.name == "nn.functional.cross_entropy")


@pytest.mark.parametrize("dtype", sorted(CASES.dtypes, key=str), ids=str)
def test_torchs_samples(dtype):
    samples = list(CASES.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 20
    for sample in samples:
        (target,) = sample.args
        assert_as_torch(sample.input, target, str(sample.kwargs), **sample.kwargs)


def test_torchs_error_cases():
    if CASES.error_inputs_func is None:
        pytest.skip("torch has no error cases for cross entropy")
    from xentropy.torch import cross_entropy

    for case in CASES.error_inputs("cpu"):
        with pytest.raises(case.error_type):
            cross_entropy(case.sample_input.input, *case.sample_input.args)
