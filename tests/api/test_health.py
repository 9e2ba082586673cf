"""Alive, ready, and what the signals do to a running server."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
import requests

from app import embedded
from app.config import load_settings
from app.keyring import write_key_files
from tests.conftest import ADMIN, QUICK
from tests.factories import make_customer
from tests.server import Server, wait_until, waiting

NOWHERE = "postgresql://billing:hunter2@127.0.0.1:1/billing"  # pragma: allowlist secret


def test_alive_without_a_database(make_app):
    answer = make_app(DATABASE_URL=NOWHERE).test_client().get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_ready(client):
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json) == (200, {"status": "ready", "failing": {}})


def failing(make_app, **settings: str) -> dict[str, str]:
    answer = make_app(**settings).test_client().get("/health/ready")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["status"] == "unavailable"
    assert "hunter2" not in answer.text
    return dict(answer.json["failing"])


def test_not_ready_names_the_database(make_app):
    assert set(failing(make_app, DATABASE_URL=NOWHERE)) == {"database"}


def test_not_ready_names_pending_migrations(make_app, empty_database_url):
    found = failing(make_app, DATABASE_URL=empty_database_url)
    assert set(found) == {"migrations"}
    assert "0001_customers_subscriptions_licenses" in found["migrations"]


def test_what_a_pending_migration_would_bring_is_503(client, sql):
    made = make_customer(client)
    sql("DROP FUNCTION find_customer")
    answer = client.get(f"/api/customers/{made['customerId']}", headers=ADMIN)
    assert answer.status_code == 503
    assert "flask db migrate" in answer.json["message"]


def test_ready_beside_a_later_version(client, sql, console):
    sql("INSERT INTO schema_migrations (name, checksum) VALUES ('9999_later', REPEAT('0', 64))")
    assert client.get("/health/ready").status_code == 200
    assert "9999_later" in console("db", "status").stdout
    assert console("db", "migrate").exit_code == 1
    sql("DELETE FROM schema_migrations WHERE name LIKE '0006%%'")
    assert "0006" in client.get("/health/ready").json["failing"]["migrations"]


def test_not_ready_names_an_edited_migration(make_app, sql):
    sql("UPDATE schema_migrations SET checksum = REPEAT('0', 64) WHERE name LIKE '0002%%'")
    found = failing(make_app)
    assert set(found) == {"migrations"}
    assert "edited" in found["migrations"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"LICENSE_PRIVATE_KEY_PATH": "/nowhere/private-key.pem"}, "LICENSE_PRIVATE_KEY_PATH"),
        ({"LICENSE_PRIVATE_KEY": "bm90IGEga2V5"}, "LICENSE_PRIVATE_KEY"),  # pragma: allowlist secret
        ({"LICENSE_PRIVATE_KEY_COMMAND": "false"}, "LICENSE_PRIVATE_KEY_COMMAND"),  # pragma: allowlist secret
    ],
)
def test_not_ready_names_the_signing_key(make_app, settings, named):
    assert failing(make_app, **settings) == {"signing_key": named}


def test_a_key_that_cannot_be_read_is_503_and_not_the_end_of_the_process(make_app):
    client = make_app(LICENSE_PRIVATE_KEY="bm90IGEga2V5").test_client()
    for _ in range(2):
        answer = client.get("/api/licenses/public-key")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "LICENSE" not in answer.text
    assert client.get("/health").status_code == 200


def test_a_database_that_comes_later_is_taken_without_a_restart(serve, open_folder):
    url = embedded.start(open_folder, QUICK)
    embedded.stop(open_folder)
    server = serve(DATABASE_URL=url)
    assert set(server.get("/health/ready").json()["failing"]) == {"database"}
    answer = server.get("/api/customers", headers=ADMIN)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")

    embedded.start(open_folder, QUICK)
    try:
        wait_until(lambda: set(server.get("/health/ready").json()["failing"]) == {"migrations"})
        server.stop()
    finally:
        embedded.stop(open_folder)
    assert any("database not available" in line["message"] for line in server.lines())


def test_sigterm_finishes_what_is_under_way(serve, database_url):
    server = serve()
    connection = psycopg2.connect(database_url)
    connection.cursor().execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor() as pool:
        body = {"email": "ada@example.com"}
        slow = pool.submit(server.post, "/api/customers", body, headers=ADMIN)
        wait_until(lambda: waiting(database_url))
        server.send(signal.SIGTERM)
        wait_until(lambda: any(line["message"] == "Handling signal: term" for line in server.lines()))
        assert not slow.done()
        connection.rollback()
        assert slow.result().status_code == 201
    assert server.process.wait(30) == 0
    with connection, connection.cursor() as cur:
        cur.execute("SELECT email FROM customers")
        assert cur.fetchall() == [("ada@example.com",)]
    connection.close()


def test_no_request_is_lost_over_sighup_and_sigterm(serve):
    """Callers that keep asking see an answer to everything, until the very end."""
    server = serve()
    stop = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            answers.append(server.get("/api/customers", headers=ADMIN).status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        before = set(server.workers())
        server.send(signal.SIGHUP)
        wait_until(lambda: not before & set(server.workers()) and server.workers())
        enough = len(answers) + 40
        wait_until(lambda: len(answers) >= enough)
        stop.set()
        for future in asking:
            future.result()
    assert set(answers) == {200}
    assert server.stop() == 0


def test_sighup_reads_settings_and_keys_anew(environ, copy_of_service, tmp_path):
    copy = copy_of_service
    settings = {k: v for k, v in environ.items() if k not in ("ADMIN_API_KEY", "LOG_LEVEL")}
    keys = {name: str(tmp_path / name) for name in ("private.pem", "public.pem")}
    settings |= {
        "LICENSE_PRIVATE_KEY_PATH": keys["private.pem"],
        "LICENSE_PUBLIC_KEY_PATH": keys["public.pem"],
    }
    write_key_files(load_settings(settings))
    (copy / ".env").write_text("ADMIN_API_KEY=first-key\nLICENSE_ISSUER=one\n")  # pragma: allowlist secret
    server = Server(settings, tmp_path, copy).start()
    try:
        kid = server.get("/api/licenses/public-key").json()["kid"]
        assert asked_with(server, "first-key") == 200

        (copy / ".env").write_text("ADMIN_API_KEY=second-key\n")  # pragma: allowlist secret
        new_kid = write_key_files(load_settings(settings)).public.kid
        reload(server)
        assert asked_with(server, "second-key") == 200
        assert asked_with(server, "first-key") == 401
        assert server.get("/api/licenses/public-key").json()["kid"] == new_kid != kid

        (copy / ".env").write_text("ADMIN_API_KEY=third-key\nTRIAL_DAYS=many\n")  # pragma: allowlist secret
        reload(server)
        assert asked_with(server, "second-key") == 200
        assert asked_with(server, "third-key") == 401
        refused = [line for line in server.lines() if "TRIAL_DAYS" in line["message"]]
        assert [line["level"] for line in refused] == ["error"]
    finally:
        server.stop()


def reload(server: Server) -> None:
    before = set(server.workers())
    server.send(signal.SIGHUP)
    wait_until(lambda: not before & set(server.workers()) and server.workers())
    wait_until(lambda: server.get("/health").status_code == 200)


def asked_with(server: Server, key: str) -> int:
    return server.get("/api/customers", headers={"Authorization": f"Bearer {key}"}).status_code


def test_listens_on_ipv4_and_ipv6(serve):
    server = serve()
    assert server.get("/health").status_code == 200
    try:
        socket.create_connection(("::1", server.port), timeout=5).close()
    except OSError:
        assert not has_ipv6()
    else:
        assert requests.get(f"http://[::1]:{server.port}/health", timeout=5).status_code == 200


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
