"""Apply `sql/NNNN_name.sql` in order: under a lock, each in one transaction with its record."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg2

from app.config import ROOT
from app.db import Cursor, Database, lock
from app.errors import Conflict
from app.queries.usage import ensure_usage_partitions

SQL_DIR: Final = ROOT / "sql"
OTHERS_SECONDS: Final = 3600
"""How long one waits for another that is applying a file."""

_CREATE_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name       VARCHAR(255) PRIMARY KEY,
        checksum   CHAR(64)     NOT NULL,
        applied_at TIMESTAMPTZ  NOT NULL DEFAULT CURRENT_TIMESTAMP
    )
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `sql/`; `applied_at` is None while it is pending.

    Of one that a later version has applied, and for which there is no file here, `script` is None.
    """

    name: str
    checksum: str
    script: str | None
    applied_at: datetime | None = None


def status(db: Database, sql_dir: Path = SQL_DIR) -> list[Migration]:
    """Every migration in order, applied or pending. Raises Conflict when an applied one was edited."""
    with db.statement() as cur:
        return _status(cur, sql_dir)


def migrate(db: Database, sql_dir: Path = SQL_DIR) -> list[str]:
    """Apply what is pending; the names applied. Several may start at once: the others wait.

    Raises Conflict when a file fails or the applied ones are not those of sql/.
    """
    applied: list[str] = []
    while True:
        with db.transaction() as cur:
            lock(cur, "migrations", OTHERS_SECONDS)
            cur.execute(_CREATE_TABLE)
            found = _status(cur, sql_dir)
            if later := [m.name for m in found if m.script is None]:
                raise Conflict(
                    f"The database has migrations that sql/ lacks: {', '.join(later)}. "
                    "Deploy the version that brought them, or a newer one."
                )
            pending = [m for m in found if m.applied_at is None]
            if not pending:
                if any(m.name.endswith("_usage") for m in found):
                    ensure_usage_partitions(cur)
                return applied
            _apply(cur, pending[0])
            cur.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES (%(name)s, %(checksum)s)",
                {"name": pending[0].name, "checksum": pending[0].checksum},
            )
        applied.append(pending[0].name)


def superuser(db: Database) -> str | None:
    """The role of DATABASE_URL if it is a superuser, which the service never needs."""
    with db.statement() as cur:
        found = cur.one("SELECT CURRENT_USER AS role WHERE CURRENT_SETTING('is_superuser') = 'on'")
    return str(found["role"]) if found else None


def _apply(cur: Cursor, migration: Migration) -> None:
    try:
        cur.execute(migration.script or "")
    except psycopg2.OperationalError:
        raise
    except psycopg2.Error as error:
        said = str(error).partition("\n")[0]
        raise Conflict(f"sql/{migration.name}.sql failed, nothing of it was kept: {said}") from error


def _status(cur: Cursor, sql_dir: Path) -> list[Migration]:
    records = {}
    if cur.exactly_one("SELECT TO_REGCLASS('schema_migrations') IS NOT NULL AS present")["present"]:
        rows = cur.all("SELECT name, TRIM(checksum) AS checksum, applied_at FROM schema_migrations")
        records = {row["name"]: row for row in rows}
    migrations = []
    for path in sorted(sql_dir.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        script = path.read_text(encoding="utf-8")
        checksum = hashlib.sha256(script.encode()).hexdigest()
        record = records.pop(path.stem, None)
        if record and record["checksum"] != checksum:
            raise Conflict(
                f"sql/{path.name} was edited after it was applied. Migrations are append-only: "
                "restore the file and put the change into a new one."
            )
        applied_at = record["applied_at"] if record else None
        migrations.append(Migration(path.stem, checksum, script, applied_at))
    return migrations + [
        Migration(name, record["checksum"], None, record["applied_at"])
        for name, record in sorted(records.items())
    ]
