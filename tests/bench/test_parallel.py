"""The study of ranks on paper: its formulas count what is sent, and the page has its tables."""

import math

import pytest
from helpers.examples import ROOT

from bench.studies import parallel

RANKS = [2, 4, 8, 16]
SIZE = 48 * 16  # bytes, which all of them divide


def doubling(ranks):
    """All-gather: (steps, blocks sent by rank 0), by exchanging what each has."""
    held, steps, sent = [{rank} for rank in range(ranks)], 0, 0
    while any(len(each) < ranks for each in held):
        sent += len(held[0])
        held = [each | held[rank ^ 1 << steps] for rank, each in enumerate(held)]
        steps += 1
    return steps, sent


def halving(ranks):
    """Reduce-scatter: rank 0 sends away half of what it is still to reduce."""
    kept, steps, sent = ranks, 0, 0
    while kept > 1:
        kept //= 2
        sent, steps = sent + kept, steps + 1
    return steps, sent


def bruck(ranks):
    """All-to-all: in step k, what has bit k in its distance left moves on by 2**k."""
    held = [{(rank, to) for to in range(ranks)} for rank in range(ranks)]
    steps, sent = 0, 0
    while 1 << steps < ranks:
        moving = [
            {(source, to) for source, to in each if (to - rank) % ranks >> steps & 1}
            for rank, each in enumerate(held)
        ]
        held = [(held[r] - moving[r]) | moving[(r - (1 << steps)) % ranks] for r in range(ranks)]
        sent, steps = sent + len(moving[0]), steps + 1
    assert held == [{(source, rank) for source in range(ranks)} for rank in range(ranks)]
    return steps, sent


@pytest.mark.parametrize("ranks", RANKS)
def test_formulas_count_what_is_sent(ranks):
    steps, blocks = doubling(ranks)
    assert parallel.all_gather(SIZE, ranks) == (steps, blocks * SIZE)
    more_steps, more = halving(ranks)
    part = SIZE / ranks
    assert parallel.all_reduce(SIZE, ranks) == (steps + more_steps, (blocks + more) * part)
    steps, blocks = bruck(ranks)
    assert parallel.all_to_all(SIZE, ranks) == (steps, blocks * part)


def test_limits_are_those_of_the_times():
    size = 16384, 128_256, 4e14
    for way in parallel.WAYS.values():
        for bandwidth in parallel.BANDWIDTHS.values():
            most = parallel.most_ranks(way, *size, bandwidth)
            for ranks, hides in (most, True), (2 * most, False):
                taken = parallel.seconds(way(1, ranks), 0.0, bandwidth)
                assert (taken <= parallel.product_seconds(1, ranks, *size)) == hides


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_at_which_an_all_gather_is_even(ranks):
    rows = parallel.sooner_rows(ranks, 5e-6, 3e9)
    taken = [
        parallel.seconds(way(rows, ranks), 5e-6, 3e9)
        for way in (parallel.one_all_gather, parallel.three_all_reduces)
    ]
    assert math.isclose(*taken, rel_tol=1e-12)


def test_the_page_has_the_tables():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in parallel.tables(parallel.arguments([])):
        assert f"\n\n{table.markdown()}\n\n" in page, table.title


def test_the_command(capsys):
    parallel.main(["--ranks", "2", "8", "--rows", "64"])
    assert capsys.readouterr().out.count("\n| ranks") == 5
    with pytest.raises(SystemExit):
        parallel.main(["--ranks", "6"])
