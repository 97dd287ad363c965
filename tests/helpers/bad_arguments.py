"""Arguments that are wrong whatever the call, and the test that they are refused.

The wrong types of arrays, numbers and integers are the same for every argument that takes one.
"""

import re

import numpy as np
import pytest

NAN, INF = np.nan, np.inf


def masked(a):
    return np.ma.masked_array(a, mask=np.zeros_like(a, bool))


def bytes_of(value):
    """The bytes of an array (a masked one's too), or of arrays in a list."""
    if isinstance(value, list):
        return [bytes_of(each) for each in value]
    return value.tobytes() if isinstance(value, np.ndarray) and not value.dtype.hasobject else None


def refused(function, arguments, exception, says):
    """The call fails as it should, and changes no byte of any array it was given."""
    before = {name: bytes_of(value) for name, value in arguments.items()}
    with pytest.raises(exception) as caught:
        function(**arguments)
    assert caught.type is exception
    for pattern in says:
        assert re.search(pattern, str(caught.value)), f"{caught.value} does not say {pattern}"
    assert {name: bytes_of(value) for name, value in arguments.items()} == before, "was written"


class Unready:
    """What a tensor that keeps its graph does when it is asked for its array."""

    def __array__(self, *_args, **_kwargs):
        raise RuntimeError("call detach first")


def wrong_arrays(name, a, *, without=(), **others):
    """Cases for the argument `name`, each in the shape of `a`: nothing that holds numbers."""
    made = {
        "None": None,
        "text": np.asarray(a).astype(str),
        "bytes": np.asarray(a).astype("S4"),
        "a word": "logits",
        "object": np.asarray(a, object),
        "complex": np.asarray(a) * 1j,
        "long double": np.asarray(a, np.longdouble),
        "dates": np.zeros(np.shape(a), "M8[s]"),
        "times": np.zeros(np.shape(a), "m8[s]"),
        "structured": np.zeros(np.shape(a), "f4,f4"),
        "masked": masked(a),
        "masked in part": np.ma.masked_array(a, np.arange(np.size(a)).reshape(np.shape(a)) == 1),
        "a dictionary": {0: 1.0},
        "a set": {1.0},
        "a function": len,
        "ragged": [[1.0, 2.0], [3.0]],
        "a tensor with a graph": Unready(),
    }
    values = {"ragged": ValueError, "a tensor with a graph": ValueError}
    return [
        (f"{name}: {what}", {name: value, **others}, values.get(what, TypeError), [rf"\b{name}\b"])
        for what, value in made.items()
        if what not in without
    ]


ODD = {
    "text": "1",
    "bytes": b"1",
    "complex": 1j,
    "a list": [1.0],
    "a tuple of text": ("1",),
    "an array": np.ones(1),
    "an array of text": np.array("1"),
    "structured": np.zeros((), "f4,f4"),
    "True": True,
    "NumPy's True": np.True_,
    "a date": np.datetime64("2020-01-01"),
    "a time": np.timedelta64(1, "s"),
    "a time without a unit": np.zeros((), "m8")[()],
    "an object": object(),
    "an object in an array": np.array(None),
}


def wrong_numbers(name, *, none=False):
    """Cases for an argument that is a real number, or None."""
    odd = ODD if none else {**ODD, "None": None}
    cases = [(f"{name}: {what}", {name: value}, TypeError, [name]) for what, value in odd.items()]
    return [*cases, (f"{name}: too large", {name: 10**400}, ValueError, [name, "too large"])]


def wrong_integers(name, *, none=False):
    """Cases for an argument that is an integer, or None."""
    odd = {**ODD, "1.0": 1.0, "1.5": np.float32(1.5), "nan": NAN}
    odd = odd if none else {**odd, "None": None}
    return [(f"{name}: {what}", {name: value}, TypeError, [name]) for what, value in odd.items()]


def outside(name, values):
    """Cases for a number that is not among those allowed."""
    return [
        (f"{name} {v}", {name: v}, ValueError, [rf"{name} = {re.escape(str(v))}(\.0)? "])
        for v in values
    ]


def wrong_names(name):
    """Cases for `reduction`."""
    odd = ["avg", "", "MEAN", b"mean", None, 1, ["mean"], np.array("mean")]
    says = [name, "'none', 'sum', 'mean'"]
    return [(f"{name}: {v!r}", {name: v}, ValueError, [*says, re.escape(repr(v))]) for v in odd]
