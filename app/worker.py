"""gunicorn's thread worker, for clients that cannot be trusted to be quick."""

import errno
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gunicorn.http import get_parser
from gunicorn.workers.gthread import ThreadWorker

from app.connection import PATIENCE_SECONDS, Connection

Conn = Any
"""gunicorn's TConn, whose `sock` is a Connection from its first `enqueue_req` on."""
SILENT_SECONDS_AT_STOP: Final = 2
ACCEPT_PAUSE_SECONDS: Final = 0.0003
NO_FILES_PAUSE_SECONDS: Final = 0.05
UNFINISHED_LIMIT: Final = 64 * 1024 * 1024
"""How many bytes of unfinished requests and answers one worker keeps, about."""


class PatientWorker(ThreadWorker):
    """Lends a thread only to a request that is there whole, and only until its answer is made.

    By itself gunicorn waits in a thread for a client that has begun to speak, and in its one accepting
    thread, two seconds long, for one to close: a few dozen that dribble (slowloris), do not read, or do
    not hang up would take the service away from everybody. Here all of them wait in the poller, for
    PATIENCE_SECONDS; `pending_conns` has those that gunicorn does not know of too.
    """

    pending_conns: deque[Conn]

    def accept(self, listener: socket.socket) -> None:
        """Take one connection, then stand back a moment.

        In its slice of time one worker would else take every connection of a burst, and keep them
        while the other workers have none.
        """
        if self.nr_conns >= self.worker_connections - 1:
            self._make_room()
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self.log.error("a connection was not accepted: %s", error)
            self._make_room()
            time.sleep(NO_FILES_PAUSE_SECONDS)
        time.sleep(ACCEPT_PAUSE_SECONDS)

    def enqueue_req(self, conn: Conn) -> None:
        """A connection is new, or speaks again: a thread for its request, or it waits for the rest."""
        if conn.parser is None:
            conn.sock = Connection(conn.sock, self._room)
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
        conn.sock.begin(conn.parser.unreader.take_buffered())
        if conn.sock.has_arrived():
            self._serve(conn)
        else:
            self._wait(conn, selectors.EVENT_READ, self._on_more)

    def handle_request(self, req: Any, conn: Conn) -> bool:
        """Who was told to continue already is not told again."""
        req._expected_100_continue = req._expected_100_continue and not conn.sock.was_told_to_continue
        return super().handle_request(req, conn)

    def finish_request(self, conn: Conn, fs: Any) -> None:
        """The answer is made: once the client has it, keep the connection or part from it."""
        is_kept = not fs.cancelled() and fs.exception() is None and fs.result()
        if conn.sock.unsent:
            self._wait(conn, selectors.EVENT_WRITE, partial(self._on_writable, fs))
        elif not is_kept:
            self._part(conn)
        elif conn.sock.has_begun:
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """When stopping, take who has connected already and close the door.

        gunicorn would leave it open, and let those who still come wait for nothing.
        """
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        soon = time.monotonic() + SILENT_SECONDS_AT_STOP
        for conn in self.pending_conns:
            if not conn.sock.has_begun and not conn.sock.unsent:
                conn.timeout = min(conn.timeout, soon)
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))
        for listener in self.sockets:
            while select.select([listener], [], [], 0)[0]:
                self.accept(listener)
            listener.close()

    def _serve(self, conn: Conn) -> None:
        if conn.sock.has_left:
            self._close(conn)
        else:
            conn.data_ready = True
            super().enqueue_req(conn)

    def _on_more(self, conn: Conn) -> None:
        if conn.sock.has_arrived():
            self._stop_waiting(conn)
            self._serve(conn)

    def _on_writable(self, fs: Any, conn: Conn) -> None:
        try:
            conn.sock.send_rest()
        except OSError:
            self._stop_waiting(conn)
            self._close(conn)
            return
        if not conn.sock.unsent:
            self._stop_waiting(conn)
            self.finish_request(conn, fs)

    def _part(self, conn: Conn) -> None:
        """Nothing more comes from here. Closing at once might cost the client the answer (RFC 9112, 9.6)."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._wait(conn, selectors.EVENT_READ, self._on_last_words)

    def _on_last_words(self, conn: Conn) -> None:
        if conn.sock.hear_out():
            self._stop_waiting(conn)
            self._close(conn)

    def _wait(self, conn: Conn, event: int, then: Callable[[Conn], None]) -> None:
        """In the poller, without a thread; gunicorn closes whose time is up."""
        is_patient = self.alive or conn.sock.has_begun or conn.sock.unsent
        conn.timeout = time.monotonic() + (PATIENCE_SECONDS if is_patient else SILENT_SECONDS_AT_STOP)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, event, lambda _: then(conn))

    def _stop_waiting(self, conn: Conn) -> None:
        self.poller.unregister(conn.sock)
        self.pending_conns.remove(conn)

    def _close(self, conn: Conn) -> None:
        self.nr_conns -= 1
        conn.close()

    def _room(self) -> int:
        """The more connections wait, the less each may keep; beyond that a thread does wait for it."""
        return UNFINISHED_LIMIT // (len(self.pending_conns) + 1)

    def _make_room(self) -> None:
        """Close what has waited longest, for who comes now and may be quicker."""
        for waiting in (self.pending_conns, self.keepalived_conns):
            if waiting:
                conn = waiting.popleft()
                self.poller.unregister(conn.sock)
                self._close(conn)
                return
