"""Thread counts, and callers from many threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.support import assert_bits, make_logits, make_target

import xentropy as xe
from xentropy import _kernels

pytestmark = pytest.mark.usefixtures("tier")


@pytest.fixture
def thread_count():
    """The default number of threads, which holds before and after."""
    xe.set_num_threads(None)
    yield xe.get_num_threads()
    xe.set_num_threads(None)


def test_the_number_of_threads_is_what_was_set(thread_count):
    assert thread_count >= 1
    for threads in (1, 2, 7, np.int64(3)):
        xe.set_num_threads(threads)
        assert xe.get_num_threads() == threads


@pytest.mark.parametrize("bad", [0, -1, -(2**40), 2**40])
def test_thread_counts_out_of_range(thread_count, bad):
    with pytest.raises(ValueError, match=str(bad)):
        xe.set_num_threads(bad)
    assert xe.get_num_threads() == thread_count


@pytest.mark.parametrize("bad", [1.5, "2", [1]])
def test_thread_counts_of_another_type(thread_count, bad):
    with pytest.raises(TypeError):
        xe.set_num_threads(bad)
    assert xe.get_num_threads() == thread_count


def test_none_is_the_default_number(thread_count):
    xe.set_num_threads(5)
    xe.set_num_threads(None)
    assert xe.get_num_threads() == thread_count


def test_n_threads_holds_for_one_call(thread_count):
    x = make_logits((70_000, 5))
    xe.cross_entropy(x, np.zeros(70_000, int), n_threads=3)
    assert xe.get_num_threads() == thread_count


DIFFERENT = [(5, 10), (3000, 100), (40, 3000), (2, 21, 5000), (1, 300_000), (20_000, 7)]


@pytest.mark.parametrize("cases", [DIFFERENT, [(3000, 100)]], ids=["different", "the same"])
def test_python_threads_do_not_disturb_each_other(thread_count, cases):
    """Whatever shapes eight of them have, and numbers of threads, which change meanwhile."""
    work = [(make_logits(s, seed=k), make_target("labels", s, seed=k)) for k, s in enumerate(cases)]
    expected = [xe.cross_entropy_with_grad(*w, n_threads=1) for w in work]

    def run(k):
        x, target = work[k % len(work)]
        out = np.empty_like(x)
        for n in range(10):
            xe.set_num_threads((k + n) % 3 + 1)
            n_threads = (None, 1, 2, 3)[n % 4]
            out[...] = x  # every third call is in place
            logits = x if n % 3 else out
            loss, _ = xe.cross_entropy_with_grad(logits, target, out=out, n_threads=n_threads)
            assert_bits(loss, expected[k % len(work)][0])
            assert_bits(out, expected[k % len(work)][1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(24)))


def test_the_time_that_a_thread_has_worked_is_known_for_short_calls():
    """A clock that is brought up to date every few milliseconds says 0 to most of these."""
    for _ in range(50):
        passed, worked = _kernels._worked(3e-4)
        assert 0 < worked <= passed


def test_threads_that_cost_time_are_left_alone_for_as_long():
    _kernels._forget_debt()
    began = time.perf_counter()
    assert not _kernels._account(-1e-5)  # less than anybody would notice
    assert _kernels._account(-0.02)
    assert _kernels._account(-0.02)  # again: 2 * 0.02 + 0.02 from now on
    while _kernels._account(0.0):
        time.sleep(0.001)
    assert time.perf_counter() - began >= 0.06
    assert _kernels._account(-0.02)  # 2 * 0.06 + 0.02
    began = time.perf_counter()
    while _kernels._account(1.0):  # what was saved counts, but the time runs on
        time.sleep(0.001)
    assert time.perf_counter() - began >= 0.1
    assert _kernels._account(-0.001)  # no debt is left: 1 ms
    time.sleep(0.002)
    assert not _kernels._account(0.0)
