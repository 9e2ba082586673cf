"""The life of a paid subscription: changes, cancellations, and what is commonly got wrong."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import app.services.subscriptions as service
from app.entitlements import LIVE_STATUSES
from app.stripe_gateway import StripeGateway
from tests.conftest import ADMIN
from tests.factories import bearer
from tests.shop import Shop

STATUSES = (
    "incomplete", "incomplete_expired", "trialing", "active", "past_due", "unpaid", "paused", "canceled",
    "frozen",
)  # fmt: skip


def held(shop: Shop, subscription_id: str) -> dict[str, Any]:
    return shop.sandbox.get("subscription", subscription_id)


def price_at_stripe(shop: Shop, subscription_id: str) -> str:
    return str(held(shop, subscription_id)["items"]["data"][0]["price"]["id"])


# Upgrade and downgrade


def test_an_upgrade_is_paid_at_once_and_licensed_at_once(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert answer.status_code == 200
    assert answer.json.keys() == {"subscription", "license"}
    changed = answer.json["subscription"]
    assert (changed["subscriptionId"], changed["plan"], changed["deviceLimit"]) == (
        subscription_id,
        "professional",
        50,
    )
    assert price_at_stripe(shop, subscription_id) == shop.prices["professional"]
    assert shop.charges()[0] == 2900
    assert 6900 <= shop.charges()[1] <= 7000
    given = shop.get(f"/api/licenses/{customer_id}")
    assert (given["license"], given["plan"]) == (answer.json["license"], "professional")
    shop.deliver()
    assert shop.subscription(customer_id) == changed


def test_a_downgrade_credits_the_customer(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    answer = shop.act(subscription_id, "upgrade", {"plan": "starter"})
    assert (answer.status_code, answer.json["subscription"]["plan"]) == (200, "starter")
    assert shop.sandbox.get("customer", shop.stripe_id(customer_id))["balance"] < 0
    assert shop.charges() == [9900]
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_up_down_and_up_again_within_a_day(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    for plan in ("professional", "starter", "professional", "starter"):
        answer = shop.act(subscription_id, "upgrade", {"plan": plan})
        assert (answer.status_code, answer.json["subscription"]["plan"]) == (200, plan)
        assert price_at_stripe(shop, subscription_id) == shop.prices[plan]
        assert shop.plan_and_status(customer_id) == (plan, "active")
    keys = [
        r.idempotency_key
        for r in shop.sandbox.requests
        if r.path.endswith(subscription_id) and r.method == "POST"
    ]
    assert len(keys) == len(set(keys)) == 4


def test_a_declined_card_changes_nothing_and_may_be_tried_again(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    before = shop.subscription(customer_id)
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    for _ in range(2):
        answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
        assert (answer.status_code, "declined" in answer.json["message"]) == (402, True)
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    shop.deliver()
    assert shop.subscription(customer_id) == before
    assert shop.get(f"/api/licenses/{customer_id}")["license"] == token
    shop.sandbox.set_card(shop.stripe_id(customer_id), "ok")
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 200
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert len(shop.charges()) == 2


def test_a_double_click_pays_once(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    path = f"/api/subscriptions/{subscription_id}/upgrade"
    start = threading.Barrier(3)

    def ask(_: int) -> int:
        start.wait()
        body = {"plan": "professional"}
        return shop.app.test_client().post(path, json=body, headers=ADMIN).status_code

    with ThreadPoolExecutor(3) as pool:
        codes = list(pool.map(ask, range(3)))
    assert 200 in codes
    assert set(codes) <= {200, 409}
    assert len(shop.charges()) == 2
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_two_changes_at_once_are_each_answered_with_their_own(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.make_price(50000, lookup_key="zemfyre_enterprise")
    _, subscription_id = shop.subscribe("starter")
    changed, change_price = threading.Event(), StripeGateway.change_price

    def slow(*args: Any) -> None:
        change_price(*args)
        changed.set()
        time.sleep(1)

    monkeypatch.setattr(StripeGateway, "change_price", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.act, subscription_id, "upgrade", {"plan": "professional"})
        changed.wait(10)
        second = shop.act(subscription_id, "upgrade", {"plan": "enterprise"})
    plans = [answer.json["subscription"]["plan"] for answer in (first.result(), second)]
    assert plans == ["professional", "enterprise"]


def test_a_change_that_takes_long_holds_up_nobody_else(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CHANGE_WAIT_SECONDS", 0.2)
    _, subscription_id = shop.subscribe("starter")
    with shop.app.extensions["billing.db"].separate_lock(f"change {subscription_id}"):
        refused = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "at work on the same" in refused.json["message"]
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 200


def test_a_payment_that_was_taken_is_told_though_the_database_lost_patience(
    shop: Shop, sql: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `idle_in_transaction_session_timeout` and PgBouncer do to who waits for Stripe."""
    customer_id, subscription_id = shop.subscribe("starter")
    change_price = StripeGateway.change_price

    def meanwhile(*args: Any) -> None:
        change_price(*args)
        ended = sql(
            """SELECT PG_TERMINATE_BACKEND(pid) AS ended FROM pg_stat_activity
                WHERE state = 'idle in transaction' AND datname = CURRENT_DATABASE()"""
        )
        assert ended == [{"ended": True}]

    monkeypatch.setattr(StripeGateway, "change_price", meanwhile)
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 200
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert len(shop.charges()) == 2


@pytest.mark.parametrize(
    ("what", "body"), [("upgrade", {"plan": "professional"}), ("cancel", {"atPeriodEnd": True})]
)
def test_what_stripe_does_not_take_in_this_state_is_409(shop: Shop, what: str, body: Any) -> None:
    """As for a subscription that a schedule of Stripe's manages."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.faults.fail_next(1, 400, path=f"/v1/subscriptions/{subscription_id}", method="POST")
    refused = shop.act(subscription_id, what, body)
    assert (refused.status_code, "dashboard" in refused.json["message"]) == (409, True)
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    assert shop.act(subscription_id, what, body).status_code == 200


def test_an_upgrade_of_a_revoked_customer_gives_out_no_license(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.post(f"/api/licenses/{customer_id}/revoke").status_code == 200
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert (answer.status_code, answer.json["license"]) == (200, None)
    assert shop.client.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code == 403
    assert shop.post(f"/api/licenses/{customer_id}/reinstate").status_code == 200
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_what_cannot_be_upgraded(shop: Shop) -> None:
    trial = shop.customer(plan="starter")
    answer = shop.act(shop.subscription(trial)["subscriptionId"], "upgrade", {"plan": "professional"})
    assert (answer.status_code, "checkout" in answer.json["message"]) == (409, True)
    assert shop.act("sub_unknown", "upgrade", {"plan": "starter"}).status_code == 404
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.act(subscription_id, "upgrade", {"plan": "starter"}).status_code == 409
    assert shop.act(subscription_id, "upgrade", {"plan": "trial"}).status_code == 422
    assert shop.act(subscription_id, "upgrade", {"plan": "enterprise"}).status_code == 422
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    path = f"/api/subscriptions/{subscription_id}/upgrade"
    assert shop.post(path, {"plan": "professional"}, bearer(token)).status_code == 403
    assert shop.act(subscription_id, "cancel").status_code == 200
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert (answer.status_code, "checkout" in answer.json["message"]) == (409, True)
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    assert shop.charges() == [2900]


@pytest.mark.parametrize("status", ["paused", "incomplete", "unpaid"])
def test_a_subscription_that_is_not_live_cannot_be_upgraded(shop: Shop, status: str) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.set_status(subscription_id, status)
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert (answer.status_code, status in answer.json["message"]) == (409, True)
    assert shop.subscription(customer_id)["status"] == status
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]


def test_an_upgrade_of_a_price_that_was_replaced_meanwhile(shop: Shop) -> None:
    """The lookup key moves to a new price between two attempts: the keys must not collide."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.faults.fail_next(3, "drop", method="POST", path=subscription_id)
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 502
    newer = shop.make_price(12900, lookup_key="zemfyre_professional", transfer_lookup_key=True)
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 200
    assert price_at_stripe(shop, subscription_id) == newer
    assert shop.plan_and_status(customer_id) == ("professional", "active")


# Cancel and resume


def test_cancel_now(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    answer = shop.act(subscription_id, "cancel")
    assert (answer.status_code, answer.json["subscription"]["status"]) == (200, "canceled")
    assert held(shop, subscription_id)["status"] == "canceled"
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    again = shop.act(subscription_id, "cancel")
    assert (again.status_code, "ended already" in again.json["message"]) == (409, True)
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 409


def test_cancel_at_period_end_and_resume(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    for _ in range(2):  # asked twice is asked once
        answer = shop.act(subscription_id, "cancel", {"atPeriodEnd": True})
        assert (answer.status_code, answer.json["subscription"]["cancelAtPeriodEnd"]) == (200, True)
    assert held(shop, subscription_id)["cancel_at_period_end"] is True
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    answer = shop.act(subscription_id, "resume")
    assert (answer.status_code, answer.json["subscription"]["cancelAtPeriodEnd"]) == (200, False)
    assert held(shop, subscription_id)["cancel_at"] is None
    answer = shop.act(subscription_id, "resume")
    assert (answer.status_code, "pending" in answer.json["message"]) == (409, True)
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 200
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_resume_after_a_portal_cancellation(shop: Shop) -> None:
    """The portal sets `cancel_at` and leaves `cancel_at_period_end` false; both are a cancellation."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_cancel(subscription_id)
    shop.deliver()
    pending = shop.subscription(customer_id)
    assert pending["cancelAtPeriodEnd"] is True
    assert pending["cancelAt"] == pending["currentPeriodEndsAt"]
    answer = shop.act(subscription_id, "resume")
    assert (answer.status_code, answer.json["subscription"]["cancelAt"]) == (200, None)
    assert held(shop, subscription_id)["cancel_at"] is None


def test_a_cancellation_set_in_the_portal_that_we_have_not_heard_of(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_cancel(subscription_id)
    assert shop.act(subscription_id, "resume").status_code == 200
    assert held(shop, subscription_id)["cancel_at"] is None
    shop.deliver()
    assert shop.subscription(customer_id)["cancelAtPeriodEnd"] is False


def test_a_local_trial_is_canceled_without_stripe(shop: Shop) -> None:
    customer_id = shop.customer(plan="professional")
    assert shop.plan_and_status(customer_id) == ("professional", "trialing")
    trial_id = shop.subscription(customer_id)["subscriptionId"]
    answer = shop.act(trial_id, "cancel", {"atPeriodEnd": True})
    assert (answer.status_code, answer.json["subscription"]["status"]) == (200, "canceled")
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert shop.act(trial_id, "cancel").status_code == 409
    assert shop.act(trial_id, "resume").status_code == 409
    assert shop.sandbox.requests == []


@pytest.mark.parametrize("what", ["cancel", "resume"])
def test_unknown_subscriptions_and_callers_without_the_right(shop: Shop, what: str) -> None:
    customer_id, subscription_id = shop.subscribe()
    assert shop.act("sub_unknown", what).status_code == 404
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    assert shop.post(f"/api/subscriptions/{subscription_id}/{what}", None, bearer(token)).status_code == 403
    assert held(shop, subscription_id)["status"] == "active"


def test_deactivate_on_the_console_ends_all_that_is_live(shop: Shop, console: Callable[..., Any]) -> None:
    customer_id, first = shop.subscribe("starter")
    second = shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["professional"])["id"]
    result = console("customer", "deactivate", "--id", customer_id)
    assert result.exit_code == 0, result.output
    assert {held(shop, id)["status"] for id in (first, second)} == {"canceled"}
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert console("customer", "deactivate", "--id", customer_id).exit_code == 1


def test_deactivate_looks_at_stripe_first(shop: Shop, console: Callable[..., Any]) -> None:
    """Paid, but the webhook is late: ending the trial alone would leave the customer paying."""
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    assert console("customer", "deactivate", "--id", customer_id).exit_code == 0
    assert shop.live() == []
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_a_promotion_code_is_not_dropped_in_silence(shop: Shop, console: Callable[..., Any]) -> None:
    customer_id, _ = shop.subscribe("starter")
    wish = ("customer", "upgrade", "--id", customer_id, "--plan", "professional", "--promo-code")
    refused = console(*wish, "LAUNCH20")
    assert (refused.exit_code, refused.stdout, "promotion code" in refused.stderr) == (1, "", True)
    assert console(*wish, "").exit_code == 2
    assert len(shop.charges()) == 1


@pytest.mark.parametrize("wish", [0, 1, "true", None])
def test_an_end_that_may_be_meant_later_is_not_made_now(shop: Shop, wish: Any) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": wish}).status_code == 422
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_upgrade_on_the_console_changes_what_is_live(shop: Shop, console: Callable[..., Any]) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    result = console("customer", "upgrade", "--id", customer_id, "--plan", "professional")
    assert (result.exit_code, "Subscription changed" in result.output) == (0, True)
    assert price_at_stripe(shop, subscription_id) == shop.prices["professional"]
    explained = console("customer", "explain", "--id", customer_id).output
    assert subscription_id in explained
    assert shop.prices["professional"] in explained


# Lost answers


@pytest.mark.parametrize(
    ("what", "body", "expected"),
    [
        ("upgrade", {"plan": "professional"}, ("professional", "active", False)),
        ("cancel", {}, ("starter", "canceled", False)),
        ("cancel", {"atPeriodEnd": True}, ("starter", "active", True)),
        ("resume", None, ("starter", "active", False)),
    ],
)
@pytest.mark.parametrize(("times", "after"), [(1, True), (3, False), (3, True)])
def test_a_lost_answer_may_be_asked_for_again(
    shop: Shop, what: str, body: Any, expected: Any, times: int, after: bool
) -> None:
    """Lost on the way there or back, once (the SDK asks again) or for good (the caller does)."""
    customer_id, subscription_id = shop.subscribe("starter")
    if what == "resume":
        assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 200
    method = "DELETE" if (what, body) == ("cancel", {}) else "POST"
    shop.sandbox.faults.fail_next(times, "drop", path=subscription_id, method=method, after=after)
    answer = shop.act(subscription_id, what, body)
    assert answer.status_code == (200 if times == 1 else 502)
    shop.sandbox.faults.clear()
    if times > 1:
        answer = shop.act(subscription_id, what, body)
    assert answer.status_code == 200
    now = answer.json["subscription"]
    assert (now["plan"], now["status"], now["cancelAtPeriodEnd"]) == expected
    assert len(shop.charges()) == (2 if what == "upgrade" else 1)
    shop.deliver()
    assert shop.subscription(customer_id) == now


@pytest.mark.parametrize("status", [500, 429])
def test_stripe_failing_in_the_middle_of_an_upgrade(shop: Shop, status: int) -> None:
    """The change was made and paid, but what came of it could not be fetched: asked again, it is told."""
    customer_id, subscription_id = shop.subscribe("starter")
    lists = itertools.count()
    gateway = shop.stripe_of(app)
    change = gateway.change_price

    def then_fail(*args: Any) -> None:
        change(*args)
        next(lists)
        shop.sandbox.faults.fail_next(3, status, path="/subscriptions", method="GET")

    gateway.change_price = then_fail
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert answer.status_code == (502 if status == 500 else 503)
    shop.sandbox.faults.clear()
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert (answer.status_code, answer.json["subscription"]["plan"]) == (200, "professional")
    assert (next(lists), len(shop.charges())) == (1, 2)
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_stripe_down_is_502_and_nothing_changes(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    before = shop.subscription(customer_id)
    shop.sandbox.faults.down = True
    for what, body in (("upgrade", {"plan": "professional"}), ("cancel", None), ("resume", None)):
        assert shop.act(subscription_id, what, body).status_code == 502
    assert shop.try_checkout(customer_id).status_code == 502
    assert shop.post(f"/api/customers/{customer_id}/portal").status_code == 502
    shop.sandbox.faults.clear()
    assert shop.subscription(customer_id) == before
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_too_many_requests_at_stripe_is_503_with_retry_after(shop: Shop) -> None:
    _, subscription_id = shop.subscribe("starter")
    shop.sandbox.faults.fail_next(1, 429)
    answer = shop.act(subscription_id, "upgrade", {"plan": "professional"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"].isdigit()
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]


# What is commonly got wrong


def test_parallel_events_make_one_row(shop: Shop, sql: Callable[..., Any]) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id, "professional")["sessionId"])
    events = list(shop.sandbox.webhooks.pending)
    urls = ["http://service.test/webhooks/stripe"] * 2
    deliveries = shop.sandbox.webhooks.deliver_parallel(events, urls)
    # Beyond the bulkhead some are told to come again; Stripe does.
    assert {d.status for d in deliveries} <= {200, 503}
    for event in events:
        assert {d.status for d in shop.sandbox.webhooks.deliver(event)} == {200}
    rows = sql("SELECT plan, status FROM subscriptions WHERE stripe_subscription_id IS NOT NULL")
    assert rows == [{"plan": "professional", "status": "active"}]
    assert (
        len(sql("SELECT 1 FROM licenses WHERE customer_id = %(c)s AND superseded_at IS NULL", c=customer_id))
        == 1
    )


def test_updated_before_created_ends_active(shop: Shop) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    for event in sorted(
        shop.sandbox.webhooks.pending, key=lambda e: e["type"] == "customer.subscription.created"
    ):
        shop.sandbox.webhooks.deliver(event)
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_plan_change_in_the_portal_is_followed(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_switch(subscription_id, shop.prices["professional"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_is_known_to_be_live_is_served(
    shop: Shop, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    shop.sandbox.set_status(subscription_id, status)
    shop.deliver()
    live = status in LIVE_STATUSES
    assert shop.plan_and_status(customer_id) == ("professional" if live else "trial", status)
    assert ("unknown subscription status" in caplog.text) == (status == "frozen")


def test_an_unknown_price_grants_nothing_and_is_reported(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    shop.sandbox.portal_switch(subscription_id, shop.make_price(100))
    shop.deliver()
    assert shop.plan_and_status(customer_id)[0] == "trial"
    assert "price belongs to no plan" in caplog.text
    assert shop.act(subscription_id, "upgrade", {"plan": "starter"}).status_code == 200
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_price_that_lost_its_lookup_key_keeps_its_plan(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    newer = shop.make_price(3900, lookup_key="zemfyre_starter", transfer_lookup_key=True)
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    session = shop.checkout(shop.customer())
    lines = shop.sandbox.world.get("checkout.session", session["sessionId"])["_sandbox"]["lines"]
    assert lines[0]["price"]["id"] == newer


def test_the_renewed_period_is_read_from_the_items(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    first = shop.subscription(customer_id)["currentPeriodEndsAt"]
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.subscription(customer_id)["currentPeriodEndsAt"] > first
    assert shop.charges() == [2900, 2900]
    assert "current_period_end" not in held(shop, subscription_id)


def test_two_live_subscriptions_are_both_kept_and_the_better_counts(
    shop: Shop, sql: Callable[..., Any], caplog: pytest.LogCaptureFixture, console: Callable[..., Any]
) -> None:
    customer_id, _ = shop.subscribe("starter")
    second = shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["professional"])["id"]
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert len(sql("SELECT 1 FROM subscriptions WHERE status = 'active'")) == 2
    assert "several live subscriptions" in caplog.text
    assert "2 subscriptions are live" in console("customer", "show", "--id", customer_id).stderr
    shop.sandbox.cancel_subscription(second)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_license_does_not_outlive_a_cancellation(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    old = shop.get(f"/api/licenses/{customer_id}")["license"]
    shop.sandbox.cancel_subscription(subscription_id)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    answer = shop.post("/api/licenses/verify", {"license": old}, headers={})
    assert answer.json["code"] == "SUPERSEDED"


def test_the_first_payment_ends_the_trial_for_good(shop: Shop) -> None:
    customer_id = shop.customer(plan="professional")
    shop.sandbox.pay(shop.checkout(customer_id, "starter")["sessionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    shop.sandbox.cancel_subscription(shop.subscription(customer_id)["subscriptionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    body = {"customerId": customer_id, "plan": "starter"}
    assert shop.client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN).status_code == 409


def test_a_failed_payment_that_takes_days_leaves_the_trial(shop: Shop) -> None:
    customer_id = shop.customer(plan="professional")
    session = shop.checkout(customer_id, "starter")["sessionId"]
    shop.sandbox.pay_async(session)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "trialing")
    shop.sandbox.settle(session, succeed=False)
    shop.sandbox.advance(hours=24)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "trialing")


def test_a_failed_renewal_runs_its_course(shop: Shop) -> None:
    customer_id, _ = shop.subscribe("professional")
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "past_due")
    shop.sandbox.advance(days=30)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_paused_and_resumed(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    shop.sandbox.pause(subscription_id)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "paused")
    shop.sandbox.resume(subscription_id)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_a_deleted_customer_has_nothing_left(shop: Shop, sql: Callable[..., Any]) -> None:
    customer_id, _ = shop.subscribe("professional")
    shop.sandbox.delete_customer(shop.stripe_id(customer_id))
    shop.sandbox.webhooks.deliver_all(random.Random(1))
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert sql("SELECT stripe_customer_id FROM customers") == [{"stripe_customer_id": None}]


def test_a_slow_old_fetch_never_overwrites_a_newer_one(shop: Shop, make_app: Any) -> None:
    """One worker is handed the old state and held up; another one fetches and stores the new one."""
    customer_id, subscription_id = shop.subscribe("starter")
    slow, other = shop.app, make_app()
    gateway = slow.extensions["parts"].stripe
    ask = gateway.list_subscriptions
    pool = ThreadPoolExecutor(1)
    newer: list[Any] = []

    def hand_over_late(*args: Any) -> Any:
        old = list(ask(*args))
        shop.sandbox.portal_switch(subscription_id, shop.prices["professional"])
        (event,) = [e for e in shop.sandbox.webhooks.pending if e["type"] == "customer.subscription.updated"]
        body = shop.sandbox.webhooks.payload(event)
        headers = {"Stripe-Signature": shop.sandbox.webhooks.sign(body, "whsec_sandbox")}
        gateway.list_subscriptions = ask
        newer.append(pool.submit(other.test_client().post, "/webhooks/stripe", data=body, headers=headers))
        with pytest.raises(TimeoutError):
            newer[0].result(0.5)  # it waits for the slow one
        return old

    gateway.list_subscriptions = hand_over_late
    shop.sandbox.update_subscription(subscription_id, metadata={"a": "b"})
    shop.sandbox.webhooks.deliver(shop.sandbox.webhooks.pending[0])
    assert newer[0].result(30).status_code == 200
    pool.shutdown()
    assert shop.plan_and_status(customer_id) == ("professional", "active")
