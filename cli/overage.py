"""`flask usage overage|invoice-preview|bill-late` and `flask customer overage`: devices above the limit."""

from datetime import datetime

import click

from app.db import Row
from app.encoding import camel_case
from app.errors import DomainError
from app.extensions import db, settings, stripe
from app.overage import owed
from app.queries import overage as overage_rows
from cli.customer import customer
from cli.output import (
    RULE,
    Answer,
    Column,
    Table,
    confirm,
    customer_argument,
    dump,
    fields,
    load,
    local_time,
    money,
    or_unlimited,
    progress,
    yes_option,
)
from cli.usage import usage

DAY_COLUMNS = (
    Column("Customer ID", "customer_id", 21, is_id=True), Column("Day", "day", 10),
    Column("State", "state", 6), Column("Total", "total", 6, right=True),
    Column("Included", "included", 8, right=True), Column("Over", "over", 6, right=True),
)  # fmt: skip
DAY_FIELDS = ("customer_id", "day", "state", "total", "included", "over", "revision")


@customer.command(
    "overage",
    "flask customer overage --id cust_abc123 --on --cap 40",
    "flask customer overage --id cust_abc123 --off",
)
@customer_argument
@click.option("--on/--off", "on", default=None, help="Bill devices above the included ones, or no longer.")
@click.option("--cap", type=click.IntRange(1, 10_000_000), help="Limit of the license; twice the included.")
@click.option("--price", type=click.IntRange(1, 10_000_000), help="Own cents per extra device and month.")
def switch(customer_id: str, on: bool | None, cap: int | None, price: int | None) -> Answer:
    """Let a customer use more devices than its plan includes, billed by the day."""
    from app.services import overage

    if on is None or not (on or (cap is None and price is None)):
        raise click.UsageError("Give --on, with --cap and --price if need be, or --off.")
    if on:
        cap = overage.switch_on(customer_id, cap=cap, price=price)
    else:
        overage.switch_off(customer_id)
    state = f"on, up to {cap} devices" if on else "off; what is open is billed with its period"
    return Answer(
        {"customerId": customer_id, "on": on, "cap": cap}, [f"✅ Overage of {customer_id} is {state}."]
    )


@usage.command(
    "invoice-preview",
    "flask usage invoice-preview --customer cust_abc123 --period previous",
)
@customer_argument
@click.option("--period", type=click.Choice(["current", "previous"]), default="current", show_default=True)
def preview(customer_id: str, period: str) -> Answer:
    """Show the overage of a period, day by day, and what is or will be billed."""
    from app.services import overage

    found = overage.billing_of(customer_id, period)
    price, currency = found["price_per_device_month"], found["currency"]
    shown = {
        "Period": f"{local_time(found['period']['start'])} to {local_time(found['period']['end'])}",
        "Included": or_unlimited(found["included"], " devices"),
        "Price": price and f"{money(price, currency)} per extra device and month (30 device-days)",
        "Device-days": found["device_days"],
        "Amount": money(found["amount"], currency),
        "State": found["state"],
    }
    return Answer(
        lambda: dump("overage:BillingAnswer", found),
        [f"Overage of {customer_id}:", RULE, fields(shown), Table(DAY_COLUMNS[1:], found["days"])],
    )


@usage.command(
    "overage",
    "flask usage overage",
    'flask usage overage --customer cust_abc123 --day 2026-11-03 --release --reason "a fair"',
)
@customer_argument(required=False)
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="The UTC day to hold or release.")
@click.option("--hold/--release", "hold", default=None, help="Keep the day off the bill, or let it on.")
@click.option("--reason", metavar="TEXT", help="Kept with the day.")
def run(customer_id: str | None, day: datetime | None, hold: bool | None, reason: str | None) -> Answer:
    """Compute and bill the overage of all customers or one (for cron, nightly), or decide about a day."""
    from app.services import overage, stripe_sync

    if (day is None) != (hold is None) or (reason and day is None) or (day and customer_id is None):
        raise click.UsageError("A day needs --customer, --day, and --hold or --release.")
    if day is not None:
        reason = load("overage:DecisionRequest", reason=reason)["reason"]
        row = overage.decide(str(customer_id), day.date(), hold=bool(hold), reason=reason)
        now = f"{row['day']} of {customer_id} is {row['state']} now: {row['over']} devices over."
        return Answer(_day(row), [f"✅ {now}"])
    failed: dict[str, str] = {}
    chosen = _chosen(customer_id)
    with progress("Computing") as advance:
        advance(0, len(chosen))
        for one in chosen:
            try:
                overage.refresh(one)
                if stripe.configured and settings.overage != "off":
                    stripe_sync.sync_customer(one)
                    overage.settle(one)
            except DomainError as error:
                failed[one] = error.message
            advance(1, 0)
    with db.statement() as cur:
        waiting = overage_rows.select_waiting_days(cur, customer_id, ["held", "late"])
    return Answer(
        {"customers": len(chosen), "waiting": [_day(row) for row in waiting], "failed": failed},
        [
            f"{len(chosen) - len(failed)} customer(s) computed. Days that wait for an operator:",
            Table(DAY_COLUMNS, waiting),
            *(f"❌ {one}: {message}" for one, message in failed.items()),
        ],
        exit_code=1 if failed else 0,
    )


@usage.command(
    "bill-late",
    "flask usage bill-late --customer cust_abc123",
)
@customer_argument(required=False)
@yes_option
def bill_late(customer_id: str | None, yes: bool) -> Answer:
    """Bill what was reported or released after the bill of its period, with the next invoice."""
    from app.services import overage

    for one in _chosen(customer_id):
        overage.refresh(one)
    with db.statement() as cur:
        late = overage_rows.select_waiting_days(cur, customer_id, ["late"])
    if late:
        currencies = sorted({row["currency"] for row in late})
        sums = [money(owed([row for row in late if row["currency"] == one])[1], one) for one in currencies]
        who = ", ".join(dict.fromkeys(row["customer_id"] for row in late))
        confirm(f"Bill {len(late)} late day(s) of {who}, {' and '.join(sums)} in all?", yes=yes)
    bills: list[Row] = []
    for one in dict.fromkeys(row["customer_id"] for row in late):
        try:
            bills += filter(None, [overage.bill_late(one)])
        except DomainError as error:
            if customer_id:
                raise
            bills.append({"customer_id": one, "failed": error.message})
    lines = [
        f"❌ {bill['customer_id']}: {bill['failed']}"
        if "failed" in bill
        else f"✅ {bill['customer_id']}: {bill['device_days']} device-days billed."
        for bill in bills
    ]
    failed = any("failed" in bill for bill in bills)
    return Answer(bills, lines or ["No day is late."], exit_code=int(failed))


def _chosen(customer_id: str | None) -> list[str]:
    if customer_id is not None:
        return [customer_id]
    with db.statement() as cur:
        return overage_rows.select_overage_customers(cur)


def _day(row: Row) -> Row:
    return {camel_case(name): row[name] for name in DAY_FIELDS}
