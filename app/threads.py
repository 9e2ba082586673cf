"""Few threads at once for the requests of a worker, and another in the place of each that takes long."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final

AT_ONCE: Final = 4
"""More of them would push each other out of the interpreter and of the processor's caches."""
LONG_SECONDS: Final = 0.05
NEVER: Final = float("inf")
log = logging.getLogger(__name__)

Task = tuple[Callable[[], Any], Future[Any]]


class Threads(Executor):
    """All but the tasks happens in one thread, the worker's main.

    A request that waits for Stripe, for a lock or for a slow statement must not hold up the others: another
    thread takes the place of its own, which ends with it. There are never more than `most`.
    """

    def __init__(self, most: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._most = most
        self._threads: list[_Thread] = []

    @property
    def is_behind(self) -> bool:
        """Whether a task waits for a thread."""
        return not self._tasks.empty()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((partial(fn, *args, **kwargs), future))
        if len(self._threads) < min(AT_ONCE, self._most):
            self._start()
        return future

    def relieve(self) -> None:
        """While it `is_behind`, call this every LONG_SECONDS: it starts another for each that takes long."""
        if not self.is_behind:
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        long_ago = time.monotonic() - LONG_SECONDS
        for thread in [one for one in self._threads if not one.is_relieved and one.busy_since < long_ago]:
            if len(self._threads) < self._most and self._start():
                thread.is_relieved = True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The threads end with what there is to do; nobody waits for them, whatever `wait` says."""
        for _ in self._threads:
            self._tasks.put(None)

    def _start(self) -> bool:
        thread = _Thread(self._tasks)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more of them
            log.error("no further thread: %s", error)
            return False
        self._threads.append(thread)
        return True


class _Thread(threading.Thread):
    """Does one task after the other, until there comes a None or another thread has taken its place."""

    def __init__(self, tasks: "queue.SimpleQueue[Task | None]") -> None:
        super().__init__(daemon=True)  # a worker that cannot go on must not wait for them
        self._tasks = tasks
        self.is_relieved = False
        self.busy_since = NEVER
        """Monotonic."""

    def run(self) -> None:
        while not self.is_relieved and (task := self._tasks.get()) is not None:
            self.busy_since = time.monotonic()
            do, future = task
            try:
                future.set_result(do())
            except BaseException as error:  # noqa: BLE001 - it is for whoever has the future
                future.set_exception(error)
            self.busy_since = NEVER
