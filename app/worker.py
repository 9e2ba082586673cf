"""gunicorn's thread worker, for clients that cannot be trusted to be quick."""

import errno
import select
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gunicorn.glogging import Logger
from gunicorn.http import get_parser
from gunicorn.workers.gthread import ThreadWorker

from app.connection import HEAD_LIMIT, Connection
from app.threads import LONG_SECONDS, Threads

REQUEST_SECONDS: Final = 15
ANSWER_SECONDS: Final = 60
SILENT_SECONDS_AT_STOP: Final = 2
ACCEPT_PAUSE_SECONDS: Final = 0.0003
NO_FILES_PAUSE_SECONDS: Final = 0.05
EVERYBODYS_SECONDS: Final = 1
"""Who has waited for less is not closed to make room: its request may be under way."""
KEPT_LIMIT: Final = 64 * 1024 * 1024
"""How many bytes of requests and answers one worker keeps for its clients."""

Conn = Any
"""gunicorn's TConn, whose `sock` is a Connection from its first `enqueue_req` on."""


class Log(Logger):
    """gunicorn's own, with an access log only for who asks for one."""

    def access(self, *args: Any) -> None:
        """The application writes a line a request; gunicorn would compose another, if nobody wants it too."""
        if self.cfg.accesslog:
            super().access(*args)


class PatientWorker(ThreadWorker):
    """Lends a thread only to a request that is there whole, and only until its answer is made.

    By itself gunicorn waits in a thread for a client that has begun to speak, and in its one accepting
    thread, two seconds long, for one to close: a few dozen that dribble (slowloris), do not read, or do
    not hang up would take the service away from everybody. Here all of them wait in the poller. Where
    they become too many, the one that has waited longest is closed; where they keep too much, the one
    that keeps most.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads = Threads(self.cfg.threads)
        self._waiting: dict[Conn, float] = {}
        """Until when (monotonic), in the order in which they began to wait."""
        self._kept: dict[Conn, int] = {}
        """Bytes."""
        self._kept_in_all = 0
        self._lacks_files = False
        self._look_again_at = 0.0

    def get_thread_pool(self) -> Any:
        """Where gunicorn's own would give each of its threads a request at once."""
        return self._threads

    def run(self) -> None:
        """Whatever ends it, the threads end too, and what they are at is answered before the process ends."""
        try:
            super().run()
        finally:
            self._threads.shutdown()

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """One round. While requests wait for a thread, look again soon who takes long."""
        super().wait_for_and_dispatch_events(LONG_SECONDS if self._threads.is_behind else timeout)
        self._threads.relieve()

    def accept(self, listener: socket.socket) -> None:
        """Take one connection, then stand back a moment.

        In its slice of time one worker would else take every connection of a burst, and keep them
        while the other workers have none.
        """
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            self.log.error("a connection was not accepted: %s", error)
            self._lacks_files = error.errno in (errno.EMFILE, errno.ENFILE)
            time.sleep(NO_FILES_PAUSE_SECONDS)
        time.sleep(ACCEPT_PAUSE_SECONDS)

    def enqueue_req(self, conn: Conn) -> None:
        """A connection is new, or speaks again: a thread for its request, or it waits for the rest."""
        if conn.parser is None:
            conn.sock = Connection(conn.sock)
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
        conn.sock.begin(conn.parser.unreader.take_buffered())
        if conn.sock.has_arrived():
            self._serve(conn)
        else:
            self._wait(conn, selectors.EVENT_READ, self._on_more, REQUEST_SECONDS)

    def handle_request(self, req: Any, conn: Conn) -> bool:
        """Who waits to be told to go on was told; gunicorn would wait here until the client takes it."""
        req._expected_100_continue = False
        return super().handle_request(req, conn)

    def finish_request(self, conn: Conn, fs: Any) -> None:
        """The answer is made: once the client has it, keep the connection or part from it."""
        is_kept = not fs.cancelled() and fs.exception() is None and fs.result() and not conn.sock.is_broken
        if conn.sock.fileno() < 0:  # gunicorn closed it, after an error in mid-answer
            self._close(conn)
        elif conn.sock.unsent:
            self._wait(conn, selectors.EVENT_WRITE, partial(self._on_writable, fs), ANSWER_SECONDS)
        elif not is_kept:
            self._part(conn)
        elif conn.sock.has_begun:
            self.enqueue_req(conn)
        else:
            self._count(conn)
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """After each round of events: close whose time is up, who keeps most, who has waited longest."""
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + 1
            for conn in [conn for conn, until in self._waiting.items() if until <= now]:
                self._drop(conn)
        while self._kept_in_all > KEPT_LIMIT and (keeping := self._kept.keys() & self._waiting.keys()):
            self._drop(max(keeping, key=self._kept.__getitem__))
        while (self.nr_conns >= self.worker_connections or self._lacks_files) and self._make_room():
            self._lacks_files = False

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """When stopping, take who has connected already and close the door.

        gunicorn would leave it open, and let those who still come wait for nothing.
        """
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        soon = time.monotonic() + SILENT_SECONDS_AT_STOP
        for conn, until in self._waiting.items():
            self._waiting[conn] = until if conn.sock.kept else min(until, soon)
        listeners, self.sockets = self.sockets, []
        for listener in listeners:
            for _ in range(self.worker_connections):
                if self._lacks_files or not select.select([listener], [], [], 0)[0]:
                    break
                self.accept(listener)
            listener.close()

    def _serve(self, conn: Conn) -> None:
        self._count(conn)
        is_too_much = self._kept_in_all > KEPT_LIMIT and conn.sock.kept > HEAD_LIMIT
        if conn.sock.is_lost or is_too_much:
            self._close(conn)
        else:
            conn.data_ready = True
            super().enqueue_req(conn)

    def _on_more(self, conn: Conn) -> None:
        had_begun = conn.sock.has_begun
        if conn.sock.has_arrived():
            self._stop_waiting(conn)
            self._serve(conn)
        elif conn.sock.has_begun and not had_begun:
            self._stop_waiting(conn)
            self._wait(conn, selectors.EVENT_READ, self._on_more, REQUEST_SECONDS)
        else:
            self._count(conn)

    def _on_writable(self, fs: Any, conn: Conn) -> None:
        try:
            conn.sock.send_rest()
        except OSError:
            self._drop(conn)
            return
        self._count(conn)
        if not conn.sock.unsent:
            self._stop_waiting(conn)
            self.finish_request(conn, fs)

    def _part(self, conn: Conn) -> None:
        """Closing at once, while the client still sends, might cost it the answer (RFC 9112, 9.6)."""
        try:
            conn.sock.part()
        except OSError:
            self._close(conn)
            return
        self._wait(conn, selectors.EVENT_READ, self._on_last_words, REQUEST_SECONDS)

    def _on_last_words(self, conn: Conn) -> None:
        if conn.sock.hear_out():
            self._drop(conn)

    def _wait(self, conn: Conn, event: int, then: Callable[[Conn], None], seconds: float) -> None:
        """Without a thread, in the poller."""
        self._count(conn)
        if not self.alive and not conn.sock.kept:
            seconds = SILENT_SECONDS_AT_STOP
        conn.sock.waits_since = time.monotonic()
        self.poller.register(conn.sock, event, lambda _: then(conn))
        self._waiting[conn] = conn.sock.waits_since + seconds

    def _stop_waiting(self, conn: Conn) -> None:
        del self._waiting[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: Conn) -> None:
        self._stop_waiting(conn)
        self._close(conn)

    def _close(self, conn: Conn) -> None:
        self._kept_in_all -= self._kept.pop(conn, 0)
        self.nr_conns -= 1
        conn.close()

    def _count(self, conn: Conn) -> None:
        kept = conn.sock.kept
        self._kept_in_all += kept - self._kept.pop(conn, 0)
        if kept:
            self._kept[conn] = kept

    def _make_room(self) -> bool:
        """Close an idle connection, else the one that has waited longest; False where there is none."""
        began = time.monotonic() - EVERYBODYS_SECONDS
        if self.keepalived_conns and self.keepalived_conns[0].timeout - self.cfg.keepalive < began:
            conn = self.keepalived_conns.popleft()
            self.poller.unregister(conn.sock)
            self._close(conn)
            return True
        longest = next(iter(self._waiting), None)
        if longest is None or longest.sock.waits_since > began:
            return False
        self._drop(longest)
        return True
