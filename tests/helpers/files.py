"""Files of logits for the tests: written byte by byte, so that a test can change any of them."""

import json
import struct
from pathlib import Path

import numpy as np

LLAMA = Path(__file__).resolve().parent.parent / "data" / "llama_kld"


def npy(shape, descr="<f4", *, data=None, fortran="False", version=b"\x01\x00", header=None):
    """A .npy file; without `data` zeros as many as the shape says."""
    if header is None:
        header = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    header = header.encode() if isinstance(header, str) else header
    if data is None:
        data = bytes(int(np.prod(shape)) * int(descr[-1]))
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(header)) + header + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(header, data=b"", *, length=None):
    """A .safetensors file of a header, as a dictionary or as bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    return struct.pack("<Q", length) + header + data


def llama(n_ctx=8, n_vocab=5, n_chunk=2, *, seed=0, scale=1e-4, low=-9.0):
    """A file as llama.cpp writes it, and its rows and targets in float64."""
    rng = np.random.default_rng(seed)
    first = n_ctx // 2
    per_chunk = n_ctx - 1 - first
    tokens = rng.integers(0, n_vocab, (n_chunk, n_ctx), np.int32)
    coded = rng.integers(0, 2**16, (n_chunk * per_chunk, n_vocab + n_vocab % 2), np.uint16)
    head = np.tile(np.array([scale, low], np.float32), (len(coded), 1))
    rows = np.concatenate([head.view(np.uint16), coded], axis=1)
    data = b"_logits_" + struct.pack("=3i", n_ctx, n_vocab, n_chunk)
    log_p = np.float64(np.float32(scale)) * coded[:, :n_vocab] + low
    return data + tokens.tobytes() + rows.tobytes(), log_p, tokens[:, first + 1 :].ravel()
