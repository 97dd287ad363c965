"""Any split, order and tree of merges, over processes and in one: all fields, bit for bit."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from helpers.evaluations import batch, bits, counted, counted_in_a_process
from hypothesis import given
from hypothesis import strategies as st

import xentropy as xe
from xentropy._evaluation import _rows

BOTH = pytest.mark.parametrize("kind", [xe.Evaluation, xe.PairedEvaluation])
ROWS = 60


def merged(parts, random):
    """What is left of a random tree of merges."""
    parts = list(parts)
    while len(parts) > 1:
        part = parts.pop(random.randrange(len(parts)))
        random.choice(parts).merge(part)
    return parts[0]


SHORT_AND_LONG = st.sampled_from([(11, np.float32), (400, np.float32), (400, np.float16)])


@BOTH
@given(cuts=st.sets(st.integers(1, ROWS - 1)), rows=SHORT_AND_LONG, random=st.randoms())
def test_any_split_and_any_tree(kind, cuts, rows, random):
    classes, dtype = rows
    arguments = batch(ROWS, classes, dtype=dtype)
    order = list(range(ROWS))
    random.shuffle(order)
    parts = [counted(kind, arguments, rows) for rows in np.split(order, sorted(cuts))]
    assert bits(merged(parts, random).result()) == bits(counted(kind, arguments).result())


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_over_processes(kind, seed):
    import random

    chance = random.Random(seed)
    cuts = sorted(chance.sample(range(1, ROWS), 9))
    rows = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, ROWS], strict=True)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        tasks = [(kind.__name__, seed, each) for each in rows]
        parts = list(pool.imap_unordered(counted_in_a_process, tasks))
    whole = counted(kind, batch(seed=seed)).result()
    assert bits(merged(parts, chance).result()) == bits(whole)


@pytest.mark.parametrize("elements", [1, 25, 1 << 10])
def test_size_of_a_chunk(elements, monkeypatch):
    kind = xe.PairedEvaluation
    whole = bits(counted(kind, batch(classes=257)).result())
    monkeypatch.setattr(_rows, "CHUNK_ELEMENTS", elements)
    assert bits(counted(kind, batch(classes=257)).result()) == whole


@BOTH
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: x.copy()])
def test_copies_count_for_themselves(kind, copied):
    arguments = batch()
    first = counted(kind, arguments, slice(20))
    before = bits(first.result())
    second = copied(first)
    second.merge(counted(kind, arguments, slice(20, None)))
    assert bits(first.result()) == before
    assert bits(second.result()) == bits(counted(kind, arguments).result())


@BOTH
def test_pickles(kind):
    first = counted(kind, batch())
    again = pickle.loads(pickle.dumps(first))
    assert bits(again.result()) == bits(first.result())
    assert pickle.loads(pickle.dumps(first.result())) == first.result()


@BOTH
def test_merging_with_itself_counts_twice(kind):
    evaluation = counted(kind, batch())
    assert evaluation.merge(evaluation) is evaluation
    arguments = {name: np.concatenate([value, value]) for name, value in batch().items()}
    assert bits(evaluation.result()) == bits(counted(kind, arguments).result())


@BOTH
def test_an_empty_one_takes_any(kind):
    whole = counted(kind, batch())
    assert bits(kind().merge(whole).result()) == bits(whole.result())


@BOTH
def test_many_updates(kind):
    """More than are kept as arrays of their own."""
    evaluation = kind()
    one = counted(kind, batch(), slice(3, 4))
    for _ in range(1100):
        evaluation.merge(one)
    result = evaluation.result()
    assert result.tokens == 1100 * one.result().tokens


@BOTH
def test_threads_do_not_matter(kind):
    arguments = batch(classes=5000)
    expected = bits(counted(kind, arguments).result())
    evaluation = kind()
    names = {n: v for n, v in arguments.items() if n in kind.update.__kwdefaults__ or "log" in n}
    if kind is xe.Evaluation:
        names.pop("base_logits")
    evaluation.update(**names, target=arguments["target"], n_threads=1)
    assert bits(evaluation.result()) == expected


@BOTH
def test_ignored_rows_are_not_read(kind):
    arguments = batch()
    off = (arguments["target"] < 0) | (arguments["sample_weight"] == 0)
    assert off.any()
    expected = bits(counted(kind, arguments).result())
    arguments["logits"][off] = np.nan
    assert bits(counted(kind, arguments).result()) == expected
