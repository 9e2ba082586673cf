"""The commands about overage."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result

from tests.shop import Shop

Console = Callable[..., Result]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    environ["OVERAGE"] = "on"
    return environ


@pytest.fixture
def subscriber(shop: Shop, sql: Callable[..., Any]) -> str:
    """A customer that pays, its period in the past and three weeks of it over."""
    customer_id, _ = shop.subscribe()
    back = {"by": timedelta(days=20)}
    sql("UPDATE licenses SET issued_at = issued_at - %(by)s", **back)
    sql("UPDATE subscriptions SET current_period_starts_at = current_period_starts_at - %(by)s", **back)
    return customer_id


def report(sql: Callable[..., Any], customer_id: str, days_ago: int, active: int) -> str:
    """The UTC day of the report."""
    row = sql(
        "INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)"
        " VALUES (%(id)s, 'dev-1', %(active)s, %(active)s, CURRENT_TIMESTAMP - %(ago)s)"
        " RETURNING (reported_at AT TIME ZONE 'UTC')::DATE::TEXT AS day",
        id=customer_id, active=active, ago=timedelta(days=days_ago),
    )  # fmt: skip
    return str(row[0]["day"])


def test_switching_on_and_off_moves_the_limit_of_the_license(
    shop: Shop, console: Console, subscriber: str, sql: Callable[..., Any]
):
    on = console("customer", "overage", "--id", subscriber, "--on")
    assert (on.exit_code, on.output) == (0, f"✅ Overage of {subscriber} is on, up to 20 devices.\n")
    assert sql("SELECT overage_cap FROM customers")[0]["overage_cap"] == 20
    refused = console("customer", "overage", subscriber, "--on", "--cap", "3")
    assert (refused.exit_code, refused.output) == (
        1, "Error: The cap is below the 10 devices that the plan includes.\n",
    )  # fmt: skip
    refused = console("customer", "overage", subscriber, "--on", "--price", "100")
    assert refused.exit_code == 1 and "divisible by 30" in refused.output
    assert console("customer", "overage", subscriber, "--on", "--price", "3000000000").exit_code == 2
    assert console("customer", "overage", subscriber).exit_code == 2
    off = console("customer", "overage", subscriber, "--off", "--json")
    assert json.loads(off.output) == {"customerId": subscriber, "on": False, "cap": None}
    assert sql("SELECT overage_cap FROM customers")[0]["overage_cap"] is None
    assert console("customer", "overage", subscriber, "--off").exit_code == 1


def test_preview_hold_and_release(subscriber: str, console: Console, sql: Callable[..., Any]):
    console("customer", "overage", subscriber, "--on")
    sql("UPDATE overage_terms SET starts_at = starts_at - INTERVAL '20 days'")
    day = report(sql, subscriber, 5, 13)
    report(sql, subscriber, 4, 50)
    assert console("usage", "invoice-preview", subscriber, "--period", "previous").exit_code == 1
    shown = console("usage", "invoice-preview", "--customer", subscriber)
    assert shown.exit_code == 0, shown.output
    assert "$3.00 per extra device and month" in shown.output
    assert "Amount:           $0.30" in shown.output
    found = json.loads(console("usage", "invoice-preview", subscriber, "--json").output)
    assert [d["state"] for d in found["days"]] == ["open", "held"]
    assert (found["deviceDays"], found["amount"], found["currency"]) == (3, 30, "usd")

    held = console("usage", "overage", subscriber, "--day", day, "--hold", "--reason", "a test")
    assert held.output == f"✅ {day} of {subscriber} is held now: 3 devices over.\n"
    released = console("usage", "overage", subscriber, "--day", day, "--release")
    assert "is open now" in released.output
    revisions = sql("SELECT reason FROM overage_days WHERE day = %(day)s ORDER BY revision", day=day)
    assert [row["reason"] for row in revisions] == [None, "a test", None]
    assert console("usage", "overage", subscriber, "--day", day, "--release").exit_code == 1
    night = json.loads(console("usage", "overage", "--json").output)
    assert (night["customers"], [d["state"] for d in night["waiting"]], night["failed"]) == (1, ["held"], {})
    assert console("usage", "overage", subscriber, "--day", day).exit_code == 2
    long = console("usage", "overage", subscriber, "--day", day, "--hold", "--reason", "x" * 501)
    assert (long.exit_code, "reason: Length must be between 1 and 500." in long.output) == (2, True)
    assert console("usage", "overage", subscriber, "--day", "2020-01-01", "--hold").exit_code == 1
    late = console("usage", "bill-late", "--customer", subscriber, "--yes")
    assert (late.exit_code, late.output) == (0, "No day is late.\n")


def test_late_days_are_asked_for_in_their_currency(
    subscriber: str, console: Console, terminal: Callable[..., tuple[int, str]], sql: Callable[..., Any]
):
    console("customer", "overage", subscriber, "--on")
    sql("UPDATE overage_terms SET starts_at = starts_at - INTERVAL '20 days'")
    sql("UPDATE subscriptions SET currency = 'eur'")
    report(sql, subscriber, 5, 13)
    assert console("usage", "invoice-preview", subscriber).exit_code == 0
    sql("UPDATE overage_days SET state = 'late'")
    code, shown = terminal("usage", "bill-late", typed="no\n")
    assert (code, f"Bill 1 late day(s) of {subscriber}, 0.30 EUR in all?" in " ".join(shown.split())) == (
        1,
        True,
    )


def test_late_days_of_all_name_whose_bill_failed(
    shop: Shop, console: Console, subscriber: str, sql: Callable[..., Any]
):
    console("customer", "overage", subscriber, "--on")
    sql("UPDATE overage_terms SET starts_at = starts_at - INTERVAL '20 days'")
    report(sql, subscriber, 5, 13)
    assert console("usage", "invoice-preview", subscriber).exit_code == 0
    sql("UPDATE overage_days SET state = 'late'")
    shop.sandbox.faults.down = True
    failed = console("usage", "bill-late")
    assert (failed.exit_code, f"❌ {subscriber}: Stripe did not answer" in failed.output) == (1, True)
    shop.sandbox.faults.clear()
    assert console("usage", "overage").exit_code == 0  # goes on with the bill
    assert [bill["state"] for bill in sql("SELECT state FROM overage_days")] == ["billed"]


def test_the_night_names_what_failed(shop: Shop, console: Console, subscriber: str):
    console("customer", "overage", subscriber, "--on")
    shop.sandbox.faults.down = True
    night = console("usage", "overage")
    assert night.exit_code == 1
    assert f"❌ {subscriber}: Stripe did not answer" in night.output
