"""No room, no connection, no patience: refused cleanly, and served again as soon as there is some."""

import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from app import embedded
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.faults.conftest import Load, Postgres
from tests.server import PATIENCE, wait_until


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


def test_an_exhausted_pool_refuses_some_and_recovers(serve, database_url):
    server = serve(DB_POOL_SIZE="2", WEB_CONCURRENCY="1", WEB_THREADS="8")
    made = server.post("/api/customers", {"email": "ada@example.com"}, headers=ADMIN).json()
    blocker = psycopg2.connect(database_url)
    blocker.cursor().execute("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE")

    def report(number: int) -> int:
        body = report_body(made["customerId"], instanceId=f"i{number}")
        answer = server.post("/api/usage/report", body, headers=bearer(made["license"]))
        assert answer.status_code == 201 or answer.headers["Retry-After"]
        return answer.status_code

    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(report, number) for number in range(6)]
        wait_until(lambda: sum(future.done() for future in waiting) == 4)
        assert server.get("/health").status_code == 200
        blocker.rollback()
        assert sorted(future.result() for future in waiting) == [201, 201, 503, 503, 503, 503]
    refused = re.search(r"^billing_db_pool_timeouts_total (\d+)", server.get("/metrics").text, re.MULTILINE)
    assert refused
    assert int(refused[1]) >= 4
    with blocker, blocker.cursor() as cur:
        cur.execute("SELECT COUNT(*) FROM usage_reports")
        assert cur.fetchone() == (2,)
    blocker.close()
    assert report(7) == 201


SLOW = [b"GET /health HT", b"POST /api/licenses/verify HTTP/1.1\r\nContent-Length: 99\r\n"]


@pytest.mark.parametrize("sent", SLOW if os.environ.get("FAULTS") == "long" else SLOW[:1])
def test_slow_clients_do_not_keep_the_others_out(serve, sent: bytes):
    """More connections that dribble than there are threads; each loses its place in the end."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="4")
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for connection in slow:
        connection.sendall(sent)
    assert server.get("/health").status_code == 200
    for connection in slow:
        connection.settimeout(30)
        assert connection.recv(1) == b""
        connection.close()


def test_silent_clients_take_no_thread(serve):
    """Browsers and balancers connect ahead of time, too; whoever speaks in the end is served."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="2")
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    assert server.get("/health").status_code == 200
    silent[30].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    silent[30].settimeout(PATIENCE)
    assert silent[30].recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == 0
    for connection in silent:
        connection.close()


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
            with ballast.open("wb") as file, pytest.raises(OSError):
                while True:
                    file.write(b"x" * 65536)
                    file.flush()
            wait_until(lambda: 503 in load.answers.values() or None in load.answers.values(), 120)
            ballast.unlink()
            postgres.start()
            load.wait_for_more()
            load.check(postgres)
            server.stop()
        finally:
            embedded.stop(disk / "data")
            subprocess.run(["umount", "-l", str(disk)], check=True)
