"""Public functions, their compiled forms and the record of options: names, defaults, order."""

import inspect
import pickle

import pytest
from helpers.bad_calls import FUNCTIONS

import xentropy as xe
from xentropy import _kernels

FORWARD = list(inspect.signature(xe.cross_entropy).parameters)
OPTIONS = _kernels.Options.NAMES


def test_the_record_has_the_options_of_the_public_function_and_their_defaults():
    defaults = inspect.signature(xe.cross_entropy).parameters
    assert set(OPTIONS) == set(FORWARD) - {
        *("logits", "target", "weight", "sample_weight", "empty_mean")
    }
    record = _kernels.make_options()
    assert {n: getattr(record, n) for n in OPTIONS} == {n: defaults[n].default for n in OPTIONS}
    given = {name: object() for name in OPTIONS}
    record = _kernels.make_options(**given)
    assert {name: getattr(record, name) for name in OPTIONS} == given


@pytest.mark.parametrize("function", FUNCTIONS)
def test_public_functions_are_compiled_as_they_are_declared(function):
    declared, compiled = inspect.unwrap(function), getattr(_kernels, function.__name__)
    assert function is compiled is pickle.loads(pickle.dumps(compiled))
    both = (inspect.signature(f, follow_wrapped=False) for f in (declared, compiled))
    for one, other in zip(*(s.parameters.values() for s in both), strict=True):
        assert (one.name, one.kind) == (other.name, other.kind)
        assert one.default is other.default or one.default == other.default


def test_signatures_are_what_users_read():
    names = list(inspect.signature(xe.cross_entropy_with_grad).parameters)
    assert names == [*FORWARD[:-1], "grad_output", "out", "n_threads"]
    for function in FUNCTIONS:
        defaults = inspect.signature(function).parameters
        assert defaults["ignore_index"].default == -100
        assert defaults["reduction"].default == "mean"
