"""Overage: days of devices above the included ones, as device-days and amounts. Pure: no Flask, no SQL.

Prices are per device-day and amounts whole numbers, both in the smallest unit of the currency. Days are rows
of `overage_days`.
"""

from calendar import timegm
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from app.entitlements import Entitlement
from app.errors import Conflict

Row = Mapping[str, Any]
MONTH_DAYS: Final = 30
"""A price per device and month is the price of so many device-days."""
LATE_PREFIX: Final = "overage-late-"


@dataclass(frozen=True, slots=True)
class Bill:
    """Days that become one line of an invoice: those above the included devices, in order."""

    bill: str
    subscription_id: str
    days: Sequence[Row]

    def item_params(self, stripe_customer_id: str, currency: str) -> dict[str, Any]:
        """What Stripe's invoice item says. https://docs.stripe.com/api/invoiceitems/create"""
        device_days, amount = owed(self.days)
        first, last = self.days[0]["day"], self.days[-1]["day"]
        description = f"Extra devices {first} to {last}: {device_days} device-days above the included devices"
        quantities: Counter[int] = Counter()
        for row in self.days:
            quantities[row["price"]] += row["due"]
        cost = {"quantity": device_days, "unit_amount_decimal": str(self.days[0]["price"])}
        if len(quantities) > 1:
            parts = [f"{quantity} at {price}¢" for price, quantity in sorted(quantities.items())]
            description, cost = f"{description} ({', '.join(parts)})", {"amount": amount}
        return {
            "customer": stripe_customer_id,
            "currency": currency,
            "description": description,
            "metadata": {"overage": self.bill, "subscription_id": self.subscription_id},
            "period": {
                "start": timegm(first.timetuple()),
                "end": timegm((last + timedelta(days=1)).timetuple()),
            },
            **cost,
        }


def bills_of(days: Iterable[Row]) -> list[Bill]:
    """The bills that these days are on."""
    by_bill: dict[str, list[Row]] = {}
    for row in days:
        by_bill.setdefault(row["bill"], []).append(row)
    return [
        Bill(bill, rows[0]["subscription_id"], [row for row in rows if row["due"]])
        for bill, rows in by_bill.items()
    ]


def owed(days: Sequence[Row]) -> tuple[int, int]:
    """Device-days and amount."""
    return sum(row["due"] for row in days), sum(row["due"] * row["price"] for row in days)


def summarize(revisions: Sequence[Row]) -> tuple[list[Row], int, int]:
    """The newest revision of each day, and the device-days and amount of what is on a bill or will be.

    `revisions`: of the days of one period, in order of day and revision.
    """
    newest = {row["day"]: row for row in revisions}
    counted = [
        row
        for row in revisions
        if row["bill"] or (row["state"] == "open" and row is newest[row["day"]])
    ]  # fmt: skip
    return list(newest.values()), *owed(counted)


def invoiced_periods(invoices: Mapping[str, Iterable[Row]]) -> list[dict[str, Any]]:
    """The periods that Stripe's invoices sold, by subscription: starts_at, ends_at (in seconds), is_paid.

    A renewal's lines say the period that begins with it; a trial's cost nothing; prorations sell no period.
    """
    return [
        {
            "subscription_id": subscription_id,
            "starts_at": line["period"]["start"],
            "ends_at": line["period"]["end"],
            "is_paid": line["amount"] > 0,
        }
        for subscription_id, listed in invoices.items()
        for invoice in listed
        for line in invoice["lines"]["data"]
        if (details := line["parent"]["subscription_item_details"]) is not None
        and not details["proration"]
        and invoice["status"] != "void"
    ]


def cap_for(granted: Entitlement, cap: int | None, own_price: int | None) -> int:
    """The device limit of licenses with overage on; twice the included if none is asked for.

    Raises Conflict when this customer cannot have overage.
    """
    if granted.trial_mode or granted.status != "active":
        raise Conflict("Overage is for customers who pay: this one has no active paid subscription.")
    if granted.device_limit is None:
        raise Conflict("This customer's devices are unlimited: nothing can be above.")
    if own_price is None and granted.plan.overage_cents is None:
        raise Conflict(f"The {granted.plan.name} plan has no overage price: give this customer its own.")
    if cap is not None and cap < granted.device_limit:
        raise Conflict(f"The cap is below the {granted.device_limit} devices that the plan includes.")
    return 2 * granted.device_limit if cap is None else cap
