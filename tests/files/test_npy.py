"""Logits and targets in .npy files."""

import sys
import tracemalloc

import numpy as np
import pytest
from helpers.files import npy
from ml_dtypes import bfloat16

import xentropy as xe
from xentropy._files import FileFormatError, open_logits, open_targets
from xentropy._files._rows import widened


@pytest.fixture
def save(tmp_path):
    """A function that saves an array, or bytes, and returns the path."""

    def saved(content, name="logits.npy"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        return path

    return saved


def numbers(shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def as_rows(array, axis):
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 1), ((7, 5), 0), ((3, 4, 5), -1)])
def test_what_numpy_saves_is_read(save, dtype, order, shape, axis):
    array = np.asarray(numbers(shape, dtype), order=order)
    logits = open_logits(save(array), axis=axis)
    rows = as_rows(array, axis)
    assert (logits.n_rows, logits.n_classes, logits.dtype) == (*rows.shape, array.dtype)
    assert logits.row_shape == tuple(np.delete(shape, axis))
    for start, stop in [(0, len(rows)), (2, 5), (5, 5), (len(rows), len(rows))]:
        part = logits.rows(start, stop)
        np.testing.assert_array_equal(part, rows[start:stop])
        assert part.dtype == array.dtype
    assert not logits.has_targets
    with pytest.raises(FileFormatError, match="no targets"):
        logits.targets(0, 1)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("axis", range(-4, 4))
def test_every_range_of_every_axis(save, axis, order):
    array = np.asarray(numbers((2, 3, 4, 5)), order=order)
    logits = open_logits(save(array), axis=axis)
    rows = as_rows(array, axis)
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            np.testing.assert_array_equal(logits.rows(start, stop), rows[start:stop])


def test_one_dimension_is_one_row(save):
    logits = open_logits(save(numbers(5)))
    assert (logits.n_rows, logits.n_classes) == (1, 5)
    np.testing.assert_array_equal(logits.rows(0, 1), numbers((1, 5)))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version(tmp_path, version):
    path = tmp_path / "logits.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array(file, numbers((3, 4)), version=version)
    np.testing.assert_array_equal(open_logits(path).rows(0, 3), numbers((3, 4)))


def test_rows_are_a_view_where_they_can_be(save):
    for order, axis in (("C", 1), ("C", 0), ("F", 1), ("F", 0)):
        logits = open_logits(save(np.asarray(numbers((6, 6)), order=order)), axis=axis)
        assert np.shares_memory(logits.rows(1, 4), logits.rows(2, 6))
        assert not logits.rows(0, 6).flags.writeable


@pytest.mark.parametrize("order", "CF")
def test_no_more_than_the_rows_is_copied(save, order):
    """Of images, say: (images, classes, pixels), whose rows are no view across images."""
    path = save(np.asarray(np.zeros((64, 16, 128), np.float32), order=order))
    logits = open_logits(path)
    tracemalloc.start()
    try:
        assert logits.rows(120, 130).shape == (10, 16)
        assert tracemalloc.get_traced_memory()[1] < 8 * 10 * 16 * 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["uint16", "bfloat16"])
@pytest.mark.parametrize("installed", [True, False])
def test_bfloat16(save, monkeypatch, form, installed):
    """The bits in uint16, or as NumPy saves ml_dtypes' type; without that package widened."""
    array = numbers((4, 6), bfloat16)
    if not installed:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    logits = open_logits(
        save(array.view("uint16") if form == "uint16" else array), dtype="bfloat16"
    )
    part = logits.rows(1, 3)
    assert part.dtype == logits.dtype == (bfloat16 if installed else np.float32)
    np.testing.assert_array_equal(part.astype(np.float32), array[1:3].astype(np.float32))
    assert np.isfinite(xe.cross_entropy(part, [0, 1]))


def test_every_bfloat16_is_widened_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = bits.view(bfloat16).astype(np.float32)
    np.testing.assert_array_equal(widened(bits), expected)


@pytest.mark.parametrize("dtype", ["int8", "<u2", ">i4", "int64"])
@pytest.mark.parametrize("shape", [(3, 4), (12,)])
def test_targets(save, dtype, shape):
    array = np.arange(12).reshape(shape).astype(dtype)
    for order in "CF":
        targets = open_targets(save(np.asarray(array, order=order)), (3, 4))
        assert targets.n_rows == 12
        np.testing.assert_array_equal(targets.rows(2, 11), np.arange(2, 11))


def test_ranges_outside_are_refused(save):
    logits = open_logits(save(numbers((4, 6))))
    for start, stop in [(-1, 2), (3, 2), (0, 5), (5, 5)]:
        with pytest.raises(IndexError, match=r"not in \[0, 4\)"):
            logits.rows(start, stop)


PLAIN = "'descr': '<f4', 'fortran_order': False"


def of_header(header):
    return npy((), header=header, data=b"")


WRONG = {
    "truncated": (npy((3, 4))[:-1], "shape .3, 4. of float32, 48 bytes, but 47"),
    "too long": (npy((3, 4)) + b"x", "48 bytes, but 49"),
    "magic": (b"\x93NUMPX" + npy((3, 4))[6:], "starts with"),
    "version": (npy((3, 4), version=b"\x09\x00"), "version .9, 0."),
    "header ends behind the file": (npy((3, 4))[:40], "header has"),
    "long header": (npy((1, 1), header=" " * 20000), "more than 10000"),
    "2**32 - 1": (b"\x93NUMPY\x02\x00" + b"\xff" * 40, "header has 4294967295"),
    "only the magic": (b"\x93NUMPY", "version"),
    "negative": (npy((-3, 4), data=b""), "plain numbers"),
    "zero": (npy((0, 4)), "empty or impossible"),
    "overflow": (npy((2**40, 2**40), data=b""), "2.*63 elements"),
    "wraps to its size": (npy((2**62 + 3, 4), data=bytes(48)), "2.*63 elements"),
    "many digits": (of_header(f"{{{PLAIN}, 'shape': ({'9' * 5000},)}}"), "impossible"),
    "dimensions": (npy((1,) * 40), "40 dimensions"),
    "scalar": (npy((), data=bytes(4)), "single number"),
    "objects": (npy((3,), "|O", data=b"cos\nsystem\n"), "dtype '|O'"),
    "text": (npy((3,), "<U4", data=bytes(48)), "dtype"),
    "complex": (npy((3,), "<c8"), "dtype"),
    "bool": (npy((3, 8), "|b1"), "dtype"),
    "records": (
        of_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}"),
        "plain numbers",
    ),
    "code": (
        of_header("{'descr': exit(), 'fortran_order': False, 'shape': (3,)}"),
        "plain numbers",
    ),
    "named twice": (of_header("{'shape': (1,), 'shape': (1,), 'descr': '<f4'}"), "plain numbers"),
    "order": (npy((3, 4), fortran="(1,)"), "fortran_order"),
    "nested": (of_header("(" * 9999), "plain numbers"),
    "signs": (of_header("-" * 9999), "plain numbers"),
    "digits without an end": (of_header("{'shape': (" + "1 , " * 2000 + "x"), "plain"),
    "integers": (npy((3, 4), "<i4"), "logits are float16"),
    "uint16": (npy((3, 4), "<u2"), "dtype='bfloat16'"),
    "empty": (b"", "is empty"),
    "zip": (b"PK\x03\x04" + bytes(40), "numpy.save"),
    "something": (b"hello, world", "starts with b'hello, w'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(save, case):
    content, said = WRONG[case]
    path = save(content)
    with pytest.raises(FileFormatError, match=said) as error:
        open_logits(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < len(str(path)) + 500


def test_wrong_arguments_are_refused(save):
    path = save(numbers((3, 4)))
    for axis in (2, -3, 10**30):
        with pytest.raises(FileFormatError, match=f"axis = {axis} is out of range"):
            open_logits(path, axis=axis)
    with pytest.raises(FileFormatError, match="not the uint16"):
        open_logits(path, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype = 'float8'"):
        open_logits(path, dtype="float8")
    with pytest.raises(ValueError, match="name = 'a' goes with safetensors"):
        open_logits(path, name="a")
    with pytest.raises(FileFormatError, match="float32, not integers"):
        open_targets(path)
    with pytest.raises(FileFormatError, match=r"shape \(3,\), but the rows \(3, 4\)"):
        open_targets(save(np.arange(3)), (3, 4))
    with pytest.raises(FileFormatError, match=r"is called \.safetensors"):
        open_logits(save(npy((3, 4)), "logits.safetensors"))


def test_nothing_grows_with_the_file(tmp_path):
    """A sparse file of 64 GB."""
    path = tmp_path / "logits.npy"
    classes = 1 << 14
    start = npy((1 << 20, classes), data=b"")
    try:
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(len(start) + (4 * classes << 20))
    except OSError as error:
        pytest.skip(f"no file of 64 GB here: {error}")
    tracemalloc.start()
    try:
        logits = open_logits(path)
        assert logits.rows(logits.n_rows - 2, logits.n_rows).sum() == 0
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
        path.unlink()
