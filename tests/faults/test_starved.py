"""No room, no connection, no patience: refused cleanly, and served again as soon as there is some."""

import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import psycopg2
import pytest

from app import embedded
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.faults.conftest import Load, Postgres
from tests.server import PATIENCE, Server, wait_until


def test_a_full_disk_is_503_and_leaves_nothing(client, sql):
    made = make_customer(client)
    sql(
        """
        CREATE FUNCTION no_room() RETURNS TRIGGER LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$
        """
    )
    sql("CREATE TRIGGER no_room BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION no_room()")
    send = {"json": report_body(made["customerId"]), "headers": bearer(made["license"])}
    answer = client.post("/api/usage/report", **send)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "space" not in answer.text
    assert sql("SELECT 1 FROM usage_reports") == []

    sql("DROP TRIGGER no_room ON instances")
    assert client.post("/api/usage/report", **send).status_code == 201
    assert len(sql("SELECT 1 FROM usage_reports")) == 1


def readers_behind_a_lock(
    serve: Any, database_url: str, **settings: str
) -> tuple[Server, Callable[[int], int], psycopg2.extensions.connection]:
    """One worker with eight threads, a request to it (its status), and what lets none of them through."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="8", **settings)
    made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()

    def read(_: int) -> int:
        answer = server.get(f"/api/customers/{made['customerId']}", headers=ADMIN)
        assert answer.status_code == 200 or answer.headers["Retry-After"]
        return answer.status_code

    blocker = psycopg2.connect(database_url)
    blocker.cursor().execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
    return server, read, blocker


def test_an_exhausted_pool_refuses_some_and_recovers(serve, database_url):
    server, read, blocker = readers_behind_a_lock(serve, database_url, DB_POOL_SIZE="2")
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(read, number) for number in range(6)]
        wait_until(lambda: sum(future.done() for future in waiting) == 4)
        assert server.get("/health").status_code == 200
        blocker.close()
        assert sorted(future.result() for future in waiting) == [200, 200, 503, 503, 503, 503]
    refused = re.search(r"^billing_db_pool_timeouts_total (\d+)", server.get("/metrics").text, re.MULTILINE)
    assert refused
    assert int(refused[1]) >= 4
    assert read(7) == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP])
def test_whatever_stops_a_worker_what_waits_for_a_lock_is_answered(serve, database_url, how):
    """More of them than have a thread at once."""
    server, read, blocker = readers_behind_a_lock(serve, database_url)
    with ThreadPoolExecutor(6) as pool, psycopg2.connect(database_url) as watch, watch.cursor() as cur:
        waiting = [pool.submit(read, number) for number in range(6)]
        wait_until(lambda: cur.execute("SELECT 1 FROM pg_locks WHERE NOT granted") or cur.rowcount == 6)
        server.send(how)
        time.sleep(2)
        blocker.close()
        assert [future.result() for future in waiting] == 6 * [200]
    watch.close()


def test_a_license_that_cannot_be_renewed_now_holds_up_no_report(serve, database_url):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="4")
    made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
    with psycopg2.connect(database_url) as blocker, blocker.cursor() as cur:
        cur.execute("UPDATE licenses SET recheck = TRUE")
        blocker.commit()
        cur.execute("UPDATE customers SET updated_at = now()")
        answer = server.post(
            "/api/usage/report", report_body(made["customerId"]), headers=bearer(made["license"])
        )
        assert (answer.status_code, "license" in answer.json()) == (201, False)
        license_path = f"/api/licenses/{made['customerId']}"
        assert server.get(license_path, headers=ADMIN).status_code == 503
        blocker.rollback()
    blocker.close()
    assert server.get(license_path, headers=ADMIN).status_code == 200


@pytest.mark.parametrize("batch", [False, True])
def test_a_row_that_somebody_holds_keeps_nobody_else_out(serve, database_url, batch):
    """As an operator's session does that was left open after an UPDATE."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="4")
    held, other = (
        server.post("/api/customers", {"email": email}, headers=ADMIN).json()["customerId"]
        for email in ("ada@example.com", "bob@example.com")
    )

    def report(customer_id: str) -> int:
        body = report_body(customer_id)
        if batch:
            return server.post("/api/usage/reports", {"reports": [body]}, headers=ADMIN).status_code
        return server.post("/api/usage/report", body, headers=ADMIN).status_code

    assert report(held) in (200, 201)
    with psycopg2.connect(database_url) as blocker, ThreadPoolExecutor(8) as pool:
        blocker.cursor().execute("UPDATE instances SET active_devices = 1")
        waiting = [pool.submit(report, held) for _ in range(8)]
        assert report(other) in (200, 201)
        assert server.get("/health").status_code == 200
        assert {future.result() for future in waiting} == {503}
        blocker.rollback()
    blocker.close()
    assert report(held) in (200, 201)


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/licenses/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "silent": b"",
    "head": GET + b"X-A: ",
    "body": POST + b"Content-Length: 99\r\n\r\n{",
    "long body": POST + b"Content-Length: 99999999\r\n\r\n{",
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\n",
    "expects": POST + b"Expect: 100-continue\r\nContent-Length: 99\r\n\r\n",
    "next head": GET + b"\r\n" + GET,
    "does not hang up": GET + b"Connection: close\r\n\r\n",
    "garbage": b"GARBAGE\r\n\r\n",
    "does not read": 8 * (b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.fixture
def crowd(serve):
    """Connections that all send this and then leave it at that, to a server that has two threads."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    connections = []

    def send(what: bytes, count: int = 60) -> tuple[Server, list[socket.socket]]:
        for _ in range(count):
            connections.append(socket.socket())
            connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connections[-1].connect(("127.0.0.1", server.port))
            connections[-1].sendall(what)
        return server, connections

    yield send
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("kind", SLOW)
def test_slow_clients_do_not_keep_the_others_out(crowd, kind):
    """Many times as many as there are threads; each would keep one for longer than we wait here."""
    server, slow = crowd(SLOW[kind])
    assert server.get("/health").status_code == 200
    for connection in slow[::2]:
        connection.close()
    assert server.get("/health").status_code == 200
    assert [line for line in server.lines() if line["level"] == "error"] == []


def test_slow_clients_are_served_in_the_end(crowd):
    _, slow = crowd(GET + b"X-A: a", 30)
    for connection in slow:
        connection.sendall(b"\r\n\r\n")
        connection.settimeout(PATIENCE)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_stopping_waits_for_a_request_that_has_begun_but_not_for_silence(crowd):
    server, (silent, begun) = crowd(b"", 2)
    begun.sendall(GET)
    assert server.get("/health").status_code == 200
    server.send(signal.SIGTERM)
    silent.settimeout(PATIENCE)
    assert silent.recv(1) == b""
    begun.sendall(b"\r\n")
    begun.settimeout(PATIENCE)
    assert begun.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == 0


def test_stopping_serves_who_has_connected_behind_who_has_left(serve):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    worker = psutil.Process(server.workers()[0])
    worker.suspend()
    for _ in range(6):
        socket.create_connection(("127.0.0.1", server.port), PATIENCE).close()
    waiting = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    waiting.sendall(GET + b"\r\n")
    server.send(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    worker.resume()
    assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
    waiting.close()
    assert server.stop() == 0


def test_a_big_upload_gives_way_and_nobody_who_keeps_little(serve):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    small = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(5)]
    for connection in small[1:]:
        connection.sendall(GET)
    long = POST + b"Content-Length: 1000000\r\n\r\n" + b" " * 999_000
    big = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(80)]
    for connection in big:
        with suppress(OSError):
            connection.sendall(long)
    small[0].sendall(GET)
    for connection in small:
        connection.sendall(b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    for connection in small + big:
        connection.close()


def test_stopping_waits_for_a_request_that_begins_late(crowd):
    server, (slow,) = crowd(b"", 1)
    assert server.get("/health").status_code == 200
    server.send(signal.SIGTERM)
    time.sleep(0.5)
    slow.sendall(GET)
    time.sleep(2)
    slow.sendall(b"\r\n")
    slow.settimeout(PATIENCE)
    assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == 0


def test_slow_clients_lose_their_place_in_the_end(crowd):
    _, slow = crowd(SLOW["body"], 3)
    for connection in slow:
        connection.settimeout(PATIENCE)
        assert connection.recv(1) == b""


def test_an_answer_is_sent_to_its_end_however_slowly_it_is_read(crowd):
    server, slow = crowd(SLOW["does not read"], 1)
    whole = server.get("/docs/swagger-ui-bundle.js").content
    slow[0].settimeout(PATIENCE)
    with slow[0].makefile("rb") as answers:
        for _ in range(8):
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            while answers.readline() != b"\r\n":
                pass
            assert answers.read(len(whole)) == whole


def test_more_connections_than_a_worker_keeps_do_not_keep_the_others_out(serve):
    """The one that has waited longest gives way."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2", GUNICORN_CMD_ARGS="--worker-connections 50")
    workers = server.workers()
    slow = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(100)]
    assert server.get("/health").status_code == 200
    assert slow[0].recv(1) == b""
    slow[-1].sendall(GET + b"\r\n")
    assert slow[-1].recv(100).startswith(b"HTTP/1.1 200 ")
    for connection in slow:
        connection.close()
    assert server.workers() == workers


def test_a_full_worker_that_is_spoken_to_by_all_goes_on(serve):
    """Closing one to make room must not meet what that one, or its neighbour, sends in the same moment."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2", GUNICORN_CMD_ARGS="--worker-connections 50")
    workers = server.workers()
    for _ in range(5):
        slow = [socket.create_connection(("127.0.0.1", server.port), PATIENCE) for _ in range(60)]
        for connection in slow:
            with suppress(OSError):
                connection.sendall(GET)
        for connection in slow:
            with suppress(OSError):
                connection.sendall(b"\r\n" + GET)
        assert server.get("/health").status_code == 200
        for connection in slow:
            connection.close()
    assert server.workers() == workers


def test_many_bytes_of_unfinished_requests_give_way_to_others(serve):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    process = psutil.Process(server.workers()[0])
    before = process.memory_info().rss
    long = POST + b"Content-Length: 1000000\r\n\r\n"
    slow = []
    for _ in range(200):
        slow.append(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        with suppress(OSError):
            slow[-1].sendall(long + b" " * 999_999)
    assert server.get("/health").status_code == 200
    assert process.memory_info().rss - before < 150_000_000
    for connection in slow:
        connection.close()


def test_what_follows_a_refused_body_is_not_taken_for_a_request(serve):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(SLOW["long body"])
        answers = connection.recv(10_000)
        with suppress(OSError):
            connection.sendall(GET + b"\r\n")
        while more := connection.recv(10_000):
            answers += more
    assert answers.startswith(b"HTTP/1.1 413 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_too_few_open_files_for_all_connections_are_survived(serve):
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    worker = server.workers()[0]
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (80, 80))
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    assert server.get("/health").status_code == 200
    assert server.workers() == [worker]
    for connection in slow:
        connection.close()
    assert server.get("/health").status_code == 200


if os.environ.get("FAULTS") == "long" and os.geteuid() == 0:

    def test_a_disk_that_is_really_full(serve, open_folder):
        """A database on a small file system that something else fills up, and frees again."""
        disk = open_folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0711", "tmpfs", str(disk)], check=True)
        try:
            postgres = Postgres(disk / "data")
            server = serve(DATABASE_URL=postgres.url)
            load = Load(server)
            load.wait_for_more()
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(b"x" * 65536)
            wait_until(lambda: 503 in load.answers.values() or None in load.answers.values(), 120)
            ballast.unlink()
            postgres.start()
            load.wait_for_more()
            load.check(postgres)
            server.stop()
        finally:
            embedded.stop(disk / "data")
            subprocess.run(["umount", "-l", str(disk)], check=True)
