"""The life of a paid subscription: changes that people ask for, cancellations, and what happens at Stripe."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.entitlements import LIVE_STATUSES
from tests.conftest import ADMIN
from tests.factories import bearer
from tests.shop import Shop, assert_refused
from tests.tokens import claims_of

Sql = Callable[..., list[dict[str, Any]]]
STATUSES = (
    "incomplete", "incomplete_expired", "trialing", "active", "past_due", "unpaid", "paused", "canceled",
    "frozen",
)  # fmt: skip


def at_stripe(shop: Shop, subscription_id: str) -> dict[str, Any]:
    return shop.sandbox.get("subscription", subscription_id)


def price_at_stripe(shop: Shop, subscription_id: str) -> str:
    return str(at_stripe(shop, subscription_id)["items"]["data"][0]["price"]["id"])


def upgrade(shop: Shop, subscription_id: str, plan: str = "professional", **more: Any) -> Any:
    return shop.act(subscription_id, "upgrade", {"plan": plan, **more})


# Upgrade and downgrade


def test_an_upgrade_is_paid_at_once_and_licensed_at_once(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    answer = upgrade(shop, subscription_id)
    assert (answer.status_code, answer.json.keys()) == (200, {"subscription", "license"})
    changed = answer.json["subscription"]
    shown = [changed[name] for name in ("subscriptionId", "plan", "deviceLimit", "interval")]
    assert shown == [subscription_id, "professional", 50, "month"]
    assert price_at_stripe(shop, subscription_id) == shop.prices["professional"]
    assert shop.charges()[0] == 2900
    assert 6900 <= shop.charges()[1] <= 7000
    given = shop.get(f"/api/licenses/{customer_id}")
    assert (given["license"], given["plan"]) == (answer.json["license"], "professional")
    shop.deliver()
    assert shop.subscription(customer_id) == changed
    (line,) = sql("SELECT actor, customer_id, after FROM audit_log WHERE action = 'subscription.upgrade'")
    assert (line["actor"][:6], line["customer_id"]) == ("admin:", customer_id)
    assert line["after"] == {"plan": "professional", "interval": None}


def test_the_interval_stays_unless_another_is_asked_for(shop: Shop) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id, "starter", interval="year")["sessionId"])
    shop.deliver()
    assert (shop.charges(), shop.plan_and_status(customer_id)) == ([29_000], ("starter", "active"))
    subscription_id = shop.subscription(customer_id)["subscriptionId"]
    assert shop.subscription(customer_id)["interval"] == "year"
    for more, interval in (({}, "year"), ({"interval": "month"}, "month")):
        answer = upgrade(shop, subscription_id, "professional", **more)
        assert (answer.status_code, answer.json["subscription"]["interval"]) == (200, interval)
        price = at_stripe(shop, subscription_id)["items"]["data"][0]["price"]
        assert price["recurring"]["interval"] == interval
        assert shop.subscription(customer_id)["plan"] == "professional"
    assert_refused(upgrade(shop, subscription_id, "professional"), 409, "already")


def test_down_up_and_down_again_within_a_day(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    for plan in ("starter", "professional", "starter", "professional"):
        answer = upgrade(shop, subscription_id, plan)
        assert (answer.status_code, answer.json["subscription"]["plan"]) == (200, plan)
        assert price_at_stripe(shop, subscription_id) == shop.prices[plan]
        assert shop.plan_and_status(customer_id) == (plan, "active")
        if plan == "starter":  # a downgrade credits the customer
            assert shop.sandbox.get("customer", shop.stripe_id(customer_id))["balance"] < 0
            assert shop.charges() == [9900]


@pytest.mark.parametrize("card", ["decline", "insufficient_funds", None])
def test_a_refused_payment_changes_nothing_and_may_be_tried_again(
    shop: Shop, sql: Sql, card: str | None
) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    before = shop.subscription(customer_id)
    shop.sandbox.set_card(shop.stripe_id(customer_id), card)
    for _ in range(2):
        answer = upgrade(shop, subscription_id)
        assert (answer.status_code, "refused" in answer.json["message"]) == (402, True)
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    shop.deliver()
    assert shop.subscription(customer_id) == before
    assert shop.get(f"/api/licenses/{customer_id}")["license"] == token
    lines = sql("SELECT after FROM audit_log WHERE action = 'subscription.upgrade' ORDER BY id")
    refusals = [line["after"].get("refused") for line in lines]
    assert (refusals[::2], refusals[3]) == ([None, None], answer.json["message"])
    shop.sandbox.set_card(shop.stripe_id(customer_id), "ok")
    assert upgrade(shop, subscription_id).status_code == 200
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert len(shop.charges()) == 2


def test_a_bank_that_asks_for_confirmation_is_402_with_the_page(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.set_card(shop.stripe_id(customer_id), "3ds")
    answer = upgrade(shop, subscription_id)
    invoice = at_stripe(shop, subscription_id)["latest_invoice"]
    url = shop.sandbox.get("invoice", invoice)["hosted_invoice_url"]
    assert (answer.status_code, url in answer.json["message"]) == (402, True)
    assert answer.json["errors"] == {"payment": {"url": url}}
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    shop.sandbox.pay_invoice(invoice)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_a_subscription_that_is_about_to_end_still_ends(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 200
    changed = upgrade(shop, subscription_id).json["subscription"]
    assert (changed["plan"], changed["cancelAtPeriodEnd"]) == ("professional", True)
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_only_our_item_is_changed(shop: Shop) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    support = shop.make_price(70_000)
    items = [{"price": support, "quantity": 1}, {"price": shop.prices["starter"], "quantity": 1}]
    made = shop.sandbox.create_subscription(shop.stripe_id(customer_id), "", items=items)
    shop.deliver()
    assert upgrade(shop, made["id"]).status_code == 200
    prices = {item["price"]["id"] for item in at_stripe(shop, made["id"])["items"]["data"]}
    assert prices == {support, shop.prices["professional"]}


def test_another_product_is_left_alone(shop: Shop, console: Callable[..., Any], sql: Sql) -> None:
    """It ends no trial, blocks no checkout, grants nothing, and is not found by what changes things."""
    customer_id = shop.customer(plan="professional")
    shop.checkout(customer_id)
    support = shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.make_price(70_000))["id"]
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "trialing")
    own = shop.sandbox.pay(shop.checkout(customer_id, "starter")["sessionId"])["subscription"]
    shop.deliver()
    console("stripe", "sync")
    assert [row["subscription_id"] for row in sql("SELECT * FROM subscriptions WHERE paid")] == [own]
    for what, body in (("upgrade", {"plan": "professional"}), ("cancel", None), ("resume", None)):
        assert shop.act(support, what, body).status_code == 404
    assert console("customer", "deactivate", "--id", customer_id).exit_code == 0
    assert [at_stripe(shop, one)["status"] for one in (support, own)] == ["active", "canceled"]


def test_a_double_click_pays_once(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    start = threading.Barrier(3)

    def ask(_: int) -> int:
        path = f"/api/subscriptions/{subscription_id}/upgrade"
        start.wait()
        answer = shop.app.test_client().post(path, json={"plan": "professional"}, headers=ADMIN)
        return answer.status_code

    with ThreadPoolExecutor(3) as pool:
        codes = list(pool.map(ask, range(3)))
    assert {200} <= set(codes) <= {200, 409}
    assert len(shop.charges()) == 2
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_what_cannot_be_upgraded(shop: Shop) -> None:
    assert upgrade(shop, "sub_unknown").status_code == 404
    customer_id, subscription_id = shop.subscribe("starter")
    assert upgrade(shop, subscription_id, "starter").status_code == 409
    for body in ({"plan": "trial"}, {"plan": "enterprise"}, {"plan": "starter", "interval": "week"}, {}):
        assert shop.act(subscription_id, "upgrade", body).status_code == 422
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    path = f"/api/subscriptions/{subscription_id}/upgrade"
    assert shop.post(path, {"plan": "professional"}, bearer(token)).status_code == 403
    assert shop.act(subscription_id, "cancel").status_code == 200
    for plan in ("professional", "starter"):
        assert_refused(upgrade(shop, subscription_id, plan), 409, "checkout")
    assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    assert shop.charges() == [2900]


def test_what_stripe_does_not_take_keeps_stripes_words(shop: Shop) -> None:
    """A cancellation while a schedule manages the subscription."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.schedule(subscription_id, shop.prices["professional"])
    refused = shop.act(subscription_id, "cancel", {"atPeriodEnd": True})
    assert (refused.status_code, "schedule" in refused.json["message"]) == (409, True)
    assert "req_" in refused.json["message"]
    assert shop.subscription(customer_id)["cancelAtPeriodEnd"] is False


def test_an_upgrade_of_a_revoked_customer_gives_out_no_license(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.post(f"/api/licenses/{customer_id}/revoke").status_code == 200
    answer = upgrade(shop, subscription_id)
    assert (answer.status_code, answer.json["license"]) == (200, None)
    assert shop.client.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code == 403
    assert shop.post(f"/api/licenses/{customer_id}/reinstate").status_code == 200
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_an_upgrade_to_a_price_that_was_replaced_meanwhile(shop: Shop) -> None:
    """The lookup key moves to a new price between two attempts: the keys must not collide."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.faults.fail_next(3, "drop", method="POST", path=subscription_id)
    assert upgrade(shop, subscription_id).status_code == 502
    newer = shop.make_price(12900, lookup_key="zemfyre_professional", transfer_lookup_key=True)
    assert upgrade(shop, subscription_id).status_code == 200
    assert price_at_stripe(shop, subscription_id) == newer
    assert shop.plan_and_status(customer_id) == ("professional", "active")


# Cancel and resume


def test_cancel_now(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    answer = shop.act(subscription_id, "cancel")
    assert (answer.status_code, answer.json["subscription"]["status"]) == (200, "canceled")
    assert at_stripe(shop, subscription_id)["status"] == "canceled"
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    shop.deliver()
    assert_refused(shop.act(subscription_id, "cancel"), 409, "ended already")
    lines = sql("SELECT actor, after FROM audit_log WHERE action = 'subscription.cancel' ORDER BY id")
    assert {line["actor"].partition(":")[0] for line in lines} == {"admin"}
    assert ["refused" in line["after"] for line in lines] == [False, False, True]


def test_a_cancellation_before_the_period_ends_shortens_the_license(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe()
    cancel_at = shop.sandbox.now() + 5 * 86400
    shop.sandbox.update_subscription(subscription_id, cancel_at=cancel_at)
    before = shop.get(f"/api/licenses/{customer_id}")["license"]
    shop.deliver()
    given = shop.get(f"/api/licenses/{customer_id}")["license"]
    assert (given != before, claims_of(given)["exp"]) == (True, cancel_at + 7 * 86400)
    assert shop.get(f"/api/licenses/{customer_id}")["license"] == given


def test_cancel_at_period_end_and_resume(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("professional")
    for _ in range(2):  # asked twice is asked once
        answer = shop.act(subscription_id, "cancel", {"atPeriodEnd": True})
        assert (answer.status_code, answer.json["subscription"]["cancelAtPeriodEnd"]) == (200, True)
    assert at_stripe(shop, subscription_id)["cancel_at_period_end"] is True
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    answer = shop.act(subscription_id, "resume")
    assert (answer.status_code, answer.json["subscription"]["cancelAtPeriodEnd"]) == (200, False)
    assert at_stripe(shop, subscription_id)["cancel_at"] is None
    assert_refused(shop.act(subscription_id, "resume"), 409, "pending")
    assert len(sql("SELECT 1 FROM audit_log WHERE action = 'subscription.resume'")) == 3
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 200
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


@pytest.mark.parametrize("heard", [True, False])
def test_resume_after_a_portal_cancellation(shop: Shop, heard: bool) -> None:
    """The portal sets `cancel_at` and leaves `cancel_at_period_end` false; both are a cancellation."""
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_cancel(subscription_id)
    if heard:
        shop.deliver()
        pending = shop.subscription(customer_id)
        assert (pending["cancelAtPeriodEnd"], pending["cancelAt"]) == (True, pending["currentPeriodEndsAt"])
    answer = shop.act(subscription_id, "resume")
    assert (answer.status_code, answer.json["subscription"]["cancelAt"]) == (200, None)
    assert at_stripe(shop, subscription_id)["cancel_at"] is None
    shop.deliver()
    assert shop.subscription(customer_id)["cancelAtPeriodEnd"] is False


def test_a_local_trial_has_no_period_to_end_with(shop: Shop) -> None:
    customer_id = shop.customer(plan="professional")
    trial_id = shop.subscription(customer_id)["subscriptionId"]
    answer = shop.act(trial_id, "cancel", {"atPeriodEnd": True})
    assert (answer.status_code, answer.json["subscription"]["status"]) == (200, "canceled")
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_what_is_refused_changes_nothing(shop: Shop) -> None:
    """Unknown subscriptions, callers without the right, and an end that may be meant later."""
    customer_id, subscription_id = shop.subscribe("starter")
    own = bearer(shop.get(f"/api/licenses/{customer_id}")["license"])
    for what in ("cancel", "resume"):
        assert shop.act("sub_unknown", what).status_code == 404
        assert shop.post(f"/api/subscriptions/{subscription_id}/{what}", None, own).status_code == 403
    for value in (0, 1, "true", None):
        assert shop.act(subscription_id, "cancel", {"atPeriodEnd": value}).status_code == 422
    assert at_stripe(shop, subscription_id)["status"] == "active"
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_of_two_live_ones_the_better_counts_and_deactivate_ends_both(
    shop: Shop, console: Callable[..., Any], sql: Sql
) -> None:
    """Also one that only Stripe knows."""
    customer_id, first = shop.subscribe("starter")
    another = (shop.stripe_id(customer_id), shop.prices["professional"])
    second = shop.sandbox.create_subscription(*another)["id"]
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert {shop.subscription(one)["status"] for one in (first, second)} == {"active"}
    shop.sandbox.cancel_subscription(second)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    shop.sandbox.create_subscription(*another)
    result = console("customer", "deactivate", "--id", customer_id)
    assert result.exit_code == 0, result.output
    assert shop.live() == []
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert console("customer", "deactivate", "--id", customer_id).exit_code == 1
    lines = sql("SELECT actor FROM audit_log WHERE action = 'subscription.cancel'")
    assert [line["actor"].partition(":")[0] for line in lines] == ["console"] * 2


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


@pytest.mark.parametrize(("status", "code"), [(500, 502), (429, 503)])
def test_stripe_failing_in_the_middle_of_an_upgrade(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, status: int, code: int
) -> None:
    """The change was made and paid, but its outcome could not be fetched: asked again, it is answered."""
    customer_id, subscription_id = shop.subscribe("starter")
    gateway = shop.app.extensions["billing.stripe"]
    change = gateway.change_price

    def then_fail(*args: Any, **options: Any) -> Any:
        changed = change(*args, **options)
        shop.sandbox.faults.fail_next(3, status, path="/subscriptions", method="GET")
        return changed

    monkeypatch.setattr(gateway, "change_price", then_fail)
    assert upgrade(shop, subscription_id).status_code == code
    shop.sandbox.faults.clear()
    answer = upgrade(shop, subscription_id)
    assert (answer.status_code, answer.json["subscription"]["plan"]) == (200, "professional")
    assert len(shop.charges()) == 2
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


# What happens at Stripe


def test_what_is_changed_at_stripe_is_followed(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")

    def after_delivery() -> tuple[str, str]:
        shop.deliver()
        return shop.plan_and_status(customer_id)

    shop.sandbox.portal_switch(subscription_id, shop.prices["professional"])
    assert after_delivery() == ("professional", "active")
    shop.sandbox.pause(subscription_id)
    assert after_delivery() == ("trial", "paused")
    shop.sandbox.resume(subscription_id)
    assert after_delivery() == ("professional", "active")
    # An unknown price grants nothing until the plan is set.
    shop.sandbox.portal_switch(subscription_id, shop.make_price(100))
    assert after_delivery()[0] == "trial"
    assert upgrade(shop, subscription_id, "starter").status_code == 200
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    # A license does not outlive a cancellation.
    old = shop.get(f"/api/licenses/{customer_id}")["license"]
    shop.sandbox.cancel_subscription(subscription_id)
    assert after_delivery()[0] == "trial"
    answer = shop.post("/api/licenses/verify", {"license": old}, headers={})
    assert answer.json["code"] == "SUPERSEDED"


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_is_known_to_be_live_is_served_and_upgraded(shop: Shop, status: str) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.set_status(subscription_id, status)
    live = status in LIVE_STATUSES
    if not live:
        assert_refused(upgrade(shop, subscription_id), 409, status)
        assert shop.subscription(customer_id)["status"] == status
        assert price_at_stripe(shop, subscription_id) == shop.prices["starter"]
    shop.deliver()
    assert shop.plan_and_status(customer_id)[0] == ("starter" if live else "trial")
    assert shop.subscription(customer_id)["status"] == status


def test_the_first_payment_ends_the_trial_for_good(shop: Shop) -> None:
    customer_id = shop.customer(plan="professional")
    shop.sandbox.pay(shop.checkout(customer_id, "starter")["sessionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    shop.sandbox.cancel_subscription(shop.subscription(customer_id)["subscriptionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id)[0] == "trial"
    body = {"customerId": customer_id, "plan": "starter"}
    assert shop.post("/api/subscriptions/create-trial", body).status_code == 409


def test_a_failed_renewal_runs_its_course(shop: Shop) -> None:
    customer_id, _ = shop.subscribe("professional")
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "past_due")
    shop.sandbox.advance(days=30)
    shop.deliver()
    assert shop.plan_and_status(customer_id)[0] == "trial"
    assert shop.subscription(customer_id)["status"] == "canceled"
