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
