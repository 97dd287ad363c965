"""Logits and targets in .safetensors files, written byte by byte."""

import json

import numpy as np
import pytest
from helpers.files import entry, safetensors

from xentropy._files import FileFormatError, open_logits, open_targets

X = entry("F32", [3, 4], 0, 48)
FOUR = bytes(4)


def write(tmp_path, content, name="logits.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def several(**more):
    """Tensors one behind the other: {name: (dtype, shape, bytes of an element)}."""
    header, at = {}, 0
    for name, (dtype, shape, size) in more.items():
        end = at + int(np.prod(shape)) * size
        header[name] = entry(dtype, shape, at, end)
        at = end
    return safetensors(header, bytes(at))


def header_of(text):
    return safetensors(text.encode() if isinstance(text, str) else text, bytes(48))


def nested(before, levels, after=""):
    return header_of('{"x":' + before * levels + after)


WRONG = {
    "truncated": (safetensors({"x": X}, bytes(47)), "but the file has"),
    "too long": (safetensors({"x": X}, bytes(49)), "but the file has"),
    "header of 2**63 bytes": (safetensors({"x": X}, length=2**63), f"{2**63} bytes"),
    "header of 2**64 - 1 bytes": (safetensors({"x": X}, length=2**64 - 1), f"{2**64 - 1} bytes"),
    "header a byte too long": (safetensors({"x": X}, length=1000), "header has 1000 bytes"),
    "header a byte short": (safetensors({"x": X}, length=len(json.dumps({"x": X})) - 1), "JSON"),
    "header of 5 MB": (safetensors(b"{" + b" " * (5 << 20) + b"}"), "more than 4194304"),
    "header of 0 bytes": (safetensors(b"{}", length=0), "JSON"),
    "only a length": (FOUR + FOUR, "starts with"),
    "three bytes": (b"\0\0\0", "starts with"),
    "empty": (b"", "is empty"),
    "no tensor": (safetensors({}), "no tensor at all"),
    "metadata alone": (safetensors({"__metadata__": {"a": "b"}}), "no tensor at all"),
    "not JSON": (header_of("{x: 1}"), "no JSON object"),
    "not UTF-8": (header_of(b'{"\xff": 1}'), "no JSON object: 'utf-8'"),
    "UTF-8 with a mark": (safetensors(b"\xef\xbb\xbf{}"), "starts with"),
    "list nested deeply": (nested("[", 100_000), "nested too deeply"),
    "object nested deeply": (nested('{"a":', 100_000), "nested too deeply"),
    "many digits": (header_of('{"x": ' + "9" * 10_000 + "}"), "no JSON object"),
    "name twice": (header_of(f'{{"x": {json.dumps(X)}, "x": {json.dumps(X)}}}'), "'x' is there tw"),
    "key twice": (header_of('{"x": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is there twice"),
    "no entry": (safetensors({"x": 3}, FOUR), "no dtype, shape and data_offsets"),
    "no offsets": (safetensors({"x": {"dtype": "F32", "shape": [1]}}, FOUR), "no dtype, shape and"),
    "three offsets": (
        safetensors({"x": {**X, "data_offsets": [0, 24, 48]}}, bytes(48)),
        "no dtype, shape",
    ),
    "negative offset": (safetensors({"x": entry("F32", [1], -4, 0)}, FOUR), "no dtype, shape"),
    "negative size": (safetensors({"x": entry("F32", [-3, -4], 0, 48)}, bytes(48)), "no dtype, sh"),
    "size of a fraction": (safetensors({"x": entry("F32", [3.5], 0, 14)}, bytes(14)), "no dtype"),
    "size true": (safetensors({"x": entry("F32", [True], 0, 4)}, FOUR), "no dtype"),
    "size of 2**64": (safetensors({"x": entry("F32", [2**64], 0, 0)}), "no dtype"),
    "size 0": (safetensors({"x": entry("F32", [0, 4], 0, 0)}), "empty or impossible"),
    "product": (safetensors({"x": entry("F32", [2**32, 2**32], 0, 0)}), r"more than 2\*\*63"),
    "product wraps": (
        safetensors({"x": entry("F32", [2**62 + 3, 4], 0, 48)}, bytes(48)),
        r"more than 2\*\*63",
    ),
    "dimensions": (safetensors({"x": entry("F32", [1] * 40, 0, 4)}, FOUR), "40 dimensions"),
    "shape against offsets": (
        safetensors({"x": entry("F32", [3, 5], 0, 48)}, bytes(48)),
        "takes 6",
    ),
    "end before begin": (safetensors({"x": entry("F32", [1], 4, 0)}, FOUR), "must begin at"),
    "out of range": (safetensors({"x": entry("F32", [1], 0, 2**40)}, FOUR), "but the file has"),
    "overlap": (
        safetensors({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, bytes(12)),
        "'y' .2,. F32 has the bytes .*, but must begin at",
    ),
    "gap": (
        safetensors({"x": entry("F32", [1], 0, 4), "y": entry("F32", [1], 8, 12)}, bytes(12)),
        "'y' .1,. F32 has the bytes",
    ),
    "does not begin at 0": (safetensors({"x": entry("F32", [1], 4, 8)}, bytes(8)), "must begin at"),
    "integers alone": (several(x=("I64", [3], 8)), "has 0 candidates for logits"),
    "two": (
        several(x=("F32", [3, 4], 4), y=("F16", [2], 2)),
        r"2 cand.*'x' .3, 4. F32; 'y' .2,. F1",
    ),
    "terminal codes": (several(**{"\x1b[31m": ("I8", [3], 1)}), r"'\\x1b\[31m'"),
    "lone surrogate": (safetensors(b'{"\\ud800": {"dtype": "I8"}}'), r"'\\ud800'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(tmp_path, case):
    content, said = WRONG[case]
    path = write(tmp_path, content)
    with pytest.raises(FileFormatError, match=said) as error:
        open_logits(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < len(str(path)) + 600
    str(error.value).encode()


def test_many_names_are_not_all_listed(tmp_path):
    path = write(tmp_path, several(**{f"a{i}": ("F32", [2], 4) for i in range(1000)}))
    with pytest.raises(FileFormatError, match=r"1000 candidates .*'a19' .*and 980 more") as error:
        open_logits(path)
    assert "'a20'" not in str(error.value)


def test_tensors_are_named(tmp_path):
    content = several(
        x=("F32", [3, 4], 4), y=("BF16", [3, 4], 2), z=("F8_E4M3", [2], 1), t=("I32", [3], 4)
    )
    path = write(tmp_path, content)
    assert open_logits(path, name="x").dtype == np.float32
    assert open_logits(path, name="y").dtype.name == "bfloat16"
    with pytest.raises(FileFormatError, match=r"no tensor 'q'; there are: 'x' .*'t' .3,. I32$"):
        open_logits(path, name="q")
    with pytest.raises(FileFormatError, match=r"'z' .2,. F8_E4M3: the dtype is not one of F64"):
        open_logits(path, name="z")
    with pytest.raises(FileFormatError, match="logits are float16"):
        open_logits(path, name="t")
    with pytest.raises(FileFormatError, match="no tensor 'q'"):
        open_logits(path, name="x", target_name="q")


def test_targets_are_the_only_integers_of_the_shape_of_the_rows(tmp_path):
    path = write(
        tmp_path, several(x=("F32", [2, 3, 4], 4), t=("I64", [2, 3], 8), n=("I64", [9], 8))
    )
    logits = open_logits(path, axis=-1)
    assert logits.has_targets
    assert logits.targets(1, 6).tolist() == [0] * 5
    assert not open_logits(path, axis=0).has_targets
    path = write(tmp_path, several(x=("F32", [6, 4], 4), t=("I64", [6], 8), n=("U8", [6], 1)))
    logits = open_logits(path)
    assert not logits.has_targets
    with pytest.raises(FileFormatError, match="2 candidates for targets"):
        logits.targets(0, 1)
    assert open_logits(path, target_name="n").targets(0, 6).dtype == np.uint8
    assert open_targets(path, (6,), name="n").n_rows == 6
    with pytest.raises(FileFormatError, match="2 candidates for targets"):
        open_targets(path, (6,))


def test_a_hole_in_the_alignment(tmp_path):
    """Tensors may begin at any byte."""
    values = np.arange(12, dtype="<f4").reshape(3, 4)
    header = {"t": entry("I8", [3], 0, 3), "x": entry("F32", [3, 4], 3, 51)}
    for pad in range(4):
        text = json.dumps(header).encode() + b" " * pad
        logits = open_logits(write(tmp_path, safetensors(text, b"\1\2\3" + values.tobytes())))
        np.testing.assert_array_equal(logits.rows(0, 3), values)
        assert logits.targets(0, 3).tolist() == [1, 2, 3]


def test_uint16_is_bfloat16_if_one_says_so(tmp_path):
    path = write(tmp_path, several(x=("U16", [3, 4], 2)))
    assert open_logits(path, dtype="bfloat16").dtype.name == "bfloat16"
    with pytest.raises(FileFormatError, match="0 candidates"):
        open_logits(path)
