"""The pool and its transactions, and what becomes of requests when PostgreSQL goes away."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import embedded, migrations
from app.config import load_settings
from app.db import Database
from app.errors import Unavailable
from tests.conftest import ADMIN, QUICK
from tests.factories import bearer, make_customer, report_body


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url, 2)
    with database.statement() as cur:
        cur.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
    yield database
    database.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[str, Callable[..., None]]]:
    """A server of this test's own: its URL, and `control("stop", "-m", "immediate")`."""
    folder = tmp_path / "server"
    url = embedded.start(folder, QUICK | {"synchronous_commit": "on", "shared_buffers": "16MB"})
    options = (folder / "postgres" / "postmaster.opts").read_text().split('"', 1)

    def control(action: str, *args: str) -> None:
        more = ("-w", "-l", str(folder / "postgres" / "again.log"), "-o", '"' + options[1].strip())
        embedded._run(folder / "postgres", "pg_ctl", action, *args, *(more if action == "start" else ("-w",)))

    yield url, control
    embedded.stop(folder)


def in_use(db: Database) -> int:
    return db.size - db._permits.qsize()


def insert(db: Database, number: int) -> None:
    with db.statement() as cur:
        cur.execute("INSERT INTO notes VALUES (%(number)s)", {"number": number})


def notes(db: Database) -> list[int]:
    with db.statement() as cur:
        return [row["id"] for row in cur.all("SELECT id FROM notes ORDER BY id")]


def test_statement_commits_by_itself(db: Database) -> None:
    insert(db, 1)
    assert notes(db) == [1]
    assert (len(db._idle), in_use(db)) == (1, 0)


def test_transaction_commits_at_its_end_or_not_at_all(db: Database, database_url: str) -> None:
    other = Database(database_url, 1)
    with db.transaction():
        insert(db, 1)
        assert notes(other) == []
    assert notes(other) == [1]
    with pytest.raises(ZeroDivisionError), db.transaction():
        insert(db, 2)
        raise ZeroDivisionError
    assert notes(other) == [1]
    other.close()
    insert(db, 3)
    assert notes(db) == [1, 3]
    assert len(db._idle) == 1


def test_nested_ones_share_the_outer_connection(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction():
        insert(db, 1)
        with db.transaction():
            insert(db, 2)
        assert notes(db) == [1, 2]
        assert in_use(db) == 1
        raise ZeroDivisionError
    assert notes(db) == []
    with db.statement():
        with db.transaction():
            insert(db, 3)
            assert in_use(db) == 1
        insert(db, 4)
    assert notes(db) == [3, 4]


def test_failed_transaction_inside_a_statement_leaves_it_usable(db: Database) -> None:
    with db.statement():
        with pytest.raises(psycopg2.errors.UniqueViolation), db.transaction():
            insert(db, 1)
            insert(db, 1)
        insert(db, 2)
    assert notes(db) == [2]


def test_exhausted_pool_is_unavailable(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.db.POOL_WAIT_SECONDS", 0.1)
    held, release = threading.Barrier(3), threading.Event()

    def hold() -> None:
        with db.statement():
            held.wait()
            release.wait()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    held.wait()
    with pytest.raises(Unavailable, match="busy") as refusal:
        insert(db, 1)
    assert refusal.value.headers["Retry-After"]
    release.set()
    for thread in threads:
        thread.join()
    insert(db, 2)
    assert (notes(db), in_use(db)) == ([2], 0)


class Busy:
    """A pool of which no connection comes free in time."""

    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def get(self, *, timeout: float) -> None:
        self._waits.append(timeout)
        raise queue.Empty


@pytest.mark.parametrize("route", ["/api/customers", "/api/licenses", "/api/usage", "/api/subscriptions"])
def test_exhausted_pool_is_waited_for_once(
    make_app: Callable[..., Flask], client: FlaskClient, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    made = make_customer(client)
    app = make_app()
    ask = {"path": f"{route}/{made['customerId']}", "headers": bearer(made["license"])}
    assert app.test_client().get(**ask).status_code == 200
    waits: list[float] = []
    monkeypatch.setattr(app.extensions["billing.db"], "_permits", Busy(waits))
    assert app.test_client().get(**ask).status_code == 503
    assert waits == [5]


def test_killed_connection_is_replaced(db: Database, database_url: str) -> None:
    insert(db, 1)
    killer = psycopg2.connect(database_url)
    killer.autocommit = True
    with killer.cursor() as cur:
        cur.execute(
            "SELECT PG_TERMINATE_BACKEND(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID()"
        )
    killer.close()
    insert(db, 2)
    assert notes(db) == [1, 2]


def test_connection_killed_in_a_transaction_is_unavailable_and_nothing_stays(db: Database) -> None:
    with pytest.raises(Unavailable), db.transaction() as cur:
        insert(db, 1)
        cur.execute("SELECT PG_TERMINATE_BACKEND(PG_BACKEND_PID())")
    assert (notes(db), in_use(db)) == ([], 0)


def test_connection_lost_at_the_commit_is_unavailable(db: Database) -> None:
    with pytest.raises(Unavailable), db.transaction() as cur:
        insert(db, 1)
        cur.connection.close()
    assert notes(db) == []


def test_open_transaction_never_goes_back_into_the_pool(db: Database) -> None:
    with db.statement() as cur:
        cur.execute("BEGIN")
        cur.execute("INSERT INTO notes VALUES (1)")
    assert not db._idle
    assert notes(db) == []


def test_separate_lock_shuts_out_others_and_commits_what_is_inside(db: Database) -> None:
    order = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with db.separate_lock("a"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(ZeroDivisionError), db.separate_lock("a"):
        inside.set()
        insert(db, 1)
        with db.separate_lock("b"):
            order.append("first")
        raise ZeroDivisionError
    thread.join()
    assert order == ["first", "second"]
    assert notes(db) == [1]


def test_separate_locks_leave_the_pool_to_the_work(database_url: str) -> None:
    database = Database(database_url, 1)
    with database.separate_lock("a"), database.statement() as cur:
        assert cur.the("SELECT 1 AS one") == {"one": 1}
    database.close()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_times_are_in_utc_whatever_the_session_says(db: Database, zone: str) -> None:
    with db.transaction() as cur:
        cur.execute("SELECT SET_CONFIG('timezone', %(zone)s, TRUE)", {"zone": zone})
        row = cur.the("SELECT TIMESTAMPTZ '2026-01-31 10:00:00.5+02' AS at, NULL::TIMESTAMPTZ AS never")
    assert repr(row["at"]) == "datetime.datetime(2026, 1, 31, 8, 0, 0, 500000, tzinfo=datetime.timezone.utc)"
    assert row["never"] is None


def test_infinity_is_a_time_that_a_license_can_hold(db: Database) -> None:
    with db.statement() as cur:
        row = cur.the("SELECT 'infinity'::TIMESTAMPTZ AS at, TIMESTAMPTZ '20000-01-01' AS far")
        past = cur.the("SELECT '-infinity'::TIMESTAMPTZ AS at, TIMESTAMPTZ '0044-03-15 BC' AS far")
    assert row["at"] == row["far"] == datetime(2999, 12, 31, tzinfo=UTC)
    assert past["at"] == past["far"] == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_role_that_lacks_a_right_is_told_so(db: Database) -> None:
    with pytest.raises(Unavailable, match="lacks a right"), db.transaction() as cur:
        cur.execute("SET LOCAL ROLE pg_monitor")
        cur.execute("CREATE TABLE mine ()")
    assert in_use(db) == 0


def test_unreachable_server_is_unavailable() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none", 1)
    for _ in range(3):
        with pytest.raises(Unavailable), database.statement():
            pass
    assert in_use(database) == 0


def test_read_only_server_is_unavailable_until_it_writes(db: Database, database_url: str) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    with db.statement() as cur:
        cur.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    db.close()
    with pytest.raises(Unavailable):
        insert(db, 1)
    assert notes(db) == []
    with db.statement() as cur:
        cur.execute("BEGIN READ WRITE")
        cur.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        cur.execute("COMMIT")
    with pytest.raises(Unavailable):  # the connection of before, still set so; it is not used again
        insert(db, 1)
    insert(db, 2)
    assert notes(db) == [2]


def test_server_that_stops_and_comes_back_loses_nothing_acknowledged(
    own_server: tuple[str, Callable[..., None]], key_dir: Path, environ: dict[str, str]
) -> None:
    from app import create_app

    url, control = own_server
    app = create_app(load_settings(environ | {"DATABASE_URL": url}))
    database: Database = app.extensions["billing.db"]
    migrations.migrate(database)
    customer_id = make_customer(app.test_client())["customerId"]
    stop_at, outcomes = threading.Event(), []

    def report(name: str) -> None:
        client = app.test_client()
        while not stop_at.is_set():
            answer = client.post(
                "/api/usage/report", json=report_body(customer_id, instanceId=name), headers=ADMIN
            )
            outcomes.append((answer.status_code, (answer.json or {}).get("reportId")))
            if answer.status_code == 503:
                assert answer.headers["Retry-After"]
                time.sleep(0.02)

    threads = [threading.Thread(target=report, args=(f"i{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()

    def wait_for(status: int, since: int) -> None:
        give_up = time.monotonic() + 20
        while status not in [outcome[0] for outcome in outcomes[since:]]:
            assert time.monotonic() < give_up, outcomes[-5:]
            time.sleep(0.02)

    for mode in ("fast", "immediate"):
        wait_for(201, len(outcomes))
        control("stop", "-m", mode)
        wait_for(503, len(outcomes))
        assert app.test_client().get("/health/ready").status_code == 503
        control("start")
    wait_for(201, len(outcomes))
    stop_at.set()
    for thread in threads:
        thread.join()
    acknowledged = {number for status, number in outcomes if status == 201}
    with database.statement() as cur:
        stored = {row["id"] for row in cur.all("SELECT id FROM usage_reports")}
    assert {status for status, _ in outcomes} == {201, 503}
    assert acknowledged <= stored
    assert app.test_client().get("/health/ready").status_code == 200
    database.close()


def test_each_request_gives_its_connection_back(app: Flask) -> None:
    database: Database = app.extensions["billing.db"]
    client = app.test_client()
    customer_id = make_customer(client)["customerId"]
    for path, body in (
        ("/api/usage/report", report_body(customer_id)),
        ("/api/usage/report", report_body("cust_zzzzzzzzzzzzzzzz")),
        ("/api/usage/reports", {"reports": [report_body(customer_id), 1]}),
    ):
        client.post(path, json=body, headers=ADMIN)
    assert (in_use(database), len(database._idle)) == (0, 1)
    answer: Any = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json
    assert answer["summary"]["totalReports"] == 2
