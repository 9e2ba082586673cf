"""Trials of our own: once per customer, ended by the clock or on demand."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ADMIN
from tests.factories import bearer, make_customer


def start(client, customer_id: str, plan: str = "professional"):
    body = {"customerId": customer_id, "plan": plan}
    return client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)


def claims(client, token: str) -> dict:
    return client.post("/api/licenses/verify", json={"license": token}).json["claims"]


def test_a_trial_of_a_plan_follows_plain_trial_mode(client, sql):
    made = make_customer(client)
    answer = start(client, made["customerId"])

    assert answer.status_code == 201
    subscription = answer.json["subscription"]
    assert (subscription["plan"], subscription["status"], subscription["deviceLimit"]) == (
        "professional",
        "trialing",
        50,
    )
    assert subscription["subscriptionId"] != made["subscription"]["subscriptionId"]
    told = claims(client, answer.json["license"])
    assert (told["plan"], told["features"]["maxDevices"]) == ("professional", 50)
    assert told["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    old = client.get(f"/api/subscriptions/{made['subscription']['subscriptionId']}", headers=ADMIN).json
    assert old["subscription"]["status"] == "canceled"
    assert sql("SELECT COUNT(*) AS n FROM subscriptions WHERE status = 'trialing'") == [{"n": 1}]


def test_only_once(client):
    customer_id = make_customer(client)["customerId"]
    assert start(client, customer_id).status_code == 201
    again = start(client, customer_id, "enterprise")
    assert again.status_code == 409
    assert "checkout" in again.json["message"]


def test_a_plan_at_creation_was_that_once(client):
    assert start(client, make_customer(client, plan="starter")["customerId"]).status_code == 409


def test_parallel_wishes_are_one_trial(app, client, sql):
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
def test_bad_wishes(client, sql, body: dict, status: int):
    answer = client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)
    assert answer.status_code == status
    assert sql("SELECT 1 FROM subscriptions") == []


def test_it_runs_out_by_the_clock(client, sql):
    made = make_customer(client, plan="professional")
    customer_id = made["customerId"]
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '2 hours'")

    subscription = client.get(f"/api/subscriptions/{customer_id}", headers=ADMIN).json["subscription"]
    assert (subscription["status"], subscription["plan"], subscription["deviceLimit"]) == (
        "expired",
        "professional",
        5,
    )
    answer = client.get(f"/api/licenses/{customer_id}", headers=ADMIN).json
    assert (answer["plan"], answer["status"]) == ("trial", "expired")
    told = claims(client, answer["license"])
    assert told["trial"] == {"isTrialMode": True, "expiresAt": subscription["trialEndsAt"]}
    assert told["exp"] - told["iat"] == 7 * 86400
    assert told["features"]["maxDevices"] == 5


def test_cancel_ends_it_at_once(client, sql):
    made = make_customer(client, plan="professional")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/cancel"

    ended = client.post(path, headers=ADMIN)

    assert (ended.status_code, ended.json["subscription"]["status"]) == (200, "canceled")
    assert client.get(f"/api/licenses/{made['customerId']}", headers=ADMIN).json["plan"] == "trial"
    assert client.post(path, json={}, headers=ADMIN).status_code == 409
    assert sql("SELECT COUNT(*) AS n FROM audit_log WHERE action = 'subscription.cancel'") == [{"n": 1}]


def test_cancel_of_one_that_ran_out_is_409(client, sql):
    made = make_customer(client)
    sql("UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP - INTERVAL '1 second'")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/cancel"
    assert client.post(path, headers=ADMIN).status_code == 409


@pytest.mark.parametrize("action", ["upgrade", "resume"])
def test_a_trial_is_not_upgraded_or_resumed_but_checked_out(client, stripe_environ, make_app, action: str):
    client = make_app(**stripe_environ).test_client()
    made = make_customer(client, plan="starter")
    path = f"/api/subscriptions/{made['subscription']['subscriptionId']}/{action}"
    answer = client.post(path, json={"plan": "professional"} if action == "upgrade" else None, headers=ADMIN)
    assert answer.status_code == 409
    assert "checkout" in answer.json["message"]


def test_subscription_of_others_is_403_whether_it_exists_or_not(client):
    mine, other = make_customer(client), make_customer(client)
    for any_id in (
        other["customerId"],
        other["subscription"]["subscriptionId"],
        "sub_unknown",
        "cust_unknown00000",
    ):
        answer = client.get(f"/api/subscriptions/{any_id}", headers=bearer(mine["license"]))
        assert answer.status_code == 403
    own = client.get(
        f"/api/subscriptions/{mine['subscription']['subscriptionId']}", headers=bearer(mine["license"])
    )
    assert own.json["subscription"] == mine["subscription"]
    assert client.get("/api/subscriptions/sub_unknown", headers=ADMIN).status_code == 404


def test_without_stripe_its_routes_say_what_is_missing(client):
    made = make_customer(client)
    answer = client.post(
        "/api/subscriptions/create-checkout",
        json={"customerId": made["customerId"], "plan": "starter"},
        headers=ADMIN,
    )
    assert answer.status_code == 503
    assert "STRIPE_SECRET_KEY" in answer.json["message"]
    assert answer.headers["Retry-After"]
    answer = client.post("/webhooks/stripe", data=b"{}", headers={"Stripe-Signature": "t=1,v1=a"})
    assert answer.status_code == 503
    assert "STRIPE_WEBHOOK_SECRET" in answer.json["message"]
