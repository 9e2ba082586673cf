"""`flask customer …`: who they are, what they pay for, and why they may use what they use."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import TextIO

import click

from app.context import now
from app.db import Row
from app.entitlements import KNOWN_STATUSES, describe_customer, entitle
from app.errors import Conflict
from app.extensions import db, settings, stripe
from app.plans import INTERVALS, PAID_PLANS, PLANS
from app.queries import subscriptions as subscription_rows
from app.services import checkout, customers, licenses, privacy, subscriptions, usage
from app.services.explain import explain as explain_customer
from cli.output import (
    Answer,
    Column,
    Group,
    Table,
    confirm,
    customer_argument,
    describe_who,
    details,
    dump,
    fields,
    hint,
    load,
    local_time,
    money,
    or_unlimited,
    progress,
    yes_option,
)

customer = Group("customer")
interval_option = click.option("--interval", type=click.Choice(list(INTERVALS)), help="Billed by it.")
IDENTITY = ("customer_id", "email", "name", "company_name")
SORT_KEYS = {
    "created": lambda row: row["created_at"],
    "email": lambda row: row["email"].lower(),
    "name": lambda row: (row["name"] or "").lower(),
    "devices": lambda row: -row["active_devices"],
}


def identity(row: Row) -> Row:
    """Who a customer is, for `details` and `fields`."""
    return dict(zip(("ID", "Email", "Name", "Company"), (row[name] for name in IDENTITY), strict=True))


@customer.command("add", 'flask customer add --email ada@example.com --name Ada --company "Engines Ltd"')
@click.option("--email", required=True)
@click.option("--name", required=True)
@click.option("--company", help="Shown in the license instead of the name.")
@click.option("--plan", type=click.Choice(list(PLANS)), help="Begin the one trial of this plan.")
def add(email: str, name: str, company: str | None, plan: str | None) -> Answer:
    """Add a customer, with a running trial and its first license."""
    wanted = load("customers:NewCustomerRequest", email=email, name=name, company_name=company, plan=plan)
    with db.transaction() as cur:
        created, license_row = customers.create_customer(cur, **wanted)
    token, public_key = license_row["token"], licenses.signing_key().public.pem.strip()
    if created["subscription"]["status"] == "expired":
        hint("⚠️  The trial of this address was used up before an erasure; this customer has none.")
    return Answer(
        dump("customers:NewCustomerAnswer", created | {"license": token}),
        [
            "✅ Customer created successfully!",
            details("Customer Details", identity(created) | {"Created": created["created_at"]}),
            f"\n📜 Initial License JWT (Trial):\n{token}",
            "\n💡 Add this to customer instance .env file:",
            f"LICENSE_JWT={token}\nCUSTOMER_ID={created['customer_id']}",
            f"IOTISTIC_LICENSE_KEY={token}",
            'LICENSE_PUBLIC_KEY="{}"'.format(public_key.replace("\n", "\\n")),
            f"BILLING_API_URL={settings.base_url}",
        ],
    )


@customer.command(
    "list",
    "flask customer list --plan professional --sort devices",
    "flask customer list --csv > customers.csv",
    csv=True,
)
@click.option("--search", help="A part of email, name, company or id.")
@click.option("--plan", type=click.Choice(list(PLANS)), help="Only those who have this plan.")
@click.option("--status", type=click.Choice(sorted(KNOWN_STATUSES)))
@click.option("--sort", type=click.Choice(list(SORT_KEYS)), default="created", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
def list_customers(
    *, search: str | None, plan: str | None, status: str | None, sort: str, limit: int | None
) -> Answer:
    """List customers with plan, status and devices in use."""
    lines = {line["customer_id"]: line for line in usage.overview(days=7)}
    rows = [
        row | line | {"active_devices": line["summary"]["current_active"]}
        for row in customers.list_customers(q=search)
        if (line := lines.get(row["customer_id"]))
        and plan in (None, line["plan"])
        and status in (None, line["status"])
    ]
    rows = sorted(rows, key=SORT_KEYS[sort])[:limit]
    columns = [
        Column("ID", "customer_id", 21, is_id=True), Column("Email", "email", 28), Column("Name", "name", 21),
        Column("Company", "company_name", 14), Column("Plan", lambda row: row["plan"].upper(), 12),
        Column("Status", lambda row: row["status"].upper(), 8),
        Column("Active", "active_devices", 6, right=True),
    ]  # fmt: skip
    granted = ("plan", "status", "device_limit", "active_devices")

    def as_json() -> list[Row]:
        described = dump("customers:CustomerSchema", rows, many=True)
        return [one | {n: row[n] for n in granted} for one, row in zip(described, rows, strict=True)]

    return Answer(
        as_json,
        [f"Found {len(rows)} customer(s):\n", Table(columns, rows)],
        csv=((*IDENTITY, "stripe_customer_id", "created_at", *granted), rows),
    )


@customer.command("show", "flask customer show ada@example.com")
@customer_argument
def show(customer_id: str) -> Answer:
    """Show a customer with its plan and status."""
    row, rows = customers.get_customer_with_subscriptions(customer_id)
    found, granted = describe_customer(row, rows, now()), entitle(row, rows, now())
    shown = identity(found) | {
        "Created": found["created_at"],
        "Stripe ID": found["stripe_customer_id"],
        "Subscription ID": granted.subscription and granted.subscription["subscription_id"],
        "Plan": granted.plan.name.upper(),
        "Status": granted.status.upper(),
        "Device Limit": or_unlimited(granted.device_limit),
        "Renewal Date": granted.period_end,
    }
    if granted.period_end and (ends := _end(found["subscription"])):
        shown["Ends"] = ends
    for warning in _warnings(found, granted.live_count):
        hint(warning)
    with db.statement() as cur:
        current = subscription_rows.select_subscription(cur, shown["Subscription ID"] or "")
    text = [details("Customer Details", shown), *_stripe_notes(current)]
    return Answer(lambda: dump("customers:CustomerSchema", found), text)


def _end(subscription: Row) -> datetime | None:
    """When a pending cancellation takes effect."""
    at_period_end = subscription["current_period_ends_at"] if subscription["cancel_at_period_end"] else None
    return subscription["cancel_at"] or at_period_end


def _stripe_notes(subscription: Row | None) -> Iterator[str]:
    """What Stripe says beside the state: a pause, a scheduled change, an unpaid invoice with its page."""
    for key, value in ((subscription or {}).get("details") or {}).items():
        yield f"At Stripe, {key}: " + ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)


@customer.command("update", "flask customer update --id cust_abc123 --email new@example.com")
@customer_argument
@click.option("--email")
@click.option("--name", help='"" clears it.')
@click.option("--company", help='"" clears it.')
def update(customer_id: str, email: str | None, name: str | None, company: str | None) -> Answer:
    """Change email, name or company, here and at Stripe."""
    given = {"name": name, "company_name": company}
    cleared = {field: None for field, text in given.items() if text is not None and not text.strip()}
    kept = {field: text for field, text in given.items() if field not in cleared}
    changes = load("customers:UpdateCustomerRequest", email=email, **kept) | cleared
    if not changes:
        raise click.UsageError("Nothing to change: give --email, --name or --company.")
    found = customers.update_customer(customer_id, changes)
    text = ["✅ Customer updated!", details("Customer Details", identity(found))]
    return Answer(dump("customers:CustomerSchema", found), text)


@customer.command(
    "upgrade", "flask customer upgrade --id cust_abc123 --plan professional --promo-code LAUNCH20"
)
@customer_argument
@click.option("--plan", type=click.Choice(PAID_PLANS), required=True)
@interval_option
@click.option("--promo-code", help="A promotion code for the checkout.")
@yes_option
def upgrade(customer_id: str, plan: str, interval: str | None, promo_code: str | None, yes: bool) -> Answer:
    """Make a checkout link; with a live Stripe subscription, the paid change itself."""
    promo_code = load("subscriptions:CheckoutRequest", promo_code=promo_code)["promo_code"]
    present = subscriptions.subscription_to_change(customer_id)
    if present:
        if promo_code:
            raise Conflict(
                "A promotion code is for a checkout. A live subscription is changed at once: leave it out."
            )
        return _change_plan(customer_id, present, plan, interval, yes)
    session = checkout.start_checkout(customer_id, plan, interval=interval or "month", promo_code=promo_code)
    shown = {"Session ID": session["session_id"], "Plan": session["plan"], "Expires": session["expires_at"]}
    return Answer(
        dump("subscriptions:CheckoutAnswer", session),
        [
            "✅ Checkout session created!",
            details("Checkout Details", shown),
            f"\n🔗 Checkout URL:\n{session['checkout_url']}",
            "\n💡 Send this URL to the customer to complete payment.",
            "   After payment, webhook will auto-provision subscription.",
        ],
    )


def _change_plan(customer_id: str, present: Row, plan: str, interval: str | None, yes: bool) -> Answer:
    subscription_id = present["subscription_id"]
    coming = subscriptions.preview_change(subscription_id, plan, interval)
    charge = money(coming["amount_due"], coming["currency"]) if coming["amount_due"] > 0 else "nothing"
    hint(
        f"{describe_who(customer_id)}: {coming['previous_plan']} by the "
        f"{coming['previous_interval']} → {plan} by the {coming['interval']}. Stripe charges {charge} now."
    )
    confirm("Change it?", yes=yes)
    changed, license_row = subscriptions.upgrade(subscription_id, plan, interval)
    if end := _end(changed):
        hint(f"⚠️  It still ends {local_time(end)}. To go on: flask customer resume --id {customer_id}")
    shown = {
        "Subscription ID": subscription_id,
        "Previous Plan": present["plan"],
        "Plan": changed["plan"],
        "Interval": changed["interval"],
        "Status": changed["status"],
    }
    answer = {"subscription": changed, "license": license_row and license_row["token"]}
    return Answer(
        dump("subscriptions:LicensedSubscriptionAnswer", answer),
        ["✅ Subscription changed!", details("Subscription Details", shown)],
    )


@customer.command("deactivate", "flask customer deactivate --id cust_abc123 --at-period-end")
@customer_argument
@click.option("--at-period-end", is_flag=True, help="Let the paid period run out first.")
@yes_option
def deactivate(customer_id: str, at_period_end: bool, yes: bool) -> Answer:
    """Cancel what the customer has live; exit 1 when there is nothing."""
    if running := subscriptions.deactivatable(customer_id):
        what = ", ".join(f"{row['plan']} {row['subscription_id']} ({row['status']})" for row in running)
        when = "at the end of the period" if at_period_end else "now"
        confirm(f"Cancel {what} of {describe_who(customer_id)} {when}?", yes=yes)
    ended, previous_plan = subscriptions.deactivate(customer_id, at_period_end=at_period_end)
    shown = {"Customer ID": customer_id, "Subscription ID": ended["subscription_id"]}
    if ended["status"] == "canceled":
        shown |= {"Previous Plan": previous_plan, "Cancelled At": ended["ended_at"]}
        text = [
            "✅ Customer deactivated successfully!",
            details("Deactivation Details", shown),
            "\n💡 Customer will revert to trial mode.",
            "   They can reactivate by subscribing again.",
        ]
    else:
        ends_at = ended["cancel_at"] or ended["current_period_ends_at"]
        text = [
            "✅ Cancellation scheduled!",
            details("Cancellation Details", shown | {"Plan": ended["plan"], "Ends At": ends_at}),
            "\n💡 Customer keeps the plan until then.",
            f"   To go on instead: flask customer resume --id {customer_id}",
        ]
    return Answer(dump("subscriptions:SubscriptionAnswer", {"subscription": ended}), text)


@customer.command("resume", "flask customer resume --id cust_abc123")
@customer_argument
def resume(customer_id: str) -> Answer:
    """Withdraw a pending cancellation; exit 1 when none is pending."""
    present = subscriptions.subscription_to_change(customer_id)
    if present is None:
        raise Conflict("This customer has no live subscription at Stripe.")
    resumed = subscriptions.resume(present["subscription_id"])
    shown = {
        "Customer ID": customer_id,
        "Subscription ID": resumed["subscription_id"],
        "Plan": resumed["plan"],
        "Renewal Date": resumed["current_period_ends_at"],
    }
    text = ["✅ Cancellation withdrawn!", details("Subscription Details", shown)]
    return Answer(dump("subscriptions:SubscriptionAnswer", {"subscription": resumed}), text)


@customer.command("portal", "flask customer portal --id cust_abc123")
@customer_argument
@click.option("--return-url", help="Where the portal leads back to.")
def portal(customer_id: str, return_url: str | None) -> Answer:
    """Make a link to Stripe's billing portal, for the customer; it lives for minutes."""
    return_url = load("subscriptions:PortalRequest", return_url=return_url)["return_url"]
    url = checkout.open_portal(customer_id, return_url)
    return Answer({"url": url}, [f"🔗 Billing Portal:\n{url}"])


@customer.command("invoices", "flask customer invoices --id cust_abc123")
@customer_argument
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
def invoices(customer_id: str, limit: int) -> Answer:
    """List the customer's invoices as Stripe has them, newest first, with the links of those to pay."""
    rows = checkout.list_invoices(customer_id, limit)
    columns = [
        Column("Number", "number", 16, is_id=True), Column("Status", "status", 13),
        Column("Total", lambda row: money(row["total"], row["currency"]), 10, right=True),
        Column("Due", lambda row: money(row["amount_due"], row["currency"]), 10, right=True),
        Column("Created", "created_at", 23), Column("Paid", "paid_at"),
    ]  # fmt: skip
    links = [
        f"\n🔗 To pay {row['number']}:\n{row['hosted_invoice_url']}"
        for row in rows
        if row["status"] == "open" and row["hosted_invoice_url"]
    ]
    return Answer(rows, [f"Found {len(rows)} invoice(s):\n", Table(columns, rows), *links])


@customer.command(
    "override", "flask customer override --id cust_abc123 --max-devices 5000 --retention-days 730"
)
@customer_argument
@click.option("--max-devices", type=click.IntRange(1, 10_000_000))
@click.option("--retention-days", type=click.IntRange(1, 36_500))
@click.option("--clear", is_flag=True, help="Drop what was set before.")
def override(customer_id: str, max_devices: int | None, retention_days: int | None, clear: bool) -> Answer:
    """Give an enterprise customer figures of its own."""
    if max_devices is None and retention_days is None and not clear:
        raise click.UsageError("Nothing to set: give --max-devices, --retention-days or --clear.")
    changed = customers.override(
        customer_id, max_devices=max_devices, retention_days=retention_days, clear=clear
    )
    devices, days = changed["max_devices"], changed["retention_days"]
    return Answer(
        {"customerId": customer_id, "maxDevices": devices, "dataRetentionDays": days},
        ["✅ Overrides saved!", fields({"Max Devices": devices, "Retention Days": days})],
    )


@customer.command("retire-instance", "flask customer retire-instance --id cust_abc123 --instance us-east-1")
@customer_argument
@click.option("--instance", "instance_id", required=True)
def retire_instance(customer_id: str, instance_id: str) -> Answer:
    """Leave an instance that will not come back out of current figures; a new report brings it back."""
    usage.retire_instance(customer_id, instance_id)
    return Answer(
        {"customerId": customer_id, "instanceId": instance_id, "retired": True},
        [f"✅ Instance {instance_id} of {customer_id} retired."],
    )


@customer.command("explain", "flask customer explain --id cust_abc123")
@customer_argument
def explain(customer_id: str) -> Answer:
    """Say why this customer has these entitlements: subscription, price, overrides, clocks, events."""
    found = explain_customer(customer_id)
    return Answer(found, _explanation(found))


def _explanation(found: Row) -> Iterator[str]:
    used, license_row = found["subscription"] or {}, found["license"] or {}
    shown = {
        "Plan": found["plan"].upper(),
        "Because": found["reason"],
        "Subscription ID": used.get("subscription_id"),
        "Status": found["status"],
        "Stripe Price": used.get("stripe_price_id"),
        "Stripe Event": used.get("event_id"),
        "Fetched": used.get("fetched_at"),
        "Period Ends": used.get("current_period_ends_at"),
        "Trial Ends": found["trial_ends_at"],
        "Device Limit": or_unlimited(found["device_limit"]),
        "Own Devices": found["overrides"]["max_devices"],
        "Overage Cap": found["overage_cap"],
        "Retention Days": or_unlimited(found["retention_days"]),
        "Own Retention": found["overrides"]["retention_days"],
        "Revoked": found["revoked_at"],
        "License": license_row.get("jti"),
        "License Renews": license_row.get("renews_at"),
        "License Expires": license_row.get("expires_at"),
    }
    yield details(f"Why {found['customer_id']} has what it has", shown)
    if found["stripe_error"]:
        yield f"⚠️  Stripe was not asked: {found['stripe_error']}"
    yield from _stripe_notes(used)
    for line in found["differences"]:
        yield f"⚠️  {line}. To mend it: flask stripe sync --customer {found['customer_id']}"
    for missing in found["missing"]:
        yield f"⚠️  Stripe does not find {missing}."
    for other in found["other_products"] or ():
        what = other["description"] or ", ".join(other["prices"])
        yield f"Not ours: {other['subscription_id']} ({other['status']}), {what}"
    for event in found["last_events"]:
        note = f"  {event['note']}" if event.get("note") else ""
        at = local_time(event["received_at"])
        yield f"{at}  {event['type']}  {event['event_id']}  {event['outcome']}{note}"
    for refusal in found["refusals"]:
        yield f"{local_time(refusal['at'])}  {refusal['action']} refused: {refusal['message']}"
    yield from _warnings(found, found["live_count"])


@customer.command("import", "flask customer import customers.csv --dry-run")
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="surrogateescape"))
@click.option("--dry-run", is_flag=True, help="Change nothing, say what would be done.")
def import_customers(file: TextIO, dry_run: bool) -> Answer:
    """Add the customers of a CSV file: email and any of name, company, plan, stripe_customer_id."""
    from app.services import imports  # which takes marshmallow in

    results = []
    with progress("Importing") as advance:
        for result in imports.import_customers(file, dry_run=dry_run):
            results.append(result)
            advance(1, 0)
    outcomes = Counter(result["outcome"] for result in results)
    made, failed = outcomes["created"] + outcomes["linked"], outcomes["failed"]
    text = [
        "Line {line}: {email}: {outcome}".format_map(result)
        + "".join(f" ({result[name]})" for name in ("customer_id", "message") if result[name])
        for result in results
    ]
    verb = "would be " if dry_run else ""
    text.append(f"{made} customer(s) {verb}imported, {failed} failed, {len(results) - made - failed} left.")
    return Answer(results, text, exit_code=int(failed > 0))


@customer.command("export", "flask customer export --id cust_abc123 > export.json")
@customer_argument
def export(customer_id: str) -> Answer:
    """Print everything that is stored about a customer, as JSON, with --json or without."""
    answer = Answer(privacy.export_customer(customer_id), [])
    return Answer(answer.data, [answer.as_json().rstrip()])


@customer.command("erase", "flask customer erase --id cust_abc123 --yes")
@customer_argument
@yes_option
def erase(customer_id: str, yes: bool) -> Answer:
    """Erase personal data for good: fields here, the customer at Stripe. Figures stay."""
    if customers.get_customer(customer_id)["stripe_customer_id"]:
        stripe.require_configured()
    who = describe_who(customer_id)
    question = f"Erase {who} here and at Stripe? Subscriptions and licenses end. This cannot be undone."
    confirm(question, yes=yes, must=True)
    privacy.erase_customer(customer_id)
    return Answer({"customerId": customer_id, "erased": True}, [f"✅ Customer {customer_id} erased."])


def _warnings(row: Row, live_count: int) -> Iterator[str]:
    if live_count > 1:
        yield f"⚠️  {live_count} subscriptions are live at once; the better one counts. Cancel the other."
    if row["revoked_at"]:
        yield "⚠️  This customer's licenses are revoked."
