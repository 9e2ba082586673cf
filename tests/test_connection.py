"""Where a request ends, seen from the poller, and answers that are not read: on a pair of real sockets."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.errors import LimitRequestHeaders
from hypothesis import given, settings
from hypothesis import strategies as st

from app.connection import CHUNKED_LIMIT, HEAD_LIMIT, KEPT_BODY_LIMIT, LINE_LIMIT, Connection

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    GET: b"",
    b"\r\n" + GET: b"",
    b"GET / HTTP/1.0\r\n\r\n": b"",
    POST + b"Content-Length: 5\r\n\r\nhello": b"hello",
    POST + b"CONTENT-LENGTH:\t0005 \r\nX-A: b\r\n\r\n\r\n\r\n\r": b"\r\n\r\n\r",
    POST + b"X-A: content-length: 9\r\nContent-Length: 1\r\n\r\n!": b"!",
    CHUNKED + b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    CHUNKED + b"5\r\n0\r\n\r\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 9\r\n\r\n": b"0\r\n\r\n0123456789",
    CHUNKED + b"0\r\n\r\n": b"",
    CHUNKED + b"0000000005;a=b\r\nhello\r\n000\r\n\r\n": b"hello",
    POST + b"Content-Length: 0000000005\r\n\r\nhello": b"hello",
    POST + b"Content-Length: 0\r\n\r\n": b"",
}
KEPT = [request for request in WHOLE if b"HTTP/1.0" not in request]
REFUSED = [
    b"GARBAGE\r\n\r\n",
    b"GET / HTTP/1.1\n",
    b"\x16\x03\x01\x02\x00\x01\n",
    POST + b"Content-Length: five\r\n\r\n",
    POST + b"Content-Length: 99999999\r\n\r\n",
    POST + b"Content-Length: %d\r\n\r\n" % (KEPT_BODY_LIMIT + 1),
    CHUNKED + b"five\r\n",
    CHUNKED + b"123456789\r\n",
    CHUNKED + b"\r\n",
    POST + b"Transfer-Encoding: gzip\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /" + b"a" * LINE_LIMIT,
]


class Pair:
    """The service's end and the client's."""

    def __init__(self) -> None:
        server, self.client = socket.socketpair()
        self.client.settimeout(10)
        self.server = Connection(server)
        self.parser = get_parser(Config(), self.server, ("127.0.0.1", 1))

    def arrives(self, data: bytes) -> bool:
        self.client.sendall(data)
        return self.server.has_arrived()

    def body(self) -> bytes:
        body = next(self.parser).body.read()
        assert isinstance(body, bytes)
        return body

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.mark.parametrize("request_", WHOLE)
def test_a_request_has_arrived_with_its_last_byte_and_not_before(pair: Pair, request_: bytes) -> None:
    for at in range(len(request_) - 1):
        assert not pair.arrives(request_[at : at + 1])
    assert pair.arrives(request_[-1:])
    assert pair.body() == WHOLE[request_]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(KEPT), min_size=1, max_size=5), st.lists(st.integers(1, 60)))
def test_requests_in_pieces_are_served_each_once(requests: list[bytes], sizes: list[int]) -> None:
    """However the network cuts them, and although the parser reads ahead into the next one."""
    pair, stream, served = Pair(), b"".join(requests), []
    try:
        for size in [*sizes, len(stream)]:
            piece, stream = stream[:size], stream[size:]
            pair.client.sendall(piece)
            while len(served) < len(requests) and pair.server.has_arrived():
                served.append(pair.body())
                assert pair.parser.finish_body()
                pair.server.begin(pair.parser.unreader.take_buffered())
    finally:
        pair.close()
    assert served == [WHOLE[request] for request in requests]


@pytest.mark.parametrize("sent", REFUSED)
def test_what_will_be_refused_is_not_waited_for(pair: Pair, sent: bytes) -> None:
    assert pair.arrives(sent)


@pytest.mark.parametrize("line", [b"5;", b"0\r\n", b"1\r\na\r\n0;"])
def test_lines_without_end_between_chunks_are_lost(pair: Pair, line: bytes) -> None:
    assert pair.arrives(CHUNKED + line + b"a" * LINE_LIMIT)
    assert pair.server.is_lost


def test_a_client_that_leaves_is_not_waited_for(pair: Pair) -> None:
    assert not pair.arrives(b"")
    pair.client.close()
    assert pair.server.has_arrived()
    assert pair.server.is_lost


def test_a_client_that_leaves_in_the_middle_is_for_the_parser(pair: Pair) -> None:
    assert not pair.arrives(b"GET / HT")
    pair.client.close()
    assert pair.server.has_arrived()
    assert not pair.server.is_lost


def test_a_head_without_end_is_cut_off(pair: Pair) -> None:
    assert not pair.arrives(b"GET / HTTP/1.1\r\n")
    while not pair.arrives(b"X-A: " + b"a" * 1000 + b"\r\n"):
        assert pair.server.has_begun
    with pytest.raises(LimitRequestHeaders):
        next(pair.parser)


def test_a_body_in_chunks_without_end_is_cut_off(pair: Pair) -> None:
    assert not pair.arrives(CHUNKED)
    sent = 0
    while not pair.arrives(b"1000\r\n" + b"a" * 0x1000 + b"\r\n"):
        sent += 0x1000
    assert sent < CHUNKED_LIMIT
    body = next(pair.parser).body
    assert len(body.read(KEPT_BODY_LIMIT)) == KEPT_BODY_LIMIT
    with pytest.raises(ConnectionResetError):
        body.read()
    assert pair.server.is_broken


@pytest.mark.parametrize("length", [KEPT_BODY_LIMIT + 1, 99999999, 10**30])
def test_what_follows_a_body_that_is_too_long_to_wait_for_is_no_request(pair: Pair, length: int) -> None:
    """The parser, which reads on to the body's end, meets an error and nothing that looks like an end."""
    assert pair.arrives(POST + b"Content-Length: %d\r\n\r\n" % length)
    request = next(pair.parser)
    with pytest.raises(ConnectionResetError):
        pair.parser.finish_body()
    assert pair.server.is_broken
    assert request.body.failed


@pytest.mark.parametrize("gap", [b" ", b"\t", b"0", b"\r"])
@pytest.mark.parametrize("field", [b"Expect:", b"Content-Length:", b"Transfer-Encoding:"])
def test_a_field_of_somebodys_choice_does_not_keep_the_service_busy(field: bytes, gap: bytes) -> None:
    """Looked at from every character on, this would take hours; the sum of many makes it minutes."""
    for _ in range(100):
        pair = Pair()
        pair.client.sendall(b"GET / HTTP/1.1\r\n" + field + gap * 60_000 + b"\rx\r\n\r\n")
        while not pair.server.has_arrived():
            pass
        pair.close()


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", CHUNKED + b"0\r\n", CHUNKED + b"1;"])
def test_bytes_that_come_one_by_one_are_looked_at_once(start: bytes) -> None:
    """As before: many small pieces behind many others cost no more than the first."""
    pair = Pair()
    pair.arrives(start)
    for _ in range(60_000):
        if pair.arrives(b"X"):
            break
    pair.close()


def test_who_expects_to_be_told_is_told_once_to_continue(pair: Pair) -> None:
    head = POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    assert not pair.arrives(head)
    assert not pair.arrives(b"he")
    assert pair.client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert pair.arrives(b"llo")
    assert pair.body() == b"hello"


def test_what_a_full_connection_does_not_take_of_it_is_not_lost(pair: Pair) -> None:
    answer = os.urandom(3 * 1024 * 1024)
    pair.server.sendall(answer)
    pair.arrives(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    read = b""
    while pair.server.unsent:
        read += pair.client.recv(HEAD_LIMIT)
        pair.server.send_rest()
    pair.client.settimeout(0.2)
    with suppress(TimeoutError):
        while True:
            read += pair.client.recv(HEAD_LIMIT)
    assert read == answer + b"HTTP/1.1 100 Continue\r\n\r\n"


def test_an_answer_that_is_not_read_keeps_no_thread(pair: Pair) -> None:
    answer = os.urandom(3 * 1024 * 1024)
    pair.server.sendall(answer[:HEAD_LIMIT])
    pair.server.sendall(answer[HEAD_LIMIT:])
    assert pair.server.unsent
    read = b""
    while len(read) < len(answer):
        read += pair.client.recv(HEAD_LIMIT)
        pair.server.send_rest()
    assert read == answer
    assert not pair.server.unsent


def test_an_answer_in_pieces_goes_on_as_soon_as_it_can(pair: Pair) -> None:
    answer = os.urandom(3 * 1024 * 1024)
    pair.server.sendall(answer)
    read = b""
    while len(read) < len(answer):
        read += pair.client.recv(HEAD_LIMIT)
        pair.server.sendall(b"")
    pair.server.sendall(b"!")
    assert pair.client.recv(10) == b"!"
    assert read == answer
    assert pair.server.kept == 0


@pytest.mark.parametrize(("version", "expects", "is_told"), [
    (b"1.1", b"100-continue", True), (b"1.1", b"100-Continue ", True), (b"1.0", b"100-continue", False),
    (b"1.1", b"200-maybe", False),
])  # fmt: skip
def test_only_who_expects_it_is_told(pair: Pair, version: bytes, expects: bytes, is_told: bool) -> None:
    pair.arrives(b"POST / HTTP/%b\r\nExpect: %b\r\nContent-Length: 5\r\n\r\n" % (version, expects))
    pair.server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    assert pair.client.recv(1000).startswith(b"HTTP/1.1 100 ") is is_told
