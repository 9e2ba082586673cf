"""`flask license …`: show, history, revoke, reinstate, verify."""

import sys

import click

from app.context import now
from app.db import Row
from app.errors import Conflict
from app.extensions import db
from app.queries import licenses as license_rows
from app.services import licenses
from app.services.customers import get_customer
from cli.output import (
    Answer,
    Column,
    Group,
    Table,
    confirm,
    customer_argument,
    describe_who,
    details,
    load,
    yes_option,
)

license_group = Group("license")
SHOWN = ("plan", "status", "jti", "kid", "issued_at", "expires_at")


@license_group.command("show", "flask license show --customer cust_abc123 --raw > license.jwt")
@customer_argument
@click.option("--raw", is_flag=True, help="The token alone, for scripts.")
def show(customer_id: str, raw: bool) -> Answer:
    """Print the customer's current license."""
    current = licenses.current_license(customer_id)
    token = current["token"]
    shown = {
        "Customer ID": customer_id,
        "License ID": current["jti"],
        "Plan": current["plan"].upper(),
        "Status": current["status"].upper(),
        "Issued": current["issued_at"],
        "Expires": current["expires_at"],
    }
    return Answer(
        {"customer_id": customer_id, "license": token} | {n: current[n] for n in SHOWN},
        [token] if raw else [details("License Details", shown), f"\n📜 License JWT:\n{token}"],
    )


@license_group.command("history", "flask license history --customer cust_abc123")
@customer_argument
def history(customer_id: str) -> Answer:
    """List every license the customer was ever issued, newest first."""
    get_customer(customer_id)
    with db.statement() as cur:
        found = license_rows.select_license_history(cur, customer_id)
    rows = [{name: row[name] for name in (*SHOWN, "superseded_at", "revoked_at")} for row in found]
    columns = [
        Column("License ID", "jti", 36, is_id=True), Column("Plan", "plan", 12),
        Column("Issued", "issued_at", 23), Column("Expires", "expires_at", 23), Column("State", _state),
    ]  # fmt: skip
    return Answer(rows, [Table(columns, rows)])


def _state(row: Row) -> str:
    if row["revoked_at"]:
        return "revoked"
    if row["expires_at"] <= now():
        return "expired"
    return "superseded" if row["superseded_at"] else "current"


@license_group.command("revoke", 'flask license revoke --customer cust_abc123 --reason "token leaked"')
@customer_argument
@click.option("--reason", help="Kept on record.")
@yes_option
def revoke(customer_id: str, reason: str | None, yes: bool) -> Answer:
    """Revoke every license of a customer, and give out none until reinstated."""
    reason = load("licenses:RevokeRequest", reason=reason)["reason"]
    confirm(f"Revoke every license of {describe_who(customer_id)}? Its instances stop.", yes=yes)
    customer = licenses.revoke(customer_id, reason)
    return Answer(
        {"customerId": customer_id, "revoked": True, "revokedAt": customer["revoked_at"]},
        [f"✅ Licenses of {customer_id} revoked."],
    )


@license_group.command("reinstate", "flask license reinstate --customer cust_abc123")
@customer_argument
def reinstate(customer_id: str) -> Answer:
    """Give out licenses again, beginning with a new one; exit 1 for one that was not revoked."""
    if get_customer(customer_id)["revoked_at"] is None:
        raise Conflict(f"The licenses of {customer_id} are not revoked; there is nothing to reinstate.")
    token = licenses.reinstate(customer_id)[1]["token"]
    return Answer(
        {"customerId": customer_id, "revoked": False, "license": token},
        [f"✅ Licenses of {customer_id} reinstated.", f"\n📜 New License JWT:\n{token}"],
    )


@license_group.command("verify", "flask license verify - < license.jwt")
@click.argument("token")
def verify(token: str) -> Answer:
    """Say whether a license is valid; `-` reads it from stdin; exit 1 unless it is."""
    if token == "-":
        token = sys.stdin.buffer.read().decode(errors="replace") if sys.stdin else ""
    code, read = licenses.verify(token)
    valid = code in ("VALID", "SUPERSEDED")
    answer = {"valid": valid, "code": code} | ({"claims": read.claims} if read else {})
    text = [f"{'✅' if valid else '❌'} {code}"]
    if read:
        text.append(Answer(read.claims, []).as_json().rstrip())
    return Answer(answer, text, exit_code=0 if valid else 1)
