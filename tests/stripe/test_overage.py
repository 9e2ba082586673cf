"""Overage: each day above the included devices is on one invoice, once, to the cent."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.errors import Conflict
from app.extensions import stripe
from app.services import overage
from app.services.privacy import erase_customer
from app.services.report import business_report
from app.services.stripe_sync import sync_customer
from tests.conftest import ADMIN
from tests.shop import HOOK, Shop
from tests.stripe.conftest import Fuse
from tests.stripe_sandbox import Refusal, billing
from tests.tokens import claims_of

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

    def report(
        self, customer_id: str, day: date, active: int, instance: str = "dev-1", hour: int = 12
    ) -> None:
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
def over(shop: Shop, sql: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> Overage:
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


def test_the_renewal_carries_one_line(over: Overage):
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
    assert [(r["instanceId"], r["activeDevices"], r["reportedAt"]) for r in evidence["reports"]] == [
        ("dev-1", 14, f"{first}T12:00:00Z"),
        ("dev-2", 3, f"{first}T01:00:00Z"),
    ]


def test_several_workers_at_once_make_one_line(over: Overage):
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.to_period_end()
    events = list(over.sandbox.webhooks.pending)
    over.sandbox.webhooks.deliver_parallel(events, [HOOK])
    over.shop.deliver()
    assert over.lines() == [("draft", 5, 50)]
    assert len(over.items()) == 1


def test_a_draft_that_we_missed_is_paid_with_the_next_invoice_or_at_the_end(over: Overage):
    customer_id, subscription_id = over.subscriber()
    for active, paid in ((15, []), (16, [("paid", 5, 50)])):
        over.report(customer_id, over.today() + DAY, active)
        over.to_period_end()
        over.sandbox.advance(hours=2)
        over.shop.deliver()
        assert over.lines() == paid
        assert [item["quantity"] for item in over.items() if item["invoice"] is None] == [active - 10]
        assert over.billing(customer_id, "previous")["state"] == "billed"
    over.report(customer_id, over.today() + DAY, 12)
    over.report(customer_id, over.today() + 9 * DAY, 12)
    over.sandbox.advance(days=5)
    over.sandbox.cancel_subscription(subscription_id)
    over.shop.deliver()
    over.sandbox.deliver(again=True)
    assert over.lines() == [("paid", 5, 50), ("paid", 2, 20), ("paid", 6, 60)]
    assert len([i for i in over.sandbox.every("invoice") if i["metadata"].get("overage")]) == 1


@pytest.mark.parametrize("planned", [True, False])
def test_a_period_that_is_the_last_has_its_own_invoice(over: Overage, planned: bool):
    """Cancelled for its end, or just after it, while the renewal is a draft."""
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.sandbox.update_subscription(subscription_id, cancel_at_period_end=planned)
    over.to_period_end()
    if not planned:
        over.sandbox.cancel_subscription(subscription_id)
    over.shop.deliver()
    over.sandbox.advance(hours=2)
    over.shop.deliver()
    assert over.lines() == [("paid", 5, 50)]


@pytest.mark.parametrize("is_there", [True, False])
def test_the_invoice_after_the_end_is_paid_by_the_card_of_the_subscription(over: Overage, is_there: bool):
    """Checkout keeps the card with the subscription: the customer has no default at Stripe."""
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.sandbox.advance(days=5)
    over.sandbox.cancel_subscription(subscription_id)
    if not is_there:  # Stripe refuses an invoice that names a card which is gone
        over.sandbox.faults.fail_next(1, 400, path="/v1/invoices", method="POST")
    over.shop.deliver()
    card = over.sandbox.get("subscription", subscription_id)["default_payment_method"]
    own = next(i for i in over.sandbox.every("invoice") if i["metadata"].get("overage"))
    found = own["status"], own["default_payment_method"], own["total"]
    assert found == (("paid", card, 50) if is_there else ("open", None, 50))


def test_a_period_far_down_a_long_invoice_is_billed(over: Overage):
    """Stripe shows the first ten lines with an invoice, pending items before what the subscription sold."""
    customer_id, _ = over.subscriber()
    for number in range(11):
        item = {"customer": over.shop.stripe_id(customer_id), "currency": "usd", "amount": 100 + number}
        over.service(lambda: stripe.create_invoice_item(item, f"item-{number}"))  # noqa: B023
    over.to_period_end()
    over.sandbox.advance(hours=2)
    over.report(customer_id, over.today() + DAY, 15)
    over.to_period_end()  # we hear of this period when it is over
    over.shop.deliver()
    assert over.lines() == [("draft", 5, 50)]


def test_a_clock_set_back_bills_no_day_twice(over: Overage, sql: Callable[..., Any]):
    customer_id, _ = over.subscriber()
    sql("UPDATE overage_terms SET ends_at = starts_at + INTERVAL '3 days'")
    over.service(overage.switch_on, customer_id, cap=30)
    over.report(customer_id, over.today() + DAY, 15)
    assert over.billing(customer_id)["amount"] == 50


def test_cancelled_for_the_period_end_it_is_invoiced_then(over: Overage):
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.sandbox.update_subscription(subscription_id, cancel_at_period_end=True)
    over.renew()
    assert over.lines() == [("paid", 5, 50)]


def test_an_unusual_day_waits_for_an_operator(over: Overage):
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
    assert [(r["state"], r["reason"]) for r in evidence["revisions"]] == [
        ("held", None),
        ("billed", "a fair"),
    ]


def test_reports_before_the_bill_correct_it_and_later_ones_are_late(over: Overage):
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


def test_a_bill_never_changes_and_a_restored_database_makes_no_second_line(
    over: Overage, sql: Callable[..., Any]
):
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 12)
    over.renew()
    for statement in ("UPDATE overage_days SET over = 1", "UPDATE overage_days SET state = 'open'",
                      "DELETE FROM overage_days"):  # fmt: skip
        with pytest.raises(psycopg2.errors.RaiseException):
            sql(statement)
    assert sql("SELECT state, over FROM overage_days") == [{"state": "billed", "over": 2}]
    sql("TRUNCATE overage_days, overage_periods")
    over.sandbox.advance(days=2)  # beyond the idempotency keys
    over.service(overage.settle, customer_id)
    assert over.lines() == [("paid", 2, 20)]
    assert over.billing(customer_id, "previous")["state"] == "billed"
    assert [row["invoice_item_id"] for row in sql("SELECT * FROM overage_days")] == [over.items()[0]["id"]]


def test_the_price_and_limit_of_a_day_are_the_plan_of_that_day(over: Overage):
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


def test_only_whole_days_with_overage_on_count(over: Overage):
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


def test_a_trial_at_stripe_is_free(over: Overage):
    customer_id, subscription_id = over.subscriber()
    over.sandbox.advance(days=2)
    over.sandbox.update_subscription(subscription_id, trial_end=over.sandbox.now() + 10 * 86_400)
    over.shop.deliver()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    assert over.lines() == []
    assert over.billing(customer_id)["days"] == []


def test_two_subscriptions_bill_a_day_once(over: Overage):
    customer_id, _ = over.subscriber()
    over.sandbox.advance(days=10)
    over.sandbox.create_subscription(over.shop.stripe_id(customer_id), over.shop.prices["starter"])
    over.shop.deliver()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    over.renew()
    assert over.lines() == [("paid", 5, 50)]


def test_a_coupon_does_not_discount_it_and_tax_is_left_to_stripe(over: Overage, make_app: Callable[..., Any]):
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


def test_shadow_tells_stripe_nothing_and_is_never_billed_later(over: Overage, make_app: Callable[..., Any]):
    on, over.shop.app = over.shop.app, make_app(OVERAGE="shadow")
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.renew()
    over.shop.app = on
    over.service(overage.settle, customer_id)
    assert over.items() == []
    previous = over.billing(customer_id, "previous")
    assert (previous["deviceDays"], previous["amount"], previous["state"]) == (5, 50, "shadow")
    assert over.service(business_report)["overage"] == {"deviceDays": 0, "amount": 0}


@pytest.mark.parametrize("where", ["here", "at Stripe"])
def test_who_is_gone_pays_nothing_and_the_days_stay(over: Overage, sql: Callable[..., Any], where: str):
    customer_id, _ = over.subscriber()
    over.report(customer_id, over.today() + DAY, 15)
    over.sandbox.advance(days=3)
    if where == "here":
        assert over.billing(customer_id)["amount"] == 50
        over.service(erase_customer, customer_id)
    else:
        over.sandbox.delete_customer(over.shop.stripe_id(customer_id))
    assert all(delivery.ok for delivery in over.shop.deliver())
    over.service(overage.settle, customer_id)
    assert over.items() == []
    assert [row["over"] for row in sql("SELECT over FROM overage_days")] == [5]


def test_a_yearly_subscription_is_billed_at_its_renewal_or_when_the_interval_changes(over: Overage):
    customer_id, subscription_id = over.subscriber()
    over.report(customer_id, over.today() + DAY, 13)
    over.sandbox.advance(days=3)
    over.sandbox.portal_switch(subscription_id, over.shop.yearly["starter"])
    over.shop.deliver()
    assert [(item["quantity"], item["amount"]) for item in over.items()] == [(3, 30)]
    over.report(customer_id, over.today() + DAY, 14)
    over.report(customer_id, over.today() + 200 * DAY, 14)
    over.renew()
    assert sorted(over.lines()) == [("paid", 3, 30), ("paid", 8, 80)]


def test_the_cap_is_in_the_license_and_off_means_off(over: Overage, make_app: Callable[..., Any]):
    customer_id, _ = over.subscriber()
    assert over.service(overage.switch_on, customer_id, cap=40) == 40
    claims = claims_of(over.shop.get(f"/api/licenses/{customer_id}")["license"])
    assert claims["features"]["maxDevices"] == 40
    assert over.shop.subscription(customer_id)["deviceLimit"] == 10
    over.shop.app = make_app(OVERAGE="off")
    with pytest.raises(Conflict, match="OVERAGE"):
        over.service(overage.switch_on, customer_id)


def test_the_routes_refuse_what_is_not_there_or_not_theirs(over: Overage):
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
    day = over.today() + DAY
    over.report(customer_id, day, 12)
    assert over.billing(customer_id)["deviceDays"] == 2
    for written, status in ((f"{day}", 200), (f"{day:%Y%m%d}", 404), (f"{day:%G-W%V-%u}", 404)):
        assert client.get(f"{path}/{written}", headers=ADMIN).status_code == status, written
    assert client.get(f"/api/usage/{other}/billing", headers=ADMIN).status_code == 404


class Ledger:
    """What is owed, in plain Python: from reports, Stripe's subscriptions, and the licenses we gave out."""

    def __init__(self, over: Overage, customer_id: str) -> None:
        self.over, self.customer_id = over, customer_id
        self.reports: dict[tuple[date, str], int] = {}
        self.terms: list[list[float]] = []
        self.periods: dict[tuple[str, int], int] = {}

    def look(self) -> None:
        """To be called at least once in each period."""
        for sub in self.over.sandbox.every("subscription"):
            item = sub["items"]["data"][0]
            key = (sub["id"], item["current_period_start"])
            if sub["status"] in ("active", "past_due"):
                self.periods.setdefault(key, item["current_period_end"])
            if sub["ended_at"] and key in self.periods:
                self.periods[key] = min(self.periods[key], sub["ended_at"])

    def switch(self, on: bool) -> None:
        if on:
            self.terms.append([self.over.sandbox.now(), float("inf")])
        else:
            self.terms[-1][1] = self.over.sandbox.now()

    def amount(self) -> int:
        ended = {sub["id"] for sub in self.over.sandbox.every("subscription") if sub["ended_at"]}
        newest = dict(sorted(self.periods))
        over = [(p[1], end) for p, end in self.periods.items() if p[0] in ended or p[1] < newest[p[0]]]
        licenses = self.over.sql(
            "SELECT EXTRACT(EPOCH FROM issued_at) AS start, EXTRACT(EPOCH FROM superseded_at) AS end,"
            " plan, status, device_limit FROM licenses WHERE customer_id = %(id)s",
            id=self.customer_id,
        )
        amount = 0
        for day in {day for day, _ in self.reports}:
            start = datetime.combine(day, time.min, UTC).timestamp()
            end = start + 86_400
            if not all(any(s <= start and end <= e for s, e in spans) for spans in (over, self.terms)):
                continue
            valid = [row for row in licenses if row["start"] < end and start < (row["end"] or end)]
            best = max(valid, key=lambda row: row["device_limit"], default={"status": "none"})
            if best["status"] in ("active", "past_due"):
                total = sum(active for (reported, _), active in self.reports.items() if reported == day)
                price = {"starter": 10, "professional": 9}[best["plan"]]
                amount += max(0, total - best["device_limit"]) * price
        return amount


class Life:
    """One customer; every step may be taken at any time."""

    def __init__(self, over: Overage, fuse: Fuse) -> None:
        self.over, self.fuse, self.sandbox = over, fuse, over.sandbox
        self.customer_id, self.subscription_id = over.subscriber()
        self.stripe_id = over.shop.stripe_id(self.customer_id)
        self.ledger = Ledger(over, self.customer_id)
        self.ledger.look()
        self.ledger.switch(True)
        self.is_on = True
        self.undone: list[dict[str, Any]] = []

    def report(self, given: tuple[int, int, int]) -> None:
        days_ago, instance, active = given
        day, hour = self.over.today() - days_ago * DAY, len(self.ledger.reports) % 24
        key = (day, f"dev-{instance}")
        if active > self.ledger.reports.get(key, -1):
            self.over.sql("DELETE FROM usage_reports WHERE customer_id = %(id)s AND instance_id = %(i)s"
                          " AND DATE_TRUNC('hour', reported_at) = %(at)s", id=self.customer_id, i=key[1],
                          at=datetime.combine(day, time(hour), UTC))  # fmt: skip
            self.over.report(self.customer_id, day, active, key[1], hour)
            self.ledger.reports[key] = active

    def days(self, count: int) -> None:
        for _ in range(count):
            self.sandbox.advance(days=1)
            self.ledger.look()

    def renewal(self, hours: int) -> None:
        if self.over.shop.live():
            self.over.to_period_end()
            self.sandbox.advance(hours=hours)
            self.ledger.look()

    def plan(self, plan: str) -> None:
        with suppress(Refusal):
            self.sandbox.portal_switch(self.subscription_id, self.over.shop.prices[plan])

    def second(self, plan: str) -> None:
        if len(self.over.shop.live()) < 2:
            made = self.sandbox.create_subscription(self.stripe_id, self.over.shop.prices[plan])
            self.subscription_id = made["id"]
            self.ledger.look()

    def cancel(self, at_once: bool) -> None:
        with suppress(Refusal):
            if at_once:
                self.sandbox.cancel_subscription(self.subscription_id)
            else:
                self.sandbox.update_subscription(self.subscription_id, cancel_at_period_end=True)
        self.ledger.look()

    def card(self, card: str) -> None:
        self.sandbox.set_card(self.stripe_id, card)

    def switch(self, on: bool) -> None:
        with suppress(Conflict):
            if on != self.is_on:
                self.over.service(overage.switch_on if on else overage.switch_off, self.customer_id)
                self.ledger.switch(on)
                self.is_on = on

    def lose_answers(self, times: int) -> None:
        self.sandbox.faults.fail_next(3 * times, "drop", path="invoice", method="POST", after=True)

    def lose_events(self, seed: int) -> None:
        for event in random.Random(seed).sample(self.sandbox.webhooks.pending, k=min(2, self._waiting())):
            self.sandbox.webhooks.drop(event)

    def deliver(self, given: tuple[int, int | None]) -> None:
        """Some events, in any order, some twice; with a length of the fuse, it ends in the middle."""
        seed, length = given
        dice = random.Random(seed)
        events = dice.sample(self.sandbox.webhooks.pending, k=dice.randint(0, self._waiting()))
        for event in [*self.undone, *events, *events[:1]]:
            self._bring(event, length)

    def _waiting(self) -> int:
        return len(self.sandbox.webhooks.pending)

    def _bring(self, event: dict[str, Any], length: int | None = None) -> None:
        delivered = []
        with self.fuse.lit(length):
            delivered = self.sandbox.webhooks.deliver(event, HOOK)
        self.over.sql("DELETE FROM leases")  # as after the minute that they last
        if delivered and delivered[0].ok:
            self.undone = [other for other in self.undone if other["id"] != event["id"]]
        elif event not in self.undone:
            self.undone.append(event)

    def settle_down(self) -> None:
        """What was lost is found by the nightly command; an operator releases and bills what is late."""
        self.sandbox.faults.clear()
        for event in [*self.undone, *self.sandbox.webhooks.pending]:
            self._bring(event)
        assert self.undone == []
        self.over.service(sync_customer, self.customer_id)
        self.over.service(overage.settle, self.customer_id)
        self.over.service(overage.refresh, self.customer_id)
        held = self.over.sql(
            "SELECT day FROM overage_current WHERE customer_id = %(id)s AND state = 'held'",
            id=self.customer_id,
        )
        for row in held:
            self.over.service(overage.decide, self.customer_id, row["day"], hold=False)
        self.over.service(overage.settle, self.customer_id)
        if self.over.sql("SELECT 1 FROM overage_current WHERE state = 'late'"):
            self.over.service(overage.bill_late, self.customer_id)

    def end(self) -> None:
        with self.sandbox.world.transaction() as world:
            billing.delete_customer(world, world.get("customer", self.stripe_id))
        self.sandbox.webhooks.clear()


seeds = st.integers(0, 99)
steps = st.one_of(
    st.tuples(st.just("report"), st.tuples(st.integers(0, 25), st.integers(1, 2), st.integers(0, 60))),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 3), st.just(1), st.integers(9, 20))),
    st.tuples(st.just("days"), st.integers(1, 12)),
    st.tuples(st.just("renewal"), st.integers(0, 2)),
    st.tuples(st.just("plan"), st.sampled_from(["starter", "professional"])),
    st.tuples(st.just("second"), st.sampled_from(["starter", "professional"])),
    st.tuples(st.just("cancel"), st.booleans()),
    st.tuples(st.just("card"), st.sampled_from(["ok", "decline"])),
    st.tuples(st.just("switch"), st.booleans()),
    st.tuples(st.just("lose_answers"), st.integers(1, 2)),
    st.tuples(st.just("lose_events"), seeds),
    st.tuples(st.just("deliver"), st.tuples(seeds, st.none())),
    st.tuples(st.just("deliver"), st.tuples(seeds, st.integers(0, 80))),
)


def test_every_day_is_billed_exactly_once(over: Overage, fuse: Fuse):
    """OVERAGE_EXAMPLES=500 looks longer than the suite does."""

    @settings(
        max_examples=int(os.environ.get("OVERAGE_EXAMPLES", "8")),
        phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck), database=None,
        report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.lists(steps, min_size=8, max_size=25))
    def live(taken: list[tuple[str, Any]]) -> None:
        life = Life(over, fuse)
        print(taken)  # pytest shows it when the example fails
        try:
            for name, given_ in taken:
                getattr(life, name)(given_)
            life.settle_down()
            items = [i for i in over.items() if i["customer"] == life.stripe_id]
            assert sum(item["amount"] for item in items) == life.ledger.amount()
            assert len({item["metadata"]["overage"] for item in items}) == len(items)
            lived = {sub["id"] for sub in over.shop.live()}
            waiting = {i["metadata"]["subscription_id"] for i in items if i["invoice"] is None}
            assert waiting <= lived, "nothing waits for an invoice that will not come"
        finally:
            life.end()

    live()


def test_killed_at_each_step_it_makes_one_line(over: Overage, fuse: Fuse):
    customer_id, _ = over.subscriber()
    killed, periods = True, 0
    while killed:
        over.report(customer_id, over.today() + DAY, 15)
        over.to_period_end()
        with fuse.lit(2 * periods):  # each step has a moment before and one after
            over.service(overage.settle, customer_id)
            killed = False
        over.sql("DELETE FROM leases")
        over.sandbox.advance(days=2)  # beyond the idempotency keys
        over.service(overage.settle, customer_id)
        periods += 1
        assert [item["amount"] for item in over.items()] == [50] * periods
    assert periods > 10
    assert {row["state"] for row in over.sql("SELECT state FROM overage_days")} == {"billed"}
