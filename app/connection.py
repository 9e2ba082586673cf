"""A client's connection that never makes a thread wait for the client."""

import errno
import re
import socket
from contextlib import suppress
from typing import Any, Final

from gunicorn.http.errors import LimitRequestHeaders

LINE_LIMIT: Final = 8 * 1024
HEAD_LIMIT: Final = 64 * 1024
KEPT_BODY_LIMIT: Final = 1024 * 1024 + HEAD_LIMIT
"""More than the application takes: it refuses what is longer by what is there."""
CHUNKED_LIMIT: Final = 4 * KEPT_BODY_LIMIT
"""The same for a body in chunks, with all that stands between them."""

_FRAMING: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|expect):[ \t]*+([^\r\n]*+)", re.IGNORECASE
)
_LENGTH: Final = re.compile(rb"(?=\d)0*+(\d{0,7})[ \t]*+")
_CHUNK_SIZE: Final = re.compile(rb"(?=[0-9a-f])0*+([0-9a-f]{0,7})[; \t\r]", re.IGNORECASE)
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")


class Connection(socket.socket):
    """Keeps what has come of a request until that is whole, and what the client has not taken of the answer.

    It looks at a request only to tell where it ends. What is malformed, too long or unheard of counts as
    whole: to refuse it is the parser's business, and the connection ends with it. It `is_lost` when the
    client has left, or sends what cannot become a request.
    """

    def __init__(self, accepted: socket.socket) -> None:
        """Takes the place of `accepted`."""
        family, kind, protocol = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, protocol, fileno=accepted.detach())
        super().setblocking(True)
        self.unsent = bytearray()
        self.is_lost = self.is_broken = False
        self.waits_since = 0.0
        self._received = bytearray()
        self.begin(b"")

    def setblocking(self, flag: bool) -> None:
        """Nothing to do: each call here says for itself that it does not wait."""

    def settimeout(self, value: float | None) -> None:
        """The same."""

    def begin(self, ahead: bytes) -> None:
        """A request is due; `ahead` is what the parser read of it behind the one before."""
        self._received[:0] = ahead
        self._is_head_too_long = False
        self._end: int | None = None
        self._next_chunk: int | None = None
        self._searched = 0

    @property
    def has_begun(self) -> bool:
        """Whether something of a request is there."""
        return bool(self._received)

    @property
    def kept(self) -> int:
        """How many bytes it keeps, both ways."""
        return len(self._received) + len(self.unsent)

    def has_arrived(self) -> bool:
        """Take some of what is there, without waiting; whether the request is whole, or will never be."""
        if self._is_whole():
            return True
        try:
            data = super().recv(HEAD_LIMIT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.is_lost = not self._received
            return True
        self._received += data
        return self._is_whole()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """For the parser. Raises ConnectionResetError where it wants more than is there."""
        if self._received:
            data = bytes(self._received[:size])
            del self._received[:size]
            return data
        try:
            return super().recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.is_broken = True
            if self._is_head_too_long:
                raise LimitRequestHeaders("the head is too long") from None
            raise ConnectionResetError(errno.ECONNRESET, "the request is not whole") from None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """For the answer: what the client does not take at once is left in `unsent`."""
        if self.unsent:
            self.send_rest()
        sent = 0 if self.unsent else self._send_now(data)
        if sent < len(data):
            self.unsent += memoryview(data)[sent:]

    def send_rest(self) -> None:
        """Send of `unsent` what can be sent without waiting. Raises OSError when the client is gone."""
        del self.unsent[: self._send_now(self.unsent)]

    def part(self) -> None:
        """Nothing more comes from here, and nothing is wanted. Raises OSError when the client is gone."""
        self._received.clear()
        self.shutdown(socket.SHUT_WR)

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
        if not self._received:
            return False
        if self._end is None and self._next_chunk is None:
            self._read_head()
        if self._end is None and self._next_chunk is not None:
            self._walk_chunks(self._next_chunk)
        return self._end is not None and len(self._received) >= self._end

    def _read_head(self) -> None:
        received, searched = self._received, self._searched
        self._searched = max(0, len(received) - 3)
        body = received.find(b"\r\n\r\n", searched) + 4
        if body < 4:
            if len(received) > LINE_LIMIT and received.find(b"\r\n", 0, LINE_LIMIT) < 0:
                self._end = 0
            elif len(received) > HEAD_LIMIT:
                self._is_head_too_long, self._end = True, 0
            elif _BARE_LF.search(received, searched):
                self._end = 0
            return
        fields = {name.lower(): value for name, value in _FRAMING.findall(received, 0, body)}
        is_http_11 = received.find(b" HTTP/1.1\r\n", 0, received.find(b"\r\n", 2) + 2) >= 0
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        self._end = body
        if coding is None and length is not None and (digits := _LENGTH.fullmatch(length)):
            announced = int(b"0" + digits[1])
            self._end += announced if announced <= KEPT_BODY_LIMIT else 0
        elif coding is not None and coding.strip().lower() == b"chunked" and length is None and is_http_11:
            self._end, self._next_chunk, self._searched = None, body, 0
        expectation = fields.get(b"expect", b"").strip().lower()
        if expectation == b"100-continue" and is_http_11 and self._end != body:
            self._tell_to_continue()

    def _walk_chunks(self, at: int) -> None:
        received = self._received
        while (line_end := received.find(b"\r\n", at, at + LINE_LIMIT)) >= 0:
            size = _CHUNK_SIZE.match(received, at)
            if size is None:
                self._end = 0
                return
            if not size[1]:
                self._find_end_of_trailers(line_end)
                break
            at = line_end + 2 + int(size[1], 16) + 2
        self._next_chunk = at
        if self._end is None:
            self.is_lost = len(received) > at + LINE_LIMIT
            self._end = 0 if self.is_lost or len(received) > CHUNKED_LIMIT else None

    def _find_end_of_trailers(self, line_end: int) -> None:
        start = max(line_end, self._searched)
        self._searched = len(self._received) - 3
        found = self._received.find(b"\r\n\r\n", start)
        if found >= 0:
            self._end = found + 4

    def _tell_to_continue(self) -> None:
        with suppress(OSError):
            self.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
