"""Trials of our own: once per customer, ended by the clock or on demand."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import ADMIN
from tests.factories import bearer, make_customer

Sql = Callable[..., list[dict[str, Any]]]


def start(client: FlaskClient, customer_id: str, plan: str = "professional") -> TestResponse:
    body = {"customerId": customer_id, "plan": plan}
    return client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)


def claims(client: FlaskClient, token: str) -> dict[str, Any]:
    return dict(client.post("/api/licenses/verify", json={"license": token}).json["claims"])


def test_a_trial_of_a_plan_follows_plain_trial_mode(client: FlaskClient) -> None:
    made = make_customer(client)
    answer = start(client, made["customerId"])
    assert answer.status_code == 201
    subscription = answer.json["subscription"]
    assert (subscription["plan"], subscription["status"], subscription["deviceLimit"]) == (
        "professional",
        "trialing",
        50,
    )
    assert subscription["interval"] is None
    found = claims(client, answer.json["license"])
    assert (found["plan"], found["features"]["maxDevices"]) == ("professional", 50)
    assert found["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    old = client.get(f"/api/subscriptions/{made['subscription']['subscriptionId']}", headers=ADMIN).json
    assert old["subscription"]["status"] == "canceled"
    shown = client.get(f"/api/subscriptions/{made['customerId']}", headers=ADMIN).json["subscription"]
    assert shown == subscription


def test_only_once(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    assert start(client, customer_id).status_code == 201
    again = start(client, customer_id, "enterprise")
    assert (again.status_code, "checkout" in again.json["message"]) == (409, True)
    # A plan at creation was that once.
    assert start(client, make_customer(client, plan="starter")["customerId"]).status_code == 409


def test_asked_at_once_it_is_one_trial(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: start(app.test_client(), customer_id).status_code, range(8)))
    assert sorted(statuses) == [201] + [409] * 7
    assert sql("SELECT COUNT(*) AS n FROM subscriptions WHERE plan = 'professional'") == [{"n": 1}]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"customerId": "cust_unknown00000", "plan": "starter"}, 404),
        ({"customerId": "cust_unknown00000", "plan": "trial"}, 422),
        ({"customerId": "a/b", "plan": "starter"}, 422),
        ({"customerId": 5, "plan": "starter"}, 422),
        ({"plan": "starter"}, 422),
        ({"customer_id": "cust_unknown00000", "customerId": "cust_unknown00000", "plan": "starter"}, 422),
    ],
)
def test_bad_requests(client: FlaskClient, sql: Sql, body: dict[str, Any], status: int) -> None:
    answer = client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)
    assert answer.status_code == status
    assert sql("SELECT 1 FROM subscriptions") == []


def test_it_runs_out_by_the_clock(client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client, plan="professional")["customerId"]
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '2 hours'")
    subscription = client.get(f"/api/subscriptions/{customer_id}", headers=ADMIN).json["subscription"]
    assert (subscription["status"], subscription["plan"], subscription["deviceLimit"]) == (
        "expired",
        "professional",
        5,
    )
    answer = client.get(f"/api/licenses/{customer_id}", headers=ADMIN).json
    assert (answer["plan"], answer["status"]) == ("trial", "expired")
    found = claims(client, answer["license"])
    assert found["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    assert (found["exp"] - found["iat"], found["features"]["maxDevices"]) == (7 * 86400, 5)


def test_cancel_ends_it_at_once(client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client, plan="professional")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/cancel"
    ended = client.post(path, headers=ADMIN)
    assert (ended.status_code, ended.json["subscription"]["status"]) == (200, "canceled")
    assert client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json["plan"] == "trial"
    again = client.post(path, json={}, headers=ADMIN)
    assert (again.status_code, "ended already" in again.json["message"]) == (409, True)
    lines = sql("SELECT after FROM audit_log WHERE action = 'subscription.cancel' ORDER BY id")
    assert [line["after"].get("refused") for line in lines] == [None, None, again.json["message"]]


def test_one_that_ran_out_cannot_be_canceled(client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client)
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '1 second'")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/cancel"
    assert client.post(path, headers=ADMIN).status_code == 409
    path = f"/api/subscriptions/{made['customerId']}"
    assert client.get(path, headers=ADMIN).json["subscription"]["status"] == "expired"


@pytest.mark.parametrize(("action", "body"), [("upgrade", {"plan": "professional"}), ("resume", None)])
def test_a_trial_is_not_upgraded_or_resumed_but_checked_out(
    client: FlaskClient, action: str, body: dict[str, str] | None
) -> None:
    made = make_customer(client, plan="starter")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/{action}"
    answer = client.post(path, json=body, headers=ADMIN)
    assert (answer.status_code, "checkout" in answer.json["message"]) == (409, True)
    shown = client.get(f"/api/subscriptions/{made['customerId']}", headers=ADMIN).json
    assert shown["subscription"] == made["subscription"]


def test_a_subscription_of_others_is_403_whether_it_exists_or_not(client: FlaskClient) -> None:
    mine, other = make_customer(client), make_customer(client)
    strange = (
        other["customerId"],
        other["subscription"]["subscriptionId"],
        "sub_unknown",
        "cust_unknown00000",
    )
    for any_id in strange:
        answer = client.get(f"/api/subscriptions/{any_id}", headers=bearer(mine["license"]))
        assert answer.status_code == 403
    path = f"/api/subscriptions/{mine['subscription']['subscriptionId']}"
    assert client.get(path, headers=bearer(mine["license"])).json["subscription"] == mine["subscription"]
    assert client.get("/api/subscriptions/sub_unknown", headers=ADMIN).status_code == 404
