"""Usage takes plan, status and limit from the current license; they are what the subscriptions grant."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from app.entitlements import KNOWN_STATUSES, entitle
from app.services.customers import get_customer_with_subscriptions
from tests.conftest import ADMIN
from tests.factories import make_customer, report_body

Sql = Callable[..., list[dict[str, Any]]]

SUBSCRIBE = """
    INSERT INTO subscriptions (subscription_id, stripe_subscription_id, customer_id, plan, status, paid,
                               current_period_starts_at, current_period_ends_at)
    VALUES ('sub_' || %(number)s, 'sub_' || %(number)s, %(customer_id)s, %(plan)s, %(status)s, TRUE,
            CURRENT_TIMESTAMP - INTERVAL '20 days', CURRENT_TIMESTAMP + %(days)s * INTERVAL '1 day')
"""
CHANGES = [
    SUBSCRIBE,
    "UPDATE subscriptions SET status = %(status)s"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NOT NULL",
    "UPDATE subscriptions SET plan = %(plan)s"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NOT NULL",
    "UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP + %(days)s * INTERVAL '1 day'"
    " WHERE customer_id = %(customer_id)s AND stripe_subscription_id IS NULL",
    "UPDATE customers SET max_devices = %(devices)s WHERE customer_id = %(customer_id)s",
    "DELETE FROM subscriptions WHERE customer_id = %(customer_id)s AND plan = %(plan)s",
    "UPDATE licenses SET renews_at = issued_at WHERE customer_id = %(customer_id)s AND superseded_at IS NULL",
]


def test_whatever_changes_it_is_what_the_subscriptions_grant(
    app: Flask, client: FlaskClient, sql: Sql
) -> None:
    chance = random.Random(5)
    ids = [make_customer(client, plan=plan)["customerId"] for plan in ("starter", "enterprise", "starter")]
    for number in range(150):
        customer_id = chance.choice(ids)
        sql(
            chance.choice(CHANGES),
            customer_id=customer_id,
            number=number,
            plan=chance.choice(["starter", "professional", "enterprise", "unknown"]),
            status=chance.choice([*sorted(KNOWN_STATUSES - {"expired"}), "unheard_of"]),
            days=chance.choice([-40, -1, 10, 400]),
            devices=chance.choice([None, 3, 70, 999_999]),
        )
        if chance.random() < 0.5:
            client.get(f"/api/licenses/{customer_id}", headers=ADMIN)
        if chance.random() < 0.2:
            client.post(
                f"/api/licenses/{customer_id}/{chance.choice(['revoke', 'reinstate'])}", headers=ADMIN
            )
        with app.app_context():
            granted = entitle(*get_customer_with_subscriptions(customer_id), datetime.now(UTC))
        lines = client.get("/api/usage", headers=ADMIN).json["customers"]
        line = next(line for line in lines if line["customerId"] == customer_id)
        found = client.get(f"/api/usage/{customer_id}", headers=ADMIN).json
        body = report_body(customer_id, instanceId=f"i{number}")
        report = client.post("/api/usage/report", json=body, headers=ADMIN).json
        assert (line["plan"], line["status"]) == (granted.plan.name, granted.status)
        assert found["plan"] == granted.plan.name
        limits = [line["deviceLimit"], line["summary"]["limit"], found["deviceLimit"], report["deviceLimit"]]
        assert limits == [granted.device_limit] * 4


def test_a_limit_that_a_license_spells_as_unlimited(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="enterprise")["customerId"]
    for devices in (None, 999_999, None):
        sql("UPDATE customers SET max_devices = %(devices)s", devices=devices)
        assert client.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code == 200
        assert client.get(f"/api/usage/{customer_id}", headers=ADMIN).json["deviceLimit"] == devices
