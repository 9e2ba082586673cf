"""`flask audit …`: who did what."""

import json

import click

from app.extensions import db
from app.queries import audit as audit_rows
from cli.output import Group, as_json, echo_rows_json, echo_table, local_time

audit = Group("audit", help="Who did what, and when.")


@audit.command("list")
@click.option("--customer", "customer_id", metavar="CUSTOMER_ID")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@as_json
def list_audit(customer_id: str | None, limit: int, to_json: bool) -> None:
    """List changes, newest first.

    \b
    Example:
      flask audit list --customer cust_abc123
    """
    with db.statement() as cur:
        rows = audit_rows.select_audit(cur, customer_id=customer_id, limit=limit)
    if to_json:
        echo_rows_json(rows)
        return
    columns = (("When", 23), ("Who", 20), ("What", 26), ("Customer ID", 21), ("Change", 0))
    cells = ((local_time(r["at"]), r["actor"], r["action"], r["customer_id"], _change(r)) for r in rows)
    echo_table(columns, cells)


def _change(row: dict[str, object]) -> str:
    return f"{json.dumps(row['before'])} → {json.dumps(row['after'])}"
