"""gunicorn's thread worker, for clients that cannot be trusted to be quick."""

import select
import selectors
import socket
import struct
import time
from functools import partial
from typing import Any, Final

from gunicorn.http import get_parser
from gunicorn.workers.gthread import TConn, ThreadWorker

RECEIVE_SECONDS: Final = 15
SEND_SECONDS: Final = 30
SILENT_SECONDS_AT_STOP: Final = 2
ACCEPT_PAUSE_SECONDS: Final = 0.0003


class PatientWorker(ThreadWorker):
    """Gives each request RECEIVE_SECONDS to arrive in, head and body together.

    By itself gunicorn waits for them for ever, with a thread: a few dozen connections that dribble
    (slowloris) would take the service away from everybody. A client that stops reading its answer
    loses the connection after SEND_SECONDS.
    """

    def enqueue_req(self, conn: TConn) -> None:
        """From here on, not only once a thread is free, the request has its time to arrive.

        A new connection waits for its first byte without a thread: gunicorn would lend it one for five
        seconds, and a few hundred silent ones would keep everybody else out for a minute.
        """
        conn.data_ready = conn.data_ready or conn.initialized or _is_readable(conn.sock)
        if self.alive and not conn.data_ready:
            conn.set_timeout()
            self.pending_conns.append(conn)
            on_data = partial(self.on_pending_socket_readable, conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, on_data)
            return
        parser: Any = conn.parser
        if parser is None:
            timeval = struct.pack("ll", SEND_SECONDS, 0)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            source: Any = _Receiver(conn.sock)
            conn.parser = parser = get_parser(self.cfg, source, conn.client)
        parser.unreader.sock.begin()
        super().enqueue_req(conn)

    def accept(self, listener: socket.socket) -> None:
        """Take one connection, then stand back a moment.

        In its slice of time one worker would else take every connection of a burst, and keep them
        while the other workers have none.
        """
        super().accept(listener)
        time.sleep(ACCEPT_PAUSE_SECONDS)

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """When stopping, take who has connected already and close the door.

        gunicorn would leave it open, and let those who still come wait for nothing.
        """
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for conn in self.pending_conns:
            conn.timeout = time.monotonic() + SILENT_SECONDS_AT_STOP
        for listener in self.sockets:
            while select.select([listener], [], [], 0)[0]:
                self.accept(listener)
            listener.close()


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


class _Receiver:
    """What the parser reads from. Late bytes are no bytes: gunicorn takes the client for gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0

    def begin(self) -> None:
        """A new request is due."""
        self._deadline = time.monotonic() + RECEIVE_SECONDS

    def recv(self, size: int) -> bytes:
        """What is there by the deadline; after it only what has come already."""
        self._connection.settimeout(max(0.0, self._deadline - time.monotonic()))
        try:
            return self._connection.recv(size)
        except (TimeoutError, BlockingIOError):
            # Both ways: gunicorn would else linger for two seconds in its one accepting thread.
            self._connection.shutdown(socket.SHUT_RDWR)
            return b""
        finally:
            self._connection.settimeout(None)
