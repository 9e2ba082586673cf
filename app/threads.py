"""Few threads at once for the requests of a worker, and another in the place of each that takes long."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

AT_ONCE: Final = 4
"""More of them would push each other out of the interpreter and of the processor's caches."""
LONG_SECONDS: Final = 0.05
REFUSED_SECONDS: Final = 1
"""Where the system has no further thread, it is not asked again for so long."""
NEVER: Final = float("inf")
log = logging.getLogger(__name__)

Task = tuple[Callable[[Any], Any], Any, Future[Any]]
"""What to do, with what, and where the result goes."""


class Threads:
    """What gunicorn asks of a pool. Only the worker's main thread calls this; only tasks run elsewhere.

    A request that waits for Stripe, for a lock or for a slow statement must not hold up the others: another
    thread takes the place of its own, which ends with it. There are never more than `most`.
    """

    def __init__(self, most: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._few, self._most = min(AT_ONCE, most), most
        self._threads: list[_Thread] = []
        self._look_again_at = self._refused_until = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether a task waits for a thread."""
        return not self._tasks.empty()

    def submit(self, do: Callable[[Any], Any], argument: Any) -> Future[Any]:
        """Have it done as soon as a thread is free."""
        future: Future[Any] = Future()
        self._tasks.put((do, argument, future))
        if len(self._threads) < self._few:
            self._start()
        return future

    def relieve(self) -> None:
        """While it `is_behind`, call this every LONG_SECONDS at least: who takes long gets a successor."""
        now = time.monotonic()
        if now < self._look_again_at or not self.is_behind:
            return
        self._look_again_at = now + LONG_SECONDS
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < self._few and self._start():
            pass
        for thread in self._threads[:]:
            takes_long = thread.busy_since < now - LONG_SECONDS and not thread.is_relieved
            if takes_long and len(self._threads) < self._most and self._start():
                thread.is_relieved = True

    def shutdown(self, wait: bool = False) -> None:
        """No more tasks. The process ends when those that there are have been done; nobody waits here."""
        for _ in self._threads:
            self._tasks.put(None)

    def _start(self) -> bool:
        if time.monotonic() < self._refused_until:
            return False
        thread = _Thread(self._tasks)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("no further thread: %s", error)
            self._refused_until = time.monotonic() + REFUSED_SECONDS
            return False
        self._threads.append(thread)
        return True


class _Thread(threading.Thread):
    """Does one task after the other, until there comes a None or another thread has taken its place."""

    def __init__(self, tasks: "queue.SimpleQueue[Task | None]") -> None:
        super().__init__()
        self._tasks = tasks
        self.is_relieved = False
        self.busy_since = NEVER
        """Monotonic."""

    def run(self) -> None:
        while not self.is_relieved and self._do_next():
            pass

    def _do_next(self) -> bool:
        """Nothing of a task is kept while the next is awaited: it holds on to a connection."""
        task = self._tasks.get()
        if task is None:
            return False
        do, argument, future = task
        self.busy_since = time.monotonic()
        try:
            future.set_result(do(argument))
        except BaseException as error:  # noqa: BLE001 - it is for whoever has the future
            future.set_exception(error)
        self.busy_since = NEVER
        return True
