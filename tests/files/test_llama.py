"""llama.cpp's log-probabilities."""

import math
import struct

import numpy as np
import pytest
from helpers.files import LLAMA, llama

import xentropy as xe
from xentropy._files import FileFormatError, open_logits, open_targets


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "base.kld"
        path.write_bytes(content)
        return path

    return written


@pytest.mark.parametrize(("n_ctx", "n_vocab", "n_chunk"), [(3, 1, 1), (8, 5, 2), (9, 6, 3)])
def test_rows_and_targets(write, n_ctx, n_vocab, n_chunk):
    content, log_p, target = llama(n_ctx, n_vocab, n_chunk)
    path = write(content)
    logits = open_logits(path)
    n_rows = n_chunk * (n_ctx - 1 - n_ctx // 2)
    assert (logits.n_rows, logits.n_classes, logits.dtype) == (n_rows, n_vocab, np.float32)
    assert logits.is_log_probs
    targets = open_targets(path, (n_rows,))
    for start in range(n_rows + 1):
        for stop in range(start, n_rows + 1):
            rows = logits.rows(start, stop)
            assert rows.dtype == np.float32
            # A product and a sum, each rounded once, of numbers up to 9.
            np.testing.assert_allclose(rows, log_p[start:stop], rtol=0, atol=9 * 2**-23)
            np.testing.assert_array_equal(logits.targets(start, stop), target[start:stop])
            np.testing.assert_array_equal(targets.rows(start, stop), target[start:stop])


def test_the_format_by_hand(write):
    """One row, all bytes written down: scale 1/8, minimum -4, numbers 0, 8, 32, padding."""
    content = b"_logits_" + struct.pack("=3i", 4, 3, 1) + struct.pack("=4i", 0, 1, 2, 1)
    content += struct.pack("=2f4H", 2**-15, -4, 0, 2**15, 2**16 - 1, 7)
    logits = open_logits(write(content))
    np.testing.assert_array_equal(logits.rows(0, 1), np.float32([[-4, -3, -2 - 2**-15]]))
    assert logits.targets(0, 1).tolist() == [1]


# --- files of llama.cpp itself ---

# Of the pair in tests/data, by `log_probs`: two random models with GPT-2's vocabulary, one chunk of
# 16 tokens, of which 7 are predicted. llama.cpp's own output for it is not kept.
PERPLEXITY = {"base": 66726.47106986957, "other": 75951.87766176974}
KL = 0.021554461155899568


def log_probs(name):
    """All log-probabilities of a file of one chunk, and the tokens that they predict.

    In float32, each operation rounded, as llama.cpp computes them.
    """
    data = (LLAMA / f"{name}-16x1.kld").read_bytes()
    n_ctx, n_vocab, n_chunk = struct.unpack("=3i", data[8:20])
    assert (n_ctx, n_vocab, n_chunk) == (16, 50257, 1)
    tokens = np.frombuffer(data, np.int32, 16, 20)
    rows = np.frombuffer(data, np.uint16, offset=84).reshape(7, -1)
    scale, low = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
    return scale[:, None] * rows[:, 4 : 4 + n_vocab].astype(np.float32) + low[:, None], tokens[9:]


@pytest.mark.parametrize("name", ["base", "other"])
def test_perplexity(name):
    logits = open_logits(LLAMA / f"{name}-16x1.kld")
    log_p, target = log_probs(name)
    np.testing.assert_array_equal(logits.targets(0, 7), target)
    np.testing.assert_array_equal(logits.rows(0, 7), log_p)
    exact = -log_p[np.arange(7), target].mean(dtype=np.float64)
    assert math.exp(exact) == pytest.approx(PERPLEXITY[name], rel=1e-12)
    # The file's rounding to 2e-4 nats makes the probabilities of a row add up to 1 + 4e-7 or so.
    loss = xe.cross_entropy(logits.rows(0, 7), logits.targets(0, 7))
    assert math.exp(loss) == pytest.approx(PERPLEXITY[name], rel=1e-6)


def test_kl_divergence():
    base, other = (open_logits(LLAMA / f"{name}-16x1.kld") for name in ("base", "other"))
    exact = [log_probs(name)[0].astype(np.float64) for name in ("base", "other")]
    kl = (np.exp(exact[0]) * (exact[0] - exact[1])).sum(axis=1).mean()
    assert kl == pytest.approx(KL, rel=1e-12)
    p = np.exp(base.rows(0, 7).astype(np.float64))
    # The sums of probabilities are off from 1 by some 4e-7, which moves a mean of logs by as much.
    assert xe.kl_divergence(p, other.rows(0, 7)) == pytest.approx(KL, abs=1e-6)


# --- files that are wrong ---


def header(*sizes, magic=b"_logits_"):
    return magic + struct.pack("=3i", *sizes)


GOOD = llama(8, 5, 2)[0]
WRONG = {
    "magic": (b"_logitz_" + GOOD[8:], "starts with b'_logitz_'"),
    "only the magic": (GOOD[:8], "has 8 bytes"),
    "header cut": (GOOD[:19], "has 19 bytes"),
    "header alone": (GOOD[:20], "or 0 whole chunks"),
    "truncated": (
        GOOD[:-1],
        "n_vocab = 5, n_chunk = 2, 204 bytes, but the file has 203, or 1 whole",
    ),
    "too long": (GOOD + b"x", "the file has 205, or 2 whole"),
    "no context": (header(0, 5, 2) + bytes(40), "no row"),
    "context of 2": (header(2, 5, 2) + bytes(40), "no row"),
    "negative": (header(-8, -5, 2) + bytes(40), "n_ctx = -8, n_vocab = -5"),
    "no class": (header(8, 0, 2) + bytes(40), "no row"),
    "no chunk": (header(8, 5, 0) + bytes(40), "no row"),
    "largest": (header(2**31 - 1, 2**31 - 1, 2**31 - 1) + bytes(40), "n_ctx = 2147483647"),
    # As 32 bits: 4 * 2^15 * 2^15 is 0, and as 64 bits a row more or less is nothing.
    "wraps": (header(2**15, 2**15, 2**15) + bytes(40), "or 0 whole chunks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(write, case):
    content, said = WRONG[case]
    for opener in (open_logits, open_targets):
        with pytest.raises(FileFormatError, match=said):
            opener(write(content))


@pytest.mark.parametrize(
    ("scale", "low"),
    [
        *[(math.nan, -9), (math.inf, -9), (-1e-4, -1), (1e-4, math.nan), (1e-4, -math.inf)],
        *[(1, -9), (1e-4, 3), (3e38, -3e38), (math.inf, -math.inf)],
    ],
)
def test_rows_that_are_no_log_probabilities(write, scale, low):
    content, *_ = llama()
    at = len(content) - (8 + 12)  # the last row
    changed = content[:at] + struct.pack("=2f", scale, low) + content[at + 8 :]
    logits = open_logits(write(changed))
    logits.rows(0, 5)
    with pytest.raises(FileFormatError, match="row 5 has scale"):
        logits.rows(3, 6)


@pytest.mark.parametrize("token", [-1, 5, -(2**31)])
def test_a_token_that_is_no_class(write, token):
    content, *_ = llama()
    at = 20 + 4 * (8 + 6)  # in the second chunk, that of its second row
    logits = open_logits(write(content[:at] + struct.pack("=i", token) + content[at + 4 :]))
    logits.targets(0, 4)
    with pytest.raises(FileFormatError, match=rf"row 4 predicts token {token}, not in \[0, 5\)"):
        logits.targets(2, 6)


def test_arguments_of_other_formats_are_refused(write):
    for name, value in {"axis": 1, "dtype": "bfloat16", "name": "x", "target_name": "y"}.items():
        with pytest.raises(ValueError, match=f"{name} = {value!r} goes with"):
            open_logits(write(GOOD), **{name: value})
