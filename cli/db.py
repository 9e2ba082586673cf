"""`flask db …`: migrations, backups, a shell."""

import os
import signal
import subprocess
import time

import click

from app import backup as backups
from app import extensions, migrations
from app.errors import Unavailable
from cli.output import Answer, Group, confirm, hint, local_time, yes_option

db_group = Group("db")
NOT_YET = (
    "Connection refused", "timeout expired", "No such file or directory", "server closed the connection",
    "starting up", "not yet accepting connections", "shutting down",
)  # fmt: skip
"""libpq's and PostgreSQL's words for a server that may answer soon."""


@db_group.command("migrate", "flask db migrate")
@click.option(
    "--wait",
    type=click.IntRange(0, 3600),
    default=60,
    show_default=True,
    help="Seconds to wait for a database that does not answer yet.",
)
def migrate(wait: int) -> Answer:
    """Apply the pending files of sql/; safe when several start at once."""
    deadline, waiting = time.monotonic() + wait, False
    while not _answers(must=time.monotonic() >= deadline):
        if not waiting:
            hint(f"Waiting up to {wait} s for the database …")
        waiting = True
        time.sleep(0.5)
    _warn_of_superuser()
    applied = migrations.migrate(extensions.db)
    summary = f"{len(applied)} migration(s) applied." if applied else "Nothing to apply."
    return Answer({"applied": applied}, [*(f"✅ {name}" for name in applied), summary])


def _answers(*, must: bool) -> bool:
    """False while each server of the URL refuses only because it does not serve yet. Raises Unavailable."""
    try:
        with extensions.db.statement():
            return True
    except Unavailable as error:
        refusals = [line for line in str(error.__cause__).splitlines() if "failed: " in line]
        if must or not refusals or not all(any(words in line for words in NOT_YET) for line in refusals):
            raise
        return False


def _warn_of_superuser() -> None:
    if role := migrations.superuser(extensions.db):
        hint(
            f"⚠️  DATABASE_URL: {role} is a superuser. What this command makes belongs to it, and another "
            "role cannot use it. Give the service a role of its own, and run its commands as that role."
        )


@db_group.command("status", "flask db status")
def status() -> Answer:
    """List applied and pending migrations; exit 1 when any is pending."""
    found = migrations.status(extensions.db)
    return Answer(
        [{"name": m.name, "applied_at": m.applied_at} for m in found],
        [f"{m.name:<50} {local_time(m.applied_at) or 'pending'}" for m in found],
        exit_code=int(any(m.applied_at is None for m in found)),
    )


@db_group.command("backup", "flask db backup billing.dump")
@click.argument("file", type=click.Path(dir_okay=False, writable=True))
@yes_option
def backup(file: str, yes: bool) -> Answer:
    """Write the whole database into FILE (pg_dump's custom format)."""
    if os.path.isfile(file):
        confirm(f"{file} exists. Overwrite it?", yes=yes)
    backups.backup(extensions.db.url, file)
    return Answer({"file": file, "written": True}, [f"✅ {file} written."])


@db_group.command("restore", "flask db restore billing.dump")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def restore(file: str) -> Answer:
    """Bring a backup into an empty database, whole or not at all; refuses one that has customers."""
    _warn_of_superuser()
    backups.restore(extensions.db, file)
    return Answer({"file": file, "restored": True}, [f"✅ {file} restored."])


@db_group.command(
    "shell",
    'flask db shell -c "SELECT plan, COUNT(*) FROM subscriptions GROUP BY plan"',
    context_settings={"ignore_unknown_options": True},
)
@click.argument("psql_args", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL_ARGS]...")
def shell(psql_args: tuple[str, ...]) -> Answer:
    """Open psql on the service's database; with --json its output is a text in the answer."""
    command, environ = backups.program("psql", *psql_args, url=extensions.db.url)
    stdout = subprocess.PIPE if click.get_current_context().params["to_json"] else None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # psql takes Ctrl-C itself
    done = subprocess.run(command, env=environ, check=False, stdout=stdout)
    output = done.stdout and done.stdout.decode(errors="replace")
    return Answer({"exitCode": done.returncode, "output": output}, [], exit_code=done.returncode)
