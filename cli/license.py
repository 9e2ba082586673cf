"""`flask license …`: show, history, revoke, reinstate, verify."""

import sys

import click

from app.context import now
from app.extensions import db
from app.queries import licenses as license_rows
from app.schemas.licenses import RevokeRequest
from app.services import licenses
from app.services.customers import get_customer
from cli.output import (
    SHORT_RULE,
    Group,
    as_json,
    echo_fields,
    echo_json,
    echo_rows_json,
    echo_table,
    load,
    local_time,
)

license_ = Group("license", help="Licenses: show, history, revoke, reinstate, verify.")
customer_option = click.option("--customer", "customer_id", required=True, metavar="CUSTOMER_ID")


@license_.command("show")
@customer_option
@as_json
def show(customer_id: str, to_json: bool) -> None:
    """Print the customer's current license.

    \b
    Example:
      flask license show --customer cust_abc123
    """
    current = licenses.current_license(customer_id)
    if to_json:
        echo_json(
            {
                "customerId": customer_id, "license": current["token"], "plan": current["plan"],
                "status": current["status"], "jti": current["jti"], "kid": current["kid"],
                "issuedAt": current["issued_at"], "expiresAt": current["expires_at"],
            }
        )  # fmt: skip
        return
    click.echo("License Details:")
    click.echo(SHORT_RULE)
    echo_fields(
        {
            "Customer ID": customer_id,
            "License ID": current["jti"],
            "Plan": current["plan"].upper(),
            "Status": current["status"].upper(),
            "Issued": local_time(current["issued_at"]),
            "Expires": local_time(current["expires_at"]),
        }
    )
    click.echo(SHORT_RULE)
    click.echo(f"\n📜 License JWT:\n{current['token']}")


@license_.command("history")
@customer_option
@as_json
def history(customer_id: str, to_json: bool) -> None:
    """List every license the customer was ever issued, newest first.

    \b
    Example:
      flask license history --customer cust_abc123
    """
    get_customer(customer_id)
    with db.statement() as cur:
        rows = license_rows.select_license_history(cur, customer_id)
    names = (
        "jti",
        "kid",
        "plan",
        "status",
        "issued_at",
        "expires_at",
        "superseded_at",
        "revoked_at",
    )
    if to_json:
        echo_rows_json([{name: row[name] for name in names} for row in rows])
        return
    columns = (("License ID", 36), ("Plan", 12), ("Issued", 23), ("Expires", 23), ("State", 0))
    echo_table(
        columns,
        (
            (
                row["jti"],
                row["plan"],
                local_time(row["issued_at"]),
                local_time(row["expires_at"]),
                _state(row),
            )
            for row in rows
        ),
    )


def _state(row: dict[str, object]) -> str:
    if row["revoked_at"]:
        return "revoked"
    if row["expires_at"] <= now():  # type: ignore[operator]
        return "expired"
    return "superseded" if row["superseded_at"] else "current"


@license_.command("revoke")
@customer_option
@click.option("--reason", help="Kept on record.")
@as_json
def revoke(customer_id: str, reason: str | None, to_json: bool) -> None:
    """Revoke every license of a customer, and give out none until reinstated.

    \b
    Example:
      flask license revoke --customer cust_abc123 --reason "token leaked"
    """
    customer = licenses.revoke(customer_id, load(RevokeRequest(), reason=reason)["reason"])
    if to_json:
        echo_json({"customerId": customer_id, "revoked": True, "revokedAt": customer["revoked_at"]})
    else:
        click.echo(f"✅ Licenses of {customer_id} revoked.")


@license_.command("reinstate")
@customer_option
@as_json
def reinstate(customer_id: str, to_json: bool) -> None:
    """Give out licenses again, beginning with a new one.

    \b
    Example:
      flask license reinstate --customer cust_abc123
    """
    _, issued, _ = licenses.reinstate(customer_id)
    if to_json:
        echo_json({"customerId": customer_id, "revoked": False, "license": issued["token"]})
    else:
        click.echo(f"✅ Licenses of {customer_id} reinstated.\n\n📜 New License JWT:\n{issued['token']}")


@license_.command("verify")
@click.argument("token")
@as_json
def verify(token: str, to_json: bool) -> None:
    """Tell whether a license holds; `-` reads it from stdin; exit 1 unless it does.

    \b
    Example:
      flask license verify - < license.jwt
    """
    if token == "-":
        token = sys.stdin.buffer.read().decode(errors="replace")
    code, read = licenses.verify(token)
    valid = code in ("VALID", "SUPERSEDED")
    if to_json:
        answer = {"valid": valid, "code": code}
        echo_json(answer | {"claims": read.claims} if read else answer)
    else:
        click.echo(f"{'✅' if valid else '❌'} {code}")
        if read:
            echo_json(read.claims)
    if not valid:
        raise click.exceptions.Exit(1)
