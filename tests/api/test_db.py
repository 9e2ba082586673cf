"""Statements, transactions, locks and leases, and what becomes of them when PostgreSQL goes away."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg2
import pytest

from app.db import Database, lock
from app.errors import Unavailable


@pytest.fixture
def db(app):
    with app.app_context():
        database = app.extensions["billing.db"]
        with database.statement() as cur:
            cur.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
        yield database


@pytest.fixture
def notes(database_url):
    """What another session sees."""

    def read():
        connection = psycopg2.connect(database_url)
        with connection, connection.cursor() as cur:
            cur.execute("SELECT id FROM notes ORDER BY id")
            found = [row[0] for row in cur.fetchall()]
        connection.close()
        return found

    return read


def insert(cur, number):
    cur.execute("INSERT INTO notes VALUES (%(number)s)", {"number": number})


def write(db, number):
    with db.statement() as cur:
        insert(cur, number)


def test_a_statement_commits_by_itself_and_a_transaction_at_its_end_or_not_at_all(db, notes):
    write(db, 1)
    with db.transaction() as cur:
        insert(cur, 2)
        assert notes() == [1]
    assert notes() == [1, 2]
    with pytest.raises(ZeroDivisionError), db.transaction() as cur:
        insert(cur, 3)
        raise ZeroDivisionError
    with pytest.raises(psycopg2.errors.UniqueViolation), db.transaction() as cur:
        insert(cur, 4)
        insert(cur, 4)
    write(db, 5)
    assert notes() == [1, 2, 5]


@pytest.mark.parametrize("inner", ["transaction", "statement"])
def test_nothing_may_be_opened_inside_a_transaction(db, notes, inner):
    with pytest.raises(RuntimeError, match="pass its cursor"), db.transaction() as cur:
        insert(cur, 1)
        with getattr(db, inner)():
            pass
    assert notes() == []
    write(db, 2)
    assert notes() == [2]


def test_each_thread_has_a_connection_of_its_own(app, db, notes):
    both = threading.Barrier(2)

    def work(number):
        with app.app_context(), db.transaction() as cur:
            insert(cur, number)
            both.wait()
        db.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert notes() == [0, 1]


def test_a_lost_connection_is_replaced(db, notes, database_url):
    write(db, 1)
    killer = psycopg2.connect(database_url)
    killer.autocommit = True
    killer.cursor().execute(
        "SELECT PG_TERMINATE_BACKEND(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID()"
    )
    killer.close()
    write(db, 2)
    with pytest.raises(Unavailable), db.transaction() as cur:
        insert(cur, 3)
        cur.execute("SELECT PG_TERMINATE_BACKEND(PG_BACKEND_PID())")
    with pytest.raises(Unavailable), db.transaction() as cur:
        insert(cur, 4)
        cur.connection.close()  # lost at the commit
    write(db, 5)
    assert notes() == [1, 2, 5]


def test_a_server_that_does_not_answer_is_503():
    with pytest.raises(Unavailable) as refused, Database(lambda: "postgresql://x@127.0.0.1:1/x").statement():
        pass
    assert refused.value.headers["Retry-After"]


def test_a_host_that_vanishes_is_noticed_and_the_url_goes_before_our_parameters(app, database_url):
    separator = "&" if "?" in database_url else "?"
    database = Database(lambda: f"{database_url}{separator}connect_timeout=2&application_name=mine")
    with database.statement() as cur:
        used = cur.connection.info.dsn_parameters
        assert cur.exactly_one("SHOW application_name") == {"application_name": "mine"}
    database.close()
    assert (used["connect_timeout"], used["tcp_user_timeout"]) == ("2", "10000")  # the second in ms


def test_a_read_only_server_is_503_until_it_takes_writes(db, notes, database_url):
    name = database_url.rpartition("/")[2].partition("?")[0]
    with db.statement() as cur:
        cur.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    db.close()
    with pytest.raises(Unavailable):
        write(db, 1)
    with db.statement() as cur:
        cur.execute("BEGIN READ WRITE")
        cur.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        cur.execute("COMMIT")
    with pytest.raises(Unavailable):  # the connection of before, still set so; it is not used again
        write(db, 1)
    write(db, 2)
    assert notes() == [2]


def test_a_right_or_a_table_that_is_missing_is_503_and_named(db):
    with pytest.raises(Unavailable, match="lacks a right"), db.transaction() as cur:
        cur.execute("SET LOCAL ROLE pg_monitor")
        cur.execute("CREATE TABLE mine ()")
    with pytest.raises(Unavailable, match="flask db migrate"), db.statement() as cur:
        cur.execute("SELECT 1 FROM table_of_a_later_version")


def test_a_row_or_lock_of_another_session_is_waited_for_only_so_long(db, notes, database_url, monkeypatch):
    monkeypatch.setattr("app.db.LOCK_SECONDS", 0.05)
    write(db, 1)
    other = psycopg2.connect(database_url)
    with other, other.cursor() as held:
        held.execute("SELECT * FROM notes FOR UPDATE")
        held.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED('rotate', 0))")
        with pytest.raises(Unavailable, match="Another request"), db.transaction() as cur:
            cur.execute("UPDATE notes SET id = 2")
        with pytest.raises(Unavailable, match="Another request"), db.transaction() as cur:
            lock(cur, "rotate", 0.05)
    other.close()
    with db.transaction() as cur:
        lock(cur, "rotate", 0.05)
        cur.execute("UPDATE notes SET id = 3")
    assert notes() == [3]


class TestLease:
    def test_it_shuts_out_others_and_leaves_room_for_transactions(self, db, notes):
        with pytest.raises(ZeroDivisionError), db.lease("a"):
            with pytest.raises(Unavailable, match="Another request"), db.lease("a", wait_seconds=0):
                pass
            with db.lease("b"), db.transaction() as cur:
                insert(cur, 1)
            raise ZeroDivisionError
        with db.lease("a", wait_seconds=0):
            assert notes() == [1]

    def test_it_is_waited_for(self, app, db):
        order, taken = [], threading.Event()

        def second():
            taken.wait()
            with app.app_context(), db.lease("a", wait_seconds=60):
                order.append("second")
            db.close()

        thread = threading.Thread(target=second)
        thread.start()
        with db.lease("a"):
            taken.set()
            order.append("first")
        thread.join()
        assert order == ["first", "second"]

    def test_it_ends_by_itself_and_its_late_holder_ends_no_other(self, db, sql):
        with db.lease("a"):
            sql("UPDATE leases SET ends_at = ends_at - INTERVAL '61 seconds'")
            later = db.lease("a", wait_seconds=0)
            later.__enter__()
        with pytest.raises(Unavailable), db.lease("a", wait_seconds=0):
            pass
        later.__exit__(None, None, None)
        with db.lease("a", wait_seconds=0):
            assert len(sql("SELECT 1 FROM leases")) == 1


def test_times_are_in_utc_and_infinity_is_one_that_a_license_can_hold(db):
    with db.transaction() as cur:
        cur.execute("SELECT SET_CONFIG('timezone', 'Asia/Kolkata', TRUE)")
        row = cur.exactly_one(
            """
            SELECT TIMESTAMPTZ '2026-01-31 10:00:00.5+02' AS at, NULL::TIMESTAMPTZ AS never,
                   'infinity'::TIMESTAMPTZ AS last, '-infinity'::TIMESTAMPTZ AS first,
                   TIMESTAMPTZ '20000-01-01' AS far, TIMESTAMPTZ '0044-03-15 BC' AS long_ago
            """
        )
    assert repr(row["at"]) == "datetime.datetime(2026, 1, 31, 8, 0, 0, 500000, tzinfo=datetime.timezone.utc)"
    assert row["never"] is None
    assert row["last"] == row["far"] == datetime(2999, 12, 31, tzinfo=UTC)
    assert row["first"] == row["long_ago"] == datetime(1970, 1, 1, tzinfo=UTC)
