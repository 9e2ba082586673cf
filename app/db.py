"""The connection pool and `transaction()`: the only file that commits."""

import logging
import queue
import select
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import psycopg2
import psycopg2.extensions
from psycopg2 import errors as pg

from app.errors import Unavailable
from app.observe import CONNECTIONS, POOL_TIMEOUTS

Row = dict[str, Any]
POOL_WAIT_SECONDS: Final = 5
LOCK_WAIT_SECONDS: Final = 90
ROW_WAIT_SECONDS: Final = 2
"""For what instances wait for; as `report_usage` does."""
BUSY: Final = "Another request or session is at work on the same. Try again shortly."
log = logging.getLogger(__name__)

# Connection gone, server starting or stopping, disk full, a replica that cannot write: all pass.
_PASSING: Final = (psycopg2.OperationalError, psycopg2.InterfaceError, pg.ReadOnlySqlTransaction)
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime(2999, 12, 31, tzinfo=UTC)


def _in_utc(text: Any, cur: psycopg2.extensions.cursor) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo is UTC else found.astimezone(UTC)
    except ValueError:  # an operator's 'infinity', as a time that a license and a calendar can still hold
        return _EVER if text.startswith("-") or text.endswith("BC") else _NEVER


# Whatever the time zone of the session is, which the server chooses; and three times as fast as psycopg2's.
_UTC_TIMES: Final = psycopg2.extensions.new_type((1184,), "UTC", _in_utc)


class Cursor(psycopg2.extensions.cursor):
    """Rows as plain dicts."""

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        self.execute(sql, params)
        names = [column[0] for column in self.description or ()]
        return [dict(zip(names, row, strict=False)) for row in self.fetchall()]

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row, or None."""
        self.execute(sql, params)
        row = self.fetchone()
        if row is None:
            return None
        return {column[0]: value for column, value in zip(self.description or (), row, strict=False)}

    def the(self, sql: str, params: Mapping[str, Any] | None = None) -> Row:
        """The one row of a statement that always has one."""
        row = self.one(sql, params)
        if row is None:
            raise LookupError("the statement returned no row")
        return row


class Database:
    """A bounded pool for one process, opened on first use, safe to share between threads.

    A thread holds one connection at most: what is nested uses the outer one, so that threads never wait
    for each other's. Connections are in autocommit, so that a single statement is one round trip. Nothing
    is set per session and nothing is prepared: behind PgBouncer in transaction pooling this works unchanged.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(size):
            self._permits.put(None)
        self._idle: deque[psycopg2.extensions.connection] = deque()
        self._local = threading.local()
        self._guard = _Guard(self)
        self.size = size
        CONNECTIONS.labels("allowed").inc(size)
        self._in_use = CONNECTIONS.labels("in_use")

    @contextmanager
    def statement(self) -> Iterator[Cursor]:
        """A cursor for single statements, each its own transaction; inside `transaction()` part of that.

        Raises Unavailable (503) when the database is away.
        """
        with self._connection() as connection, connection.cursor(cursor_factory=Cursor) as cur:
            yield cur

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Commit on leaving, roll back on any exception; an inner one joins the outer.

        Raises Unavailable (503) when the database is away, also when it goes during the commit.
        """
        with self._connection() as connection:
            if not connection.autocommit:
                with connection.cursor(cursor_factory=Cursor) as cur:
                    yield cur
                return
            with _transaction(connection) as cur:
                yield cur

    def lock(self, cur: Cursor, name: str, seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Wait for `name`, and hold it until the transaction of `cur` ends; Unavailable after a while."""
        self.wait_at_most(cur, seconds)
        cur.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED(%(name)s, 0))", {"name": name})

    def wait_at_most(self, cur: Cursor, seconds: float) -> None:
        """For each row that somebody else holds, until the transaction of `cur` ends; then Unavailable."""
        cur.execute("SET LOCAL lock_timeout = %(ms)s", {"ms": round(seconds * 1000)})

    @contextmanager
    def separate_lock(self, name: str, seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Hold `name` on a connection of its own, so that what is stored inside commits by itself.

        That connection is beyond the pool's size: holders never starve the work that they wait for.
        It stores nothing: should the server end it meanwhile, what was done inside is done all the same.
        """
        with self._guard:
            connection = self._connect()
        try:
            with self._guard, connection.cursor(cursor_factory=Cursor) as cur:
                connection.autocommit = False
                self.lock(cur, name, seconds)
            yield
        finally:
            with suppress(psycopg2.Error):
                connection.rollback()  # gives the lock back at once
            connection.close()

    def close(self) -> None:
        """Close what is idle; connections in use close when they come back."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    @contextmanager
    def _connection(self) -> Iterator[psycopg2.extensions.connection]:
        """The connection that this thread holds, else one from the pool."""
        held = getattr(self._local, "connection", None)
        if held is not None:
            with self._guard:
                yield held
            return
        try:
            self._permits.get(timeout=POOL_WAIT_SECONDS)
        except queue.Empty:
            POOL_TIMEOUTS.inc()
            raise Unavailable("All database connections are busy. Try again shortly.") from None
        connection = None
        try:
            self._in_use.inc()
            with self._guard:
                connection = self._local.connection = self._take()
                yield connection
        except Unavailable:
            if connection is not None:
                connection.close()  # also when it still answers: it may lead to what is a replica now
            raise
        finally:
            self._local.connection = None
            if connection is not None:
                self._give_back(connection)
            self._permits.put(None)
            self._in_use.dec()

    def _take(self) -> psycopg2.extensions.connection:
        """The idle one that was used last, else a new one."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            # A quiet connection has nothing to read; a readable one has been closed by the server.
            if not connection.closed and not _is_readable(connection):
                return connection
            connection.close()
        return self._connect()

    def _connect(self) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(
            self.url, connect_timeout=5, keepalives_idle=30, application_name="zemfyre-billing"
        )
        connection.autocommit = True
        psycopg2.extensions.register_type(_UTC_TIMES, connection)
        return connection

    def _give_back(self, connection: psycopg2.extensions.connection) -> None:
        """Back into the pool, unless it is broken or something was left open on it."""
        status = psycopg2.extensions.TRANSACTION_STATUS_IDLE
        if connection.closed or not connection.autocommit or connection.get_transaction_status() != status:
            connection.close()
            return
        self._idle.append(connection)


class _Guard:
    """Turns 'the database is away' into Unavailable. A class: a generator takes 3 µs at each use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, psycopg2.Error):
            return
        if isinstance(error, pg.UndefinedTable | pg.UndefinedFunction):
            raise Unavailable("The database is not migrated yet. Run: flask db migrate") from error
        if isinstance(error, pg.InsufficientPrivilege):
            log.error("DATABASE_URL: the role lacks a right: %s", error.diag.message_primary)
            raise Unavailable("This service's role in the database lacks a right; see its log.") from error
        if isinstance(error, pg.LockNotAvailable | pg.DeadlockDetected):
            raise Unavailable(BUSY) from error
        # A server that dies in the middle of a result leaves libpq without a word, and no subclass.
        if isinstance(error, _PASSING) or type(error) is psycopg2.DatabaseError:
            log.warning("database not available: %s", str(error).partition("\n")[0])
            self._database.close()  # the others are most likely dead as well
            raise Unavailable("The database is not available. Try again shortly.") from error


@contextmanager
def _transaction(connection: psycopg2.extensions.connection) -> Iterator[Cursor]:
    connection.autocommit = False
    try:
        with connection.cursor(cursor_factory=Cursor) as cur:
            yield cur
        connection.commit()
    except BaseException:
        if not connection.closed:
            connection.rollback()
        raise
    finally:
        if not connection.closed:
            connection.autocommit = True


def _is_readable(connection: psycopg2.extensions.connection) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
