"""Trials of our own: once per customer, ended by the clock or on demand."""

from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import at_once
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer
from tests.tokens import claims_of

Sql = Callable[..., list[dict[str, Any]]]


def start(client: FlaskClient, customer_id: str, plan: str = "professional") -> TestResponse:
    body = {"customerId": customer_id, "plan": plan}
    return client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)


def subscription_of(client: FlaskClient, any_id: str) -> dict[str, Any]:
    return dict(client.get(f"/api/subscriptions/{any_id}", headers=ADMIN).json["subscription"])


def act(client: FlaskClient, made: dict[str, Any], action: str, body: Any = None) -> TestResponse:
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/{action}"
    return client.post(path, json=body, headers=ADMIN)


def brief(subscription: dict[str, Any]) -> list[Any]:
    return [subscription[name] for name in ("plan", "status", "deviceLimit")]


def test_a_trial_of_a_plan_follows_plain_trial_mode(client: FlaskClient) -> None:
    made = make_customer(client)
    answer = start(client, made["customerId"])
    subscription = answer.json["subscription"]
    assert (answer.status_code, brief(subscription)) == (201, ["professional", "trialing", 50])
    assert subscription["interval"] is None
    found = claims_of(answer.json["license"])
    assert (found["plan"], found["features"]["maxDevices"]) == ("professional", 50)
    assert found["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    assert subscription_of(client, made["subscription"]["subscriptionId"])["status"] == "canceled"
    own = client.get(f"/api/subscriptions/{made['customerId']}", headers=bearer(answer.json["license"]))
    assert own.json["subscription"] == subscription_of(client, made["customerId"]) == subscription
    another = make_customer(client)["license"]
    refused = client.get(f"/api/subscriptions/{made['customerId']}", headers=bearer(another))
    assert refused.status_code == 403


def test_only_once(app: Flask, client: FlaskClient, sql: Sql) -> None:
    customer_id = make_customer(client)["customerId"]
    statuses = at_once(8, lambda _: start(app.test_client(), customer_id).status_code)
    assert sorted(statuses) == [201] + [409] * 7
    again = start(client, customer_id, "enterprise")
    assert (again.status_code, "checkout" in again.json["message"]) == (409, True)
    assert sql("SELECT COUNT(*) AS n FROM subscriptions WHERE plan = 'professional'") == [{"n": 1}]
    # A plan at creation was that once.
    assert start(client, make_customer(client, plan="starter")["customerId"]).status_code == 409


def test_bad_requests(client: FlaskClient, sql: Sql) -> None:
    unknown = "cust_unknown00000"
    for body, status in (
        ({"customerId": unknown, "plan": "starter"}, 404), ({"customerId": unknown, "plan": "trial"}, 422),
        ({"customerId": "a/b", "plan": "starter"}, 422), ({"customerId": 5, "plan": "starter"}, 422),
        ({"plan": "starter"}, 422), ({"customer_id": unknown, "customerId": unknown, "plan": "starter"}, 422),
    ):  # fmt: skip
        answer = client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)
        assert (body, answer.status_code) == (body, status)
    assert sql("SELECT 1 FROM subscriptions") == []


def test_it_runs_out_by_the_clock(client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client, plan="professional")
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '2 hours'")
    subscription = subscription_of(client, made["customerId"])
    assert brief(subscription) == ["professional", "expired", 5]
    answer = client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json
    assert (answer["plan"], answer["status"]) == ("trial", "expired")
    found = claims_of(answer["license"])
    assert found["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    assert (found["exp"] - found["iat"], found["features"]["maxDevices"]) == (7 * 86400, 5)
    assert act(client, made, "cancel").status_code == 409
    assert subscription_of(client, made["customerId"]) == subscription


def test_cancel_ends_it_at_once(client: FlaskClient, sql: Sql) -> None:
    made = make_customer(client, plan="professional")
    ended = act(client, made, "cancel")
    assert (ended.status_code, ended.json["subscription"]["status"]) == (200, "canceled")
    assert client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json["plan"] == "trial"
    again = act(client, made, "cancel", {})
    assert (again.status_code, "ended already" in again.json["message"]) == (409, True)
    lines = sql("SELECT after FROM audit_log WHERE action = 'subscription.cancel' ORDER BY id")
    assert [line["after"].get("refused") for line in lines] == [None, None, again.json["message"]]


def test_a_trial_is_not_upgraded_or_resumed_but_checked_out(client: FlaskClient) -> None:
    made = make_customer(client, plan="starter")
    for action, body in (("upgrade", {"plan": "professional"}), ("resume", None)):
        answer = act(client, made, action, body)
        assert (answer.status_code, "checkout" in answer.json["message"]) == (409, True)
    assert subscription_of(client, made["customerId"]) == made["subscription"]
