"""Backup and restore by PostgreSQL's own programs."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from psycopg2.extensions import make_dsn, parse_dsn

from app import embedded, migrations
from app.config import ConfigError
from app.db import Database
from app.errors import Conflict, DomainError

_DROP_OURS: Final = """
    SELECT FORMAT('DROP TABLE IF EXISTS %I CASCADE', tablename) AS statement
      FROM pg_tables
     WHERE schemaname = CURRENT_SCHEMA AND tableowner = CURRENT_USER
    UNION ALL
    SELECT FORMAT('DROP FUNCTION IF EXISTS %s CASCADE', oid::REGPROCEDURE)
      FROM pg_proc
     WHERE pronamespace = CURRENT_SCHEMA::REGNAMESPACE AND proowner = CURRENT_USER::REGROLE
    UNION ALL
    SELECT FORMAT('DROP TYPE IF EXISTS %s CASCADE', reltype::REGTYPE)
      FROM pg_class
     WHERE relkind = 'c' AND relnamespace = CURRENT_SCHEMA::REGNAMESPACE AND relowner = CURRENT_USER::REGROLE
"""
# What pg_restore 17 and newer set for every server, and older servers do not know; 0 is the default.
_NEWER_SETTING: Final = b"SET transaction_timeout = 0;"


def backup(url: str, file: str) -> None:
    """Dump the database into `file`, whole or not at all. Raises DomainError with what pg_dump said first."""
    target = Path(file).absolute()
    if target.exists() and not target.is_file():  # a device would be replaced
        raise DomainError(f"{target}: not a regular file")
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
    """Load a dump in one transaction, whole or not at all. Raises Conflict when there are customers.

    Tables that migrations made and nobody has filled are replaced by those of the dump. Nothing is dropped in
    a database that was never migrated.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        options = ("--no-owner", "--no-privileges", f"--file={script}")
        _run("pg_restore", *options, str(Path(file).absolute()))
        with open(script, "r+b") as lines:  # the setting stands among the first
            at = lines.read(4096).find(_NEWER_SETTING)
            if at >= 0:
                lines.seek(at)
                lines.write(b" " * len(_NEWER_SETTING))
        drops = []
        if any(migration.applied_at for migration in migrations.status(db)):  # else its tables are not ours
            with db.statement() as cur:
                if cur.one("SELECT 1 FROM customers LIMIT 1"):
                    raise Conflict("This database has customers. Restore into an empty one.")
                drops = [f"--command={row['statement']}" for row in cur.all(_DROP_OURS)]
        _run(
            "psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
            "--command=SET client_min_messages = warning", *drops, f"--file={script}", url=db.url,
        )  # fmt: skip


def program(name: str, *args: str, url: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that run `name` on the database of `url`.

    The password is in the environment, as everybody on the machine can read arguments.
    """
    try:
        path = str(embedded.bin_dir() / name)  # the wheel's, which is of a current version
    except ConfigError:
        path = shutil.which(name) or ""
    if not path:
        raise DomainError(f"{name} is not installed; it comes with PostgreSQL's client programs.")
    environ = dict(os.environ)
    if url is None:
        return [path, *args], environ
    target = parse_dsn(url)
    if "password" in target:
        environ["PGPASSWORD"] = target.pop("password")
    return [path, f"--dbname={make_dsn(**target)}", *args], environ


def _run(name: str, *args: str, url: str | None = None) -> None:
    command, environ = program(name, *args, url=url)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise DomainError(f"{name} failed: {said[0]}")
