"""`flask db …`: migrations and backups."""

import time

import click

from app import backup as backups
from app import extensions, migrations
from app.errors import Unavailable
from cli.output import Group, as_json, echo_json, hint, local_time

db_group = Group("db", help="Database: migrate, status, backup, restore.")


@db_group.command("migrate")
@click.option(
    "--wait",
    type=click.IntRange(0, 3600),
    default=60,
    show_default=True,
    help="Seconds to wait for a database that does not answer yet.",
)
@as_json
def migrate(wait: int, to_json: bool) -> None:
    """Apply the pending files of sql/; safe when several start at once.

    \b
    Example:
      flask db migrate
    """
    _await_database(wait)
    applied = migrations.migrate(extensions.db)
    if to_json:
        echo_json({"applied": applied})
        return
    for name in applied:
        click.echo(f"✅ {name}")
    click.echo(f"{len(applied)} migration(s) applied." if applied else "Nothing to apply.")


def _await_database(seconds: int) -> None:
    give_up = time.monotonic() + seconds
    told = False
    while True:
        try:
            with extensions.db.statement():
                return
        except Unavailable:
            if time.monotonic() >= give_up:
                raise Unavailable(f"DATABASE_URL: the database did not answer within {seconds} s.") from None
            if not told:
                hint(f"Waiting up to {seconds} s for the database …")
                told = True
            time.sleep(0.5)


@db_group.command("status")
@as_json
def status(to_json: bool) -> None:
    """List applied and pending migrations; exit 1 when any is pending.

    \b
    Example:
      flask db status
    """
    found = migrations.status(extensions.db)
    if to_json:
        echo_json([{"name": m.name, "appliedAt": m.applied_at} for m in found])
    else:
        for m in found:
            click.echo(f"{m.name:<50} {local_time(m.applied_at) or 'pending'}")
    if any(m.applied_at is None for m in found):
        raise click.exceptions.Exit(1)


@db_group.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, writable=True))
@as_json
def backup(file: str, to_json: bool) -> None:
    """Write the whole database into FILE (pg_dump's custom format).

    \b
    Example:
      flask db backup billing.dump
    """
    backups.backup(extensions.db.url, file)
    if to_json:
        echo_json({"file": file, "written": True})
    else:
        click.echo(f"✅ {file} written.")


@db_group.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@as_json
def restore(file: str, to_json: bool) -> None:
    """Bring a backup into an empty database; refuses one that holds customers.

    \b
    Example:
      flask db restore billing.dump
    """
    backups.restore(extensions.db, file)
    if to_json:
        echo_json({"file": file, "restored": True})
    else:
        click.echo(f"✅ {file} restored.")
