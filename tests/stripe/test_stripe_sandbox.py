"""The Stripe sandbox, driven through the real SDK: each test looks at the answer and the effect."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

from tests.stripe_sandbox import Refusal, Sandbox, shapes
from tests.stripe_sandbox.params import check, decode_form, fields_of, params_class
from tests.stripe_sandbox.routes import ROUTES
from tests.stripe_sandbox.sandbox import secret_of

DAY = 86_400
SUCCESS = "http://localhost:3100/checkout/success?session_id={CHECKOUT_SESSION_ID}"


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(server: Sandbox) -> Sandbox:
    server.reset()
    server.webhooks.mode = "hold"
    return server


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    return connect(sandbox)


def connect(sandbox: Sandbox, key: str = "sk_test_sandbox") -> Any:
    client = stripe.StripeClient(
        key, base_addresses={"api": sandbox.url}, http_client=stripe.RequestsClient(timeout=5)
    )
    return client.v1


class Shop:
    """Two prices and a customer, as most tests need."""

    def __init__(self, client: Any) -> None:
        self.client = client
        product = client.products.create({"name": "Plan"})
        self.starter, self.professional = (
            client.prices.create(
                {
                    "product": product.id,
                    "currency": "usd",
                    "unit_amount": amount,
                    "recurring": {"interval": "month"},
                    "lookup_key": key,
                }
            ).id
            for key, amount in (("starter", 2900), ("professional", 9900))
        )
        self.customer = client.customers.create({"email": "a@example.com", "name": "A"}).id

    def session(self, price: str | None = None, **more: Any) -> Any:
        return self.client.checkout.sessions.create(
            {
                "mode": "subscription",
                "customer": self.customer,
                "line_items": [{"price": price or self.starter, "quantity": 1}],
                "success_url": SUCCESS,
                "cancel_url": "http://localhost:3100/checkout/cancel",
                "subscription_data": {"metadata": {"plan": "starter"}},
                **more,
            }
        )


@pytest.fixture
def shop(client: Any) -> Shop:
    return Shop(client)


@pytest.fixture
def paid(sandbox: Sandbox, shop: Shop) -> str:
    """The id of an active starter subscription."""
    return str(sandbox.pay(shop.session().id)["subscription"])


def types(sandbox: Sandbox, since: int = 0) -> list[str]:
    return [event["type"] for event in sandbox.events[since:]]


def item_of(sub: Any) -> Any:
    return sub["items"].data[0]


def upgrade(client: Any, sub: str, price: str, **more: Any) -> Any:
    item = item_of(client.subscriptions.retrieve(sub)).id
    return client.subscriptions.update(
        sub,
        {
            "items": [{"id": item, "price": price}],
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
            **more,
        },
    )


def refused(call: Any, *arguments: Any, **options: Any) -> Any:
    """The error object of a call that must be refused, with its status."""
    with pytest.raises(stripe.StripeError) as caught:
        call(*arguments, **options)
    body: Any = caught.value.json_body
    error = body["error"]
    return caught.value.http_status, error.get("code"), error.get("param")


# -- requests


def test_every_route_has_its_parameter_class_and_supports_only_what_exists() -> None:
    for route in ROUTES:
        fields = fields_of(params_class(route.params))
        unknown = {name.partition(".")[0] for name in route.supports} - {*fields, "expand"}
        assert not unknown, (route.path, unknown)


def test_objects_have_the_fields_of_the_sdk(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    sandbox.create_promotion_code("HALF", 50)
    sub = sandbox.pay(shop.session(allow_promotion_codes=True).id, "HALF")["subscription"]
    sandbox.schedule(sub, shop.professional)
    sandbox.dispute(client.subscriptions.retrieve(sub).latest_invoice)
    overage(client, shop.customer)
    client.billing_portal.sessions.create({"customer": shop.customer})
    client.webhook_endpoints.create({"url": SUCCESS, "enabled_events": ["*"]})
    tables = sandbox.state()["objects"]
    assert set(tables) == {kind for kind, objects in tables.items() if objects}
    tables["account"] = [client.accounts.retrieve_current().to_dict()]
    tables["subscription_item"] = tables["subscription"][0]["items"]["data"]
    tables["invoice_line_item"] = tables["invoice"][0]["lines"]["data"]
    for kind, objects in tables.items():
        *package, name = kind.replace("invoiceitem", "invoice_item").split(".")
        module = getattr(stripe, package[0]) if package else stripe
        known = annotations_of(getattr(module, name.title().replace("_", "")))
        unknown = {field for obj in objects for field in obj} - known
        assert not unknown, (kind, unknown)


def annotations_of(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


def test_a_key_is_needed(sandbox: Sandbox, client: Any) -> None:
    assert refused(connect(sandbox, "sk_test_other").customers.list)[0] == 401
    bare = requests.get(sandbox.url + "/v1/customers", timeout=5)
    assert bare.status_code == 401 and bare.json()["error"]["type"] == "invalid_request_error"
    assert bare.headers["Request-Id"].startswith("req_")


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"email": "a@example.com", "nickname": "x"}, "parameter_unknown", "nickname"),
        ({"address": {"planet": "Mars"}}, "parameter_unknown", "address[planet]"),
        ({"balance": "many"}, "parameter_invalid_integer", "balance"),
        ({"email": "no address"}, "email_invalid", "email"),
        ({"name": "x" * 257}, "parameter_invalid_string_length", "name"),
        ({"metadata": {"k" * 41: "v"}}, None, f"metadata[{'k' * 41}]"),
        ({"metadata": {"k": "v" * 501}}, None, "metadata[k]"),
        ({"tax_exempt": "sometimes"}, None, "tax_exempt"),
        ({"tax_exempt": "none"}, "sandbox_unsupported", "tax_exempt"),
    ],
)
def test_what_stripe_would_refuse(
    sandbox: Sandbox, client: Any, params: Any, code: str | None, param: str
) -> None:
    assert refused(client.customers.create, params) == (400, code, param)
    assert sandbox.every("customer") == []


def test_missing_and_unknown_things(shop: Shop, client: Any) -> None:
    assert refused(client.products.create, {}) == (400, "parameter_missing", "name")
    price = {"product": "prod_no", "currency": "usd", "unit_amount": 1}
    assert refused(client.prices.create, price) == (400, "resource_missing", "product")
    assert refused(client.subscriptions.retrieve, "sub_no") == (404, "resource_missing", "id")
    assert refused(shop.session, customer="cus_no") == (400, "resource_missing", "customer")
    assert refused(shop.session, success_url="nowhere")[1:] == ("url_invalid", "success_url")
    assert refused(shop.session, mode="sometimes") == (400, None, "mode")
    both = {"allow_promotion_codes": True, "discounts": [{"promotion_code": "promo_x"}]}
    assert refused(shop.session, **both)[0] == 400
    assert refused(client.payment_intents.list)[0] == 404
    assert client.checkout.sessions.list({}).data == []


def test_form_encoding() -> None:
    pairs = [("a[0][b]", "1"), ("a[1][b]", "2"), ("e[]", "x"), ("e[]", "y"), ("c", "3")]
    tree = {"a": {"0": {"b": "1"}, "1": {"b": "2"}}, "e": {"0": "x", "1": "y"}, "c": "3"}
    assert decode_form(pairs) == tree
    update = params_class("SubscriptionUpdateParams")
    given = decode_form([("cancel_at", ""), ("cancel_at_period_end", "false"), ("trial_end", "9")])
    assert check(given, update) == {"cancel_at": "", "cancel_at_period_end": False, "trial_end": 9}
    with pytest.raises(Refusal, match="not recurring|Invalid|Received"):
        check(decode_form([("items[0][price", "x"), ("items]", "y")]), update)


def test_customers_update_clear_and_delete(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    changed = client.customers.update(shop.customer, {"name": "", "metadata": {"a": "1"}})
    assert changed.name is None and changed.metadata["a"] == "1"
    sub = sandbox.create_subscription(shop.customer, shop.starter)["id"]
    assert client.customers.delete(shop.customer).to_dict() == {
        "id": shop.customer,
        "object": "customer",
        "deleted": True,
    }
    assert client.customers.retrieve(shop.customer).deleted is True
    assert client.subscriptions.retrieve(sub).status == "canceled"
    assert types(sandbox)[-2:] == ["customer.subscription.deleted", "customer.deleted"]
    assert refused(client.customers.update, shop.customer, {"name": "B"})[0] == 404
    assert client.customers.list().data == []


def test_paging_over_250_customers(sandbox: Sandbox, client: Any) -> None:
    with sandbox.world.transaction() as world:
        for i in range(250):
            world.add(shapes.customer(i, {"email": f"c{i}@example.com"}))
    pages = client.customers.list({"limit": 100})
    assert pages.has_more and len(pages.data) == 100 and pages.data[0].email == "c249@example.com"
    emails = [customer.email for customer in pages.auto_paging_iter()]
    assert emails == [f"c{i}@example.com" for i in reversed(range(250))]
    assert len([r for r in sandbox.requests if r.path == "/v1/customers"]) == 3
    assert [c.email for c in client.customers.list({"email": "c7@example.com"})] == ["c7@example.com"]
    assert refused(client.customers.list, {"limit": 500})[2] == "limit"


def test_expand_is_honoured_or_refused(client: Any, shop: Shop, paid: str) -> None:
    (sub,) = client.subscriptions.list({"expand": ["data.latest_invoice", "data.customer"]}).data
    assert sub.latest_invoice.parent.subscription_details.subscription == paid
    assert sub.customer.email == "a@example.com"
    one = client.subscriptions.retrieve(paid, {"expand": ["items.data.price.product"]})
    assert item_of(one).price.product.name == "Plan"
    wrong = {"expand": ["items.data.price.colour"]}
    assert refused(client.subscriptions.retrieve, paid, wrong)[0] == 400
    deep = {"expand": ["data.items.data.price.product"]}
    assert refused(client.subscriptions.list, deep)[2] == "expand[0]"


# -- idempotency and faults


def test_the_same_key_gives_the_first_answer_again(sandbox: Sandbox, client: Any) -> None:
    key = {"idempotency_key": "k1"}
    first = client.customers.create({"email": "a@example.com"}, key)
    again = client.customers.create({"email": "a@example.com"}, key)
    assert again.id == first.id and again.last_response.headers["Idempotent-Replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError) as caught:
        client.customers.create({"email": "b@example.com"}, key)
    assert caught.value.http_status == 400
    assert len(sandbox.every("customer")) == 1
    sandbox.advance(hours=24)
    assert client.customers.create({"email": "b@example.com"}, key).id != first.id


def test_a_refused_card_is_replayed_but_a_bad_parameter_is_not(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str
) -> None:
    sandbox.set_card(shop.customer, "decline")
    options = {"idempotency_key": "up"}
    change = (
        paid,
        {
            "items": [
                {
                    "id": item_of(client.subscriptions.retrieve(paid)).id,
                    "price": shop.professional,
                }
            ],
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
        },
    )
    assert refused(client.subscriptions.update, *change, options)[:2] == (402, "card_declined")
    sandbox.set_card(shop.customer, "ok")
    assert refused(client.subscriptions.update, *change, options)[:2] == (402, "card_declined")
    assert item_of(client.subscriptions.retrieve(paid)).price.id == shop.starter
    key = {"idempotency_key": "bad"}
    assert refused(client.customers.create, {"nickname": "x"}, key)[0] == 400
    assert client.customers.create({"name": "x"}, key).name == "x"


def test_a_key_in_use(sandbox: Sandbox, client: Any) -> None:
    sandbox.faults.delay = 0.5
    slow = threading.Thread(target=client.customers.create, args=({"name": "x"}, {"idempotency_key": "k"}))
    slow.start()
    time.sleep(0.2)
    status, code, _ = refused(client.customers.create, {"name": "x"}, {"idempotency_key": "k"})
    slow.join()
    assert (status, code) == (409, "idempotency_key_in_use")
    assert len(sandbox.every("customer")) == 1


def test_faults(sandbox: Sandbox, client: Any) -> None:
    sandbox.faults.fail_next(1, status=429, path="customers")
    sandbox.faults.fail_next(1, status=500, method="POST")
    client.products.list()
    assert refused(client.customers.list)[0] == 429
    assert refused(client.customers.create, {})[0] == 500
    sandbox.faults.fail_next(1, status="drop")
    with pytest.raises(stripe.APIConnectionError):
        client.customers.create({})
    assert sandbox.every("customer") == []
    sandbox.faults.fail_next(1, status="drop", after=True)
    with pytest.raises(stripe.APIConnectionError):
        client.customers.create({"name": "kept"}, {"idempotency_key": "k"})
    assert client.customers.create({"name": "kept"}, {"idempotency_key": "k"}).name == "kept"
    assert len(sandbox.every("customer")) == 1
    sandbox.faults.down = True
    with pytest.raises(stripe.APIConnectionError):
        client.customers.list()
    last = sandbox.requests[-2:]
    assert [(r.method, r.status) for r in last] == [("POST", 200), ("GET", None)]


# -- prices and promotion codes


def test_lookup_keys(client: Any, shop: Shop, paid: str) -> None:
    found = client.prices.list({"lookup_keys": ["starter"], "expand": ["data.product"]}).data
    assert [(p.id, p.product.name) for p in found] == [(shop.starter, "Plan")]
    new = {
        "product": found[0].product.id,
        "currency": "usd",
        "unit_amount": 3900,
        "recurring": {"interval": "month"},
        "lookup_key": "starter",
    }
    assert refused(client.prices.create, new)[1] == "resource_already_exists"
    moved = client.prices.create({**new, "transfer_lookup_key": True})
    assert [p.id for p in client.prices.list({"lookup_keys": ["starter"]}).data] == [moved.id]
    old = item_of(client.subscriptions.retrieve(paid)).price
    assert (old.id, old.lookup_key, old.active) == (shop.starter, None, True)


def test_promotion_codes(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    coupon = client.coupons.create({"percent_off": 20, "duration": "once"})
    promo = client.promotion_codes.create(
        {
            "promotion": {"type": "coupon", "coupon": coupon.id},
            "code": "LAUNCH20",
            "expires_at": sandbox.now() + DAY,
        }
    )
    found = client.promotion_codes.list(
        {"code": "launch20", "active": True, "expand": ["data.promotion.coupon"]}
    )
    assert [p.promotion.coupon.percent_off for p in found.data] == [20]
    session = shop.session(discounts=[{"promotion_code": promo.id}])
    assert (session.amount_subtotal, session.amount_total) == (2900, 2320)
    sub = client.subscriptions.retrieve(
        sandbox.pay(session.id)["subscription"], {"expand": ["latest_invoice"]}
    )
    assert sub.latest_invoice.amount_paid == 2320 and sub.discounts == []
    sandbox.advance(days=2)
    assert client.promotion_codes.retrieve(promo.id).active is False
    status, _, param = refused(shop.session, discounts=[{"promotion_code": promo.id}])
    assert (status, param) == (400, "discounts[0][promotion_code]")


# -- checkout


def test_paying_a_session(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    session = shop.session(metadata={"ours": "1"})
    assert session.status == "open" and session.url.startswith(sandbox.url)
    before = len(sandbox.events)
    sandbox.pay(session.id)
    assert types(sandbox, before) == [
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
        "checkout.session.completed",
    ]
    created, *_, updated, completed = sandbox.events[before:]
    assert created["data"]["object"]["status"] == "incomplete"
    assert updated["data"]["previous_attributes"]["status"] == "incomplete"
    assert completed["data"]["object"]["payment_status"] == "paid"
    got = client.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "line_items"]})
    assert (got.status, got.payment_status, got.url) == ("complete", "paid", None)
    sub = got.subscription
    assert sub.status == "active" and sub.metadata["plan"] == "starter"
    assert "current_period_end" not in sub
    assert item_of(sub).current_period_end > sandbox.now() + 27 * DAY
    assert got.line_items.data[0].price.id == shop.starter
    with pytest.raises(Refusal):
        sandbox.pay(session.id)
    assert len(sandbox.every("subscription")) == 1
    assert refused(client.checkout.sessions.expire, session.id)[0] == 400


def test_the_checkout_page(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    sandbox.create_promotion_code("HALF", 50)
    session = shop.session(allow_promotion_codes=True)
    page = requests.get(session.url, timeout=5).text
    assert all(f'id="{name}"' in page for name in ("pay", "decline", "cancel", "promotion_code"))
    assert "USD 29.00 due today" in page

    def press(action: str, **data: str) -> requests.Response:
        return requests.post(f"{session.url}/{action}", data=data, timeout=5, allow_redirects=False)

    wrong = press("code", promotion_code="<b>")
    assert wrong.status_code == 400 and "This code is invalid." in wrong.text
    press("code", promotion_code="half")
    assert "USD 14.50 due today" in requests.get(session.url, timeout=5).text
    declined = press("decline")
    assert declined.status_code == 402 and "Your card was declined." in declined.text
    assert press("cancel").headers["Location"] == "http://localhost:3100/checkout/cancel"
    assert client.checkout.sessions.retrieve(session.id).status == "open"
    gone = press("pay")
    assert gone.headers["Location"] == SUCCESS.replace("{CHECKOUT_SESSION_ID}", session.id)
    assert "already" in press("pay").text or "complete" in press("pay").text
    assert client.subscriptions.list({"customer": shop.customer}).data[0].status == "active"


@pytest.mark.parametrize(("succeed", "status"), [(True, "active"), (False, "incomplete")])
def test_a_payment_that_takes_days(
    sandbox: Sandbox, client: Any, shop: Shop, succeed: bool, status: str
) -> None:
    session = sandbox.pay_async(shop.session().id)
    assert session["payment_status"] == "unpaid"
    assert client.subscriptions.retrieve(session["subscription"]).status == "incomplete"
    sandbox.settle(session["id"], succeed=succeed)
    outcome = "succeeded" if succeed else "failed"
    assert types(sandbox)[-1] == f"checkout.session.async_payment_{outcome}"
    assert client.subscriptions.retrieve(session["subscription"]).status == status
    sandbox.advance(days=1)
    later = client.subscriptions.retrieve(session["subscription"]).status
    assert later == ("active" if succeed else "incomplete_expired")


def test_an_unpaid_session_expires(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    session = shop.session()
    sandbox.advance(hours=23)
    assert client.checkout.sessions.retrieve(session.id).status == "open"
    sandbox.advance(hours=1)
    assert client.checkout.sessions.retrieve(session.id).status == "expired"
    assert types(sandbox)[-1] == "checkout.session.expired"
    with pytest.raises(Refusal):
        sandbox.pay(session.id)


def test_a_trial_from_checkout(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    session = shop.session(subscription_data={"trial_period_days": 14})
    done = sandbox.pay(session.id)
    assert done["payment_status"] == "no_payment_required"
    sub = client.subscriptions.retrieve(done["subscription"])
    assert sub.status == "trialing" and item_of(sub).current_period_end == sub.trial_end
    sandbox.advance(days=14)
    assert client.subscriptions.retrieve(sub.id).status == "active"


# -- changes of a subscription


def test_upgrade_and_its_refusal(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    sandbox.advance(days=10)
    sandbox.set_card(shop.customer, "decline")
    before = sandbox.get("subscription", paid), len(sandbox.events)
    with pytest.raises(stripe.CardError) as caught:
        upgrade(client, paid, shop.professional)
    assert caught.value.http_status == 402 and caught.value.code == "card_declined"
    assert (sandbox.get("subscription", paid), len(sandbox.events)) == before

    sandbox.set_card(shop.customer, "ok")
    sub = upgrade(client, paid, shop.professional, expand=["latest_invoice"])
    assert item_of(sub).price.id == shop.professional and sub.status == "active"
    assert 0 < sub.latest_invoice.amount_paid < 7000
    assert types(sandbox)[-1] == "customer.subscription.updated"

    sandbox.set_card(shop.customer, "decline")
    down = upgrade(client, paid, shop.starter)
    assert item_of(down).price.id == shop.starter
    assert client.customers.retrieve(shop.customer).balance < 0


@pytest.mark.parametrize(
    ("behavior", "status", "changed"),
    [("allow_incomplete", "past_due", True), ("pending_if_incomplete", "active", False)],
)
def test_a_declined_upgrade_otherwise(
    sandbox: Sandbox,
    client: Any,
    shop: Shop,
    paid: str,
    behavior: str,
    status: str,
    changed: bool,
) -> None:
    sandbox.set_card(shop.customer, "decline")
    sub = upgrade(client, paid, shop.professional, payment_behavior=behavior)
    assert sub.status == status
    assert (item_of(sub).price.id == shop.professional) is changed
    assert (sub.pending_update is None) is changed
    sandbox.pay_invoice(paid)
    now = client.subscriptions.retrieve(paid)
    assert (now.status, item_of(now).price.id) == ("active", shop.professional)


def test_cancel_at_period_end_and_back(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    sub = client.subscriptions.update(paid, {"cancel_at_period_end": True})
    assert sub.cancel_at_period_end and sub.cancel_at == item_of(sub).current_period_end
    sub = client.subscriptions.update(paid, {"cancel_at_period_end": False})
    assert not sub.cancel_at_period_end and sub.cancel_at is None and sub.canceled_at is None
    both = {"cancel_at_period_end": False, "cancel_at": ""}
    assert refused(client.subscriptions.update, paid, both)[0] == 400

    sandbox.portal_cancel(paid)
    sub = client.subscriptions.retrieve(paid)
    assert (sub.cancel_at_period_end, sub.status) == (False, "active")
    assert sub.cancel_at == item_of(sub).current_period_end
    assert client.subscriptions.update(paid, {"cancel_at": ""}).cancel_at is None

    sandbox.portal_cancel(paid)
    sandbox.advance(days=32)
    ended = client.subscriptions.retrieve(paid)
    assert ended.status == "canceled" and ended.ended_at == sub.cancel_at
    assert types(sandbox)[-1] == "customer.subscription.deleted"


def test_an_ended_subscription_stays_ended(client: Any, shop: Shop, paid: str) -> None:
    assert client.subscriptions.cancel(paid).status == "canceled"
    assert refused(client.subscriptions.cancel, paid)[:2] == (404, "resource_missing")
    assert refused(client.subscriptions.update, paid, {"cancel_at_period_end": True})[0] == 400
    assert client.subscriptions.update(paid, {"metadata": {"a": "1"}}).metadata["a"] == "1"
    assert client.subscriptions.list({"customer": shop.customer}).data == []
    every = client.subscriptions.list({"customer": shop.customer, "status": "all"}).data
    assert [sub.id for sub in every] == [paid]


def test_dashboard_changes(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    second = sandbox.create_subscription(shop.customer, shop.professional, metadata={"by": "hand"})
    assert len(client.subscriptions.list({"customer": shop.customer}).data) == 2
    only = client.subscriptions.list({"price": shop.professional}).data
    assert [sub.id for sub in only] == [second["id"]]
    sandbox.set_status(paid, "never_heard_of")
    assert client.subscriptions.retrieve(paid).status == "never_heard_of"
    sandbox.set_status(paid, "active")
    sandbox.pause(paid)
    assert types(sandbox)[-2:] == ["customer.subscription.updated", "customer.subscription.paused"]
    assert client.subscriptions.resume(paid).status == "active"
    assert types(sandbox)[-1] == "customer.subscription.resumed"
    assert refused(client.subscriptions.resume, paid)[0] == 400
    sandbox.update_subscription(paid, pause_collection={"behavior": "void"})
    assert client.subscriptions.retrieve(paid).pause_collection.behavior == "void"
    sandbox.portal_switch(paid, shop.professional)
    assert item_of(client.subscriptions.retrieve(paid)).price.id == shop.professional


# -- the clock


def test_renewals(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    first = item_of(client.subscriptions.retrieve(paid)).current_period_end
    sandbox.advance(days=70)
    sub = client.subscriptions.retrieve(paid)
    assert sub.status == "active" and item_of(sub).current_period_start > first
    invoices = client.invoices.list({"subscription": paid}).data
    reasons = ["subscription_cycle", "subscription_cycle", "subscription_create"]
    assert [i.billing_reason for i in invoices] == reasons
    assert {i.status for i in invoices} == {"paid"} and invoices[1].created == first
    times = [event["created"] for event in sandbox.events]
    assert times == sorted(times)


@pytest.mark.parametrize("then", ["canceled", "unpaid"])
def test_a_failed_renewal(sandbox: Sandbox, client: Any, shop: Shop, paid: str, then: str) -> None:
    sandbox.set_dunning((3, 5), then)
    sandbox.set_card(shop.customer, "decline")
    end = item_of(client.subscriptions.retrieve(paid)).current_period_end
    sandbox.advance_to(end)
    draft = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]}).latest_invoice
    assert (draft.status, draft.number, draft.next_payment_attempt) == ("draft", None, end + 3600)
    sandbox.advance(hours=1)
    assert client.subscriptions.retrieve(paid).status == "past_due"
    assert types(sandbox)[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]
    sandbox.advance(days=7)
    assert client.subscriptions.retrieve(paid).status == "past_due"
    sandbox.advance(days=1)
    sub = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
    assert sub.status == then and sub.latest_invoice.attempt_count == 3
    if then == "canceled":
        assert sub.cancellation_details.reason == "payment_failed"


def test_a_retry_that_succeeds(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    sandbox.set_card(shop.customer, "decline")
    sandbox.advance(days=31)
    sandbox.set_card(shop.customer, "ok")
    sandbox.advance(days=4)
    assert client.subscriptions.retrieve(paid).status == "active"


@pytest.mark.parametrize(
    ("card", "behavior", "status"),
    [
        ("ok", "pause", "active"),
        ("decline", "pause", "past_due"),
        (None, "pause", "paused"),
        (None, "cancel", "canceled"),
        (None, "create_invoice", "past_due"),
    ],
)
def test_the_end_of_a_trial(
    sandbox: Sandbox, client: Any, shop: Shop, card: str | None, behavior: str, status: str
) -> None:
    settings = {"end_behavior": {"missing_payment_method": behavior}}
    sub = sandbox.create_subscription(shop.customer, shop.starter, trial_days=7, trial_settings=settings)
    sandbox.set_card(shop.customer, card)
    sandbox.advance(days=7)
    assert client.subscriptions.retrieve(sub["id"]).status in ("active", status)
    sandbox.advance(hours=1)
    assert client.subscriptions.retrieve(sub["id"]).status == status


# -- keys, and what else an account holds


def test_keys_see_their_account_and_mode(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    assert client.accounts.retrieve_current().id == sandbox.account
    sandbox.add_key("sk_test_second")
    sandbox.add_key("sk_test_theirs", account="acct_theirs")
    sandbox.add_key("sk_live_ours")
    assert connect(sandbox, "sk_test_second").customers.retrieve(shop.customer).id == shop.customer
    for key, account in (("sk_test_theirs", "acct_theirs"), ("sk_live_ours", sandbox.account)):
        other = connect(sandbox, key)
        assert other.accounts.retrieve_current().id == account
        assert other.customers.list().data == []
        assert refused(other.customers.retrieve, shop.customer) == (404, "resource_missing", "id")
    with pytest.raises(
        stripe.InvalidRequestError, match="similar object exists in test mode, but a live mode key"
    ):
        connect(sandbox, "sk_live_ours").customers.retrieve(shop.customer)
    assert connect(sandbox, "sk_live_ours").customers.create({}).livemode is True
    assert len(sandbox.every("customer")) == 1


def test_keys_that_lack_a_right_or_ended(sandbox: Sandbox, shop: Shop) -> None:
    sandbox.add_key("rk_test_reader", without=["customer_write", "accounts_kyc_basic_read"])
    reader = connect(sandbox, "rk_test_reader")
    assert reader.customers.retrieve(shop.customer).id == shop.customer
    with pytest.raises(stripe.PermissionError, match="'rak_customer_write' permission") as caught:
        reader.customers.create({})
    assert caught.value.http_status == 403 and str(caught.value.request_id).startswith("req_")
    assert refused(reader.accounts.retrieve_current)[0] == 403
    sandbox.add_key("sk_test_old", revoked=True)
    assert refused(connect(sandbox, "sk_test_old").customers.list)[:2] == (401, "api_key_expired")


def test_other_things_of_the_same_account(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    support = sandbox.create_price(50_000, interval="year", nickname="Support contract")
    items = [{"price": support["id"]}, {"price": shop.starter, "quantity": 0}]
    sub = client.subscriptions.retrieve(sandbox.create_subscription(shop.customer, items=items)["id"])
    assert [(i.price.recurring.interval, i.quantity) for i in sub["items"].data] == [
        ("year", 1),
        ("month", 0),
    ]
    linked = sandbox.pay_link(shop.starter, "Link@example.com")
    assert linked["payment_link"] and linked["metadata"] == {}
    assert client.customers.retrieve(linked["customer"]).metadata.to_dict() == {}
    assert client.customers.list({"email": "link@example.com"}).data == []
    (found,) = client.customers.search({"query": 'email:"link@example.com"'}).data
    assert found.id == linked["customer"]
    ours = sandbox.create_customer("c@example.com", metadata={"customer_id": "cust_1"})["id"]
    query = "metadata['customer_id']:'cust_1' AND email:'c@example.com'"
    assert [c.id for c in client.customers.search({"query": query}).data] == [ours]
    assert refused(client.customers.search, {"query": "created>5"})[2] == "query"


def test_what_stands_under_a_test_clock(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    clocked = sandbox.create_customer("t@example.com", test_clock="clock_1")["id"]
    sub = sandbox.create_subscription(clocked, shop.starter)["id"]
    assert [c.id for c in client.customers.list().data] == [shop.customer]
    assert client.subscriptions.list({"status": "all"}).data == []
    assert client.customers.retrieve(clocked).test_clock == "clock_1"
    assert client.subscriptions.retrieve(sub).status == "active"
    for found in (
        client.subscriptions.list({"customer": clocked}),
        client.subscriptions.list({"test_clock": "clock_1"}),
    ):
        assert [s.id for s in found.data] == [sub]
    assert [c.id for c in client.customers.list({"test_clock": "clock_1"}).data] == [clocked]


def test_yearly_and_archived_prices(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    yearly = sandbox.create_price(29_000, interval="year", lookup_key="starter_year")["id"]
    sub = upgrade(client, paid, yearly, expand=["latest_invoice"])
    item = item_of(sub)
    assert 364 * DAY < item.current_period_end - item.current_period_start < 367 * DAY
    assert sub.latest_invoice.amount_paid == 29_000 - 2_900
    client.prices.update(shop.professional, {"active": False})
    assert refused(upgrade, client, paid, shop.professional) == (400, None, "items[0][price]")
    with pytest.raises(stripe.InvalidRequestError, match="The price specified is inactive") as caught:
        shop.session(shop.professional)
    assert caught.value.param == "line_items[0][price]"
    assert client.prices.update(shop.starter, {"tax_behavior": "exclusive"}).tax_behavior == "exclusive"
    assert refused(client.prices.update, shop.starter, {"tax_behavior": "inclusive"})[2] == "tax_behavior"


def test_one_currency_for_a_customer(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    euro = sandbox.create_price(2_700, currency="eur")["id"]
    assert refused(upgrade, client, paid, euro) == (400, None, "items[0][price]")
    for call in (lambda: shop.session(euro), lambda: sandbox.create_subscription(shop.customer, euro)):
        with pytest.raises((stripe.InvalidRequestError, Refusal), match="cannot combine currencies"):
            call()
    assert len(client.subscriptions.list({"customer": shop.customer}).data) == 1


@pytest.mark.parametrize(
    ("card", "status", "code", "decline_code"),
    [
        (None, 400, "resource_missing", None),
        ("3ds", 402, "subscription_payment_intent_requires_action", None),
        ("insufficient_funds", 402, "card_declined", "insufficient_funds"),
        ("expired_card", 402, "expired_card", "expired_card"),
    ],
)
def test_cards_at_an_upgrade(
    sandbox: Sandbox,
    client: Any,
    shop: Shop,
    paid: str,
    card: str | None,
    status: int,
    code: str,
    decline_code: str,
) -> None:
    sandbox.set_card(shop.customer, card)
    before = len(sandbox.events)
    with pytest.raises(stripe.StripeError) as caught:
        upgrade(client, paid, shop.professional)
    error = caught.value.json_body["error"]
    assert (caught.value.http_status, error["code"]) == (status, code)
    assert error.get("decline_code") == decline_code
    assert item_of(client.subscriptions.retrieve(paid)).price.id == shop.starter
    assert len(sandbox.events) == before


def test_an_upgrade_waits_for_authentication(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    sandbox.set_card(shop.customer, "3ds")
    yearly = sandbox.create_price(99_000, interval="year")["id"]
    more = {"payment_behavior": "pending_if_incomplete", "expand": ["latest_invoice"]}
    sub = upgrade(client, paid, yearly, **more)
    assert (sub.status, item_of(sub).price.id) == ("active", shop.starter)
    assert sub.pending_update and sub.latest_invoice.status == "open"
    assert types(sandbox)[-2] == "invoice.payment_action_required"
    assert requests.post(sub.latest_invoice.hosted_invoice_url, timeout=5).status_code == 200
    sub = client.subscriptions.retrieve(paid)
    assert (item_of(sub).price.id, sub.pending_update) == (yearly, None)
    assert item_of(sub).current_period_end > sandbox.now() + 360 * DAY

    sandbox.set_card(shop.customer, "decline")
    sub = upgrade(
        client, paid, shop.professional, payment_behavior="pending_if_incomplete", proration_behavior="none"
    )
    assert sub.pending_update
    sandbox.advance(hours=23)
    sub = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
    assert (sub.pending_update, sub.latest_invoice.status) == (None, "void")


# -- invoices


def overage(client: Any, customer: str, **more: Any) -> Any:
    return client.invoice_items.create(
        {
            "customer": customer,
            "currency": "usd",
            "unit_amount_decimal": "10",
            "quantity": 45,
            "description": "Overage: 45 device-days",
            "discountable": False,
            "metadata": {"period": "1"},
            **more,
        }
    )


def test_an_item_on_the_draft_of_a_renewal(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    coupon = client.coupons.create({"percent_off": 50, "duration": "forever"}).id
    session = shop.session(discounts=[{"coupon": coupon}])
    paid = sandbox.pay(session.id)["subscription"]
    end = item_of(client.subscriptions.retrieve(paid)).current_period_end
    sandbox.advance_to(end)
    (draft, first) = client.invoices.list({"customer": shop.customer}).data
    created = [e for e in sandbox.events if e["type"] == "invoice.created"][-1]["data"]["object"]
    assert (created["status"], created["billing_reason"]) == ("draft", "subscription_cycle")
    assert (draft.id, draft.amount_due, draft.auto_advance) == (created["id"], 1450, True)
    assert draft.parent.subscription_details.subscription == paid
    period = {"start": end - 30 * DAY, "end": end}
    key = {"idempotency_key": "overage-1"}
    params = {"customer": shop.customer, "invoice": draft.id, "currency": "usd", "quantity": 45}
    params |= {
        "unit_amount_decimal": "10",
        "discountable": False,
        "period": period,
        "metadata": {"period": "1"},
    }
    item = client.invoice_items.create(params, key)
    assert client.invoice_items.create(params, key).id == item.id
    assert (item.amount, item.invoice, item.pricing.unit_amount_decimal) == (450, draft.id, 10)
    assert client.invoice_items.list({"invoice": draft.id}).data[0].id == item.id
    draft = client.invoices.retrieve(draft.id)
    (line,) = [line for line in draft.lines.data if line.parent.type == "invoice_item_details"]
    assert line.parent.invoice_item_details.invoice_item == item.id and line.metadata["period"] == "1"
    assert (line.quantity, line.period.end, draft.amount_due) == (45, end, 1450 + 450)
    sandbox.advance(hours=1)
    done = client.invoices.retrieve(draft.id)
    assert (done.status, done.amount_paid, done.status_transitions.paid_at) == ("paid", 1900, end + 3600)
    assert done.number and done.hosted_invoice_url and done.invoice_pdf
    assert refused(overage, client, shop.customer, invoice=done.id) == (
        400,
        "invoice_not_editable",
        "invoice",
    )
    assert refused(client.invoice_items.delete, item.id)[0] == 400
    assert client.invoices.list({"limit": 1, "starting_after": done.id}).data[0].id == first.id


def test_pending_items_wait_for_the_next_invoice(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str
) -> None:
    first, second, third = (overage(client, shop.customer).id for _ in range(3))
    client.invoice_items.delete(second)
    assert client.invoice_items.update(third, {"quantity": 1}).amount == 10
    waiting = client.invoice_items.list({"customer": shop.customer, "pending": True}).data
    assert [item.id for item in waiting] == [third, first]
    preview = client.invoices.create_preview({"subscription": paid})
    assert preview.amount_due == 2900 + 450 + 10 and preview.id.startswith("upcoming_in_")
    sandbox.advance(days=32)
    invoice = client.invoices.list({"subscription": paid}).data[0]
    assert (invoice.amount_paid, len(invoice.lines.data)) == (preview.amount_due, 3)
    assert client.invoice_items.list({"pending": True}).data == []


def test_invoices_made_by_hand(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    include = {"customer": shop.customer, "pending_invoice_items_behavior": "include"}
    assert refused(client.invoices.create, include)[1] == "invoice_no_customer_line_items"
    overage(client, shop.customer)
    invoice = client.invoices.create(include)
    assert (invoice.status, invoice.auto_advance, invoice.total, invoice.parent) == (
        "draft",
        False,
        450,
        None,
    )
    sandbox.advance(days=1)
    assert client.invoices.finalize_invoice(invoice.id).status == "open"
    assert refused(client.invoices.pay, invoice.id)[:2] == (400, "resource_missing")
    sandbox.set_card(shop.customer, "3ds")
    assert refused(client.invoices.pay, invoice.id)[1] == "invoice_payment_intent_requires_action"
    sandbox.set_card(shop.customer, "ok")
    assert client.invoices.pay(invoice.id).status == "paid"
    assert refused(client.invoices.pay, invoice.id)[0] == 400
    sub = sandbox.create_subscription(shop.customer, shop.starter)["id"]
    sandbox.set_card(shop.customer, "decline")
    overage(client, shop.customer, subscription=sub)
    own = client.invoices.create({**include, "subscription": sub, "auto_advance": True})
    sandbox.advance(hours=1)
    failed = client.invoices.retrieve(own.id)
    assert failed.status == "open" and failed.parent.subscription_details.subscription == sub
    assert client.subscriptions.retrieve(sub).status == "active"
    sandbox.set_card(shop.customer, "ok")
    overage(client, shop.customer)
    other = client.invoices.create({**include, "auto_advance": True})
    assert client.invoices.delete(other.id).deleted and refused(client.invoices.retrieve, other.id)[0] == 404
    last = client.invoices.create({**include, "auto_advance": True})
    sandbox.advance(hours=1)
    assert client.invoices.retrieve(last.id).amount_paid == 450


def test_a_preview_is_what_the_change_costs(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    sandbox.advance(days=10)
    now = sandbox.now()
    items = [{"id": item_of(client.subscriptions.retrieve(paid)).id, "price": shop.professional}]
    details = {"items": items, "proration_behavior": "always_invoice", "proration_date": now}
    before = len(sandbox.events)
    preview = client.invoices.create_preview({"subscription": paid, "subscription_details": details})
    assert len(sandbox.events) == before
    assert [line.amount < 0 for line in preview.lines.data] == [True, False]
    sub = upgrade(client, paid, shop.professional, proration_date=now, expand=["latest_invoice"])
    assert sub.latest_invoice.amount_paid == preview.amount_due > 0
    assert sub.latest_invoice.auto_advance is False
    later = client.subscriptions.update(paid, {"items": [{**items[0], "price": shop.starter}]})
    assert later.latest_invoice == sub.latest_invoice.id
    assert {item.proration for item in client.invoice_items.list({"pending": True}).data} == {True}


@pytest.mark.parametrize("how", ["at_once", "invoice_now", "period_end"])
def test_what_waits_when_a_subscription_ends(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str, how: str
) -> None:
    overage(client, shop.customer, subscription=paid)
    if how == "period_end":
        client.subscriptions.update(paid, {"cancel_at_period_end": True})
        assert refused(client.invoices.create_preview, {"subscription": paid})[1] == "invoice_upcoming_none"
        sandbox.advance(days=32)
    else:
        client.subscriptions.cancel(paid, {"invoice_now": how == "invoice_now"})
    sandbox.advance(hours=1)
    newest = client.invoices.list({"customer": shop.customer}).data[0]
    waiting = client.invoice_items.list({"pending": True}).data
    assert client.subscriptions.retrieve(paid).status == "canceled"
    assert (newest.amount_paid, len(waiting)) == ((2900, 1) if how == "at_once" else (450, 0))


def test_a_failed_payment_says_when_it_is_tried_again(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str
) -> None:
    sandbox.set_card(shop.customer, "decline")
    charged_at = item_of(client.subscriptions.retrieve(paid)).current_period_end + 3600
    sandbox.advance_to(charged_at)
    (invoice,) = client.invoices.list({"customer": shop.customer, "status": "open"}).data
    assert invoice.next_payment_attempt == charged_at + 3 * DAY and invoice.attempt_count == 1
    failed = [e for e in sandbox.events if e["type"] == "invoice.payment_failed"][-1]["data"]["object"]
    assert failed["next_payment_attempt"] == invoice.next_payment_attempt
    sandbox.set_card(shop.customer, "ok")
    sandbox.advance(days=3)
    assert client.invoices.retrieve(invoice.id).status == "paid"


def test_sent_invoices(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    params = {
        "customer": shop.customer,
        "items": [{"price": shop.starter}],
        "collection_method": "send_invoice",
    }
    assert refused(client.subscriptions.create, params)[2] == "days_until_due"
    sub = client.subscriptions.create({**params, "days_until_due": 7, "expand": ["latest_invoice"]})
    assert (sub.status, sub.latest_invoice.status) == ("active", "draft")
    sandbox.advance(hours=1)
    invoice = client.invoices.retrieve(sub.latest_invoice.id)
    assert (invoice.status, invoice.amount_paid, invoice.attempted) == ("open", 0, False)
    assert invoice.due_date == invoice.created + 3600 + 7 * DAY and invoice.next_payment_attempt is None
    sandbox.advance(days=7)
    assert client.subscriptions.retrieve(sub.id).status == "past_due"
    assert client.invoices.pay(invoice.id, {"paid_out_of_band": True}).status == "paid"
    assert client.subscriptions.retrieve(sub.id).status == "active"


def test_paused_collection(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    for behavior, status in (
        ("void", "void"),
        ("mark_uncollectible", "uncollectible"),
        ("keep_as_draft", "draft"),
    ):
        client.subscriptions.update(paid, {"pause_collection": {"behavior": behavior}})
        sandbox.advance_to(item_of(client.subscriptions.retrieve(paid)).current_period_end + 3600)
        sub = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
        assert (sub.status, sub.latest_invoice.status) == ("active", status)


def test_a_planned_change(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    schedule = sandbox.schedule(paid, shop.professional)["id"]
    sub = client.subscriptions.retrieve(paid, {"expand": ["schedule"]})
    phase = sub.schedule.phases[-1]
    assert (phase.start_date, phase["items"][0].price) == (item_of(sub).current_period_end, shop.professional)
    with pytest.raises(stripe.InvalidRequestError, match="managed by the subscription schedule"):
        client.subscriptions.update(paid, {"cancel_at_period_end": True})
    sandbox.advance(days=32)
    sub = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
    assert (item_of(sub).price.id, sub.latest_invoice.amount_paid) == (shop.professional, 9900)
    assert sub.schedule == schedule
    sandbox.advance(days=31)
    assert client.subscription_schedules.retrieve(schedule).status == "released"
    second = sandbox.schedule(paid, shop.starter)["id"]
    assert client.subscription_schedules.release(second).released_subscription == paid
    assert client.subscriptions.update(paid, {"cancel_at_period_end": True}).cancel_at


def test_refunds_and_disputes(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    invoice = client.subscriptions.retrieve(paid).latest_invoice
    assert sandbox.refund(invoice, 1000)["refunded"] is False
    assert types(sandbox)[-1] == "charge.refunded"
    (charge,) = client.charges.list({"customer": shop.customer}).data
    assert (charge.amount, charge.amount_refunded) == (2900, 1000)
    dispute = sandbox.dispute(invoice)
    assert "customer" not in dispute and types(sandbox)[-1] == "charge.dispute.created"
    sandbox.close_dispute(dispute["id"], "lost")
    found = client.disputes.retrieve(dispute["id"], {"expand": ["charge"]})
    assert (found.status, found.charge.customer, found.charge.disputed) == ("lost", shop.customer, True)
    assert types(sandbox)[-1] == "charge.dispute.closed"
    assert client.subscriptions.retrieve(paid).status == "active"


# -- tax


def test_what_tax_needs(client: Any, shop: Shop) -> None:
    tax = {"automatic_tax": {"enabled": True}}
    saved = {"customer_update": {"address": "auto", "name": "auto"}}
    assert refused(shop.session, **tax)[1] == "customer_tax_location_invalid"
    assert refused(shop.session, tax_id_collection={"enabled": True})[2] == "customer_update[name]"
    assert refused(shop.session, **tax, **saved)[2] == "automatic_tax[enabled]"  # no tax_behavior yet
    client.prices.update(shop.starter, {"tax_behavior": "exclusive"})
    assert shop.session(**tax, **saved).automatic_tax.status == "requires_location_inputs"
    params = {"customer": shop.customer, "items": [{"price": shop.starter}], **tax}
    assert refused(client.subscriptions.create, params)[1] == "customer_tax_location_invalid"


@pytest.mark.parametrize(("behavior", "total", "tax"), [("exclusive", 3480, 580), ("inclusive", 2900, 483)])
def test_tax_on_invoices(
    sandbox: Sandbox, client: Any, shop: Shop, behavior: str, total: int, tax: int
) -> None:
    client.prices.update(shop.starter, {"tax_behavior": behavior})
    session = shop.session(
        automatic_tax={"enabled": True},
        tax_id_collection={"enabled": True},
        billing_address_collection="required",
        customer_update={"address": "auto", "name": "auto"},
    )
    vat = {"type": "eu_vat", "value": "DE123456789"}  # pragma: allowlist secret
    done = sandbox.pay(session.id, address={"country": "DE"}, tax_id=vat)
    assert (done["amount_total"], done["total_details"]["amount_tax"]) == (total, tax)
    assert done["customer_details"]["tax_ids"] == [vat]
    assert client.customers.retrieve(shop.customer).address.country == "DE"
    overage(client, shop.customer, tax_behavior=behavior)
    sandbox.advance(days=32)
    first, second = reversed(client.invoices.list({"customer": shop.customer}).data)
    assert (first.amount_paid, first.total_taxes[0].amount, first.automatic_tax.status) == (
        total,
        tax,
        "complete",
    )
    extra = 90 if behavior == "exclusive" else 0
    assert second.amount_paid == total + 450 + extra and second.total_taxes[0].tax_behavior == behavior


# -- portal and webhooks


def test_the_portal_page(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    session = client.billing_portal.sessions.create(
        {"customer": shop.customer, "return_url": "http://localhost:3100/"}
    )

    def press(action: str, **data: str) -> int:
        form = {"subscription": paid, "action": action, **data}
        return requests.post(session.url, data=form, timeout=5, allow_redirects=False).status_code

    overage(client, shop.customer)
    sandbox.advance(days=32)
    page = requests.get(session.url, timeout=5).text
    assert "<title>Billing portal · Stripe sandbox</title>" in page and "color-scheme: light dark" in page
    assert "<td>Overage: 45 device-days</td><td>USD 4.50</td>" in page
    hosted = client.invoices.list({"customer": shop.customer}).data[0].hosted_invoice_url
    assert hosted in page and "USD 33.50" in requests.get(hosted, timeout=5).text
    assert press("cancel") == 303
    assert "Resume" in requests.get(session.url, timeout=5).text
    assert client.subscriptions.retrieve(paid).cancel_at
    assert press("resume") == 303
    assert client.subscriptions.retrieve(paid).cancel_at is None
    assert press("switch", price=shop.professional) == 303
    assert item_of(client.subscriptions.retrieve(paid)).price.id == shop.professional
    other = client.customers.create({}).id
    theirs = client.billing_portal.sessions.create({"customer": other})
    form = {"subscription": paid, "action": "cancel"}
    assert requests.post(theirs.url, data=form, timeout=5).status_code == 404


class Receiver:
    """A webhook endpoint that checks signatures and remembers what came."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.got: list[str] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                header = self.headers["Stripe-Signature"]
                event = stripe.Webhook.construct_event(body, header, outer.secret)
                outer.got.append(event.id)
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver(sandbox: Sandbox, client: Any) -> Iterator[Receiver]:
    receiver = Receiver("")
    endpoint = client.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": ["customer.created", "customer.updated"]}
    )
    receiver.secret = endpoint.secret
    assert secret_of(sandbox, endpoint.id) == endpoint.secret
    assert "secret" not in client.webhook_endpoints.retrieve(endpoint.id)
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_signatures(sandbox: Sandbox, client: Any) -> None:
    client.customers.create({})
    (event,) = sandbox.webhooks.pending
    body = sandbox.webhooks.payload(event)
    header = sandbox.webhooks.sign(body, ["whsec_a", "whsec_b"])
    for secret in ("whsec_a", "whsec_b"):
        assert stripe.Webhook.construct_event(body, header, secret).id == event["id"]
    old = sandbox.webhooks.sign(body, "whsec_a", int(time.time()) - 301)
    for bad_header, secret in ((header, "whsec_c"), (old, "whsec_a")):
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, bad_header, secret)


def test_held_events_go_out_as_the_test_likes(sandbox: Sandbox, client: Any, receiver: Receiver) -> None:
    customers = [client.customers.create({}).id for _ in range(4)]
    client.products.create({"name": "not for this endpoint"})
    held = list(sandbox.webhooks.pending)
    assert [e["data"]["object"]["id"] for e in held[:4]] == customers and receiver.got == []
    sandbox.webhooks.drop(held[0])
    assert [d.ok for d in sandbox.webhooks.deliver(held[1], times=2)] == [True, True]
    sandbox.webhooks.deliver_parallel([held[2]], [receiver.url] * 3)
    sandbox.webhooks.deliver_all(shuffle=random.Random(1))
    ids = [e["id"] for e in held]
    assert receiver.got == [ids[1]] * 2 + [ids[2]] * 3 + [ids[3]]
    assert sandbox.webhooks.pending == []
    undelivered = client.events.list({"delivery_success": False}).data
    assert [e.id for e in undelivered] == [ids[0]]


def test_thin_events(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    got: list[tuple[bytes, str]] = []
    event = next(e for e in sandbox.events if e["type"] == "customer.subscription.updated")

    def transport(url: str, body: bytes, headers: dict[str, str]) -> int:
        got.append((body, headers["Stripe-Signature"]))
        return 200

    sandbox.webhooks.transport, usual = transport, sandbox.webhooks.transport
    try:
        sandbox.webhooks.deliver_thin(event, "http://service.test/", "whsec_t")
    finally:
        sandbox.webhooks.transport = usual
    reader = stripe.StripeClient("sk_test_x")
    ((body, signature),) = got
    note: Any = reader.parse_event_notification(body, signature, "whsec_t")
    assert note.type == "v1.customer.subscription.updated"
    assert (note.related_object.id, note.related_object.url) == (paid, f"/v1/subscriptions/{paid}")


def test_events_are_delivered_over_http(sandbox: Sandbox, client: Any, receiver: Receiver) -> None:
    def send(command: str, **arguments: Any) -> Any:
        answer = requests.post(f"{sandbox.url}/_sandbox/{command}", json=arguments, timeout=5)
        return answer.json()["result"]

    send("webhooks_mode", mode="drop")
    ids = [client.customers.create({}).id for _ in range(2)]
    assert sandbox.webhooks.pending == [] and receiver.got == []
    send("webhooks_mode", mode="hold")
    client.customers.update(ids[0], {"name": "A"})
    events = [event["id"] for event in sandbox.events if event["type"].startswith("customer.")]
    sent = send("deliver", customer=ids[0], order="reverse", times=2)
    assert [(one["event"], one["status"]) for one in sent] == [(events[2], 200)] * 2 + [(events[0], 200)] * 2
    assert [one["event"] for one in send("deliver")] == [events[1]]
    assert send("deliver") == []
    assert [one["event"] for one in send("deliver", event=events[0])] == [events[0]]
    assert len(send("deliver", again=True, order="random")) == 3
    assert sorted(receiver.got) == sorted([*events * 2, events[2], events[0], events[0]])
    assert requests.get(f"{sandbox.url}/_sandbox/events", timeout=5).json()[0]["id"] == events[2]


def test_delivery_by_itself_with_retry(sandbox: Sandbox, client: Any, receiver: Receiver) -> None:
    sandbox.webhooks.mode, sandbox.webhooks.retry = "deliver", True
    receiver.answers = [500]
    client.customers.create({})
    assert sandbox.webhooks.wait(5)
    assert len(receiver.got) == 2 and len(set(receiver.got)) == 1
    assert [d.status for d in sandbox.webhooks.deliveries] == [500, 200]
    sandbox.webhooks.retry = False


def test_the_clock_waits_for_webhooks(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    """What a service adds to the draft when it hears of it is on the invoice."""

    def transport(url: str, body: bytes, headers: dict[str, str]) -> int:
        event = json.loads(body)
        if event["type"] == "invoice.created":
            overage(client, shop.customer, invoice=event["data"]["object"]["id"])
        return 200

    usual = sandbox.webhooks.transport
    sandbox.webhooks.targets["http://service.test/"] = "whsec_s"
    sandbox.webhooks.transport, sandbox.webhooks.mode = transport, "deliver"
    try:
        sandbox.advance(days=70, in_steps=True)
    finally:
        sandbox.webhooks.transport, sandbox.webhooks.mode = usual, "hold"
        del sandbox.webhooks.targets["http://service.test/"]
    assert [i["amount_paid"] for i in sandbox.every("invoice")] == [2900, 3350, 3350]


def test_a_url_gets_each_event_once(sandbox: Sandbox, client: Any, receiver: Receiver) -> None:
    client.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]})
    client.customers.create({})
    sandbox.webhooks.deliver_all()
    assert len(receiver.got) == 1


# -- control and persistence


def test_control_over_http(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    def send(command: str, **arguments: Any) -> requests.Response:
        return requests.post(f"{sandbox.url}/_sandbox/{command}", json=arguments, timeout=5)

    sub = send("pay", session=shop.session().id).json()["result"]["subscription"]
    send("card", customer=shop.customer, card="decline")
    assert send("advance", days=31).status_code == 200
    assert client.subscriptions.retrieve(sub).status == "past_due"
    send("faults", fail_next={"n": 1, "status": 429})
    assert refused(client.customers.list)[0] == 429
    assert send("advance", years=1).status_code == 400
    assert send("pay", session="cs_no").status_code == 404
    assert send("nonsense").status_code == 404
    state = requests.get(f"{sandbox.url}/_sandbox/state", timeout=5).json()
    assert state["cards"] == {shop.customer: "decline"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_process_keeps_its_state(tmp_path: Path) -> None:
    data, port = tmp_path / "sandbox.json", free_port()
    command = [sys.executable, "-m", "tests.stripe_sandbox", "--port", str(port)]
    command += ["--data", str(data), "--promo", "LAUNCH20=20"]
    root = Path(__file__).parents[2]

    def run() -> tuple[subprocess.Popen[str], Any]:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert process.stdout and "Stripe sandbox on" in process.stdout.readline()
        url = f"http://127.0.0.1:{port}"
        return process, stripe.StripeClient("sk_test_any", base_addresses={"api": url}).v1

    process, client = run()
    key = {"idempotency_key": "first"}
    shop = Shop(client)
    created = client.customers.create({"name": "stays"}, key).id
    account = client.accounts.retrieve_current().id
    session = shop.session().id
    process.kill()
    process.communicate()

    process, client = run()
    assert client.customers.create({"name": "stays"}, key).id == created
    assert client.accounts.retrieve_current().id == account
    assert client.checkout.sessions.retrieve(session).status == "open"
    assert [p.code for p in client.promotion_codes.list().data] == ["LAUNCH20"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 0
    assert json.loads(data.read_text())["tables"]["customer"]


def test_stop_and_start_again(tmp_path: Path) -> None:
    target = ("http://127.0.0.1:9/", "whsec_x")
    first = Sandbox(data=tmp_path / "s.json", webhook_url=target[0], webhook_secret=target[1])
    first.webhooks.retry = True
    with first:
        customer = connect(first).customers.create({}).id
        first.advance(days=3)
        time.sleep(0.2)
    with pytest.raises(requests.ConnectionError):
        requests.get(first.url, timeout=1)
    second = Sandbox(data=tmp_path / "s.json")
    assert abs(second.now() - first.now()) <= 1
    assert second.get("customer", customer)["id"] == customer
    event = second.events[0]
    assert not second.webhooks.wait(0), "an undelivered event waits on in the file"
    assert re.match(r"evt_\w+", event["id"]) and event["pending_webhooks"] == 1
