"""Customers from a CSV file, and why a customer has what it has; effects are seen through the API."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.errors import Invalid
from app.services.explain import explain
from app.services.imports import import_customers
from tests.conftest import ADMIN
from tests.factories import make_customer
from tests.shop import Shop

Sql = Callable[..., list[dict[str, Any]]]


def load(app: Flask, text: str, dry_run: bool = False) -> list[dict[str, Any]]:
    with app.app_context():
        return list(import_customers(text.splitlines(keepends=True), dry_run=dry_run))


def explained(shop: Shop, customer_id: str) -> dict[str, Any]:
    with shop.app.app_context():
        return explain(customer_id)


def emails(client: FlaskClient) -> list[str]:
    return [c["email"] for c in client.get("/api/customers", headers=ADMIN).json["customers"]]


def test_each_line_has_its_own_outcome(app: Flask, client: FlaskClient) -> None:
    there = make_customer(client, email="there@example.com", name="Before")
    text = (
        "email,name,company,plan\n"
        "ada@example.com,Ada,Engines Ltd,professional\n"
        "nonsense,,,\n"
        "There@example.com,After,,\n"
        "b@example.com,,,gold\n"
        '"c@example.com","Grace, ""G""",,\n'
        "ADA@example.com,,,\n"
        "d@example.com,a,b,,too many\n"
    )
    for dry_run in (True, False):
        results = load(app, text, dry_run)
        assert [(r["line"], r["outcome"]) for r in results] == [
            (2, "created"), (3, "failed"), (4, "exists"), (5, "failed"), (6, "created"), (7, "exists"),
            (8, "failed"),
        ]  # fmt: skip
        assert [r["message"].partition(":")[0] for r in results if r["outcome"] == "failed"] == [
            "email", "plan", "More cells than columns.",
        ]  # fmt: skip
        assert results[2]["customer_id"] == there["customerId"]
        made = ["ada@example.com", "c@example.com"]
        assert emails(client) == ["there@example.com", *([] if dry_run else made)]
    assert client.get(f"/api/customers/{there['customerId']}", headers=ADMIN).json["name"] == "Before"
    ada = client.get(f"/api/customers/{results[0]['customer_id']}", headers=ADMIN).json
    assert (ada["companyName"], ada["subscription"]["plan"]) == ("Engines Ltd", "professional")
    assert [r["outcome"] for r in load(app, text)].count("exists") == 4


@pytest.mark.parametrize("text", ["", "name\nAda\n", "email,phone\na@example.com,1\n", "email,email\na,b\n"])
def test_a_header_that_is_none_is_refused(app: Flask, client: FlaskClient, text: str) -> None:
    with pytest.raises(Invalid, match="Line 1"):
        load(app, text)
    assert emails(client) == []


def test_a_customer_of_stripes_is_linked_and_synced(shop: Shop) -> None:
    stripe_id = shop.sandbox.create_customer("pays@example.com")["id"]
    shop.sandbox.create_subscription(stripe_id, shop.prices["professional"])
    taken = shop.customer()
    shop.checkout(taken)
    text = (
        "email,stripe_customer_id\n"
        f"ours@example.com,{stripe_id}\n"
        "lost@example.com,cus_unknown\n"
        f"two@example.com,{shop.stripe_id(taken)}\n"
    )
    for dry_run in (True, False):
        results = load(shop.app, text, dry_run)
        assert [r["outcome"] for r in results] == ["linked", "failed", "failed"]
    customer_id = results[0]["customer_id"]
    assert shop.stripe_id(customer_id) == stripe_id
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert shop.sandbox.get("customer", stripe_id)["metadata"] == {"customer_id": customer_id}
    assert len(emails(shop.client)) == 2


def test_explain_names_all_that_decides(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    stripe_id = shop.stripe_id(customer_id)
    support = shop.sandbox.create_subscription(stripe_id, shop.make_price(70_000))["id"]
    shop.sandbox.set_card(stripe_id, "decline")
    refused = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert refused.status_code == 402
    shop.sandbox.schedule(subscription_id, shop.prices["professional"])
    shop.deliver()
    found = explained(shop, customer_id)
    assert (found["plan"], found["status"], found["stripe_error"]) == ("starter", "active", None)
    assert found["subscription"]["stripe_price_id"] == shop.prices["starter"]
    assert found["subscription"]["details"]["scheduledChange"]["price"] == shop.prices["professional"]
    assert [other["subscription_id"] for other in found["other_products"]] == [support]
    assert (found["differences"], found["missing"]) == ([], [])
    assert [line["message"] for line in found["refusals"]] == [refused.json["message"]]
    assert "req_" in refused.json["message"]
    assert len(found["last_events"]) == 5
    assert json.dumps(found, default=str)
    shop.sandbox.faults.down = True
    found = explained(shop, customer_id)
    assert (found["plan"], found["other_products"]) == ("starter", None)
    assert "did not answer" in found["stripe_error"]


def test_explain_shows_a_failed_payment(shop: Shop) -> None:
    customer_id, _ = shop.subscribe("starter")
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    shop.sandbox.advance(days=31)
    shop.sandbox.advance(hours=1)
    shop.deliver()
    unpaid = explained(shop, customer_id)["subscription"]["details"]["unpaidInvoice"]
    (newest, *_) = shop.get(f"/api/customers/{customer_id}/invoices")["invoices"]
    assert unpaid["url"] == newest["hostedInvoiceUrl"]
    assert unpaid["nextPaymentAttemptAt"] == newest["nextPaymentAttemptAt"]
    assert unpaid["amountDue"] == newest["amountDue"] == 2900
    shown = shop.app.test_cli_runner().invoke(args=["customer", "show", customer_id]).output
    assert f"url {newest['hostedInvoiceUrl']}" in shown
