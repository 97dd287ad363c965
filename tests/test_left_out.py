"""What this run cannot test, said once: tiers of other CPUs, libraries that are not installed."""

import pytest
from helpers.installed import NEEDED, NEIGHBOURS, missing
from helpers.tiers import FORCED, HERE, TIERS

from bench.peers import PEERS


def test_tiers():
    absent = [tier for tier in TIERS if tier not in HERE]
    assert HERE, f"no tier is left: XENTROPY_TIER={FORCED}"
    if absent:
        why = f"XENTROPY_TIER={FORCED}" if FORCED else "not on this machine"
        pytest.skip(f"{', '.join(absent)}: {why}")


@pytest.mark.parametrize("files", NEEDED)
def test_files(files):
    if absent := missing(NEEDED[files]):
        pytest.skip(f"{files}: {', '.join(absent)} not installed")


def test_neighbours_in_a_process():
    if absent := missing(NEIGHBOURS):
        pytest.skip(f"{', '.join(absent)} not installed")


def test_peers_of_the_benchmark():
    if absent := [name for name, peer in PEERS.items() if not peer.installed]:
        pytest.skip(f"{', '.join(absent)} not installed")
