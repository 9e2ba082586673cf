"""`flask customer …`: who they are, what they pay for, and why they may use what they use."""

import sys

import click

from app.context import now
from app.db import Row
from app.entitlements import describe_customer, entitle, is_live
from app.errors import Conflict
from app.extensions import db
from app.plans import PAID_PLANS, PLANS
from app.queries import customers as customer_rows
from app.queries import events as event_rows
from app.queries import licenses as license_rows
from app.queries import subscriptions as subscription_rows
from app.schemas.customers import CustomerSchema, NewCustomer, NewCustomerAnswer
from app.schemas.subscriptions import (
    CheckoutAnswer,
    CheckoutRequest,
    LicensedSubscriptionAnswer,
    SubscriptionAnswer,
)
from app.services import customers, subscriptions
from cli.output import (
    SHORT_RULE,
    Group,
    as_csv,
    as_json,
    camel_row,
    echo_csv,
    echo_fields,
    echo_json,
    echo_table,
    hint,
    load,
    local_time,
    or_unlimited,
)

customer = Group("customer", help="Customers: add, show, upgrade, deactivate, explain.")
customer_id = click.option("--id", "customer_id", required=True, metavar="CUSTOMER_ID", help="cust_…")


@customer.command("add")
@click.option("--email", required=True)
@click.option("--name", required=True)
@click.option("--company", help="Shown in the license instead of the name.")
@click.option("--plan", type=click.Choice(list(PLANS)), help="Begin the one trial of this plan.")
@as_json
def add(email: str, name: str, company: str | None, plan: str | None, to_json: bool) -> None:
    """Add a customer, with a running trial and its first license.

    \b
    Example:
      flask customer add --email ada@example.com --name Ada --company "Engines Ltd"
    """
    wish = load(NewCustomer(), email=email, name=name, companyName=company, plan=plan)
    with db.transaction() as cur:
        created, license_row = customers.create_customer(cur, **wish)
    token = license_row["token"]
    if to_json:
        echo_json(NewCustomerAnswer().dump(created | {"license": token}))
        return
    click.echo("✅ Customer created successfully!")
    click.echo("Customer Details:")
    click.echo(SHORT_RULE)
    _echo_identity(created)
    echo_fields({"Created": local_time(created["created_at"])})
    click.echo(SHORT_RULE)
    click.echo(f"\n📜 Initial License JWT (Trial):\n{token}")
    click.echo("\n💡 Add this to customer instance .env file:")
    click.echo(f"LICENSE_JWT={token}\nCUSTOMER_ID={created['customer_id']}")


@customer.command("list")
@click.option("--email", help="Only the customer with this address.")
@as_json
@as_csv
def list_customers(email: str | None, to_json: bool, to_csv: bool) -> None:
    """List all customers.

    \b
    Example:
      flask customer list --csv > customers.csv
    """
    with db.statement() as cur:
        rows = customer_rows.select_customers(cur, email=email)
    if to_json:
        echo_json(CustomerSchema(many=True).dump(customers.describe_many(rows)))
        return
    names = ("customer_id", "email", "name", "company_name")
    if to_csv:
        exported = (*names, "stripe_customer_id", "created_at")
        echo_csv(exported, ([row[name] for name in exported] for row in rows))
        return
    click.echo(f"Found {len(rows)} customer(s):\n")
    columns = (("ID", 21), ("Email", 28), ("Name", 21), ("Company", 0))
    echo_table(columns, ([row[name] for name in names] for row in rows))


@customer.command("show")
@customer_id
@as_json
def show(customer_id: str, to_json: bool) -> None:
    """Show a customer with its plan and status.

    \b
    Example:
      flask customer show --id cust_abc123
    """
    row, rows = customers.get_customer_with_subscriptions(customer_id)
    found = describe_customer(row, rows, now())
    if to_json:
        echo_json(CustomerSchema().dump(found))
        return
    granted = entitle(row, rows, now())
    click.echo("Customer Details:")
    click.echo(SHORT_RULE)
    _echo_identity(found)
    echo_fields(
        {
            "Created": local_time(found["created_at"]),
            "Stripe ID": found["stripe_customer_id"],
            "Subscription ID": granted.subscription and granted.subscription["subscription_id"],
            "Plan": granted.plan.name.upper(),
            "Status": granted.status.upper(),
            "Device Limit": or_unlimited(granted.device_limit),
            "Renewal Date": local_time(granted.period_end),
        }
    )
    if granted.period_end and found["subscription"]["cancel_at_period_end"]:
        echo_fields({"Ends": local_time(granted.period_end)})
    click.echo(SHORT_RULE)
    _warn(found, granted.live_count)


@customer.command("upgrade")
@customer_id
@click.option("--plan", type=click.Choice(PAID_PLANS), required=True)
@click.option("--promo-code", help="A promotion code for the checkout.")
@as_json
def upgrade(customer_id: str, plan: str, promo_code: str | None, to_json: bool) -> None:
    """Make a checkout link; with a live Stripe subscription, the paid change itself.

    \b
    Example:
      flask customer upgrade --id cust_abc123 --plan professional --promo-code LAUNCH20
    """
    promo_code = load(CheckoutRequest(only=("promoCode",)), promoCode=promo_code)["promo_code"]
    present = customers.describe_one(customer_id)["subscription"]
    if present and is_live(present):
        if promo_code:
            raise Conflict(
                "A promotion code is for a checkout. What is live is changed at once: leave it out."
            )
        _change_plan(present, plan, to_json)
        return
    session = subscriptions.start_checkout(customer_id, plan, promo_code=promo_code)
    if to_json:
        echo_json(CheckoutAnswer().dump(session))
        return
    click.echo("✅ Checkout session created!")
    click.echo("Checkout Details:")
    click.echo(SHORT_RULE)
    echo_fields({"Session ID": session["session_id"], "Plan": session["plan"]})
    click.echo(SHORT_RULE)
    click.echo(f"\n🔗 Checkout URL:\n{session['checkout_url']}")
    click.echo("\n💡 Send this URL to the customer to complete payment.")
    click.echo("   After payment, webhook will auto-provision subscription.")


def _change_plan(present: Row, plan: str, to_json: bool) -> None:
    changed, license_row = subscriptions.upgrade(str(present["subscription_id"]), plan)
    if to_json:
        answer = {"subscription": changed, "license": license_row and license_row["token"]}
        echo_json(LicensedSubscriptionAnswer().dump(answer))
        return
    click.echo("✅ Subscription changed!")
    click.echo("Subscription Details:")
    click.echo(SHORT_RULE)
    echo_fields(
        {
            "Subscription ID": changed["subscription_id"],
            "Previous Plan": present["plan"],
            "Plan": changed["plan"],
            "Status": changed["status"],
        }
    )
    click.echo(SHORT_RULE)


@customer.command("deactivate")
@customer_id
@click.option("--at-period-end", is_flag=True, help="Let the paid period run out first.")
@as_json
def deactivate(customer_id: str, at_period_end: bool, to_json: bool) -> None:
    """Cancel what the customer has live; exit 1 when there is nothing.

    \b
    Example:
      flask customer deactivate --id cust_abc123 --at-period-end
    """
    ended, previous_plan = subscriptions.deactivate(customer_id, at_period_end=at_period_end)
    if to_json:
        echo_json(SubscriptionAnswer().dump({"subscription": ended}))
        return
    click.echo("✅ Customer deactivated successfully!")
    click.echo("Deactivation Details:")
    click.echo(SHORT_RULE)
    pending = ended["status"] != "canceled"
    echo_fields(
        {
            "Customer ID": customer_id,
            "Subscription ID": ended["subscription_id"],
            "Previous Plan": previous_plan,
            "Ends At" if pending else "Cancelled At": local_time(
                ended["current_period_ends_at"] if pending else ended["ended_at"]
            ),
        }
    )
    click.echo(SHORT_RULE)
    click.echo("\n💡 Customer will revert to trial mode.")
    click.echo("   They can reactivate by subscribing again.")


@customer.command("override")
@customer_id
@click.option("--max-devices", type=click.IntRange(1, 10_000_000))
@click.option("--retention-days", type=click.IntRange(1, 36_500))
@click.option("--clear", is_flag=True, help="Drop what was set before.")
@as_json
def override(
    customer_id: str,
    max_devices: int | None,
    retention_days: int | None,
    clear: bool,
    to_json: bool,
) -> None:
    """Give an enterprise customer figures of its own.

    \b
    Example:
      flask customer override --id cust_abc123 --max-devices 5000 --retention-days 730
    """
    if max_devices is None and retention_days is None and not clear:
        raise click.UsageError("Nothing to set: give --max-devices, --retention-days or --clear.")
    changed = customers.override(
        customer_id, max_devices=max_devices, retention_days=retention_days, clear=clear
    )
    figures = {"maxDevices": changed["max_devices"], "dataRetentionDays": changed["retention_days"]}
    if to_json:
        echo_json({"customerId": customer_id, **figures})
        return
    click.echo("✅ Overrides saved!")
    echo_fields({"Max Devices": figures["maxDevices"], "Retention Days": figures["dataRetentionDays"]})


@customer.command("explain")
@customer_id
@as_json
def explain(customer_id: str, to_json: bool) -> None:
    """Tell why this customer has these entitlements: subscription, price, overrides, clocks, events.

    \b
    Example:
      flask customer explain --id cust_abc123
    """
    found = customers.get_customer(customer_id)
    with db.statement() as cur:
        rows = subscription_rows.select_subscriptions(cur, [customer_id])
        license_row = license_rows.lock_current_license(cur, customer_id)
        events = event_rows.select_events(cur, limit=5, customer_id=customer_id)
    granted = entitle(found, rows, now())
    used = granted.subscription
    if to_json:
        echo_json(
            {
                "customerId": customer_id,
                "plan": granted.plan.name,
                "status": granted.status,
                "reason": granted.reason,
                "deviceLimit": granted.device_limit,
                "retentionDays": granted.retention_days,
                "trialMode": granted.trial_mode,
                "trialEndsAt": granted.trial_ends_at,
                "overrides": {
                    "maxDevices": found["max_devices"],
                    "retentionDays": found["retention_days"],
                },
                "revokedAt": found["revoked_at"],
                "stripePriceId": used and used["stripe_price_id"],
                "eventId": used and used["event_id"],
                "subscription": used and camel_row(used),
                "license": license_row
                and camel_row(
                    {k: license_row[k] for k in ("jti", "kid", "issued_at", "renews_at", "expires_at")}
                ),
                "lastEvents": [camel_row(event) for event in events],
            }
        )
        return
    click.echo(f"Why {customer_id} has what it has:")
    click.echo(SHORT_RULE)
    echo_fields(
        {
            "Plan": granted.plan.name.upper(),
            "Because": granted.reason,
            "Subscription ID": used and used["subscription_id"],
            "Status": granted.status,
            "Stripe Price": used and used["stripe_price_id"],
            "Stripe Event": used and used["event_id"],
            "Fetched": used and local_time(used["fetched_at"]),
            "Period Ends": used and local_time(used["current_period_ends_at"]),
            "Trial Ends": local_time(granted.trial_ends_at),
            "Device Limit": or_unlimited(granted.device_limit),
            "Own Devices": found["max_devices"],
            "Retention Days": or_unlimited(granted.retention_days),
            "Own Retention": found["retention_days"],
            "Revoked": local_time(found["revoked_at"]),
            "License": license_row and license_row["jti"],
            "License Renews": license_row and local_time(license_row["renews_at"]),
            "License Expires": license_row and local_time(license_row["expires_at"]),
        }
    )
    click.echo(SHORT_RULE)
    for event in events:
        click.echo(
            f"{local_time(event['received_at'])}  {event['type']}  {event['event_id']}  {event['outcome']}"
        )
    _warn(found, granted.live_count)


@customer.command("export")
@customer_id
@as_json
def export(customer_id: str, to_json: bool) -> None:
    """Print everything held about a customer, as JSON, with --json or without.

    \b
    Example:
      flask customer export --id cust_abc123 > export.json
    """
    echo_json(customers.export_customer(customer_id))


@customer.command("erase")
@customer_id
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def erase(customer_id: str, yes: bool, to_json: bool) -> None:
    """Erase personal data for good: fields here, the customer at Stripe. Figures stay.

    \b
    Example:
      flask customer erase --id cust_abc123 --yes
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("This cannot be undone. Give --yes where nobody can be asked.")
    if not yes:
        click.confirm("This cannot be undone. Erase?", abort=True, err=True)
    customers.erase_customer(customer_id)
    if to_json:
        echo_json({"customerId": customer_id, "erased": True})
    else:
        click.echo(f"✅ Customer {customer_id} erased.")


def _echo_identity(row: Row) -> None:
    echo_fields(
        {
            "ID": row["customer_id"],
            "Email": row["email"],
            "Name": row["name"],
            "Company": row["company_name"],
        }
    )


def _warn(row: Row, live_count: int) -> None:
    if live_count > 1:
        hint(f"⚠️  {live_count} subscriptions are live at once; the better one counts. Cancel the other.")
    if row["revoked_at"]:
        hint("⚠️  This customer's licenses are revoked.")
