"""Overage: days of devices above the included ones, as device-days and amounts. Pure: no Flask, no SQL.

Prices are per device-day and amounts whole numbers, both in the smallest unit of the currency. Days are rows
of `overage_days`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from app.entitlements import Entitlement
from app.errors import Conflict
from app.plans import PLANS, Plan

Row = Mapping[str, Any]
MONTH_DAYS: Final = 30
"""A price per device and month is the price of so many device-days."""
LATE_PREFIX: Final = "overage-late-"
PLAN_PRICES: Final = {plan.name: plan.overage_cents for plan in PLANS.values() if plan.name != "trial"}


@dataclass(frozen=True, slots=True)
class Bill:
    """Days that become one line of an invoice; `quantities` are the device-days at each price."""

    bill: str
    subscription_id: str
    first_day: date
    last_day: date
    quantities: Mapping[int, int]

    @property
    def is_late(self) -> bool:
        return self.bill.startswith(LATE_PREFIX)

    @property
    def device_days(self) -> int:
        return sum(self.quantities.values())

    @property
    def amount(self) -> int:
        return sum(price * quantity for price, quantity in self.quantities.items())

    @property
    def description(self) -> str:
        parts = [f"{quantity} at {price}¢" for price, quantity in sorted(self.quantities.items())]
        prices = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        return (
            f"Extra devices {self.first_day} to {self.last_day}: {self.device_days} device-days "
            f"above the included devices{prices}"
        )

    def item_params(self, stripe_customer_id: str, currency: str) -> dict[str, Any]:
        """What Stripe's invoice item says. https://docs.stripe.com/api/invoiceitems/create"""
        params: dict[str, Any] = {
            "customer": stripe_customer_id,
            "currency": currency,
            "description": self.description,
            "metadata": {"overage": self.bill, "subscription_id": self.subscription_id},
            "period": {"start": _seconds(self.first_day), "end": _seconds(self.last_day + timedelta(days=1))},
        }
        if len(self.quantities) > 1:
            return params | {"amount": self.amount}
        (price,) = self.quantities
        return params | {"quantity": self.device_days, "unit_amount_decimal": str(price)}


def bills_of(days: Iterable[Row]) -> list[Bill]:
    """The bills that these days are on."""
    by_bill: dict[str, list[Row]] = {}
    for row in days:
        by_bill.setdefault(row["bill"], []).append(row)
    bills = []
    for bill, rows in by_bill.items():
        owed = [row for row in rows if row["due"]]
        quantities: Counter[int] = Counter()
        for row in owed:
            quantities[row["price"]] += row["due"]
        dates = [row["day"] for row in owed or rows]
        bills.append(Bill(bill, rows[0]["subscription_id"], min(dates), max(dates), quantities))
    return bills


def summarize(revisions: Sequence[Row]) -> tuple[list[Row], int, int]:
    """The newest revision of each day, and the device-days and amount of what is on a bill or will be.

    `revisions`: of the days of one period, in order of day and revision.
    """
    newest = {row["day"]: row for row in revisions}
    owed = [
        row
        for row in revisions
        if row["bill"] or (row["state"] == "open" and row is newest[row["day"]])
    ]  # fmt: skip
    device_days = sum(row["due"] for row in owed)
    return list(newest.values()), device_days, sum(row["due"] * row["price"] for row in owed)


def invoiced_periods(invoices: Iterable[Row]) -> list[dict[str, Any]]:
    """The periods that Stripe's invoices of one subscription sold: starts_at, ends_at, is_paid.

    A renewal's lines say the period that begins with it; a trial's cost nothing; prorations sell no period.
    """
    found: dict[int, dict[str, Any]] = {}
    for invoice in invoices:
        for line in invoice["lines"]["data"]:
            details = line["parent"]["subscription_item_details"]
            if details is None or details["proration"] or invoice["status"] == "void":
                continue
            start, end = line["period"]["start"], line["period"]["end"]
            sold = found.setdefault(start, {"starts_at": start, "ends_at": end, "is_paid": False})
            sold["is_paid"] = sold["is_paid"] or line["amount"] > 0
    return [
        sold | {name: datetime.fromtimestamp(sold[name], UTC) for name in ("starts_at", "ends_at")}
        for sold in found.values()
    ]


def price_of(customer: Row, plan: Plan) -> int | None:
    """Per extra device and month: the customer's own, else the plan's."""
    return plan.overage_cents if customer["overage_price"] is None else customer["overage_price"]


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


def _seconds(day: date) -> int:
    return int(datetime.combine(day, time.min, UTC).timestamp())
