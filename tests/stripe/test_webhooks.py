"""Stripe's webhooks: who may speak, what is stored, what a failure leaves, replay."""

import itertools
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
import responses
from werkzeug.test import TestResponse

import app.services.stripe_sync as sync
from app.stripe_gateway import StripeGateway
from tests.conftest import WEBHOOK_SECRET
from tests.shop import HOOK, Shop, assert_refused
from tests.stripe.conftest import Fuse
from tests.stripe_sandbox import Webhooks, billing

Sql = Callable[..., list[dict[str, Any]]]
Console = Callable[..., Any]


def event(type: str = "customer.subscription.updated", **fields: Any) -> dict[str, Any]:
    found = {"id": "sub_1", "object": "subscription", "customer": "cus_unknown", "metadata": {}}
    return {
        "id": f"evt_{time.monotonic_ns()}", "object": "event", "type": type, "livemode": False,
        "created": int(time.time()), "data": {"object": found}, **fields,
    }  # fmt: skip


def send(shop: Shop, body: Any, secret: str = WEBHOOK_SECRET, **more: Any) -> TestResponse:
    """As Stripe would, with a right signature unless `header` is given."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    header = more.get("header", Webhooks.sign(payload, secret, more.get("timestamp")))
    headers = {"Stripe-Signature": header} if header is not None else {}
    return shop.hook(payload, {"Content-Type": "application/json", **headers})


def invoice_paid(shop: Shop, stripe_id: str) -> None:
    """An event about a customer of Stripe's is followed."""
    found = {"id": "in_x", "object": "invoice", "customer": stripe_id}
    assert send(shop, event("invoice.paid", data={"object": found})).json["outcome"] == "done"


def stored(sql: Sql) -> list[tuple[str, str | None]]:
    return [(row["outcome"], row["error"]) for row in sql("SELECT * FROM stripe_events ORDER BY received_at")]


# Who may speak


def test_a_bad_signature_is_400_and_leaves_nothing(shop: Shop, sql: Sql) -> None:
    for header in (
        None, "", "t=,v1=", "nonsense", "t=NOW", "t=NOW,v1=", "t=NOW,v1=0123456789abcdef", "t=NOW,v1=é",
        "t=NOW,v0=deadbeef", "t=soon,v1=deadbeef", "t=99999999999999999999999,v1=" + "a" * 64,
        "t=-1,v1=" + "a" * 64, "v1=" + "a" * 64, ",".join(["t=NOW"] + ["v1=" + "0" * 64] * 100),
        "t=1,t=2,v1==,=",
    ):  # fmt: skip
        answer = send(shop, event(), header=header and header.replace("NOW", str(int(time.time()))))
        assert (answer.status_code, answer.json["code"]) == (400, 400), header
    assert stored(sql) == []
    assert shop.sandbox.requests == []


def test_a_stale_or_foreign_signature_is_400(shop: Shop, sql: Sql) -> None:
    assert send(shop, event(), timestamp=int(time.time()) - 301).status_code == 400
    assert send(shop, event(), secret="whsec_other").status_code == 400  # pragma: allowlist secret
    signed = event()
    header = Webhooks.sign(json.dumps(signed).encode(), WEBHOOK_SECRET)
    assert send(shop, signed | {"livemode": True}, header=header).status_code == 400
    assert stored(sql) == []
    assert send(shop, signed, header=header).status_code == 200


def test_signed_nonsense_is_400_and_leaves_nothing(shop: Shop, sql: Sql) -> None:
    right = {"id": "evt_1", "type": "x", "created": 1, "livemode": False, "data": {"object": {}}}
    assert send(shop, right | {"object": "event"}).status_code == 200
    sql("DELETE FROM stripe_events")
    wrong: list[dict[str, Any]] = [
        {"data": {"object": []}}, {"data": []}, {"created": float("inf")},
        {"created": 99999999999999}, {"created": None}, {"id": "evt_\x00"}, {"id": {"a": 1}},
        {"type": "\ud800"}, {"object": "v2.core.event"}, {"object": "v2.core.event", "created": "soon"},
    ]  # fmt: skip
    bodies = [b"", b"[1]", b"1", b"null", b'"evt_1"', b"{}", b"{", b"<xml/>", b"\xff\xfe", b"[" * 50_000]
    for body in [*bodies, *(right | {"object": "event"} | part for part in wrong)]:
        assert send(shop, body).status_code == 400, body
    assert stored(sql) == []


def test_two_secrets_while_they_are_rotated(shop: Shop, make_app: Any, sql: Sql) -> None:
    rotating = Shop(make_app(STRIPE_WEBHOOK_SECRET="whsec_new, whsec_sandbox"), shop.sandbox)
    for secret in ("whsec_new", "whsec_sandbox"):
        assert send(rotating, event(), secret).status_code == 200
    payload = json.dumps(event()).encode()
    both = Webhooks.sign(payload, ["whsec_gone", "whsec_new"])
    assert send(rotating, payload, header=both).status_code == 200
    assert send(rotating, event(), "whsec_gone").status_code == 400
    assert len(stored(sql)) == 3


def test_without_a_secret_the_answer_names_the_setting(client: Any) -> None:
    answer = client.post("/webhooks/stripe", json=event())
    assert_refused(answer, 503, "STRIPE_WEBHOOK_SECRET")
    assert "Retry-After" in answer.headers


# What is stored


def test_unknown_types_customers_and_objects_are_ignored(shop: Shop, sql: Sql) -> None:
    types = (
        "customer.subscription.updated",
        "invoice.paid",
        "customer.deleted",
        "charge.refunded",
        "new.type",
    )
    objects: list[dict[str, Any]] = [
        {}, {"id": "x\x00y", "customer": "cus_\x00"}, {"id": ["x"], "customer": 7},
        {"id": "\ud800", "customer": {"id": None}, "metadata": "x"},
        {"id": "x" * 5000, "customer": "y" * 5000, "metadata": {"customer_id": 7}},
        {"id": "sub_1", "customer": "cus_1", "metadata": {"customer_id": "cust_\x00"}},
    ]  # fmt: skip
    events = [*map(event, types), *(event(data={"object": strange}) for strange in objects)]
    for sent in events:
        answer = send(shop, sent)
        assert (answer.status_code, answer.json) == (200, {"received": True, "outcome": "ignored"}), sent
    assert stored(sql) == [("ignored", None)] * len(events)
    assert sql("SELECT 1 FROM subscriptions") == []


def test_live_events_at_a_test_account_are_ignored(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.cancel_subscription(subscription_id)
    (deleted,) = shop.sandbox.webhooks.pending
    answer = send(shop, deleted | {"livemode": True, "id": "evt_live"})
    assert (answer.status_code, answer.json["outcome"]) == (200, "ignored")
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    assert stored(sql)[-1] == ("ignored", None)


def test_the_payload_is_never_applied(shop: Shop) -> None:
    """A signed event that tells a state which Stripe does not have."""
    customer_id, _ = shop.subscribe("starter")
    (created,) = [e for e in shop.sandbox.events if e["type"] == "customer.subscription.created"]
    found = created["data"]["object"] | {"status": "canceled", "items": {"data": []}}
    answer = send(shop, created | {"id": "evt_lie", "data": {"object": found}})
    assert answer.json["outcome"] == "done"
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_an_event_is_stored_and_followed_once_however_often_it_comes(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_switch(subscription_id, shop.prices["professional"])
    (updated,) = [e for e in shop.sandbox.webhooks.pending if e["type"] == "customer.subscription.updated"]
    deliveries = shop.sandbox.webhooks.deliver_parallel([updated], [HOOK] * 4)
    assert {d.status for d in deliveries} == {200}
    rows = sql("SELECT * FROM stripe_events ORDER BY received_at")
    asked = len(shop.sandbox.requests)
    assert [d.status for d in shop.sandbox.webhooks.deliver(updated, times=3)] == [200] * 3
    assert len(shop.sandbox.requests) == asked
    assert sql("SELECT * FROM stripe_events ORDER BY received_at") == rows
    (created,) = [row for row in rows if row["type"] == "customer.subscription.created"]
    (row,) = [row for row in rows if row["event_id"] == updated["id"]]
    assert (created["attempts"], row["outcome"], row["error"]) == (1, "done", None)
    assert (row["customer_id"], row["object_id"]) == (customer_id, subscription_id)
    assert row["processed_at"] is not None
    (caused,) = sql("SELECT plan, event_id FROM subscriptions WHERE stripe_subscription_id IS NOT NULL")
    assert caused == {"plan": "professional", "event_id": updated["id"]}


def test_a_customer_that_we_forgot_to_link_is_linked(shop: Shop, sql: Sql) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    sql("UPDATE customers SET stripe_customer_id = NULL")
    shop.deliver()
    assert shop.stripe_id(customer_id) == shop.sandbox.every("customer")[0]["id"]
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_claim_in_the_payload_alone_links_nobody(shop: Shop, sql: Sql) -> None:
    """A payment link takes `client_reference_id` from its address, so anybody may write it, and who has the
    webhook secret any metadata: Stripe's record of the customer decides.
    """
    victim, other = shop.customer(), shop.customer()
    found = {"id": "cs_1", "object": "checkout.session", "customer": "cus_x", "client_reference_id": victim}
    answer = send(shop, event("checkout.session.completed", data={"object": found}))
    assert answer.json["outcome"] == "ignored"
    shop.checkout(other)
    found = {"id": "sub_x", "object": "subscription", "customer": shop.stripe_id(other)}
    claim = {"metadata": {"customer_id": victim}}
    sql("UPDATE customers SET stripe_customer_id = NULL WHERE customer_id = %(id)s", id=other)
    assert send(shop, event(data={"object": found | claim})).json["outcome"] == "done"
    assert shop.get(f"/api/customers/{victim}")["stripeCustomerId"] is None
    assert shop.stripe_id(other) == found["customer"]


@pytest.mark.parametrize("told_by", ["event", "sync", "sync --customer"])
def test_what_a_second_customer_at_stripe_pays_for_counts(
    shop: Shop, console: Console, caplog: pytest.LogCaptureFixture, told_by: str
) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    linked, second = shop.stripe_id(customer_id), shop.second_at_stripe(customer_id)
    one = ["--customer", customer_id]
    if told_by == "event":
        invoice_paid(shop, second)
        assert "two customers at stripe" in caplog.text
    else:
        more = one if told_by != "sync" else []
        assert "professional active" in console("stripe", "sync", "--dry-run", *more).stdout
        assert shop.plan_and_status(customer_id)[0] == "trial"
        assert console("stripe", "sync", *more).exit_code == 0
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert shop.stripe_id(customer_id) == linked
    assert console("stripe", "sync", "--dry-run").exit_code == 0
    assert console("stripe", "sync", "--dry-run", *one).exit_code == 0
    shop.sandbox.cancel_subscription(shop.live()[0]["id"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


@pytest.mark.parametrize("how", ["deleted", "unnamed"])
def test_the_end_of_what_a_second_customer_pays_for(shop: Shop, how: str) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    second = shop.second_at_stripe(customer_id)
    invoice_paid(shop, second)
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    if how == "deleted":
        shop.sandbox.delete_customer(second)
    else:
        with shop.sandbox.world.transaction() as world:
            world.get("customer", second)["metadata"] = {}
        shop.sandbox.cancel_subscription(shop.live()[0]["id"])
    shop.deliver()
    assert shop.live() == []
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_what_else_a_customer_that_names_nobody_pays_for_is_not_ours(
    shop: Shop, sql: Sql, console: Console
) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    second = shop.second_at_stripe(customer_id)
    assert console("stripe", "sync").exit_code == 0
    (ours,) = shop.live()
    with shop.sandbox.world.transaction() as world:
        world.get("customer", second)["metadata"] = {}
        price = billing.recurring_price(world, shop.prices["starter"], "price")
        billing.create(world, second, [(price, 1)])
    found = {"id": ours["id"], "object": "subscription", "customer": second}
    assert send(shop, event(data={"object": found})).json["outcome"] == "done"
    assert "live at once" not in console("customer", "show", "--id", customer_id).stderr
    sql("UPDATE subscriptions SET status = 'past_due' WHERE stripe_subscription_id IS NOT NULL")
    assert console("stripe", "sync").exit_code == 1  # the other payer belongs to nobody
    assert "live at once" not in console("customer", "show", "--id", customer_id).stderr
    assert shop.plan_and_status(customer_id) == ("professional", "active")


@pytest.mark.parametrize("told_by", ["event", "sync", "sync --customer"])
def test_a_customer_at_stripe_that_was_given_to_another(shop: Shop, console: Console, told_by: str) -> None:
    wrong, right = shop.customer(), shop.customer()
    shop.checkout(wrong)
    second = shop.second_at_stripe(wrong)
    invoice_paid(shop, second)
    assert shop.plan_and_status(wrong) == ("professional", "active")
    with shop.sandbox.world.transaction() as world:
        email = shop.get(f"/api/customers/{right}")["email"]
        world.get("customer", second).update(metadata={"customer_id": right}, email=email)
    if told_by == "event":
        invoice_paid(shop, second)
    else:
        assert console("stripe", "sync", *(["--customer", right] if told_by != "sync" else [])).exit_code == 0
    assert shop.plan_and_status(right) == ("professional", "active")
    assert shop.plan_and_status(wrong)[0] == "trial"
    assert console("stripe", "sync", "--dry-run").exit_code == 0


def test_a_failed_event_of_one_never_linked_is_followed_by_replay(
    shop: Shop, sql: Sql, console: Console
) -> None:
    customer_id, _ = shop.subscribe()
    stripe_id = shop.stripe_id(customer_id)
    sql("DELETE FROM licenses")
    sql("DELETE FROM subscriptions WHERE stripe_subscription_id IS NOT NULL")
    sql("UPDATE customers SET stripe_customer_id = NULL")
    found = {"id": "sub_x", "object": "subscription", "customer": stripe_id}
    shop.sandbox.faults.fail_next(3, path=f"/v1/customers/{stripe_id}")
    assert send(shop, event(data={"object": found}, id="evt_lost")).status_code == 502
    assert "evt_lost" in console("webhook", "list", "--failed").stdout
    shop.sandbox.faults.down = True
    assert (console("webhook", "replay", "evt_lost").exit_code, stored(sql)[-1][0]) == (1, "failed")
    shop.sandbox.faults.clear()
    assert console("webhook", "replay", "evt_unknown").exit_code == 1
    assert console("webhook", "replay", "evt_lost").stdout == "✅ evt_lost: done\n"
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_without_a_key_no_event_is_taken_for_done(make_app: Any, stripe_environ: Any) -> None:
    client = make_app(**stripe_environ | {"STRIPE_SECRET_KEY": ""}).test_client()
    for live in (True, False):
        body = json.dumps(event(livemode=live)).encode()
        headers = {"Stripe-Signature": Webhooks.sign(body, WEBHOOK_SECRET)}
        answer = client.post("/webhooks/stripe", data=body, headers=headers)
        assert_refused(answer, 503, "STRIPE_SECRET_KEY")


# Refunds, disputes, thin events


def test_a_refund_and_a_dispute_are_noted_and_revoke_nothing(shop: Shop, sql: Sql) -> None:
    customer_id, _ = shop.subscribe("starter")
    invoice = shop.sandbox.every("invoice")[0]["id"]
    shop.sandbox.refund(invoice, 900)
    dispute = shop.sandbox.dispute(invoice)
    shop.sandbox.close_dispute(dispute["id"], status="lost")
    assert {delivery.status for delivery in shop.deliver()} == {200}
    charges = "SELECT customer_id, note FROM stripe_events WHERE type LIKE 'charge.%%' ORDER BY received_at"
    notes = sql(charges)
    assert {row["customer_id"] for row in notes} == {customer_id}
    assert notes[0]["note"] == "9.00 USD of 29.00 USD refunded"
    assert "29.00 USD disputed" in notes[1]["note"]
    assert notes[2]["note"].endswith("lost")
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_thin_event_is_followed(shop: Shop, sql: Sql) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.cancel_subscription(subscription_id)
    for event_ in shop.sandbox.webhooks.pending:
        deliveries = shop.sandbox.webhooks.deliver_thin(event_, HOOK)
        assert [delivery.status for delivery in deliveries] == [200]
    assert shop.plan_and_status(customer_id)[0] == "trial"
    outcomes = sql("SELECT type, outcome FROM stripe_events WHERE event_id LIKE 'evt_test_%%'")
    assert {"type": "customer.subscription.deleted", "outcome": "done"} in outcomes


# Own failure


def cancelled(shop: Shop) -> tuple[str, dict[str, Any]]:
    """A customer, and the event that says that the subscription is no more."""
    customer_id, subscription_id = shop.subscribe()
    shop.sandbox.cancel_subscription(subscription_id)
    (deleted,) = shop.sandbox.webhooks.pending
    return customer_id, deleted


@pytest.mark.parametrize(("fault", "code"), [("drop", 502), (500, 502), (429, 503)])
def test_stripe_failing_is_5xx_and_the_next_delivery_completes(
    shop: Shop, sql: Sql, console: Console, fault: Any, code: int
) -> None:
    customer_id, deleted = cancelled(shop)
    shop.sandbox.faults.fail_next(3, fault)
    assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [code]
    shop.sandbox.faults.clear()
    outcome, error = stored(sql)[-1]
    assert (outcome, bool(error)) == ("failed", True)
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    listed = json.loads(console("webhook", "list", "--failed", "--json").stdout)
    assert [row["eventId"] for row in listed] == [deleted["id"]]
    assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [200]
    assert stored(sql)[-1] == ("done", None)
    assert json.loads(console("webhook", "list", "--failed", "--json").stdout) == []
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"type": "api_error", "message": "x" * 900}}, "x" * 300),
        ({"error": {"type": "api_error", "message": "a\0\ud800b"}}, "a?b"),
        ("[" * 100_000, "Stripe failed with status 500"),
    ],
)
def test_whatever_stripe_says_is_stored_as_the_reason(shop: Shop, sql: Sql, body: Any, said: str) -> None:
    customer_id, deleted = cancelled(shop)
    answer = body if isinstance(body, str) else json.dumps(body)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.get(re.compile(r".*/v1/subscriptions"), body=answer, status=500)
        assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [502]
    outcome, reason = stored(sql)[-1]
    assert (outcome, said in str(reason)) == ("failed", True)
    assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [200]
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_an_error_of_our_own_is_500_and_the_event_comes_again(
    shop: Shop, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer_id, deleted = cancelled(shop)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "store", lambda *_, **__: 1 / 0)
        assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [500]
    assert stored(sql)[-1] == ("failed", "ZeroDivisionError")
    assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [200]
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_the_database_going_while_stripe_is_asked(
    shop: Shop, sql: Sql, server_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is cut in the middle: no event done, no half of a change stored."""
    customer_id, deleted = cancelled(shop)
    ask = StripeGateway.list_subscriptions

    def cut(*args: Any) -> Any:
        connection = psycopg2.connect(server_url)
        connection.autocommit = True
        with connection.cursor() as cur:
            cur.execute(
                "SELECT PG_TERMINATE_BACKEND(pid) FROM pg_stat_activity WHERE datname = %s",
                (urlsplit(database_url).path[1:],),
            )
        connection.close()
        return ask(*args)

    with monkeypatch.context() as patch:
        patch.setattr(StripeGateway, "list_subscriptions", cut)
        assert shop.sandbox.webhooks.deliver(deleted)[0].status == 503
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    rows = sql("SELECT outcome FROM stripe_events WHERE event_id = %(e)s", e=deleted["id"])
    assert rows in ([], [{"outcome": "failed"}])
    assert [d.status for d in shop.sandbox.webhooks.deliver(deleted)] == [200]
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_killed_at_each_step(shop: Shop, fuse: Fuse) -> None:
    """Stripe comes again, and the end is Stripe's state; each step has a moment before and one after."""
    customer_id, subscription_id = shop.subscribe()
    delivered: list[Any] = []
    for number in itertools.count():
        plan = ("professional", "starter")[number % 2]
        shop.sandbox.portal_switch(subscription_id, shop.prices[plan])
        (updated,) = [
            e for e in shop.sandbox.webhooks.pending if e["type"] == "customer.subscription.updated"
        ]
        shop.sandbox.webhooks.clear()
        with fuse.lit(2 * number):
            delivered = shop.sandbox.webhooks.deliver(updated)
        if delivered:
            break
        assert [d.status for d in shop.sandbox.webhooks.deliver(updated)] == [200]
        assert shop.plan_and_status(customer_id) == (plan, "active")
    assert number > 10


# Replay and list


def test_every_event_is_listed_newest_first_and_replayed_fetches_the_present_state(
    shop: Shop, sql: Sql, console: Console
) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    shop.sandbox.portal_switch(subscription_id, shop.prices["professional"])
    shop.deliver()
    state = "SELECT * FROM subscriptions ORDER BY id"
    before = sql(state)
    rows = json.loads(console("webhook", "list", "--json").stdout)
    assert [row["receivedAt"] for row in rows] == sorted((row["receivedAt"] for row in rows), reverse=True)
    assert len(json.loads(console("webhook", "list", "--json", "--limit", "3").stdout)) == 3
    events, text = [row["eventId"] for row in rows], console("webhook", "list").output
    assert all(event_id in text for event_id in events)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda event_id: console("webhook", "replay", event_id).exit_code, events))
    assert set(results) == {0}
    assert sql(state) == before
    shop.sandbox.cancel_subscription(subscription_id)
    for _ in range(2):
        assert console("webhook", "replay", events[-1]).stdout == f"✅ {events[-1]}: done\n"
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")


def test_prune_removes_old_events_but_those_that_failed(shop: Shop, sql: Sql, console: Console) -> None:
    shop.subscribe()
    sql("UPDATE stripe_events SET received_at = received_at - INTERVAL '40 days'")
    sql("UPDATE stripe_events SET outcome = 'failed' WHERE type = 'invoice.paid'")
    assert console("webhook", "prune", "--older-than", "29").exit_code == 2
    assert console("webhook", "prune", "--older-than", "50", "--yes").stdout == "✅ Removed 0 event(s).\n"
    assert console("webhook", "prune", "--older-than", "30", "--yes").exit_code == 0
    assert [row["type"] for row in sql("SELECT type FROM stripe_events")] == ["invoice.paid"]
    assert sql("SELECT 1 AS n FROM audit_log WHERE action = 'webhook.prune'") == [{"n": 1}, {"n": 1}]
