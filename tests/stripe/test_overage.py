"""Overage: each day above the included devices is on one invoice, once, to the cent."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg2
import pytest

from app.errors import Conflict
from app.services import overage
from tests.conftest import ADMIN
from tests.shop import Shop

DAY = timedelta(days=1)


class Overage:
    """A shop whose service keeps Stripe's time, and what a test does with a customer above its limit."""

    def __init__(self, shop: Shop, sql: Callable[..., list[dict[str, Any]]]) -> None:
        self.shop, self.sandbox, self.sql = shop, shop.sandbox, sql

    def today(self) -> date:
        return datetime.fromtimestamp(self.sandbox.now(), UTC).date()

    def subscriber(self, plan: str = "starter") -> tuple[str, str]:
        """A customer who pays and has overage on, and the subscription."""
        customer_id, subscription_id = self.shop.subscribe(plan)
        self.service(overage.switch_on, customer_id)
        return customer_id, subscription_id

    def service(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with self.shop.app.app_context():
            return function(*args, **options)

    def report(self, customer_id: str, day: date, active: int, instance: str = "dev-1", hour: int = 12) -> None:
        """A report of that day, as it is stored."""
        self.sql(
            "INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)"
            " VALUES (%(customer_id)s, %(instance)s, %(active)s, %(active)s, %(at)s)",
            customer_id=customer_id, instance=instance, active=active,
            at=datetime.combine(day, time(hour), UTC),
        )  # fmt: skip

    def renew(self) -> None:
        """The period ends; Stripe drafts, we hear of it, an hour later the invoice is final and paid."""
        self.to_period_end()
        self.shop.deliver()
        self.sandbox.advance(hours=2)
        self.shop.deliver()

    def to_period_end(self) -> None:
        live = self.shop.live()
        self.sandbox.advance_to(min(sub["items"]["data"][0]["current_period_end"] for sub in live))

    def billing(self, customer_id: str, period: str = "current") -> dict[str, Any]:
        return self.shop.get(f"/api/usage/{customer_id}/billing?period={period}")

    def items(self) -> list[dict[str, Any]]:
        """Stripe's invoice items of overage."""
        return [item for item in self.sandbox.every("invoiceitem") if item["metadata"].get("overage")]

    def lines(self) -> list[tuple[str, int, int]]:
        """Every overage line of an invoice: the invoice's status, quantity, amount."""
        return [
            (invoice["status"], line["quantity"], line["amount"])
            for invoice in self.sandbox.every("invoice")
            for line in invoice["lines"]["data"]
            if line["metadata"].get("overage")
        ]


@pytest.fixture
def shop_over(
    shop: Shop, sql: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> Overage:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(shop.sandbox.now(), tz)

    monkeypatch.setattr("app.context.datetime", Clock)
    return Overage(shop, sql)


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    environ["OVERAGE"] = "on"
    return environ


def test_the_renewal_carries_one_line(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    first = over.today() + DAY
    over.report(customer_id, first, 14)
    over.report(customer_id, first, 3, instance="dev-2", hour=1)
    over.report(customer_id, first + 3 * DAY, 12)
    over.report(customer_id, first + 4 * DAY, 9)
    preview = over.billing(customer_id)
    assert (preview["deviceDays"], preview["amount"], preview["state"]) == (9, 90, "open")
    assert preview["included"] == 10
    assert preview["pricePerDeviceMonth"] == 300
    assert [(day["total"], day["over"], day["state"]) for day in preview["days"]] == [
        (17, 7, "open"), (12, 2, "open"), (9, 0, "open"),
    ]  # fmt: skip

    over.to_period_end()
    over.shop.deliver()
    assert over.lines() == [("draft", 9, 90)]
    over.sandbox.advance(hours=2)
    over.shop.deliver()
    over.sandbox.deliver(again=True, order="random")
    assert over.lines() == [("paid", 9, 90)]
    assert over.shop.charges() == [2900, 2990]
    assert over.items()[0]["discountable"] is False
    previous = over.billing(customer_id, "previous")
    assert (previous["deviceDays"], previous["amount"], previous["state"]) == (9, 90, "billed")
    assert {day["state"] for day in previous["days"]} == {"billed"}
    assert over.billing(customer_id)["days"] == []

    evidence = over.shop.get(f"/api/usage/{customer_id}/billing/{first}")
    assert evidence["invoiceItemId"] == over.items()[0]["id"]
    assert [(r["instanceId"], r["activeDevices"]) for r in evidence["reports"]] == [("dev-1", 14), ("dev-2", 3)]


def test_a_draft_that_we_missed_is_paid_with_the_next_invoice(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.to_period_end()
    over.sandbox.advance(hours=2)
    over.shop.deliver()
    assert over.lines() == []
    assert [item["invoice"] for item in over.items()] == [None]
    assert over.billing(customer_id, "previous")["state"] == "billed"
    over.renew()
    assert over.lines() == [("paid", 5, 50)]


def test_cancelled_at_once_it_is_invoiced_with_what_was_missed(shop_over: Overage):
    over = shop_over
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.to_period_end()
    over.sandbox.advance(hours=2)
    over.shop.deliver()
    over.report(customer_id, over.today() + DAY, 12)
    over.report(customer_id, over.today() + 9 * DAY, 12)
    over.sandbox.advance(days=5)
    over.sandbox.cancel_subscription(subscription_id)
    over.shop.deliver()
    assert over.lines() == [("paid", 2, 20), ("paid", 5, 50)]
    assert len([i for i in over.sandbox.every("invoice") if i["metadata"].get("overage")]) == 1
    over.sandbox.deliver(again=True)
    assert len(over.lines()) == 2


def test_cancelled_for_the_period_end_it_is_invoiced_then(shop_over: Overage):
    over = shop_over
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.sandbox.update_subscription(subscription_id, cancel_at_period_end=True)
    over.renew()
    assert over.lines() == [("paid", 5, 50)]


def test_an_unusual_day_waits_for_an_operator(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    first = over.today() + DAY
    over.report(customer_id, first, 11)  # nothing before it: not unusual
    over.report(customer_id, first + DAY, 34)
    over.report(customer_id, first + 2 * DAY, 400)
    over.renew()
    assert over.lines() == [("paid", 1, 10)]
    billing = over.billing(customer_id, "previous")
    assert [day["state"] for day in billing["days"]] == ["billed", "held", "held"]

    over.service(overage.decide, customer_id, first + DAY, hold=False, reason="a fair")
    assert over.billing(customer_id, "previous")["days"][1]["state"] == "late"
    with pytest.raises(Conflict):
        over.service(overage.decide, customer_id, first, hold=True)
    assert over.service(overage.bill_late, customer_id)["amount"] == 240
    over.renew()
    assert over.lines() == [("paid", 1, 10), ("paid", 24, 240)]
    assert over.service(overage.bill_late, customer_id) is None
    evidence = over.shop.get(f"/api/usage/{customer_id}/billing/{first + DAY}")
    assert [(r["state"], r["reason"]) for r in evidence["revisions"]] == [("held", None), ("billed", "a fair")]


def test_reports_before_the_bill_correct_it_and_later_ones_are_late(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    day = over.today() + DAY
    over.report(customer_id, day, 12)
    assert over.billing(customer_id)["deviceDays"] == 2
    over.report(customer_id, day, 13, hour=20)
    over.report(customer_id, day, 9, hour=21)
    assert [(d["over"], d["revision"]) for d in over.billing(customer_id)["days"]] == [(3, 2)]
    over.renew()
    over.report(customer_id, day, 14, hour=22)
    over.report(customer_id, day + DAY, 11)
    billing = over.billing(customer_id, "previous")
    assert (billing["deviceDays"], billing["amount"], billing["state"]) == (3, 30, "billed")
    assert [(d["over"], d["state"]) for d in billing["days"]] == [(4, "late"), (1, "late")]
    assert over.service(overage.bill_late, customer_id)["device_days"] == 2
    over.renew()
    assert over.lines() == [("paid", 3, 30), ("paid", 2, 20)]


def test_a_bill_never_changes(shop_over: Overage, sql: Callable[..., Any]):
    over = shop_over
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 12)
    over.renew()
    for statement in ("UPDATE overage_days SET over = 1", "UPDATE overage_days SET state = 'open'",
                      "DELETE FROM overage_days"):  # fmt: skip
        with pytest.raises(psycopg2.errors.RaiseException):
            sql(statement)
    assert sql("SELECT state, over FROM overage_days") == [{"state": "billed", "over": 2}]


def test_a_restored_database_makes_no_second_line(shop_over: Overage, sql: Callable[..., Any]):
    over = shop_over
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 12)
    over.renew()
    sql("TRUNCATE overage_days, overage_periods")
    over.sandbox.advance(days=2)  # beyond the idempotency keys
    over.service(overage.settle, customer_id)
    assert over.lines() == [("paid", 2, 20)]
    assert over.billing(customer_id, "previous")["state"] == "billed"
    assert [row["invoice_item_id"] for row in sql("SELECT * FROM overage_days")] == [over.items()[0]["id"]]


def test_the_price_and_limit_of_a_day_are_the_plan_of_that_day(shop_over: Overage):
    over = shop_over
    customer_id, subscription_id = over.subscriber()
    first = over.today() + DAY
    over.report(customer_id, first, 20)
    over.sandbox.advance(days=4)
    over.sandbox.portal_switch(subscription_id, over.shop.prices["professional"])
    over.shop.deliver()
    over.report(customer_id, over.today(), 52)  # the day of the change has the higher limit
    over.report(customer_id, over.today() + DAY, 55)
    over.renew()
    assert over.lines() == [("paid", 1, 10 * 10 + 7 * 9)]
    assert "17 device-days" in over.items()[0]["description"]
    assert "(7 at 9¢, 10 at 10¢)" in over.items()[0]["description"]


def test_only_whole_days_with_overage_on_count(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    first = over.today()
    for offset in range(8):
        over.report(customer_id, first + offset * DAY, 11)
    over.sandbox.advance(days=3)
    over.service(overage.switch_off, customer_id)
    over.sandbox.advance(days=2)
    over.service(overage.switch_on, customer_id)
    over.service(overage.switch_on, customer_id, cap=30, price=600)  # other terms cut no day
    assert [d["day"] for d in over.billing(customer_id)["days"]] == [
        str(first + offset * DAY) for offset in (1, 2, 6, 7)
    ]
    assert over.billing(customer_id)["amount"] == 2 * 10 + 2 * 20


def test_a_trial_at_stripe_is_free(shop_over: Overage):
    over = shop_over
    customer_id, subscription_id = over.subscriber()
    over.sandbox.advance(days=2)
    over.sandbox.update_subscription(subscription_id, trial_end=over.sandbox.now() + 10 * 86_400)
    over.shop.deliver()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    assert over.lines() == []
    assert over.billing(customer_id)["days"] == []


def test_two_subscriptions_bill_a_day_once(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    over.sandbox.advance(days=10)
    over.sandbox.create_subscription(over.shop.stripe_id(customer_id), over.shop.prices["starter"])
    over.shop.deliver()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    over.renew()
    assert over.lines() == [("paid", 5, 50)]


def test_a_coupon_does_not_discount_it_and_tax_is_left_to_stripe(
    shop_over: Overage, make_app: Callable[..., Any]
):
    over = shop_over
    over.shop.app = make_app(OVERAGE="on", STRIPE_TAX="on")
    over.sandbox.create_promotion_code("HALF", 50)
    customer_id = over.shop.customer()
    over.sandbox.pay(over.shop.checkout(customer_id, "starter")["sessionId"], "HALF")
    over.shop.deliver()
    over.service(overage.switch_on, customer_id)
    over.report(customer_id, over.today() + DAY, 30)
    over.renew()
    assert over.lines() == [("paid", 20, 200)]
    made = next(r for r in over.sandbox.requests if r.path == "/v1/invoiceitems" and r.method == "POST")
    assert made.params["tax_behavior"] == "exclusive"
    assert over.shop.charges()[-1] >= 200


def test_shadow_tells_stripe_nothing_and_is_never_billed_later(
    shop_over: Overage, make_app: Callable[..., Any]
):
    over = shop_over
    on, over.shop.app = over.shop.app, make_app(OVERAGE="shadow")
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    over.shop.app = on
    over.service(overage.settle, customer_id)
    assert over.items() == []
    previous = over.billing(customer_id, "previous")
    assert (previous["deviceDays"], previous["amount"], previous["state"]) == (5, 50, "shadow")


def test_erasing_waives_what_is_open_and_keeps_the_days(shop_over: Overage, sql: Callable[..., Any]):
    over = shop_over
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    assert over.billing(customer_id)["amount"] == 50
    with over.shop.app.app_context():
        from app.services.customers import erase_customer

        erase_customer(customer_id)
    over.shop.deliver()
    over.service(overage.settle, customer_id)
    assert over.items() == []
    assert [row["over"] for row in sql("SELECT over FROM overage_days")] == [5]


def test_who_may_have_overage(shop_over: Overage, make_app: Callable[..., Any]):
    over = shop_over
    customer_id, subscription_id = over.subscriber()
    with pytest.raises(Conflict, match="below the 10"):
        over.service(overage.switch_on, customer_id, cap=9)
    with pytest.raises(Conflict, match="no active paid"):
        over.service(overage.switch_on, over.shop.customer())
    assert over.service(overage.switch_on, customer_id, cap=40) == 40
    assert over.shop.get(f"/api/licenses/{customer_id}")["license"]
    on, over.shop.app = over.shop.app, make_app(OVERAGE="off")
    with pytest.raises(Conflict, match="OVERAGE"):
        over.service(overage.switch_on, customer_id)


def test_the_routes_refuse_what_is_not_there_or_not_theirs(shop_over: Overage):
    over = shop_over
    customer_id, _ = over.subscriber()
    client, path = over.shop.client, f"/api/usage/{customer_id}/billing"
    other = over.shop.customer()
    token = over.shop.get(f"/api/licenses/{other}")["license"]
    assert client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 403
    assert client.get(path).status_code == 401
    for wrong, status in (
        ("?period=next", 422), ("?period=previous", 404), ("/2026-13-01", 404), ("/2020-01-01", 404),
    ):  # fmt: skip
        assert client.get(path + wrong, headers=ADMIN).status_code == status, wrong
    assert client.get(f"/api/usage/{other}/billing", headers=ADMIN).status_code == 404
