"""The data of the demonstration: Python's standard library, and the contexts of its bytes.

A context is a hash of some of what precedes a byte: the last two bytes, the word so far, the line
above, ... Every byte has one in each of TABLES tables of the model.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np

CLASSES = 256
TABLES = 7
TABLE_BITS = 16  # a context fits uint16, which NumPy sorts by radix; 64 MiB a table
HELD_OUT_BYTES = 512 * 1024
LEAST_BYTES = 100 * 1000
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class SourcesMissing(Exception):
    """The sources of the standard library are not on this machine."""


# --- contexts ---


def mix(hashed, value):
    """Hash the array `value` into the array `hashed` (uint64)."""
    hashed = (hashed + value + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return hashed ^ (hashed >> np.uint64(32))


def shifted(values, by):
    """The value `by` positions before each position, 0 before the start."""
    out = np.zeros_like(values)
    out[by:] = values[: max(len(values) - by, 0)]
    return out


def recall(text, hashed):
    """The byte found at the last earlier position with the same hash, 256 if there is none.

    Sorting hash and position as one number brings equal hashes together, in text order.
    """
    bits = np.uint64(len(text).bit_length())
    key = (hashed >> bits << bits) | np.arange(len(text), dtype=np.uint64)
    key.sort()
    position = (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.intp)
    again = np.flatnonzero(key[1:] >> bits == key[:-1] >> bits)
    out = np.full(len(text), CLASSES, np.uint64)
    out[position[again + 1]] = text[position[again]]
    return out


def words(text):
    """(hash of the word so far, the byte before that word).

    A word's hash is a sum with one term per letter: a difference of running totals.
    """
    in_word = np.zeros(256, bool)
    in_word[list(b"_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")] = True
    position = np.arange(len(text))
    start = shifted(np.maximum.accumulate(np.where(in_word[text], 0, position + 1)), 1)
    term = mix(mix(np.zeros_like(text), text), (position - start).astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(term)])
    return total[:-1] - total[start], np.concatenate([np.zeros(1, np.uint64), text])[start]


def lines(text):
    """(column, the byte above: in the line before, at the same column)."""
    position = np.arange(len(text))
    start = shifted(np.maximum.accumulate(np.where(text == ord("\n"), position + 1, 0)), 1)
    column = position - start
    above = start[np.maximum(start - 1, 0)] + column
    inside = above < start
    return np.minimum(column, 60).astype(np.uint64), np.where(
        inside, text[np.where(inside, above, 0)], np.uint64(ord("\n"))
    )


def contexts(data):
    """The contexts of each byte of one file, (len(data), TABLES) uint16, from bytes before it.

    Recalled bytes let fixed tables follow a file: a name seen once in it is expected again.
    """
    text = np.frombuffer(data, np.uint8).astype(np.uint64)
    last = [np.zeros_like(text)]  # last[n]: hash of the n bytes before
    for n in range(1, 8):
        last.append(mix(last[-1], shifted(text, n)))
    word, before_word = words(text)
    column, above = lines(text)
    known = (
        [last[2]],
        [last[3]],
        [last[5]],
        [before_word, word],
        [above, column, last[1]],
        [recall(text, last[4]), recall(text, last[7]), last[1]],
        [recall(text, mix(word, before_word)), recall(text, last[5])],
    )
    out = np.empty((len(text), TABLES), np.uint16)
    for table, parts in enumerate(known):
        hashed = np.zeros_like(text)
        for part in parts:
            hashed = mix(hashed, part)
        out[:, table] = mix(hashed, hashed) >> np.uint64(64 - TABLE_BITS)
    return out


# --- the corpus ---


def library():
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


def sources(root, read=lambda count: None):
    """{relative path: bytes} of the Python sources below `root`, tests left out.

    `read(count)` is called with the number of files so far.
    """
    files = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(set(below) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".py" and (data := path.read_bytes()):
                files[path.relative_to(root).as_posix()] = data
                read(len(files))
    if sum(map(len, files.values())) < LEAST_BYTES or len(files) < 2:
        raise SourcesMissing(
            f"The demonstration learns from the Python sources of the standard library, and finds "
            f"{len(files)} of them in {root}. Run it with an interpreter that has them unpacked."
        )
    return files


def split(files, seed):
    """(files to train on, held-out files), drawn by a hash of the path and the seed."""
    room = min(HELD_OUT_BYTES, sum(map(len, files.values())) // 5)
    held_out = set()
    for name in sorted(files, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        if len(files[name]) <= room:
            held_out.add(name)
            room -= len(files[name])
    return (
        [data for name, data in files.items() if name not in held_out],
        [data for name, data in files.items() if name in held_out],
    )


class Corpus:
    """Files end to end, with the contexts of every byte; no context crosses a file's start."""

    def __init__(self, files, done=lambda share: None):
        """`done(share)` is called after each file."""
        self.text = np.frombuffer(b"".join(files), np.uint8)
        self.contexts = np.empty((len(self.text), TABLES), np.uint16)
        start = 0
        for data in files:
            self.contexts[start : start + len(data)] = contexts(data)
            start += len(data)
            done(start / len(self.text))

    def __len__(self):
        return len(self.text)

    def batch(self, where):
        """(contexts (TABLES, rows), labels (rows,)) at the positions `where`."""
        return np.ascontiguousarray(self.contexts[where].T), self.text[where]
