"""`flask report`: the state of the business on one screen."""

from collections.abc import Iterator
from typing import Any

import click

from app.services.report import business_report
from cli.output import DOUBLE_RULE, HELP_OPTIONS, Answer, Column, Group, Table, fields, money

commands = Group("commands")
PLAN = Column("Plan", lambda row: row["plan"].upper(), 16)
LABELS = {
    "customers": "Customers", "revenue": "Recurring Revenue", "pastDue": "Past Due",
    "trialsEnding": "Trials Ending", "paymentsFailed": "Payments Failed",
    "licensesLapsing": "Licenses Lapsing", "silentInstances": "Silent Instances", "overage": "Overage",
}  # fmt: skip


@commands.command(
    "report",
    "flask report --details",
    "flask report --csv > revenue.csv",
    csv=True,
    context_settings=HELP_OPTIONS,
)
@click.option("--details", is_flag=True, help="With the names behind each number.")
def report(details: bool) -> Answer:
    """Show the state of the business: customers, revenue, and what needs attention."""
    found = business_report(names=details)
    owed = {"plan": None, "interval": None, "currency": "usd", "amount": found["overage"]["amount"]}
    lines = [
        *({"kind": "revenue"} | row for row in found["revenue"]),
        *({"kind": "past_due"} | row for row in found["pastDue"]),
        {"kind": "overage"} | owed,
    ]
    return Answer(found, _screen(found), csv=(("kind", "plan", "interval", "currency", "amount"), lines))


def _screen(found: dict[str, Any]) -> Iterator[str | Table]:
    yield f"Business Report:\n{DOUBLE_RULE}\n\nCustomers:"
    status = Column("Status", lambda row: row["status"].upper(), 20)
    yield Table([PLAN, status, Column("Customers", "count", 10, right=True)], found["customers"])
    yield "\nRecurring Revenue (before discounts):"
    amount = Column("Amount", lambda row: money(row["amount"], row["currency"]), 14, right=True)
    rows = [row | {"mark": ""} for row in found["revenue"]]
    rows += [row | {"mark": "past due"} for row in found["pastDue"]]
    yield Table([PLAN, Column("Interval", "interval", 10), amount, Column("", "mark")], rows)
    silent, owed = found["silentInstances"], found["overage"]
    attention = {
        "Trials Ending": f"{found['trialsEnding']} within 7 days",
        "Payments Failed": found["paymentsFailed"],
        "Licenses Lapsing": f"{found['licensesLapsing']} within 7 days or ended",
        "Silent Instances": f"{silent['count']} of {silent['customers']} customer(s)",
        "Overage": f"{money(owed['amount'], 'usd')} for {owed['deviceDays']} device-days not billed yet",
    }
    yield f"\nAttention:\n{fields(attention, width=20)}"
    for name, entries in found.get("details", {}).items():
        if entries:
            yield f"\n{LABELS[name]}:"
        for entry in entries:
            if isinstance(entry, str):
                yield f"  {entry}"
            else:
                *group, names = entry.values()
                yield f"  {' '.join(group)}:"
                yield from (f"    {who}" for who in names)
    yield DOUBLE_RULE
