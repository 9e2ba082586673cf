"""Alive, ready, and what the signals do to a running server."""

import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import psycopg2
import pytest

from app import embedded
from app.config import load_settings
from app.keyring import write_key_files
from app.licenses import generate_private_key
from tests.conftest import ADMIN, QUICK, key_paths
from tests.factories import bearer
from tests.server import Server, run_flask, run_gunicorn, wait_until, waiting

NOWHERE = "postgresql://billing:hunter2@127.0.0.1:1/billing"  # pragma: allowlist secret


def failing(make_app, **settings):
    answer = make_app(**settings).test_client().get("/health/ready")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["status"] == "unavailable"
    assert "hunter2" not in answer.text
    return answer.json["failing"]


def test_alive_and_ready(client, make_app):
    assert client.get("/health/ready").json == {"status": "ready", "failing": {}}
    assert set(failing(make_app, DATABASE_URL=NOWHERE)) == {"database"}
    answer = make_app(DATABASE_URL=NOWHERE).test_client().get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_pending_and_edited_migrations_are_named(make_app, client, sql, empty_database_url, console):
    found = failing(make_app, DATABASE_URL=empty_database_url)
    assert set(found) == {"migrations"}
    assert "0001_operations" in found["migrations"]

    sql("INSERT INTO schema_migrations (name, checksum) VALUES ('9999_later', REPEAT('0', 64))")
    assert client.get("/health/ready").status_code == 200  # beside a later version
    assert "9999_later" in console("db", "status").stdout
    assert console("db", "migrate").exit_code == 1
    sql("UPDATE schema_migrations SET checksum = REPEAT('0', 64) WHERE name LIKE '0002%%'")
    assert "edited" in failing(make_app)["migrations"]

    sql("DROP FUNCTION find_customer")  # what a pending migration would bring
    answer = client.get("/api/customers/cust_0123456789ab", headers=ADMIN)
    assert (answer.status_code, "flask db migrate" in answer.json["message"]) == (503, True)


def test_no_database_is_exit_1_and_what_to_do(environ, tmp_path):
    settings = environ | {"DATABASE_URL": "", "DATA_DIR": str(tmp_path / "data")}
    for done in (run_gunicorn(settings), run_flask("customer", "list", environ=settings)):
        assert (done.returncode, done.stdout) == (1, "")
        assert "DATABASE_URL: not set" in done.stderr
        assert "make run" in done.stderr
        assert "EMBEDDED_POSTGRES=1" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_database_that_comes_later_is_taken_without_a_restart(make_app, open_folder, capsys):
    url = embedded.start(open_folder, QUICK)
    embedded.stop(open_folder)
    client = make_app(DATABASE_URL=url).test_client()
    assert set(client.get("/health/ready").json["failing"]) == {"database"}
    answer = client.get("/api/customers", headers=ADMIN)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "database not available" in capsys.readouterr().err
    embedded.start(open_folder, QUICK)
    try:
        wait_until(lambda: set(client.get("/health/ready").json["failing"]) == {"migrations"})
    finally:
        embedded.stop(open_folder)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the workers have one socket")
def test_a_burst_of_connections_is_shared_by_all_workers_however_many_there_are(serve, copy_of_service):
    def accepted(pid):
        found = psutil.Process(pid).net_connections("tcp")
        return sum(one.status == "ESTABLISHED" and one.laddr.port == server.port for one in found)

    def all_accepted():
        found = [accepted(pid) for pid in server.workers()]
        return found if sum(found) == 64 else None

    (copy_of_service / ".env").write_text("WEB_CONCURRENCY=2\n")
    server = serve(cwd=copy_of_service, WEB_CONCURRENCY="")
    for workers in (1, 3, 2):
        (copy_of_service / ".env").write_text(f"WEB_CONCURRENCY={workers}\n")
        server.reload()
        with ExitStack() as opened:
            for _ in range(64):
                opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            shares = wait_until(all_accepted)
        assert len(shares) == workers
    assert min(shares) >= 8  # fewer by chance in one of 10 billion runs


def test_it_listens_on_both_kinds_of_address_and_what_signals_do(
    environ, copy_of_service, tmp_path, database_url
):
    dotenv = copy_of_service / ".env"
    settings = {k: v for k, v in environ.items() if k not in ("ADMIN_API_KEY", "LOG_LEVEL")}
    settings |= key_paths(tmp_path)

    def write_key():
        return write_key_files(load_settings(settings), generate_private_key()).public.kid

    first = write_key()
    dotenv.write_text("ADMIN_API_KEY=first-key\n")  # pragma: allowlist secret
    server = Server(settings, tmp_path, copy_of_service).start()

    def statuses():
        keys = ("first-key", "second-key", "third-key")
        return [server.get("/api/customers", headers=bearer(key)).status_code for key in keys]

    try:
        addresses = {found.address for card in psutil.net_if_addrs().values() for found in card}
        for host in {"127.0.0.1", "::1"} & addresses:
            with socket.create_connection((host, server.port), timeout=60):
                pass
        assert server.get("/api/licenses/public-key").json()["kid"] == first
        assert statuses() == [200, 401, 401]

        dotenv.write_text("ADMIN_API_KEY=second-key\n")  # pragma: allowlist secret
        second = write_key()
        server.reload()
        assert statuses() == [401, 200, 401]
        assert server.get("/api/licenses/public-key").json()["kid"] == second != first

        dotenv.write_text("ADMIN_API_KEY=third-key\nTRIAL_DAYS=many\n")  # pragma: allowlist secret
        server.reload()
        assert statuses() == [401, 200, 401]
        refused = [line for line in server.lines() if "TRIAL_DAYS" in line["message"]]
        assert [line["level"] for line in refused] == ["error"]

        # SIGTERM finishes what is under way.
        connection = psycopg2.connect(database_url)
        connection.cursor().execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(server.get, "/api/customers", headers=bearer("second-key"))
            wait_until(lambda: waiting(database_url))
            server.send(signal.SIGTERM)
            wait_until(lambda: any(line["message"] == "Handling signal: term" for line in server.lines()))
            assert not slow.done()
            connection.close()
            assert slow.result().json() == {"customers": [], "nextCursor": None}
        assert server.process.wait(60) == 0
    finally:
        server.stop()
