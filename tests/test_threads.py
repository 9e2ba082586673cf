"""The threads of a worker: few at once, more where some take long, never more than allowed."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from app import threads
from app.threads import AT_ONCE, LONG_SECONDS, Threads
from tests.server import wait_until

MOST = 6


class Crowd:
    """Tasks that last until they are let go, and whoever is at one."""

    def __init__(self, most: int = MOST) -> None:
        self.pool = Threads(most)
        self.gate = threading.Event()
        self._at_it: set[int] = set()

    def submit(self, count: int) -> None:
        self.futures = [self.pool.submit(self._wait, number) for number in range(count)]

    def settle(self) -> int:
        """How many are at a task once that no longer changes, while `relieve` is called as it should be."""
        counts = [-1]
        while len(counts) < 10 or len(set(counts[-10:])) > 1:
            time.sleep(LONG_SECONDS / 2)
            self.pool.relieve()
            counts.append(len(self._at_it))
        return counts[-1]

    def _wait(self, _: int) -> int:
        me = threading.get_ident()
        self._at_it.add(me)
        self.gate.wait(30)
        self._at_it.discard(me)
        return me


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    made = Crowd()
    yield made
    made.gate.set()
    made.pool.shutdown()


def test_few_at_once_do_what_is_short(crowd):
    crowd.gate.set()
    crowd.submit(200)
    assert 1 <= len({future.result(30) for future in crowd.futures}) <= AT_ONCE
    crowd.pool.relieve()
    assert not crowd.pool.is_behind


def test_another_comes_for_each_that_takes_long_and_goes_again(crowd):
    crowd.submit(AT_ONCE)
    assert crowd.settle() == AT_ONCE, "nobody waits for a thread, so none is added"

    crowd.submit(100)
    assert crowd.settle() == MOST
    assert crowd.pool.is_behind

    crowd.gate.set()
    for future in crowd.futures:
        future.result(30)
    crowd.gate.clear()
    crowd.submit(AT_ONCE)
    assert crowd.settle() == AT_ONCE, "as many as before are left"
    crowd.submit(1)
    assert crowd.settle() == AT_ONCE + 1


def test_one_thread_is_one_thread():
    crowd = Crowd(most=1)
    crowd.submit(3)
    assert crowd.settle() == 1
    crowd.gate.set()
    assert len({future.result(30) for future in crowd.futures}) == 1
    crowd.pool.shutdown()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_thread_outlives_what_it_does(error):
    pool = Threads(1)

    def fail(text: str) -> None:
        raise error(text)

    assert isinstance(pool.submit(fail, "no").exception(30), error)
    assert pool.submit(abs, -7).result(30) == 7
    pool.shutdown()


def test_what_was_asked_for_is_done_before_the_end(crowd):
    crowd.submit(20)
    crowd.pool.shutdown()
    crowd.gate.set()
    assert len([future.result(30) for future in crowd.futures]) == 20
    wait_until(lambda: not any(thread.is_alive() for thread in crowd.pool._threads))


def test_a_thread_lets_go_of_what_is_done():
    class Connection:
        pass

    pool, connection = Threads(1), Connection()
    gone = weakref.ref(connection)
    pool.submit(id, connection).result(30)
    del connection
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
    pool.shutdown()


def test_no_further_thread_is_told_once_and_tried_again(monkeypatch, caplog):
    pool = Threads(MOST)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads._Thread, "start", refuse)
        waiting = pool.submit(abs, -7)
        for _ in range(5):
            pool.relieve()
            time.sleep(LONG_SECONDS)
        assert pool.is_behind
    assert caplog.text.count("can't start new thread") == 1
    wait_until(lambda: pool.relieve() is None and waiting.done())
    assert waiting.result() == 7
    pool.shutdown()
