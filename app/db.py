"""The connection pool and `transaction()`: the only file that commits."""

import logging
import select
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
import psycopg2.extensions
from psycopg2 import errors as pg

from app.errors import Unavailable

Row = dict[str, Any]
POOL_WAIT_SECONDS: Final = 5
LOCK_WAIT_SECONDS: Final = 90
log = logging.getLogger(__name__)

# Connection gone, server starting or stopping, disk full, a replica that cannot write: all pass.
_PASSING: Final = (psycopg2.OperationalError, psycopg2.InterfaceError, pg.ReadOnlySqlTransaction)


class Cursor(psycopg2.extensions.cursor):
    """Rows as plain dicts."""

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        self.execute(sql, params)
        names = [column[0] for column in self.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self.fetchall()]

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row, or None."""
        self.execute(sql, params)
        row = self.fetchone()
        if row is None:
            return None
        return {column[0]: value for column, value in zip(self.description or (), row, strict=True)}

    def the(self, sql: str, params: Mapping[str, Any] | None = None) -> Row:
        """The one row of a statement that always has one."""
        row = self.one(sql, params)
        if row is None:
            raise LookupError("the statement returned no row")
        return row


class Database:
    """A bounded pool for one process, opened on first use, safe to share between threads.

    Connections are in autocommit, so that a single statement is one round trip. Nothing is set per
    session and nothing is prepared: behind PgBouncer in transaction pooling this works unchanged.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self._free = threading.Semaphore(size)
        self._idle: list[psycopg2.extensions.connection] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self.size = size
        self.in_use = 0

    @contextmanager
    def statement(self) -> Iterator[Cursor]:
        """A cursor for single statements, each its own transaction.

        Inside `transaction()` of the same thread it is that transaction's cursor.
        Raises Unavailable (503) when the database is away.
        """
        outer = getattr(self._local, "cursor", None)
        if outer is not None:
            yield outer
            return
        with self._connection() as connection, connection.cursor(cursor_factory=Cursor) as cur:
            yield cur

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Commit on leaving, roll back on any exception; an inner one joins the outer.

        Raises Unavailable (503) when the database is away, also when it goes during the commit.
        """
        outer = getattr(self._local, "cursor", None)
        if outer is not None:
            yield outer
            return
        with self._connection() as connection:
            connection.autocommit = False
            try:
                with connection.cursor(cursor_factory=Cursor) as cur:
                    self._local.cursor = cur
                    yield cur
                connection.commit()
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise
            finally:
                self._local.cursor = None
                if not connection.closed:
                    connection.autocommit = True

    def lock(self, cur: Cursor, name: str) -> None:
        """Wait for `name`, and hold it until the transaction of `cur` ends; Unavailable after a while."""
        cur.execute("SET LOCAL lock_timeout = %(ms)s", {"ms": LOCK_WAIT_SECONDS * 1000})
        cur.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED(%(name)s, 0))", {"name": name})

    @contextmanager
    def separate_lock(self, name: str) -> Iterator[None]:
        """Hold `name` on a connection of its own, so that what is stored inside commits by itself."""
        with self._connection() as connection:
            connection.autocommit = False
            try:
                with connection.cursor(cursor_factory=Cursor) as cur:
                    self.lock(cur, name)
                yield
            finally:
                if not connection.closed:
                    connection.rollback()
                    connection.autocommit = True

    def close(self) -> None:
        """Close what is idle; connections in use close when they come back."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _connection(self) -> Iterator[psycopg2.extensions.connection]:
        if not self._free.acquire(timeout=POOL_WAIT_SECONDS):
            raise Unavailable("All database connections are busy. Try again shortly.")
        connection = None
        with self._lock:
            self.in_use += 1
        try:
            connection = self._take()
            yield connection
            self._give_back(connection)
        except _PASSING as error:
            log.warning("database not available: %s", str(error).partition("\n")[0])
            if connection is not None:
                connection.close()
            self.close()  # the others are most likely dead as well
            raise Unavailable("The database is not available. Try again shortly.") from error
        except BaseException:
            if connection is not None:
                self._give_back(connection)
            raise
        finally:
            with self._lock:
                self.in_use -= 1
            self._free.release()

    def _take(self) -> psycopg2.extensions.connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect()
            # A quiet connection has nothing to read; a readable one has been closed by the server.
            if connection.closed or _is_readable(connection):
                connection.close()
                continue
            return connection

    def _connect(self) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(
            self.url, connect_timeout=5, keepalives_idle=30, application_name="zemfyre-billing"
        )
        connection.autocommit = True
        return connection

    def _give_back(self, connection: psycopg2.extensions.connection) -> None:
        status = psycopg2.extensions.TRANSACTION_STATUS_IDLE
        if connection.closed or connection.info.transaction_status != status:
            connection.close()
            return
        with self._lock:
            self._idle.append(connection)


def _is_readable(connection: psycopg2.extensions.connection) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
