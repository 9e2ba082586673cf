"""`flask audit …`: who did what."""

from collections.abc import Iterator
from typing import Any

import click

from app.db import Row
from app.extensions import db
from app.queries import audit as audit_rows
from cli.output import Answer, Column, Group, Table, customer_argument

audit = Group("audit")


@audit.command("list", "flask audit list --customer ada@example.com")
@customer_argument(required=False, erased=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def list_audit(customer_id: str | None, limit: int) -> Answer:
    """List changes, newest first: when, who, what, and which fields from what to what."""
    with db.statement() as cur:
        rows = audit_rows.select_audit(cur, customer_id=customer_id, limit=limit)
    columns = [
        Column("When", "at", 23), Column("Who", "actor", 20), Column("What", "action", 26),
        Column("Customer ID", "customer_id", 21, is_id=True),
        Column("Change", lambda row: ", ".join(changes(row)) or row["subject"]),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)])


def changes(row: Row) -> Iterator[str]:
    """`plan: starter → professional` for what differs; of a new row what says more than that it is there."""
    before: dict[str, Any] = row["before"] or {}
    after: dict[str, Any] = row["after"] or {}
    for name in [*after, *(name for name in before if name not in after)]:
        old, new = before.get(name), after.get(name)
        if row["before"] is None:
            if not name.endswith(("_id", "_at")) and new not in (None, False):
                yield f"{name}: {new}"
        elif old != new:
            yield f"{name}: {'-' if old is None else old} → {'-' if new is None else new}"
