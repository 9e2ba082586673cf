"""Checkout, its pages, the portal and invoices, over HTTP against the Stripe sandbox."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.services import checkout as service
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer
from tests.shop import Shop, assert_refused

PATH = "/api/subscriptions/create-checkout"


def pages(shop: Shop, status: str = "open") -> list[dict[str, Any]]:
    return [s for s in shop.sandbox.every("checkout.session") if s["status"] == status]


def success(shop: Shop, session_id: str) -> tuple[int, str]:
    answer = shop.client.get("/checkout/success", query_string={"session_id": session_id})
    assert answer.mimetype == "text/html"
    return answer.status_code, answer.get_data(as_text=True)


def asked(sql: Callable[..., Any], action: str) -> list[tuple[str, bool]]:
    """Who asked for this, and whether it was refused, oldest first."""
    lines = sql("SELECT actor, after FROM audit_log WHERE action = %(action)s ORDER BY id", action=action)
    return [(line["actor"].partition(":")[0], "refused" in line["after"]) for line in lines]


# Opening a page


def test_checkout_opens_a_page_of_this_customer_for_this_plan(shop: Shop, sql: Callable[..., Any]) -> None:
    customer_id = shop.customer(company="Engines Ltd")
    answer = shop.checkout(customer_id, "professional")
    assert answer.keys() == {"sessionId", "checkoutUrl", "plan", "expiresAt"}
    (session,) = pages(shop)
    assert (session["id"], session["url"]) == (answer["sessionId"], answer["checkoutUrl"])
    assert (session["client_reference_id"], session["amount_total"]) == (customer_id, 9900)
    assert session["allow_promotion_codes"] is True
    assert session["success_url"].endswith("/checkout/success?session_id={CHECKOUT_SESSION_ID}")
    (customer,) = shop.sandbox.every("customer")
    assert customer["id"] == session["customer"] == shop.stripe_id(customer_id)
    assert (customer["name"], customer["metadata"]) == ("Engines Ltd", {"customer_id": customer_id})
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")
    assert asked(sql, "subscription.checkout") == [("admin", False)]


def test_the_name_that_deployed_clients_use(shop: Shop) -> None:
    """Their spelling in and out; one Idempotency-Key counts for both names; own addresses are used."""
    urls = {
        "success_url": "https://app.example.com/ok?s={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://x.example/no",
    }
    body = {"customer_id": shop.customer(), "plan": "starter", **urls}
    headers = ADMIN | {"Idempotency-Key": "k1"}
    answer = shop.post("/api/subscriptions/checkout", body, headers)
    assert (answer.status_code, answer.json["session_id"]) == (201, answer.json["sessionId"])
    assert answer.json["checkout_url"] == answer.json["checkoutUrl"]
    again = shop.post(PATH, body, headers)
    assert (again.status_code, again.json) == (201, {name: answer.json[name] for name in again.json})
    (session,) = pages(shop)
    assert {name: session[name] for name in urls} == urls


def test_a_key_first_used_under_the_other_name_answers_deployed_clients_in_their_spelling(shop: Shop) -> None:
    body = {"customerId": shop.customer(), "plan": "starter"}
    headers = ADMIN | {"Idempotency-Key": "k1"}
    answer = shop.post(PATH, body, headers).json
    again = shop.post("/api/subscriptions/checkout", body, headers)
    spelled = {"session_id": answer["sessionId"], "checkout_url": answer["checkoutUrl"]}
    assert (again.status_code, again.json) == (201, answer | spelled)
    assert len(pages(shop)) == 1


def test_tax_is_left_to_stripe(shop: Shop, make_app: Callable[..., Flask]) -> None:
    taxed = Shop(make_app(STRIPE_TAX="on"), shop.sandbox)
    session = taxed.checkout(taxed.customer())["sessionId"]
    taxed.sandbox.pay(session, address={"country": "DE"}, tax_id={"type": "eu_vat", "value": "DE123456789"})
    taxed.deliver()
    assert taxed.charges() == [3480]
    (made,) = pages(taxed, "complete")
    assert made["automatic_tax"]["enabled"] is True
    assert made["billing_address_collection"] == "required"


def test_a_promotion_code_is_applied_in_whatever_letter_case(shop: Shop) -> None:
    promotion = shop.sandbox.create_promotion_code("LAUNCH20", 20)
    customer_id = shop.customer()
    session = shop.checkout(customer_id, promoCode="launch20")
    (made,) = pages(shop)
    assert made["discounts"] == [{"coupon": None, "promotion_code": promotion["id"]}]
    shop.sandbox.pay(session["sessionId"])
    shop.deliver()
    assert shop.charges() == [2320]
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_code_that_is_unknown_expired_or_refused_is_422_and_opens_nothing(shop: Shop) -> None:
    shop.sandbox.create_promotion_code("EXPIRED", 20, expires_at=shop.sandbox.now() + 60)
    shop.sandbox.advance(seconds=61)
    rules = {"minimum_amount": 5000, "minimum_amount_currency": "usd"}
    shop.sandbox.create_promotion_code("BIG", 10, restrictions=rules)
    customer_id = shop.customer()
    for code in ("NOPE", "EXPIRED", "ÄÖÜ", "x" * 500, "BIG"):
        answer = shop.try_checkout(customer_id, promoCode=code)
        assert (answer.status_code, list(answer.json["errors"]["json"])) == (422, ["promoCode"])
    assert shop.sandbox.every("checkout.session") == []
    assert shop.checkout(customer_id, "professional", promoCode="BIG")["plan"] == "professional"


def test_a_code_for_another_customer_is_unknown_and_ones_own_wins(shop: Shop) -> None:
    first, second = shop.customer(), shop.customer()
    for customer_id in (first, second):
        shop.checkout(customer_id)
    shop.sandbox.create_promotion_code("FRIEND", 50, customer=shop.stripe_id(second))
    assert shop.try_checkout(first, promoCode="FRIEND").status_code == 422
    mine = shop.sandbox.create_promotion_code("FRIEND", 10, customer=shop.stripe_id(first))
    made = shop.sandbox.get("checkout.session", shop.checkout(first, promoCode="FRIEND")["sessionId"])
    assert made["discounts"][0]["promotion_code"] == mine["id"]


def test_enterprise_is_sold_once_it_has_a_price(shop: Shop, make_app: Callable[..., Flask]) -> None:
    assert_refused(shop.try_checkout(shop.customer(), "enterprise"), 422, "Contact sales")
    assert shop.sandbox.every("customer") == []
    configured = Shop(make_app(STRIPE_PRICE_ENTERPRISE=shop.make_price(500_000)), shop.sandbox)
    customer_id, _ = configured.subscribe("enterprise")
    assert configured.plan_and_status(customer_id) == ("enterprise", "active")
    assert configured.charges() == [500_000]


def test_an_archived_price_is_named(shop: Shop, make_app: Callable[..., Flask]) -> None:
    """Pinned or found by its lookup key: nothing is sold at it, and the answer says which it is."""
    customer_id, price = shop.customer(), shop.prices["starter"]
    with shop.sandbox.world.transaction() as world:
        world.get("price", price)["active"] = False
    assert_refused(shop.try_checkout(customer_id), 409, price)
    pinned = Shop(make_app(STRIPE_PRICE_STARTER=price), shop.sandbox)
    assert_refused(pinned.try_checkout(customer_id), 409, "STRIPE_PRICE_STARTER")
    assert shop.sandbox.every("checkout.session") == []


def test_a_plan_without_a_price_says_what_to_run(
    stripe_environ: dict[str, str], app: Flask, sandbox: Any
) -> None:
    body = {"customerId": make_customer(app.test_client())["customerId"], "plan": "starter"}
    assert_refused(app.test_client().post(PATH, json=body, headers=ADMIN), 503, "flask stripe setup")
    assert sandbox.every("checkout.session") == []


def test_without_stripe_the_answer_names_the_setting(client: FlaskClient) -> None:
    customer_id = make_customer(client)["customerId"]
    for answer in (
        client.post(PATH, json={"customerId": customer_id, "plan": "starter"}, headers=ADMIN),
        client.post(f"/api/customers/{customer_id}/portal", headers=ADMIN),
        client.get(f"/api/customers/{customer_id}/invoices", headers=ADMIN),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "STRIPE_SECRET_KEY" in answer.json["message"]
    assert client.get(f"/api/customers/{customer_id}", headers=ADMIN).json["stripeCustomerId"] is None
    page = client.get("/checkout/success?session_id=cs_test_a")
    assert (page.status_code, page.headers["Retry-After"], "being confirmed" in page.text) == (503, "5", True)


def test_what_stripe_would_refuse_never_reaches_it(shop: Shop) -> None:
    customer_id = shop.customer()
    for body in (
        {"plan": "trial"}, {"plan": "gold"}, {"interval": "week"}, {"successUrl": "javascript:alert(1)"},
        {"cancelUrl": "/relative"}, {"promoCode": ""}, {"coupon": "X"},
    ):  # fmt: skip
        answer = shop.try_checkout(customer_id, **({"plan": "starter"} | body))
        assert (answer.status_code, list(answer.json["errors"]["json"])) == (422, list(body))
    assert shop.sandbox.requests == []


def test_who_may_open_a_page(shop: Shop) -> None:
    mine, other = make_customer(shop.client), make_customer(shop.client)
    body, own = {"customerId": mine["customerId"], "plan": "starter"}, bearer(mine["license"])
    unknown = body | {"customerId": "cust_doesnotexist1"}
    for wanted, headers, code in (
        (body, {}, 401), (body, bearer(other["license"]), 403), (unknown, own, 403), (unknown, ADMIN, 404),
    ):  # fmt: skip
        assert shop.post(PATH, wanted, headers).status_code == code
    assert shop.sandbox.every("checkout.session") == []
    answer = shop.post(PATH, body, own)
    assert (answer.status_code, pages(shop)[0]["id"]) == (201, answer.json["sessionId"])


# One page at a time, and none beside a subscription


def test_the_same_again_is_the_same_page_and_another_one_closes_it(shop: Shop) -> None:
    customer_id = shop.customer()
    first = shop.checkout(customer_id, "starter")
    assert shop.checkout(customer_id, "starter") == first
    second = shop.checkout(customer_id, "professional")
    assert [s["id"] for s in pages(shop)] == [second["sessionId"]]
    assert [s["id"] for s in pages(shop, "expired")] == [first["sessionId"]]
    third = shop.checkout(customer_id, "starter")
    assert third["sessionId"] not in (first["sessionId"], second["sessionId"])
    shop.sandbox.advance(hours=25)
    assert shop.checkout(customer_id, "starter")["sessionId"] != third["sessionId"]
    assert len(pages(shop)) == 1


def test_two_tabs_at_once_leave_one_page_to_pay(shop: Shop) -> None:
    customer_id = shop.customer()
    plans = ["starter", "professional"] * 2
    with ThreadPoolExecutor(len(plans)) as pool:
        codes = [a.status_code for a in pool.map(lambda plan: shop.try_checkout(customer_id, plan), plans)]
    assert 201 in codes
    assert set(codes) <= {201, 503}  # 503: too many at once for the bulkhead
    (only,) = pages(shop)
    shop.sandbox.pay(only["id"])
    shop.deliver()
    assert len(shop.live()) == len(shop.sandbox.every("customer")) == 1
    assert shop.plan_and_status(customer_id)[1] == "active"


def test_a_live_subscription_that_only_stripe_knows_is_409_and_closes_the_page(shop: Shop) -> None:
    """Subscribed by hand at Stripe while a page was open: asking again must not leave it payable."""
    customer_id = shop.customer()
    shop.checkout(customer_id)
    shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["starter"])
    assert shop.plan_and_status(customer_id)[0] == "trial"
    assert_refused(shop.try_checkout(customer_id), 409, "upgrade")
    assert pages(shop) == []
    assert shop.plan_and_status(customer_id) == ("starter", "active")


@pytest.mark.parametrize(
    ("status", "instead"),
    [("unpaid", "invoice"), ("paused", "Resume"), ("past_due", "upgrade"), ("new_at_stripe", "Cancel")],
)
def test_a_subscription_that_is_not_over_is_409(shop: Shop, status: str, instead: str) -> None:
    customer_id, subscription_id = shop.subscribe()
    shop.sandbox.set_status(subscription_id, status)
    assert_refused(shop.try_checkout(customer_id), 409, instead)
    assert pages(shop) == []
    assert shop.act(subscription_id, "cancel").status_code == 200
    assert shop.checkout(customer_id)["plan"] == "starter"


def test_a_first_payment_that_is_still_open_is_409_with_its_page(shop: Shop) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    shop.sandbox.set_card(shop.stripe_id(customer_id), "3ds")
    made = shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["starter"])
    assert made["status"] == "incomplete"
    url = shop.sandbox.get("invoice", made["latest_invoice"])["hosted_invoice_url"]
    assert_refused(shop.try_checkout(customer_id), 409, url)
    shop.sandbox.advance(hours=24)  # Stripe gives it up
    assert shop.checkout(customer_id)["plan"] == "starter"


def test_paid_in_the_other_tab_just_now(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is paid between our look at it and our attempt to close it."""
    customer_id = shop.customer()
    first = shop.checkout(customer_id, "starter")
    gateway = shop.app.extensions["billing.stripe"]
    ask = gateway.list_checkouts

    def paid_right_after(stripe_id: str) -> Any:
        found = ask(stripe_id)
        shop.sandbox.pay(first["sessionId"])
        return found

    monkeypatch.setattr(gateway, "list_checkouts", paid_right_after)
    assert shop.try_checkout(customer_id, "professional").status_code == 409
    assert len(shop.live()) == 1
    assert pages(shop) == []


def test_who_was_deleted_at_stripe_subscribes_again(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe()
    old = shop.stripe_id(customer_id)
    shop.sandbox.delete_customer(old)
    session = shop.checkout(customer_id, "professional")
    assert shop.stripe_id(customer_id) != old
    shop.sandbox.pay(session["sessionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert shop.subscription(subscription_id)["status"] == "canceled"


@pytest.mark.parametrize("has_address", [True, False])
def test_somebody_elses_customer_at_stripe_is_not_taken_over(shop: Shop, has_address: bool) -> None:
    """Support wrote another id of ours, and its address or none, onto a customer that is linked already."""
    one, other = shop.customer(), shop.customer()
    shop.checkout(one)
    taken, email = shop.stripe_id(one), shop.get(f"/api/customers/{other}")["email"]
    with shop.sandbox.world.transaction() as world:
        world.get("customer", taken).update(
            metadata={"customer_id": other}, email=email if has_address else None
        )
    assert shop.checkout(other)["checkoutUrl"]
    assert shop.stripe_id(one) == taken != shop.stripe_id(other)


def test_who_joins_again_after_a_restore_finds_the_running_subscription(
    shop: Shop, sql: Callable[..., Any]
) -> None:
    lost, subscription_id = shop.subscribe("professional", email="bAcK@example.com")
    stripe_id = shop.stripe_id(lost)
    sql("TRUNCATE customers CASCADE")
    customer_id = shop.customer(email="Back@example.com")
    assert_refused(shop.try_checkout(customer_id, "starter"), 409, "upgrade")
    assert shop.stripe_id(customer_id) == stripe_id
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert shop.subscription(customer_id)["subscriptionId"] == subscription_id
    assert shop.sandbox.get("customer", stripe_id)["metadata"] == {"customer_id": customer_id}
    assert len(shop.charges()) == 1


# Keys and failures


def test_a_key_keeps_the_first_answer_and_no_failure(shop: Shop, sql: Callable[..., Any]) -> None:
    headers = ADMIN | {"Idempotency-Key": "k1"}
    body = {"customerId": shop.customer(), "plan": "starter"}
    shop.sandbox.faults.down = True
    assert shop.post(PATH, body, headers).status_code == 502
    shop.sandbox.faults.clear()
    first = shop.post(PATH, body, headers)
    sent = len(shop.sandbox.requests)
    other = shop.post(PATH, body | {"plan": "professional"}, headers)
    again = shop.post(PATH, body, headers)
    assert (first.status_code, other.status_code, again.json) == (201, 422, first.json)
    assert (len(shop.sandbox.requests), len(pages(shop))) == (sent, 1)
    assert asked(sql, "subscription.checkout") == [("admin", False), ("admin", True), ("admin", False)]


def test_a_refusal_that_stripe_keeps_does_not_stick(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe repeats an answer for its key, a failure too: a minute later the key is another one."""
    customer_id = shop.customer()
    monkeypatch.setattr(service, "this_minute", lambda: "202601310000")
    shop.sandbox.faults.fail_next(1, 400, path="/v1/checkout/sessions", method="POST")
    assert shop.try_checkout(customer_id).status_code == 409
    monkeypatch.setattr(service, "this_minute", lambda: "202601310001")
    assert shop.checkout(customer_id)["plan"] == "starter"


# The pages that the browser comes back to


def test_the_success_page_before_and_after_the_webhook(shop: Shop) -> None:
    customer_id = shop.customer(email="secret@example.com", name="Very Secret")
    session = shop.checkout(customer_id, "professional")["sessionId"]
    paid = shop.sandbox.pay(session)
    shop.sandbox.faults.down = True
    code, page = success(shop, session)
    assert (code, "being confirmed" in page) == (502, True)
    shop.sandbox.faults.clear()
    code, page = success(shop, session)
    assert code == 200
    shown = ("<title>Thank you!", 'id="plan">professional<', 'id="status">active<', "Renews on", "portal")
    assert [text for text in shown if text not in page] == []
    private = ("secret@", "Very Secret", customer_id, paid["subscription"], "eyJ", "cus_")
    assert [text for text in private if text in page] == []
    before = shop.subscription(customer_id)
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert {d.status for d in shop.deliver()} == {200}
    assert shop.subscription(customer_id) == before
    assert success(shop, session) == (200, page)


def test_a_payment_that_takes_days_and_may_fail(shop: Shop) -> None:
    """Until it succeeds the trial goes on, and the success page shows no plan."""
    customer_id = shop.customer(plan="professional")
    for succeed, granted in ((False, ("professional", "trialing")), (True, ("starter", "active"))):
        session = shop.checkout(customer_id, "starter")["sessionId"]
        shop.sandbox.pay_async(session)
        shop.deliver()
        code, page = success(shop, session)
        assert (code, "being confirmed" in page, "starter" in page) == (200, True, False)
        assert shop.plan_and_status(customer_id) == ("professional", "trialing")
        shop.sandbox.settle(session, succeed=succeed)
        shop.sandbox.advance(hours=24)
        shop.deliver()
        assert shop.plan_and_status(customer_id) == granted


def test_a_session_that_is_unknown_open_or_somebody_elses_shows_nothing(
    shop: Shop, sql: Callable[..., Any]
) -> None:
    open_page = shop.checkout(shop.customer())["sessionId"]
    strangers = shop.sandbox.pay_link(shop.prices["starter"], "stranger@example.com")["id"]
    ids = (open_page, strangers, "cs_test_unknown", "nonsense", "", "cs_../../x", "cs_" + "a" * 300)
    ((code, page),) = {success(shop, session_id) for session_id in ids}
    assert (code, "stranger" in page, "starter" in page) == (404, False, False)
    assert sql("SELECT 1 FROM subscriptions WHERE stripe_subscription_id IS NOT NULL") == []


@pytest.mark.parametrize(("path", "title"), [("cancel", "Nothing was charged"), ("back", "All done")])
def test_the_other_pages_need_nothing(client: FlaskClient, path: str, title: str) -> None:
    answer = client.get(f"/checkout/{path}")
    assert (answer.status_code, f"<title>{title}" in answer.text) == (200, True)
    assert "prefers-color-scheme: dark" in answer.text
    assert "script-src 'none'" in answer.headers["Content-Security-Policy"]


# The portal, invoices, and the customer's details at Stripe


def test_the_portal_opens_for_this_customer(shop: Shop, sql: Callable[..., Any]) -> None:
    customer_id, _ = shop.subscribe()
    path, back = f"/api/customers/{customer_id}/portal", "https://app.example.com/back"
    answer = shop.post(path, {"returnUrl": back})
    (portal,) = shop.sandbox.every("billing_portal.session")
    assert (answer.status_code, answer.json) == (201, {"url": portal["url"]})
    assert (portal["customer"], portal["return_url"]) == (shop.stripe_id(customer_id), back)
    assert shop.post(path).status_code == 201
    (other,) = {p["return_url"] for p in shop.sandbox.every("billing_portal.session")} - {back}
    assert other.endswith("/checkout/back")
    assert asked(sql, "customer.portal") == [("admin", False)] * 2


def test_the_portal_of_somebody_who_never_paid(shop: Shop, sql: Callable[..., Any]) -> None:
    customer, other = make_customer(shop.client), make_customer(shop.client)
    path = f"/api/customers/{customer['customerId']}/portal"
    start = threading.Barrier(2)

    def ask(_: int) -> int:
        start.wait()
        return shop.app.test_client().post(path, headers=bearer(customer["license"])).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == [201, 201]
    (made,) = shop.sandbox.every("customer")
    assert shop.stripe_id(customer["customerId"]) == made["id"]
    assert shop.post(path, headers=bearer(other["license"])).status_code == 403
    assert asked(sql, "customer.portal") == [("customer", False)] * 2


def test_invoices_are_stripes_newest_first(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.act(subscription_id, "upgrade", {"plan": "professional"}).status_code == 200
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    shop.sandbox.advance(days=31)
    shop.sandbox.advance(hours=1)
    found = shop.get(f"/api/customers/{customer_id}/invoices")["invoices"]
    assert [(i["status"], i["total"]) for i in found[::2]] == [("open", 9900), ("paid", 2900)]
    unpaid = found[0]
    assert unpaid.keys() == {
        "number", "status", "currency", "total", "amountDue", "createdAt", "dueAt", "paidAt",
        "nextPaymentAttemptAt", "hostedInvoiceUrl", "pdfUrl",
    }  # fmt: skip
    assert (unpaid["amountDue"], unpaid["currency"], unpaid["paidAt"]) == (9900, "usd", None)
    assert unpaid["nextPaymentAttemptAt"] > unpaid["createdAt"]
    assert unpaid["hostedInvoiceUrl"].startswith("http")
    assert found[-1]["paidAt"] is not None
    assert shop.get(f"/api/customers/{customer_id}/invoices?limit=1")["invoices"] == found[:1]
    token = shop.get(f"/api/licenses/{customer_id}")["license"]
    path, other = f"/api/customers/{customer_id}/invoices", make_customer(shop.client)
    assert shop.client.get(path, headers=bearer(token)).json == {"invoices": found}
    assert shop.client.get(path, headers=bearer(other["license"])).status_code == 403
    assert shop.client.get(f"{path}?limit=201", headers=ADMIN).status_code == 422
    assert shop.get(f"/api/customers/{other['customerId']}/invoices") == {"invoices": []}


def change(shop: Shop, customer_id: str, **fields: Any) -> int:
    path = f"/api/customers/{customer_id}"
    return shop.app.test_client().patch(path, json=fields, headers=ADMIN).status_code


def test_only_what_changed_reaches_stripe(shop: Shop) -> None:
    """The customer gave another name, address and email in the portal: what we do not change stays."""

    def at_stripe(**theirs: Any) -> list[Any]:
        with shop.sandbox.world.transaction() as world:
            found = world.get("customer", stripe_id)
            found.update(theirs)
            return [found["name"], found["email"], (found["address"] or {}).get("city")]

    customer_id, _ = shop.subscribe(name="Ada", company="Old Ltd")
    stripe_id = shop.stripe_id(customer_id)
    at_stripe(email="bills@example.com", address={"country": "DE", "city": "Köln"})
    assert change(shop, customer_id, name="Ada L.") == 200
    assert ("POST", f"/v1/customers/{stripe_id}") not in [(r.method, r.path) for r in shop.sandbox.requests]
    assert change(shop, customer_id, company="New Ltd") == 200
    assert at_stripe() == ["New Ltd", "bills@example.com", "Köln"]
    at_stripe(name="Their Name")
    assert change(shop, customer_id, email="new@example.com") == 200
    assert at_stripe() == ["Their Name", "new@example.com", "Köln"]
    assert change(shop, customer_id, companyName=None, name=None) == 200
    assert not at_stripe()[0]


def test_two_changes_of_details_at_once_end_the_same_here_and_at_stripe(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    changes = [{"email": "new@example.com"}, {"companyName": "Corp"}, {"name": "New"}]
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda fields: change(shop, customer_id, **fields), changes)) == {200}
    (at_stripe,) = shop.sandbox.every("customer")
    assert (at_stripe["email"], at_stripe["name"]) == ("new@example.com", "Corp")
    assert shop.get(f"/api/customers/{customer_id}")["name"] == "New"


def test_new_details_are_refused_whole_while_stripe_is_down(shop: Shop) -> None:
    customer_id, _ = shop.subscribe(email="old@example.com")
    shop.sandbox.faults.fail_next(3, 500, method="POST", path="/customers")
    assert change(shop, customer_id, email="new@example.com") == 502
    assert shop.get(f"/api/customers/{customer_id}")["email"] == "old@example.com"
    shop.sandbox.faults.clear()
    shop.sandbox.delete_customer(shop.stripe_id(customer_id))  # deleted there, it needs to hear nothing
    assert change(shop, customer_id, email="new@example.com") == 200
    assert shop.get(f"/api/customers/{customer_id}")["email"] == "new@example.com"
