"""What is no file, and files whose bytes were changed: an error or numbers, nothing else."""

import os
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers.files import entry, llama, npy, safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xentropy._files import FileFormatError, open_logits, open_targets

OPENERS = (open_logits, open_targets)
ENOUGH = 1 << 20  # bytes; the files have some 300
TENSORS = {"x": entry("F32", [3, 4], 0, 48), "t": entry("I32", [3], 48, 60)}
GOOD = {
    "npy": npy((3, 4), data=np.arange(12, dtype="<f4").tobytes()),
    "integers": npy((12,), "<i4"),
    "bfloat16": npy((3, 4), "<u2"),
    "safetensors": safetensors(TENSORS, bytes(60)),
    "llama": llama(8, 5, 2)[0],
}
# In place of numbers in the headers.
NUMBERS = [0, 1, 2, 127, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


@pytest.mark.parametrize("opener", OPENERS)
def test_what_is_no_file(tmp_path, opener):
    with pytest.raises((FileFormatError, PermissionError), match=r"directory|denied"):
        opener(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        opener(tmp_path / "nothing.npy")
    if os.name != "posix":
        return
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="is a pipe, not a file"):
        opener(tmp_path / "pipe")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(FileFormatError, match="is a device, not a file"):
            opener(device)


def changes():
    """Functions that change some bytes."""
    place = st.floats(0, 1, exclude_max=True)
    number = st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)

    def overwrite(at, value, width):
        part = (value % 256**width).to_bytes(width, "little")
        return lambda data: data[: int(at * len(data))] + part + data[int(at * len(data)) + width :]

    def cut(at, count):
        return lambda data: data[: int(at * len(data))] + data[int(at * len(data)) + count :]

    def insert(at, part):
        return lambda data: data[: int(at * len(data))] + part + data[int(at * len(data)) :]

    def digits(at, value):
        """Another number in place of one in a header of text."""

        def change(data):
            places = [i for i, byte in enumerate(data[:200]) if 48 <= byte < 58]
            if not places:
                return data
            i = places[int(at * len(places))]
            return data[:i] + str(value).encode() + data[i + 1 :]

        return change

    return st.one_of(
        st.builds(overwrite, place, number, st.sampled_from([1, 2, 4, 8])),
        st.builds(cut, place, st.integers(1, 400)),
        st.builds(insert, place, st.binary(max_size=20)),
        st.builds(digits, place, number),
    )


def read_all(opener, path, **options):
    """All that a file holds, in blocks."""
    found = opener(path, **options)
    for start in range(0, found.n_rows, 5):
        stop = min(start + 5, found.n_rows)
        assert len(found.rows(start, stop)) == stop - start
        if getattr(found, "has_targets", False):
            assert len(found.targets(start, stop)) == stop - start
    return found.n_rows


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes(), min_size=1, max_size=4))
def test_changed_bytes(tmp_path, kind, changed):
    data = GOOD[kind]
    for change in changed:
        data = change(data)
    path = tmp_path / "file"
    path.write_bytes(data)
    options = {"dtype": "bfloat16"} if kind == "bfloat16" else {}
    tracemalloc.start()
    try:
        for opener in OPENERS:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    assert read_all(opener, path, **(options if opener is open_logits else {}))
                except FileFormatError as error:
                    assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either is right
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", GOOD)
def test_every_length(tmp_path, kind):
    """A file that was cut anywhere."""
    path = tmp_path / "file"
    for length in range(len(GOOD[kind])):
        path.write_bytes(GOOD[kind][:length])
        for opener in OPENERS:
            with pytest.raises(FileFormatError):
                opener(path)
