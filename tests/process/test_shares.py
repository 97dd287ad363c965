"""How a batch is dealt out: chunks of adjacent rows, and a share of adjacent chunks a thread.

What a thread computes is then near it, in its core's cache and on its node's pages, in the next
step and in the next call. All of it is done whichever threads come, and whenever.
"""

import itertools

import numpy as np
import pytest

from xentropy import _kernels

SHAPES = [(1, 10), (5, 100_000), (20_000, 10), (129, 50_000), (1_000_000, 10)]  # to 245 chunks
TEAMS = [(1, 1), (2, 2), (3, 3), (7, 7), (7, 4), (300, 20)]  # planned, and started by OpenMP


def claimed(shape, team, started, helps, order):
    """The claims of each thread, which come in this order until all have been told to stop."""
    found = _kernels._claimed(*shape, team, started, helps, order)
    assert None in found[-started:]
    claims = {thread: [] for thread in range(started)}
    for thread, rows in zip(order, found, strict=True):
        if rows is not None:
            claims[thread].append(rows)
    return claims


def assert_each_row_is_in_one_claim(claims, rows):
    every = sorted(itertools.chain(*claims.values()))
    begins, ends = zip(*every, strict=True)
    assert begins == (0, *ends[:-1])
    assert ends[-1] == rows


def orders(started):
    """In turn; one after the other, as if each began late; at random."""
    each = 550  # a thread asks no more often: for each chunk, and for each share
    yield [*range(started)] * each
    yield np.repeat(np.arange(started)[::-1], each).tolist()
    yield np.random.default_rng(0).permutation(np.repeat(np.arange(started), each)).tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("helps", [True, False])
@pytest.mark.parametrize(("team", "started"), TEAMS)
def test_every_row_is_in_one_claim_whichever_threads_come_and_when(shape, team, started, helps):
    for order in orders(started):
        claims = claimed(shape, team, started, helps, order)
        assert_each_row_is_in_one_claim(claims, shape[0])


@pytest.mark.parametrize("helps", [True, False])
@pytest.mark.parametrize("threads", [257, 1024, 5000])
def test_there_may_be_more_threads_than_shares(threads, helps):
    """Those beyond the last share have a part of another's."""
    shape = 3000, 200_000  # 600 chunks in 256 shares
    for order in ([*range(threads)] * 5, [*range(threads)][::-1] * 5):
        claims = claimed(shape, threads, threads, helps, order)
        assert_each_row_is_in_one_claim(claims, shape[0])
        assert any(claims[thread] for thread in range(256, threads))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("team", [1, 2, 3, 7])
def test_a_thread_that_gets_no_help_has_adjacent_chunks(shape, team):
    """As many as the others, or one more: the first, which is the caller."""
    for order in orders(team):
        claims = claimed(shape, team, team, False, order)
        for of_thread in claims.values():
            assert all(a[1] == b[0] for a, b in itertools.pairwise(of_thread))
        counts = [len(of_thread) for of_thread in claims.values()]
        assert counts[0] == max(counts) <= min(counts) + 1
