"""The Stripe sandbox through the real SDK: where the service leans on Stripe's behaviour, it has to be true.

What the service's own tests would notice (paying a page, promotion codes, keys without a right, refunds,
thin events, signatures …) is not repeated here.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
from werkzeug.serving import make_server

from tests.server import ROOT
from tests.stripe_sandbox import Refusal, Sandbox
from tests.stripe_sandbox.params import fields_of, params_class
from tests.stripe_sandbox.routes import ROUTES

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
    return connect(sandbox.url)


def connect(url: str) -> Any:
    client = stripe.StripeClient(
        "sk_test_sandbox", base_addresses={"api": url}, http_client=stripe.RequestsClient(timeout=5)
    )
    return client.v1


class Shop:
    """Two prices and a customer, as most tests need."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.product = client.products.create({"name": "Plan"}).id
        self.starter, self.professional = self.price("starter", 2900), self.price("professional", 9900)
        self.customer = client.customers.create({"email": "a@example.com", "name": "A"}).id

    def price(self, key: str, amount: int, interval: str = "month", **more: Any) -> str:
        wish = {"product": self.product, "currency": "usd", "unit_amount": amount, "lookup_key": key}
        return str(self.client.prices.create({**wish, "recurring": {"interval": interval}, **more}).id)

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

    def item_id(self, sub: str) -> str:
        return str(item_of(self.client.subscriptions.retrieve(sub)).id)

    def upgrade(self, sub: str, price: str, options: Any = None, **more: Any) -> Any:
        """As the service asks for it."""
        change = {
            "items": [{"id": self.item_id(sub), "price": price}],
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
            **more,
        }
        return self.client.subscriptions.update(sub, change, options)

    def overage(self, **more: Any) -> Any:
        wish = {"customer": self.customer, "currency": "usd", "unit_amount_decimal": "10", "quantity": 45}
        wish |= {"description": "Overage: 45 device-days", "discountable": False, "metadata": {"period": "1"}}
        return self.client.invoice_items.create({**wish, **more})


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


def refused(call: Any, *arguments: Any, **options: Any) -> Any:
    """Status, code and parameter of a call that must be refused."""
    with pytest.raises(stripe.StripeError) as caught:
        call(*arguments, **options)
    body: Any = caught.value.json_body
    error = body["error"]
    return caught.value.http_status, error.get("code"), error.get("param")


# Shapes and refusals


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
    shop.overage()
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
        cls = getattr(module, name.title().replace("_", ""))
        known = {field for base in cls.__mro__ for field in vars(base).get("__annotations__", {})}
        unknown = {field for obj in objects for field in obj} - known
        assert not unknown, (kind, unknown)


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"email": "a@example.com", "nickname": "x"}, "parameter_unknown", "nickname"),
        ({"address": {"planet": "Mars"}}, "parameter_unknown", "address[planet]"),
        ({"balance": "many"}, "parameter_invalid_integer", "balance"),
        ({"email": "no address"}, "email_invalid", "email"),
        ({"name": "x" * 257}, "parameter_invalid_string_length", "name"),
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


def test_missing_and_unknown_things(shop: Shop, client: Any, paid: str) -> None:
    assert refused(client.products.create, {}) == (400, "parameter_missing", "name")
    assert refused(client.subscriptions.retrieve, "sub_no") == (404, "resource_missing", "id")
    assert refused(shop.session, customer="cus_no") == (400, "resource_missing", "customer")
    assert refused(shop.session, success_url="nowhere")[1:] == ("url_invalid", "success_url")
    both = {"allow_promotion_codes": True, "discounts": [{"promotion_code": "promo_x"}]}
    assert refused(shop.session, **both)[0] == 400
    assert refused(client.payment_intents.list)[0] == 404
    assert refused(client.customers.list, {"limit": 500})[2] == "limit"
    deep = {"expand": ["data.items.data.price.product"]}  # four levels are the most
    assert refused(client.subscriptions.list, deep)[2] == "expand[0]"
    assert refused(client.subscriptions.retrieve, paid, {"expand": ["items.data.price.colour"]})[0] == 400


def test_what_lists_and_searches_find(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    """Without what is deleted, ended or under a test clock; addresses by letter case, but for a search."""

    def ids(found: Any) -> list[str]:
        return [obj.id for obj in found.data]

    customers, subscriptions = client.customers, client.subscriptions
    clocked = sandbox.create_customer("Clock@example.com", test_clock="clock_1")["id"]
    theirs = sandbox.create_subscription(clocked, shop.starter)["id"]
    gone = sandbox.create_customer("gone@example.com")["id"]
    assert (customers.delete(gone).deleted, customers.retrieve(gone).deleted) == (True, True)
    assert refused(customers.update, gone, {"name": "B"})[0] == 404
    assert ids(customers.list()) == [shop.customer]
    assert ids(subscriptions.list({"status": "all"})) == [paid]
    assert ids(subscriptions.list({"customer": clocked})) == [theirs]
    subscriptions.cancel(paid)
    assert refused(subscriptions.cancel, paid)[:2] == (404, "resource_missing")
    assert ids(subscriptions.list({"customer": shop.customer})) == []
    assert ids(subscriptions.list({"customer": shop.customer, "status": "all"})) == [paid]
    named = sandbox.create_customer("Named@example.com", metadata={"customer_id": "cust_1"})["id"]
    assert ids(customers.list({"email": "named@example.com"})) == []
    for query in ("metadata['customer_id']:'cust_1'", 'email:"named@example.com"'):
        assert ids(customers.search({"query": query})) == [named]


# Idempotency and failures


def test_the_same_key_gives_the_first_answer_again(sandbox: Sandbox, client: Any) -> None:
    key = {"idempotency_key": "k1"}
    assert refused(client.customers.create, {"nickname": "x"}, key)[0] == 400  # not kept: never begun
    sandbox.faults.delay = 0.5
    slow = threading.Thread(target=client.customers.create, args=({"email": "a@example.com"}, key))
    slow.start()
    time.sleep(0.2)
    in_use = refused(client.customers.create, {"email": "a@example.com"}, key)
    slow.join()
    assert in_use[:2] == (409, "idempotency_key_in_use")
    sandbox.faults.clear()
    first = client.customers.create({"email": "a@example.com"}, key)
    assert first.last_response.headers["Idempotent-Replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError) as caught:
        client.customers.create({"email": "b@example.com"}, key)
    assert caught.value.http_status == 400
    assert [customer["id"] for customer in sandbox.every("customer")] == [first.id]
    sandbox.advance(hours=24)
    assert client.customers.create({"email": "b@example.com"}, key).id != first.id


def test_a_refused_card_is_kept_for_its_key_too(sandbox: Sandbox, shop: Shop, paid: str) -> None:
    for card in ("decline", "ok"):
        sandbox.set_card(shop.customer, card)
        again = refused(shop.upgrade, paid, shop.professional, {"idempotency_key": "up"})
        assert again[:2] == (402, "card_declined")
    assert item_of(shop.upgrade(paid, shop.professional)).price.id == shop.professional


def test_faults_come_before_or_after_the_effect(sandbox: Sandbox, client: Any) -> None:
    for after, made in ((False, 0), (True, 1)):
        sandbox.faults.fail_next(1, status="drop", method="POST", path="customers", after=after)
        client.products.create({"name": "of another path"})
        with pytest.raises(stripe.APIConnectionError):
            client.customers.create({"name": "kept"}, {"idempotency_key": "k"})
        assert len(sandbox.every("customer")) == made
    assert client.customers.create({"name": "kept"}, {"idempotency_key": "k"}).name == "kept"
    assert len(sandbox.every("customer")) == 1


# Prices, checkout, and changes of a subscription


def test_prices_are_moved_archived_and_yearly(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    assert refused(shop.price, "starter", 3900)[1] == "resource_already_exists"
    moved = shop.price("starter", 3900, transfer_lookup_key=True)
    assert [p.id for p in client.prices.list({"lookup_keys": ["starter"]}).data] == [moved]
    old = item_of(client.subscriptions.retrieve(paid)).price
    assert (old.id, old.lookup_key, old.active) == (shop.starter, None, True)
    sub = shop.upgrade(paid, shop.price("starter_year", 29_000, "year"), expand=["latest_invoice"])
    item = item_of(sub)
    assert 364 * DAY < item.current_period_end - item.current_period_start < 367 * DAY
    assert sub.latest_invoice.amount_paid == 29_000 - 2_900
    client.prices.update(shop.professional, {"active": False})
    assert refused(shop.upgrade, paid, shop.professional) == (400, None, "items[0][price]")
    assert refused(shop.session, shop.professional)[2] == "line_items[0][price]"
    assert client.prices.update(shop.starter, {"tax_behavior": "exclusive"}).tax_behavior == "exclusive"
    assert refused(client.prices.update, shop.starter, {"tax_behavior": "inclusive"})[2] == "tax_behavior"


def test_paying_a_session(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    session = shop.session(metadata={"ours": "1"})
    assert session.status == "open" and session.url.startswith(sandbox.url)
    before = len(sandbox.events)
    sandbox.pay(session.id)
    assert types(sandbox, before) == [
        "customer.subscription.created", "invoice.created", "invoice.finalized", "invoice.paid",
        "invoice.payment_succeeded", "customer.subscription.updated", "checkout.session.completed",
    ]  # fmt: skip
    created, *_, updated, completed = sandbox.events[before:]
    assert created["data"]["object"]["status"] == "incomplete"
    assert updated["data"]["previous_attributes"]["status"] == "incomplete"
    assert completed["data"]["object"]["payment_status"] == "paid"
    got = client.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "line_items"]})
    assert (got.status, got.payment_status, got.url) == ("complete", "paid", None)
    sub = got.subscription
    assert (sub.status, sub.metadata["plan"], "current_period_end" in sub) == ("active", "starter", False)
    assert item_of(sub).current_period_end > sandbox.now() + 27 * DAY
    assert got.line_items.data[0].price.id == shop.starter
    with pytest.raises(Refusal):
        sandbox.pay(session.id)
    assert refused(client.checkout.sessions.expire, session.id)[0] == 400


def test_what_tax_needs(client: Any, shop: Shop) -> None:
    tax = {"automatic_tax": {"enabled": True}}
    saved = {"customer_update": {"address": "auto", "name": "auto"}}
    assert refused(shop.session, **tax)[1] == "customer_tax_location_invalid"
    assert refused(shop.session, tax_id_collection={"enabled": True})[2] == "customer_update[name]"
    assert refused(shop.session, **tax, **saved)[2] == "automatic_tax[enabled]"  # no tax_behavior yet
    client.prices.update(shop.starter, {"tax_behavior": "exclusive"})
    assert shop.session(**tax, **saved).automatic_tax.status == "requires_location_inputs"


@pytest.mark.parametrize(
    ("card", "status", "code", "decline_code"),
    [
        (None, 400, "resource_missing", None),
        ("3ds", 402, "subscription_payment_intent_requires_action", None),
        ("decline", 402, "card_declined", "generic_decline"),
        ("insufficient_funds", 402, "card_declined", "insufficient_funds"),
        ("expired_card", 402, "expired_card", "expired_card"),
    ],
)
def test_a_refused_upgrade_changes_nothing(
    sandbox: Sandbox, shop: Shop, paid: str, card: str | None, status: int, code: str, decline_code: str
) -> None:
    sandbox.set_card(shop.customer, card)
    before = sandbox.get("subscription", paid), len(sandbox.events)
    with pytest.raises(stripe.StripeError) as caught:
        shop.upgrade(paid, shop.professional)
    error = caught.value.json_body["error"]  # type: ignore[index]
    assert (caught.value.http_status, error["code"], error.get("decline_code")) == (
        status,
        code,
        decline_code,
    )
    assert (sandbox.get("subscription", paid), len(sandbox.events)) == before


def test_a_change_costs_its_preview_and_a_downgrade_is_a_credit(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str
) -> None:
    sandbox.advance(days=10)
    now = sandbox.now()
    items = [{"id": shop.item_id(paid), "price": shop.professional}]
    details = {"items": items, "proration_behavior": "always_invoice", "proration_date": now}
    before = len(sandbox.events)
    preview = client.invoices.create_preview({"subscription": paid, "subscription_details": details})
    assert [line.amount < 0 for line in preview.lines.data] == [True, False]
    assert (preview.id.startswith("upcoming_in_"), len(sandbox.events)) == (True, before)
    sub = shop.upgrade(paid, shop.professional, proration_date=now, expand=["latest_invoice"])
    assert (item_of(sub).price.id, sub.status) == (shop.professional, "active")
    assert 0 < sub.latest_invoice.amount_paid == preview.amount_due < 7000
    assert types(sandbox)[-1] == "customer.subscription.updated"
    sandbox.set_card(shop.customer, "decline")
    assert item_of(shop.upgrade(paid, shop.starter)).price.id == shop.starter
    assert client.customers.retrieve(shop.customer).balance < 0


def test_an_upgrade_waits_for_authentication(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    more = {"payment_behavior": "pending_if_incomplete", "expand": ["latest_invoice"]}
    sandbox.set_card(shop.customer, "decline")
    assert shop.upgrade(paid, shop.professional, **more).pending_update
    sandbox.advance(hours=23)
    sub = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
    assert (sub.pending_update, sub.latest_invoice.status) == (None, "void")

    sandbox.set_card(shop.customer, "3ds")
    sub = shop.upgrade(paid, shop.professional, **more)
    assert (sub.status, item_of(sub).price.id) == ("active", shop.starter)
    assert sub.pending_update and sub.latest_invoice.status == "open"
    assert types(sandbox)[-2] == "invoice.payment_action_required"
    assert requests.post(sub.latest_invoice.hosted_invoice_url, timeout=5).status_code == 200
    sub = client.subscriptions.retrieve(paid)
    assert (item_of(sub).price.id, sub.pending_update) == (shop.professional, None)


def test_cancel_at_period_end_and_back(sandbox: Sandbox, client: Any, paid: str) -> None:
    """Asked for by the API, or in the portal, which leaves `cancel_at_period_end` alone."""
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
    assert (ended.status, ended.ended_at) == ("canceled", sub.cancel_at)
    assert types(sandbox)[-1] == "customer.subscription.deleted"
    assert refused(client.subscriptions.update, paid, {"cancel_at_period_end": True})[0] == 400


# The clock and invoices


def test_renewals_happen_in_order(sandbox: Sandbox, client: Any, paid: str) -> None:
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


@pytest.mark.parametrize("then", ["active", "canceled", "unpaid"])
def test_a_failed_renewal(sandbox: Sandbox, client: Any, shop: Shop, paid: str, then: str) -> None:
    sandbox.set_dunning((3, 5), then)
    sandbox.set_card(shop.customer, "decline")
    end = item_of(client.subscriptions.retrieve(paid)).current_period_end

    def after(**time: int) -> tuple[Any, ...]:
        sandbox.advance(**time)
        found = client.subscriptions.retrieve(paid, {"expand": ["latest_invoice"]})
        invoice = found.latest_invoice
        return found.status, invoice.status, invoice.attempt_count, invoice.next_payment_attempt

    assert after(seconds=end - sandbox.now()) == ("active", "draft", 0, end + 3600)
    assert after(hours=1) == ("past_due", "open", 1, end + 3600 + 3 * DAY)
    assert types(sandbox)[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]
    failed = sandbox.events[-2]["data"]["object"]
    assert failed["next_payment_attempt"] == end + 3600 + 3 * DAY
    if then == "active":
        sandbox.set_card(shop.customer, "ok")
        assert after(days=3)[:3] == ("active", "paid", 2)
    else:
        assert after(days=7)[:3] == ("past_due", "open", 2)
        assert (after(days=1)[::2], client.subscriptions.retrieve(paid).status) == ((then, 3), then)


def test_an_item_on_the_draft_of_a_renewal(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    coupon = client.coupons.create({"percent_off": 50, "duration": "forever"}).id
    paid = sandbox.pay(shop.session(discounts=[{"coupon": coupon}]).id)["subscription"]
    end = item_of(client.subscriptions.retrieve(paid)).current_period_end
    sandbox.advance_to(end)
    (draft, first) = client.invoices.list({"customer": shop.customer}).data
    created = [e for e in sandbox.events if e["type"] == "invoice.created"][-1]["data"]["object"]
    assert (created["status"], created["billing_reason"]) == ("draft", "subscription_cycle")
    assert (draft.id, draft.amount_due, draft.auto_advance) == (created["id"], 1450, True)
    assert draft.parent.subscription_details.subscription == paid
    item = shop.overage(invoice=draft.id, period={"start": end - 30 * DAY, "end": end})
    assert (item.amount, item.invoice, item.pricing.unit_amount_decimal) == (450, draft.id, 10)
    draft = client.invoices.retrieve(draft.id)
    (line,) = [line for line in draft.lines.data if line.parent.type == "invoice_item_details"]
    assert line.parent.invoice_item_details.invoice_item == item.id and line.metadata["period"] == "1"
    assert (line.quantity, line.period.end, draft.amount_due) == (45, end, 1450 + 450)
    sandbox.advance(hours=1)
    done = client.invoices.retrieve(draft.id)
    assert (done.status, done.amount_paid, done.status_transitions.paid_at) == ("paid", 1900, end + 3600)
    assert done.number and done.hosted_invoice_url and done.invoice_pdf
    assert refused(shop.overage, invoice=done.id) == (400, "invoice_not_editable", "invoice")
    assert client.invoices.list({"limit": 1, "starting_after": done.id}).data[0].id == first.id


@pytest.mark.parametrize(
    ("how", "amount", "waiting"), [("renewed", 3350, 0), ("at_once", 2900, 1), ("period_end", 450, 0)]
)
def test_a_pending_item_waits_for_the_next_invoice(
    sandbox: Sandbox, client: Any, shop: Shop, paid: str, how: str, amount: int, waiting: int
) -> None:
    """A subscription that ends at once leaves it waiting; one that ends with its period invoices it."""
    item = shop.overage(subscription=paid)
    assert [i.id for i in client.invoice_items.list({"customer": shop.customer}).data] == [item.id]
    if how == "at_once":
        client.subscriptions.cancel(paid)
    elif how == "period_end":
        client.subscriptions.update(paid, {"cancel_at_period_end": True})
    sandbox.advance(days=32)
    newest = client.invoices.list({"customer": shop.customer}).data[0]
    assert (newest.amount_paid, len(client.invoice_items.list({"pending": True}).data)) == (amount, waiting)


def test_invoices_made_by_hand(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    include = {"customer": shop.customer, "pending_invoice_items_behavior": "include"}
    assert refused(client.invoices.create, include)[1] == "invoice_no_customer_line_items"
    waiting = shop.overage()
    own = client.invoices.create({"customer": shop.customer, "pending_invoice_items_behavior": "exclude"})
    assert (own.status, own.auto_advance, own.total, own.parent) == ("draft", False, 0, None)
    client.invoices.add_lines(own.id, {"lines": [{"invoice_item": waiting.id}]})
    sandbox.advance(days=1)
    assert client.invoices.finalize_invoice(own.id).status == "open"
    assert refused(client.invoices.pay, own.id)[:2] == (400, "resource_missing")
    sandbox.set_card(shop.customer, "ok")
    assert (client.invoices.pay(own.id).status, refused(client.invoices.pay, own.id)[0]) == ("paid", 400)
    shop.overage()
    other = client.invoices.create(include | {"auto_advance": True, "default_payment_method": "pm_1"})
    sandbox.advance(hours=1)
    assert client.invoices.retrieve(other.id).amount_paid == 450


# What `make run` shows and delivers


def test_the_checkout_page(sandbox: Sandbox, client: Any, shop: Shop) -> None:
    sandbox.create_promotion_code("HALF", 50)
    session = shop.session(allow_promotion_codes=True)
    page = requests.get(session.url, timeout=5).text
    assert all(f'id="{name}"' in page for name in ("pay", "decline", "cancel", "promotion_code"))
    assert "USD 29.00 due today" in page

    def press(action: str, **data: str) -> requests.Response:
        return requests.post(f"{session.url}/{action}", data=data, timeout=5, allow_redirects=False)

    wrong = press("code", promotion_code="<b>")
    assert (wrong.status_code, "This code is invalid." in wrong.text) == (400, True)
    press("code", promotion_code="half")
    assert "USD 14.50 due today" in requests.get(session.url, timeout=5).text
    declined = press("decline")
    assert (declined.status_code, "Your card was declined." in declined.text) == (402, True)
    assert press("cancel").headers["Location"] == "http://localhost:3100/checkout/cancel"
    assert client.checkout.sessions.retrieve(session.id).status == "open"
    assert press("pay").headers["Location"] == SUCCESS.replace("{CHECKOUT_SESSION_ID}", session.id)
    assert client.subscriptions.list({"customer": shop.customer}).data[0].status == "active"


def test_the_portal_page(sandbox: Sandbox, client: Any, shop: Shop, paid: str) -> None:
    session = client.billing_portal.sessions.create({"customer": shop.customer, "return_url": SUCCESS})

    def press(action: str, url: str = session.url, **data: str) -> int:
        form = {"subscription": paid, "action": action, **data}
        return requests.post(url, data=form, timeout=5, allow_redirects=False).status_code

    shop.overage()
    sandbox.advance(days=32)
    page = requests.get(session.url, timeout=5).text
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
    theirs = client.billing_portal.sessions.create({"customer": client.customers.create({}).id})
    assert press("cancel", theirs.url) == 404


def test_an_endpoint_hears_what_it_asked_for_until_it_answers_200(sandbox: Sandbox, client: Any) -> None:
    got: list[str] = []

    def service(environ: dict[str, Any], start: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        event = stripe.Webhook.construct_event(body, environ["HTTP_STRIPE_SIGNATURE"], endpoint.secret)
        got.append(event.id)
        start("200 OK" if len(got) > 1 else "500 Not yet", [])
        return [b""]

    listening = make_server("127.0.0.1", 0, service)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    wish = {"url": f"http://127.0.0.1:{listening.server_port}/", "enabled_events": ["customer.created"]}
    endpoint = client.webhook_endpoints.create(wish)
    assert "secret" not in client.webhook_endpoints.retrieve(endpoint.id)
    sandbox.webhooks.mode, sandbox.webhooks.retry = "deliver", True
    client.products.create({"name": "not for this endpoint"})
    client.customers.create({})
    assert sandbox.webhooks.wait(5)
    sandbox.webhooks.retry = False
    listening.shutdown()
    listening.server_close()
    (event,) = [e for e in sandbox.events if e["type"] == "customer.created"]
    assert got == [event["id"]] * 2
    assert [d.status for d in sandbox.webhooks.deliveries] == [500, 200]


def test_the_process_keeps_its_state(tmp_path: Path) -> None:
    """Killed or ended: objects, account, clock, idempotency keys, and events that nobody took yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, url = tmp_path / "sandbox.json", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.stripe_sandbox", "--port", str(port), "--data", str(data)]
    command += ["--promo", "LAUNCH20=20", "--webhook-url", "http://127.0.0.1:9/"]

    def start() -> tuple[subprocess.Popen[str], Any]:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout and "Stripe sandbox on" in process.stdout.readline()
        return process, connect(url)

    def state() -> dict[str, Any]:
        return dict(requests.get(f"{url}/_sandbox/state", timeout=5).json())

    process, client = start()
    key = {"idempotency_key": "first"}
    created = client.customers.create({"name": "stays"}, key).id
    Shop(client).session()
    now = requests.post(f"{url}/_sandbox/advance", json={"hours": 20}, timeout=5).json()["now"]
    before = state()["objects"]
    process.kill()
    process.communicate()

    process, client = start()
    assert client.customers.create({"name": "stays"}, key).id == created
    after = state()["objects"]
    assert {kind: [o["id"] for o in objects] for kind, objects in after.items()} == {
        kind: [o["id"] for o in objects] for kind, objects in before.items()
    }
    assert requests.post(f"{url}/_sandbox/advance", json={}, timeout=5).json()["now"] >= now
    assert {event["pending_webhooks"] for event in after["event"]} == {1}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 0
    assert json.loads(data.read_text())["tables"]["customer"]
