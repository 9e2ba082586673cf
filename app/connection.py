"""A client's connection, which never makes a thread wait for the client if that can be helped."""

import errno
import re
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from gunicorn.http.errors import LimitRequestHeaders

PATIENCE_SECONDS: Final = 15
HEAD_LIMIT: Final = 64 * 1024
REQUEST_LIMIT: Final = HEAD_LIMIT + 1024 * 1024

_FRAMING: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)(?=\r\n)", re.IGNORECASE
)
_SHORT_LENGTH: Final = re.compile(rb"\d{1,7}[ \t]*")
_CHUNK_SIZE: Final = re.compile(rb"[0-9a-f]{1,6}(?=[; \t\r])", re.IGNORECASE)


class Connection(socket.socket):
    """Keeps what has come of a request until that is whole, and what the client has not taken of the answer.

    It looks at a request only to tell where it ends. What is malformed, too long or unheard of counts as
    whole: to refuse it is the parser's business.
    """

    def __init__(self, accepted: socket.socket, room: Callable[[], int]) -> None:
        """Takes the place of `accepted`; `room` tells how many bytes it may keep each way."""
        family, kind, protocol = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, protocol, fileno=accepted.detach())
        super().setblocking(True)
        self.unsent = bytearray()
        self.was_told_to_continue = False
        self._room = room
        self._received = bytearray()
        self._is_at_end = False
        self._receive_by = self._send_by = 0.0
        self._is_head_too_long = False
        self._end: int | None = None
        self._next_chunk: int | None = None

    def setblocking(self, flag: bool) -> None:
        """Nothing to do: each call here says for itself whether it waits."""

    def begin(self, ahead: bytes) -> None:
        """A request is due, from now on; `ahead` is what the parser read of it behind the one before."""
        self._received[:0] = ahead
        self.was_told_to_continue = False
        self._receive_by, self._send_by = time.monotonic() + PATIENCE_SECONDS, 0.0
        self._end = self._next_chunk = None

    @property
    def has_begun(self) -> bool:
        """Whether something of a request is there."""
        return bool(self._received)

    @property
    def has_left(self) -> bool:
        """The client has closed its side, and nothing of a request is there."""
        return self._is_at_end and not self._received

    def has_arrived(self) -> bool:
        """Take what is there, without waiting; whether that is a whole request, or all there is room for."""
        while not (self._received and self._is_whole()) and len(self._received) <= self._room():
            try:
                data = super().recv(HEAD_LIMIT, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            self._received += data
            if not data:
                self._is_at_end = True
                break
        return True

    def recv(self, size: int, flags: int = 0) -> bytes:
        """For the parser: what has come; where that is not all, what comes in time.

        Late bytes are no bytes: the parser takes the client for gone.
        """
        if self._received:
            data = bytes(self._received[:size])
            del self._received[:size]
            return data
        self.settimeout(max(0.0, self._receive_by - time.monotonic()))
        try:
            return super().recv(size, flags)
        except (TimeoutError, BlockingIOError):
            if self._is_head_too_long:
                raise LimitRequestHeaders("the head is too long") from None
            return b""
        finally:
            self.settimeout(None)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """For the answer: what the client does not take at once is left in `unsent`, while there is room."""
        sent = 0 if self.unsent else self._send_now(data)
        if sent == len(data):
            return
        self.unsent += memoryview(data)[sent:]
        if len(self.unsent) > self._room():
            self._send_by = self._send_by or time.monotonic() + PATIENCE_SECONDS
            self.settimeout(max(0.001, self._send_by - time.monotonic()))
            try:
                super().sendall(self.unsent)
            except TimeoutError:
                raise BrokenPipeError(errno.EPIPE, "the client has stopped reading") from None
            finally:
                self.settimeout(None)
            self.unsent.clear()

    def send_rest(self) -> None:
        """Send what can be sent of `unsent` without waiting. Raises OSError when the client is gone."""
        del self.unsent[: self._send_now(self.unsent)]

    def hear_out(self) -> bool:
        """Throw away what still comes after the last answer; whether the client has closed its side."""
        try:
            return not super().recv(HEAD_LIMIT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send_now(self, data: Any) -> int:
        try:
            return self.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _is_whole(self) -> bool:
        if self._end is None and self._next_chunk is None:
            self._read_head()
        if self._end is None and self._next_chunk is not None:
            self._walk_chunks(self._next_chunk)
        return self._end is not None and len(self._received) >= self._end

    def _read_head(self) -> None:
        received = self._received
        body = received.find(b"\r\n\r\n") + 4
        if body < 4:
            if len(received) > HEAD_LIMIT:
                self._is_head_too_long = True
                self._cut_off()
            elif received.count(b"\n") != received.count(b"\r\n"):
                self._cut_off()
            return
        fields = {name.lower(): value for name, value in _FRAMING.findall(received, 0, body)}
        length = fields.get(b"content-length", b"0")
        if b"transfer-encoding" in fields:
            self._next_chunk = body
        elif _SHORT_LENGTH.fullmatch(length) and int(length) <= REQUEST_LIMIT:
            self._end = body + int(length)
        else:
            self._cut_off()
            return
        if b"expect" in fields and self._end != body:
            self._tell_to_continue()

    def _walk_chunks(self, at: int) -> None:
        received = self._received
        while (line_end := received.find(b"\r\n", at)) >= 0:
            size = _CHUNK_SIZE.match(received, at)
            if size is None:
                self._cut_off()
                return
            if int(size[0], 16) == 0:
                trailers_end = received.find(b"\r\n\r\n", line_end)
                self._end = trailers_end + 4 if trailers_end >= 0 else None
                break
            at = line_end + 2 + int(size[0], 16) + 2
        self._next_chunk = at
        if self._end is None and len(received) > REQUEST_LIMIT:
            self._cut_off()

    def _cut_off(self) -> None:
        """What is there is enough to refuse it; the parser need not wait for more."""
        self._end = 0
        self._receive_by = 0.0

    def _tell_to_continue(self) -> None:
        try:
            self.was_told_to_continue = bool(self.send(b"HTTP/1.1 100 Continue\r\n\r\n", socket.MSG_DONTWAIT))
        except OSError:
            return
