"""Days and prices to bills, without a database."""

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from app.entitlements import Entitlement, entitle
from app.errors import Conflict
from app.overage import bills_of, cap_for, invoiced_periods, owed, summarize
from app.plans import PLANS

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


def day(number: int, due: int, **fields: Any) -> dict[str, Any]:
    return {
        "day": date(2026, 11, number), "due": due, "price": 10, "bill": "b", "subscription_id": "sub_1",
        "state": "open", "revision": 1,
    } | fields  # fmt: skip


def test_days_of_one_price_are_a_quantity():
    (bill,) = bills_of([day(2, 0), day(3, 4), day(5, 3), day(6, 0)])
    assert owed(bill.days) == (7, 70)
    params = bill.item_params("cus_1", "usd")
    assert (params["quantity"], params["unit_amount_decimal"]) == (7, "10")
    assert params["description"] == (
        "Extra devices 2026-11-03 to 2026-11-05: 7 device-days above the included devices"
    )
    assert params["period"] == {"start": 1793664000, "end": 1793923200}
    assert params["metadata"] == {"overage": "b", "subscription_id": "sub_1"}


def test_days_of_two_prices_are_an_amount_that_says_them():
    (bill,) = bills_of([day(3, 4), day(4, 5, price=9)])
    params = bill.item_params("cus_1", "usd")
    assert params["amount"] == 85 and "quantity" not in params
    assert "9 device-days above the included devices (5 at 9¢, 4 at 10¢)" in params["description"]


def test_days_of_several_bills_and_of_none():
    assert [bill.bill for bill in bills_of([day(3, 1), day(4, 1, bill="c"), day(5, 1)])] == ["b", "c"]
    (nothing,) = bills_of([day(3, 0)])
    assert nothing.days == []


@pytest.mark.parametrize(
    ("revisions", "owed"),
    [
        ([day(3, 4, bill=None), day(3, 6, bill=None, revision=2)], (6, 60)),
        ([day(3, 4, state="billed"), day(3, 2, bill=None, revision=2, state="late")], (4, 40)),
        ([day(3, 4, state="billed"), day(3, 2, revision=2, state="billed")], (6, 60)),
        ([day(3, 4, bill=None), day(3, 4, bill=None, revision=2, state="held")], (0, 0)),
    ],
)
def test_what_is_owed_for_revised_days(revisions: list[dict[str, Any]], owed: tuple[int, int]):
    days, device_days, amount = summarize(revisions)
    assert (device_days, amount) == owed
    assert days == [revisions[-1]]


def invoice(*lines: tuple[int, int, int, bool], status: str = "paid") -> dict[str, Any]:
    def line(start: int, end: int, amount: int, proration: bool) -> dict[str, Any]:
        parent = {"subscription_item_details": {"proration": proration}}
        return {"period": {"start": start, "end": end}, "amount": amount, "parent": parent}

    extra = {"period": {"start": 5, "end": 5}, "amount": 9, "parent": {"subscription_item_details": None}}
    return {"status": status, "lines": {"data": [extra, *(line(*given) for given in lines)]}}


def test_periods_are_what_invoices_sold():
    found = invoiced_periods({"sub_1": [
        invoice((100, 200, 2900, False), (150, 200, 400, True)),
        invoice((0, 100, 0, False)),
        invoice((200, 300, 2900, False), status="void"),
    ]})  # fmt: skip
    assert [tuple(period.values()) for period in found] == [
        ("sub_1", 100, 200, True), ("sub_1", 0, 100, False),
    ]  # fmt: skip


def granted(plan: str, **fields: Any) -> Entitlement:
    customer = {"max_devices": None, "retention_days": None, "overage_cap": None, "created_at": NOON}
    subscription = {
        "id": 1, "stripe_subscription_id": "sub_1", "plan": plan, "status": "active", "trial_ends_at": None,
    }  # fmt: skip
    return replace(entitle(customer, [subscription], NOON), **fields)


def test_the_cap_is_twice_the_included_or_as_asked():
    assert cap_for(granted("starter"), None, None) == 20
    assert cap_for(granted("starter"), 10, None) == 10
    assert cap_for(granted("enterprise", device_limit=500), 700, 240) == 700


@pytest.mark.parametrize(
    ("entitlement", "cap", "reason"),
    [
        (granted("enterprise"), None, "unlimited"),
        (granted("enterprise", device_limit=500), None, "no overage price"),
        (granted("starter"), 9, "below the 10"),
        (granted("starter", status="past_due"), None, "no active paid"),
        (granted("starter", trial_mode=True), None, "no active paid"),
    ],
)
def test_who_cannot_have_overage(entitlement: Entitlement, cap: int | None, reason: str):
    with pytest.raises(Conflict, match=reason):
        cap_for(entitlement, cap, None)


def test_every_price_is_of_whole_device_days():
    assert all((plan.overage_cents or 0) % 30 == 0 for plan in PLANS.values())
