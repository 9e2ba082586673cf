"""Backup and restore by PostgreSQL's own programs, of a version that fits the server."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from psycopg2.extensions import make_dsn, parse_dsn

from app import embedded
from app.config import ConfigError
from app.db import Database
from app.errors import Conflict, DomainError

_OURS: Final = """
    SELECT FORMAT('DROP TABLE IF EXISTS %I CASCADE', tablename) AS statement
      FROM pg_tables
     WHERE schemaname = CURRENT_SCHEMA AND tableowner = CURRENT_USER
    UNION ALL
    SELECT FORMAT('DROP FUNCTION IF EXISTS %s CASCADE', oid::REGPROCEDURE)
      FROM pg_proc
     WHERE pronamespace = CURRENT_SCHEMA::REGNAMESPACE AND proowner = CURRENT_USER::REGROLE
"""


def backup(url: str, file: str) -> None:
    """Dump the database into `file`, whole or not at all. Raises DomainError with what pg_dump said first."""
    target = Path(file).absolute()
    try:
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise DomainError(f"{target.parent}: {error.strerror}") from None
    os.close(descriptor)
    try:
        _run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={scratch}", url=url)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)


def restore(db: Database, file: str) -> None:
    """Load a dump, whole or not at all. Raises Conflict when the database holds customers already.

    Tables that a migration made and nobody has filled give way to those of the dump.
    """
    _run("pg_restore", "--list", str(Path(file).absolute()))  # a file that is none changes nothing
    with db.transaction() as cur:
        migrated = cur.exactly_one("SELECT TO_REGCLASS('customers') IS NOT NULL AS present")["present"]
        if migrated and cur.one("SELECT 1 FROM customers LIMIT 1"):
            raise Conflict("This database holds customers. Restore into an empty one.")
        for row in cur.all(_OURS):
            cur.execute(row["statement"])
    options = ("--single-transaction", "--no-owner", "--no-privileges")
    _run("pg_restore", *options, str(Path(file).absolute()), url=db.url)


def _run(program: str, *args: str, url: str | None = None) -> None:
    """The password goes by the environment: arguments are everybody's to read."""
    environ = dict(os.environ)
    if url is not None:
        target = parse_dsn(url)
        environ |= {"PGPASSWORD": target.pop("password")} if "password" in target else {}
        args = (f"--dbname={make_dsn(**target)}", *args)
    done = subprocess.run([_find(program), *args], capture_output=True, text=True, check=False, env=environ)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise DomainError(f"{program} failed: {said[0]}")


def _find(program: str) -> str:
    """The wheel's program, which is of a current version; else the one on PATH."""
    try:
        return str(embedded.bin_dir() / program)
    except ConfigError:
        found = shutil.which(program)
        if found is None:
            raise DomainError(
                f"{program} is not installed; it comes with PostgreSQL's client programs."
            ) from None
        return found
