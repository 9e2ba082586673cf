"""PostgreSQL: one connection per thread, statements, transactions, leases. The only file that commits."""

import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import psycopg2
import psycopg2.extensions
from psycopg2 import errors as pg
from psycopg2.extensions import parse_dsn

from app.context import actor, request_id
from app.errors import Unavailable

Row = dict[str, Any]
LOCK_SECONDS: Final = 2
"""How long a statement waits for a row that another session has locked, before the caller gets 503."""
LEASE_SECONDS: Final = 60
BUSY: Final = "Another request or session is changing the same data. Try again shortly."
log = logging.getLogger(__name__)

# A host that vanished acknowledges nothing: without these Linux waits a quarter of an hour for it.
_CONNECTION: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "tcp_user_timeout": "10000",
    "application_name": "zemfyre-billing",
}
# Connection lost, server starting or stopping, disk full, a read-only replica: a later try may succeed.
_TRANSIENT_ERRORS: Final = (psycopg2.OperationalError, psycopg2.InterfaceError, pg.ReadOnlySqlTransaction)


def _utc(text: Any, cur: object) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:  # an operator's 'infinity': a time that a license and a calendar can still represent
        is_past = text.startswith("-") or text.endswith("BC")
        return datetime(1970, 1, 1, tzinfo=UTC) if is_past else datetime(2999, 12, 31, tzinfo=UTC)


_TIMESTAMPTZ: Final = psycopg2.extensions.new_type((1184,), "UTC_TIMESTAMPTZ", _utc)


class Cursor(psycopg2.extensions.cursor):
    """Rows as plain dicts."""

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        self.execute(sql, params)
        names = [column[0] for column in self.description or ()]
        return [dict(zip(names, row, strict=False)) for row in self.fetchall()]

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row, or None."""
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def exactly_one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row:
        """The row of a statement that always returns one."""
        row = self.one(sql, params)
        if row is None:
            raise LookupError("the statement returned no row")
        return row


class Database:
    """One connection per thread, opened when first needed and checked each time it is used.

    Connections are in autocommit, so that a single statement is one round trip. Nothing is set per session
    and nothing is prepared: PgBouncer in transaction pooling works unchanged.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self._find_url = url
        self._local = threading.local()

    @property
    def url(self) -> str:
        return self._find_url()

    @contextmanager
    def statement(self) -> Iterator[Cursor]:
        """A cursor whose statements commit by themselves. Raises Unavailable (503) without a database."""
        with self._errors_translated(), self._connection().cursor(cursor_factory=Cursor) as cur:
            yield cur

    @contextmanager
    def transaction(self, action: str | None = None) -> Iterator[Cursor]:
        """Commit on leaving, roll back on any exception. A second one inside raises RuntimeError.

        The audit trigger records the actor, and `action` instead of its own name for the change. Raises
        Unavailable (503) without a database, also when it is lost during the commit.
        """
        with self._errors_translated():
            connection = self._connection()
            connection.autocommit = False
            try:
                with connection.cursor(cursor_factory=Cursor) as cur:
                    cur.execute(
                        """
                        SELECT SET_CONFIG('billing.actor', %(actor)s, TRUE),
                               SET_CONFIG('billing.request_id', %(request_id)s, TRUE),
                               SET_CONFIG('billing.action', %(action)s, TRUE),
                               SET_CONFIG('lock_timeout', %(lock_timeout)s, TRUE)
                        """,
                        {
                            "actor": actor() or "", "request_id": request_id() or "",
                            "action": action or "", "lock_timeout": f"{LOCK_SECONDS}s",
                        },
                    )  # fmt: skip
                    yield cur
                connection.commit()
            finally:
                if not connection.closed:
                    connection.rollback()
                    connection.autocommit = True

    @contextmanager
    def lease(self, name: str, wait_seconds: float = 5) -> Iterator[None]:
        """A lock for the time that Stripe is called, as it keeps no transaction open.

        It is a row that ends by itself after a minute, or with its process, where that was on this machine.
        Raises Unavailable when another one still holds it after `wait_seconds`.
        """
        token = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        deadline = time.monotonic() + wait_seconds
        while (holder := self._take_lease(name, token)) != token:
            if holder and _has_ended(holder):
                self._give_back_lease(name, holder)
            elif time.monotonic() > deadline:
                raise Unavailable(BUSY)
            else:
                time.sleep(0.05)
        try:
            yield
        finally:
            with suppress(Unavailable):
                self._give_back_lease(name, token)

    def _take_lease(self, name: str, token: str) -> str | None:
        """Whose it is now: `token`, another one's, or None for one that was given back meanwhile."""
        with self.statement() as cur:
            row = cur.one(
                """
                WITH taken AS (
                     INSERT INTO leases AS lease (name, token, ends_at)
                     VALUES (%(name)s, %(token)s, CLOCK_TIMESTAMP() + %(seconds)s * INTERVAL '1 second')
                         ON CONFLICT (name) DO UPDATE
                        SET token = EXCLUDED.token, ends_at = EXCLUDED.ends_at
                      WHERE lease.ends_at < CLOCK_TIMESTAMP()
                  RETURNING token
                )
                SELECT token FROM taken
                 UNION ALL
                SELECT token FROM leases WHERE name = %(name)s AND NOT EXISTS (SELECT FROM taken)
                """,
                {"name": name, "token": token, "seconds": LEASE_SECONDS},
            )
        return row["token"] if row else None

    def _give_back_lease(self, name: str, token: str) -> None:
        with self.statement() as cur:
            cur.execute(
                "DELETE FROM leases WHERE name = %(name)s AND token = %(token)s",
                {"name": name, "token": token},
            )

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> psycopg2.extensions.connection:
        connection: psycopg2.extensions.connection | None = getattr(self._local, "connection", None)
        if connection is not None and not connection.closed:
            if not connection.autocommit:
                raise RuntimeError("a transaction is open in this thread: pass its cursor instead")
            # An idle connection has nothing to read; a readable one was closed by the server.
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()
        connection = psycopg2.connect(**(_CONNECTION | parse_dsn(self.url)))
        connection.autocommit = True
        psycopg2.extensions.register_type(_TIMESTAMPTZ, connection)
        self._local.connection = connection
        return connection

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedColumn) as error:
            raise Unavailable("The database is not migrated yet. Run: flask db migrate") from error
        except pg.InsufficientPrivilege as error:
            log.error("DATABASE_URL: the role lacks a right: %s", error.diag.message_primary)
            raise Unavailable("This service's database role lacks a right; see its log.") from error
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            raise Unavailable(BUSY) from error
        except psycopg2.Error as error:
            # A server that dies in the middle of a result leaves a DatabaseError of no subclass.
            if not isinstance(error, _TRANSIENT_ERRORS) and type(error) is not psycopg2.DatabaseError:
                raise
            log.warning("database not available: %s", str(error).partition("\n")[0])
            self.close()  # also one that still answers: it may lead to what is a replica by now
            raise Unavailable("The database is not available. Try again shortly.") from error


def lock(cur: Cursor, name: str, seconds: float) -> None:
    """Take the advisory lock `name` until the transaction ends. Raises Unavailable after `seconds`."""
    cur.execute("SELECT SET_CONFIG('lock_timeout', %(timeout)s, TRUE)", {"timeout": f"{seconds}s"})
    cur.execute("SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED(%(name)s, 0))", {"name": name})
    cur.execute("SELECT SET_CONFIG('lock_timeout', %(timeout)s, TRUE)", {"timeout": f"{LOCK_SECONDS}s"})


def _has_ended(holder: str) -> bool:
    """Whether the process that took a lease was on this machine, and is gone."""
    host, pid, _ = holder.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process: it lives
        pass
    return False
