"""Checkout, its pages and the portal, over HTTP against the Stripe sandbox."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import app.services.subscriptions as service
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer
from tests.shop import Shop
from tests.stripe_sandbox import checkout, shapes


def sessions(shop: Shop, status: str = "open") -> list[dict[str, Any]]:
    return [s for s in shop.sandbox.every("checkout.session") if s["status"] == status]


def success(shop: Shop, session_id: str) -> tuple[int, str]:
    answer = shop.client.get("/checkout/success", query_string={"session_id": session_id})
    assert answer.mimetype == "text/html"
    return answer.status_code, answer.get_data(as_text=True)


# Opening a page


def test_checkout_opens_a_page_of_this_customer_for_this_plan(shop: Shop) -> None:
    customer_id = shop.customer(company="Engines Ltd")
    answer = shop.checkout(customer_id, "professional")
    assert answer.keys() == {"sessionId", "checkoutUrl", "plan", "expiresAt"}
    assert answer["plan"] == "professional"
    (session,) = sessions(shop)
    assert (session["id"], session["url"]) == (answer["sessionId"], answer["checkoutUrl"])
    assert session["client_reference_id"] == customer_id
    assert session["amount_total"] == 9900
    assert session["allow_promotion_codes"] is True
    assert session["success_url"].endswith("/checkout/success?session_id={CHECKOUT_SESSION_ID}")
    (customer,) = shop.sandbox.every("customer")
    assert customer["id"] == session["customer"] == shop.stripe_id(customer_id)
    assert customer["name"] == "Engines Ltd"
    assert customer["metadata"] == {"customer_id": customer_id}
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")


def test_own_addresses_are_used(shop: Shop) -> None:
    urls = {
        "successUrl": "https://app.example.com/ok?s={CHECKOUT_SESSION_ID}",
        "cancelUrl": "https://x.example/no",
    }
    shop.checkout(shop.customer(), **urls)
    (session,) = sessions(shop)
    assert (session["success_url"], session["cancel_url"]) == tuple(urls.values())


def test_a_promotion_code_is_applied_in_whatever_letter_case(shop: Shop) -> None:
    promotion = shop.sandbox.create_promotion_code("LAUNCH20", 20)
    customer_id = shop.customer()
    session = shop.checkout(customer_id, promoCode="launch20")
    (made,) = sessions(shop)
    assert made["discounts"] == [{"coupon": None, "promotion_code": promotion["id"]}]
    assert made["amount_total"] == 2320
    shop.sandbox.pay(session["sessionId"])
    shop.deliver()
    assert shop.charges() == [2320]
    assert shop.plan_and_status(customer_id) == ("starter", "active")


@pytest.mark.parametrize("code", ["NOPE", "EXPIRED", "%", "ÄÖÜ", "x" * 500])
def test_an_unknown_or_expired_code_is_422_and_opens_nothing(shop: Shop, code: str) -> None:
    shop.sandbox.create_promotion_code("EXPIRED", 20, expires_at=shop.sandbox.now() + 60)
    shop.sandbox.advance(seconds=61)
    answer = shop.try_checkout(shop.customer(), promoCode=code)
    assert answer.status_code == 422
    assert list(answer.json["errors"]["json"]) == ["promoCode"]
    assert shop.sandbox.every("checkout.session") == []


def test_a_code_that_stripe_refuses_for_this_customer_is_422(shop: Shop) -> None:
    rules = {"minimum_amount": 5000, "minimum_amount_currency": "usd"}
    shop.sandbox.create_promotion_code("BIG", 10, restrictions=rules)
    customer_id = shop.customer()
    answer = shop.try_checkout(customer_id, promoCode="BIG")
    assert answer.status_code == 422
    assert list(answer.json["errors"]["json"]) == ["promoCode"]
    assert shop.checkout(customer_id, "professional", promoCode="BIG")["plan"] == "professional"


def test_a_code_for_another_customer_is_unknown_and_ones_own_wins(shop: Shop) -> None:
    first, second = shop.customer(), shop.customer()
    for customer_id in (first, second):
        shop.checkout(customer_id)
    shop.sandbox.create_promotion_code("FRIEND", 50, customer=shop.stripe_id(second))
    assert shop.try_checkout(first, promoCode="FRIEND").status_code == 422
    mine = shop.sandbox.create_promotion_code("FRIEND", 10, customer=shop.stripe_id(first))
    session = shop.checkout(first, promoCode="FRIEND")
    made = shop.sandbox.get("checkout.session", session["sessionId"])
    assert made["discounts"][0]["promotion_code"] == mine["id"]


def test_enterprise_needs_a_price(shop: Shop) -> None:
    customer_id = shop.customer()
    answer = shop.try_checkout(customer_id, "enterprise")
    assert answer.status_code == 422
    assert "Contact sales" in answer.json["message"]
    assert shop.sandbox.every("customer") == []


def test_enterprise_is_sold_once_it_has_a_price(shop: Shop, make_app: Any) -> None:
    price_id = shop.make_price(500_000)
    configured = Shop(make_app(STRIPE_PRICE_ENTERPRISE=price_id), shop.sandbox)
    customer_id, _ = configured.subscribe("enterprise")
    assert configured.plan_and_status(customer_id) == ("enterprise", "active")
    assert configured.charges() == [500_000]


def test_a_plan_without_a_price_says_what_to_run(stripe_environ: Any, app: Any, sandbox: Any) -> None:
    client = app.test_client()
    body = {"customerId": make_customer(client)["customerId"], "plan": "starter"}
    answer = client.post("/api/subscriptions/create-checkout", json=body, headers=ADMIN)
    assert answer.status_code == 503
    assert "flask stripe setup" in answer.json["message"]
    assert sandbox.every("checkout.session") == []


def test_without_stripe_the_answer_names_the_setting(client: Any) -> None:
    customer_id = make_customer(client)["customerId"]
    body = {"customerId": customer_id, "plan": "starter"}
    answer = client.post("/api/subscriptions/create-checkout", json=body, headers=ADMIN)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"].isdigit()
    assert "STRIPE_SECRET_KEY" in answer.json["message"]
    assert client.get(f"/api/customers/{customer_id}", headers=ADMIN).json["stripeCustomerId"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"plan": "trial"},
        {"plan": "gold"},
        {"successUrl": "javascript:alert(1)"},
        {"cancelUrl": "/relative"},
        {"promoCode": ""},
        {"coupon": "X"},
    ],
)
def test_what_stripe_would_refuse_never_reaches_it(shop: Shop, body: dict[str, str]) -> None:
    answer = shop.try_checkout(shop.customer(), **({"plan": "starter"} | body))
    assert answer.status_code == 422
    assert shop.sandbox.requests == []


def test_who_may_open_a_page(shop: Shop) -> None:
    mine, other = make_customer(shop.client), make_customer(shop.client)
    path = "/api/subscriptions/create-checkout"
    body = {"customerId": mine["customerId"], "plan": "starter"}
    assert shop.post(path, body, headers={}).status_code == 401
    assert shop.post(path, body, headers=bearer(other["license"])).status_code == 403
    unknown = {"customerId": "cust_doesnotexist1", "plan": "starter"}
    assert shop.post(path, unknown, headers=bearer(mine["license"])).status_code == 403
    assert shop.post(path, unknown).status_code == 404
    assert shop.sandbox.every("checkout.session") == []
    answer = shop.post(path, body, headers=bearer(mine["license"]))
    assert answer.status_code == 201
    assert sessions(shop)[0]["id"] == answer.json["sessionId"]


# One page at a time


def test_the_same_wish_gets_the_same_page(shop: Shop) -> None:
    customer_id = shop.customer()
    assert shop.checkout(customer_id) == shop.checkout(customer_id)
    assert len(shop.sandbox.every("checkout.session")) == 1


def test_another_wish_closes_the_first_page(shop: Shop) -> None:
    customer_id = shop.customer()
    first = shop.checkout(customer_id, "starter")
    second = shop.checkout(customer_id, "professional")
    assert [s["id"] for s in sessions(shop)] == [second["sessionId"]]
    assert [s["id"] for s in sessions(shop, "expired")] == [first["sessionId"]]
    third = shop.checkout(customer_id, "starter")
    assert third["sessionId"] not in (first["sessionId"], second["sessionId"])


def test_an_expired_page_is_followed_by_a_new_one(shop: Shop) -> None:
    customer_id = shop.customer()
    first = shop.checkout(customer_id)
    shop.sandbox.advance(hours=25)
    second = shop.checkout(customer_id)
    assert [s["id"] for s in sessions(shop)] == [second["sessionId"]]
    assert second["sessionId"] != first["sessionId"]


def test_two_tabs_at_once_leave_one_page_to_pay(shop: Shop) -> None:
    customer_id = shop.customer()
    wishes = ["starter", "professional"] * 2
    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(pool.map(lambda plan: shop.try_checkout(customer_id, plan), wishes))
    assert {answer.status_code for answer in answers} == {201}
    (only,) = sessions(shop)
    shop.sandbox.pay(only["id"])
    for session in shop.sandbox.every("checkout.session"):
        if session["id"] != only["id"]:
            assert session["status"] == "expired"
    shop.deliver()
    assert len(shop.live()) == 1
    assert len(shop.sandbox.every("customer")) == 1
    assert shop.plan_and_status(customer_id)[1] == "active"


def test_a_live_subscription_is_409_with_what_to_do(shop: Shop) -> None:
    customer_id, _ = shop.subscribe("starter")
    answer = shop.try_checkout(customer_id, "professional")
    assert answer.status_code == 409
    assert "upgrade" in answer.json["message"]
    assert sessions(shop) == []


def test_a_live_subscription_that_only_stripe_knows_is_409_too(shop: Shop, sql: Any) -> None:
    customer_id = shop.customer()
    shop.sandbox.pay(shop.checkout(customer_id)["sessionId"])
    assert sql("SELECT status FROM subscriptions WHERE stripe_subscription_id IS NOT NULL") == []
    assert shop.try_checkout(customer_id).status_code == 409
    assert sessions(shop) == []
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_a_page_that_became_pointless_is_closed(shop: Shop) -> None:
    """Subscribed by hand at Stripe while a page was open: asking again must not leave it payable."""
    customer_id = shop.customer()
    shop.checkout(customer_id)
    shop.sandbox.create_subscription(shop.stripe_id(customer_id), shop.prices["starter"])
    assert shop.try_checkout(customer_id).status_code == 409
    assert sessions(shop) == []


def test_paid_in_the_other_tab_just_now(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is paid between our look at it and our attempt to close it."""
    customer_id = shop.customer()
    first = shop.checkout(customer_id, "starter")
    gateway = shop.stripe_of(app)
    ask = gateway.list_checkouts

    def paid_right_after(stripe_customer_id: str) -> Any:
        found = ask(stripe_customer_id)
        shop.sandbox.pay(first["sessionId"])
        return found

    monkeypatch.setattr(gateway, "list_checkouts", paid_right_after)
    assert shop.try_checkout(customer_id, "professional").status_code == 409
    assert len(shop.live()) == 1
    assert sessions(shop) == []


def test_after_the_end_one_may_subscribe_again(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    assert shop.act(subscription_id, "cancel").status_code == 200
    shop.sandbox.pay(shop.checkout(customer_id, "professional")["sessionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert len(shop.live()) == 1


def test_a_customer_deleted_at_stripe_is_made_anew(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    old = shop.stripe_id(customer_id)
    shop.sandbox.delete_customer(old)
    session = shop.checkout(customer_id, "professional")
    assert shop.stripe_id(customer_id) != old
    shop.sandbox.pay(session["sessionId"])
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_deleted_at_stripe_in_the_minute_in_which_it_was_made(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_minute", lambda: "202601310000")
    customer_id = shop.customer()
    for _ in range(3):
        shop.checkout(customer_id)
        shop.sandbox.delete_customer(shop.stripe_id(customer_id))
        shop.deliver()


def test_somebody_elses_customer_at_stripe_is_not_taken_over(shop: Shop, console: Any) -> None:
    """Support wrote another id of ours, and its address, onto a customer that is linked already."""
    one, other = shop.customer(), shop.customer()
    shop.checkout(one)
    taken = shop.stripe_id(one)
    with shop.sandbox.world.transaction() as world:
        found = world.get("customer", taken)
        found |= {"metadata": {"customer_id": other}, "email": shop.get(f"/api/customers/{other}")["email"]}
    assert console("stripe", "sync", "--customer", other).exit_code == 0
    assert console("stripe", "sync").exit_code == 0
    assert shop.checkout(other)["checkoutUrl"]
    assert shop.stripe_id(one) == taken
    assert shop.stripe_id(other) != taken


# Keys and failures


def test_the_same_key_gives_the_first_answer(shop: Shop) -> None:
    customer_id, path = shop.customer(), "/api/subscriptions/create-checkout"
    headers = ADMIN | {"Idempotency-Key": "k1"}
    body = {"customerId": customer_id, "plan": "starter"}
    first = shop.post(path, body, headers)
    asked = len(shop.sandbox.requests)
    again = shop.post(path, body, headers)
    assert (first.status_code, first.json) == (again.status_code, again.json) == (201, first.json)
    assert len(shop.sandbox.requests) == asked
    assert shop.post(path, body | {"plan": "professional"}, headers).status_code == 422
    assert len(sessions(shop)) == 1


def test_another_body_takes_nothing_from_the_first_answer(shop: Shop) -> None:
    customer_id, path = shop.customer(), "/api/subscriptions/create-checkout"
    headers = ADMIN | {"Idempotency-Key": "k1"}
    wishes = [{"customerId": customer_id, "plan": plan} for plan in ("starter", "professional", "starter")]
    first, other, again = (shop.post(path, wish, headers) for wish in wishes)
    assert (first.status_code, other.status_code, again.json) == (201, 422, first.json)


def test_a_failure_is_not_kept_under_the_key(shop: Shop) -> None:
    customer_id, path = shop.customer(), "/api/subscriptions/create-checkout"
    headers = ADMIN | {"Idempotency-Key": "k2"}
    body = {"customerId": customer_id, "plan": "starter"}
    shop.sandbox.faults.down = True
    assert shop.post(path, body, headers).status_code == 502
    shop.sandbox.faults.clear()
    assert shop.post(path, body, headers).status_code == 201
    assert len(sessions(shop)) == 1


@pytest.mark.parametrize("path", ["/customers", "/checkout/sessions"])
def test_an_answer_lost_after_the_effect_makes_no_second_one(shop: Shop, path: str) -> None:
    customer_id = shop.customer()
    shop.sandbox.faults.fail_next(3, "drop", path=path, method="POST", after=True)
    answer = shop.try_checkout(customer_id)
    assert answer.status_code == 502
    shop.sandbox.faults.clear()
    session = shop.checkout(customer_id)
    assert [c["metadata"]["customer_id"] for c in shop.sandbox.every("customer")] == [customer_id]
    assert [s["id"] for s in shop.sandbox.every("checkout.session")] == [session["sessionId"]]
    shop.sandbox.pay(session["sessionId"])
    shop.deliver()
    assert shop.charges() == [2900]


def test_one_lost_answer_is_not_even_noticed(shop: Shop) -> None:
    shop.sandbox.faults.fail_next(1, "drop", path="/checkout/sessions", method="POST", after=True)
    session = shop.checkout(shop.customer())
    assert [s["id"] for s in shop.sandbox.every("checkout.session")] == [session["sessionId"]]


def test_a_refusal_that_stripe_keeps_does_not_stick(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe repeats a refusal for its key: a minute later the key is another one."""
    price = shop.prices["starter"]
    customer_id = shop.customer()
    with shop.sandbox.world.transaction() as world:
        world.get("price", price)["active"] = False
    monkeypatch.setattr(service, "_price_of", lambda plan: price)
    assert shop.try_checkout(customer_id).status_code == 502
    with shop.sandbox.world.transaction() as world:
        world.get("price", price)["active"] = True
    minute = service._minute()
    monkeypatch.setattr(service, "_minute", lambda: f"{minute}+1")
    assert shop.checkout(customer_id)["plan"] == "starter"


# The pages that the browser comes back to


def test_the_success_page_before_the_webhook(shop: Shop) -> None:
    customer_id = shop.customer(email="secret@example.com", name="Very Secret")
    session = shop.checkout(customer_id, "professional")
    paid = shop.sandbox.pay(session["sessionId"])
    code, page = success(shop, session["sessionId"])
    assert code == 200
    assert 'id="plan">professional<' in page
    assert 'id="status">active<' in page
    for private in ("secret@", "Very Secret", customer_id, paid["subscription"], "eyJ"):
        assert private not in page
    before = shop.subscription(customer_id)
    assert (before["plan"], before["status"]) == ("professional", "active")
    assert shop.plan_and_status(customer_id) == ("professional", "active")
    assert {d.status for d in shop.deliver()} == {200}
    assert shop.subscription(customer_id) == before


def test_the_success_page_after_the_webhook(shop: Shop) -> None:
    customer_id, _ = shop.subscribe("professional")
    before = shop.subscription(customer_id)
    (session,) = sessions(shop, "complete")
    code, page = success(shop, session["id"])
    assert (code, 'id="plan">professional<' in page) == (200, True)
    assert shop.subscription(customer_id) == before


def test_the_success_page_of_a_payment_that_takes_days(shop: Shop) -> None:
    customer_id = shop.customer()
    session = shop.checkout(customer_id, "professional")["sessionId"]
    shop.sandbox.pay_async(session)
    code, page = success(shop, session)
    assert (code, "being confirmed" in page, "professional" in page) == (200, True, False)
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")
    shop.sandbox.settle(session)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "active")


def test_a_session_that_is_unknown_open_or_somebody_elses_tells_nothing(shop: Shop, sql: Any) -> None:
    open_session = shop.checkout(shop.customer())["sessionId"]
    with shop.sandbox.world.transaction() as world:
        stranger = world.add(shapes.customer(world.now(), {"email": "stranger@example.com"}))
        line = {"price": shop.prices["starter"], "quantity": 1}
        wish = {
            "mode": "subscription", "customer": stranger["id"], "line_items": [line],
            "success_url": "https://x.example", "client_reference_id": shop.customer(),
        }  # fmt: skip
        foreign = checkout.pay(world, checkout.create(world, wish))["id"]
    pages = {
        success(shop, session_id)
        for session_id in (
            open_session,
            foreign,
            "cs_test_unknown",
            "nonsense",
            "",
            "cs_../../x",
            "cs_" + "a" * 300,
        )
    }
    ((code, page),) = pages
    assert code == 404
    assert "stranger" not in page
    shop.deliver()
    assert sql("SELECT 1 FROM subscriptions WHERE stripe_subscription_id IS NOT NULL") == []


def test_the_success_page_while_stripe_is_down(shop: Shop) -> None:
    customer_id = shop.customer()
    session = shop.checkout(customer_id)["sessionId"]
    shop.sandbox.pay(session)
    shop.sandbox.faults.down = True
    code, page = success(shop, session)
    assert (code, "being confirmed" in page) == (502, True)
    shop.sandbox.faults.clear()
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_the_success_page_without_stripe_says_when_to_come_back(client: Any) -> None:
    answer = client.get("/checkout/success?session_id=cs_test_a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_the_cancel_page_changes_nothing(shop: Shop) -> None:
    customer_id = shop.customer()
    shop.checkout(customer_id)
    answer = shop.client.get("/checkout/cancel")
    assert (answer.status_code, "Nothing was charged" in answer.text) == (200, True)
    assert "script-src 'none'" in answer.headers["Content-Security-Policy"]
    assert shop.plan_and_status(customer_id) == ("trial", "trialing")


# The portal, and the customer's details at Stripe


def test_the_portal_opens_for_this_customer(shop: Shop) -> None:
    customer_id, subscription_id = shop.subscribe()
    answer = shop.post(f"/api/customers/{customer_id}/portal", {"returnUrl": "https://app.example.com/back"})
    assert answer.status_code == 201
    (portal,) = shop.sandbox.every("billing_portal.session")
    assert answer.json == {"url": portal["url"]}
    assert (portal["customer"], portal["return_url"]) == (
        shop.stripe_id(customer_id),
        "https://app.example.com/back",
    )
    shop.sandbox.portal_cancel(subscription_id)
    shop.deliver()
    assert shop.subscription(customer_id)["cancelAtPeriodEnd"] is True


def test_the_portal_leads_back_to_a_page_of_ours(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    assert shop.post(f"/api/customers/{customer_id}/portal").status_code == 201
    (portal,) = shop.sandbox.every("billing_portal.session")
    base, path = portal["return_url"][:-14], portal["return_url"][-14:]
    assert (base, path) == (shop.app.extensions["billing.settings"].base_url, "/checkout/back")
    answer = shop.client.get(path)
    assert (answer.status_code, "All done" in answer.text) == (200, True)


def test_the_portal_of_somebody_who_never_paid(shop: Shop) -> None:
    customer = make_customer(shop.client)
    path = f"/api/customers/{customer['customerId']}/portal"
    start = threading.Barrier(2)

    def ask(_: int) -> int:
        start.wait()
        return shop.app.test_client().post(path, headers=bearer(customer["license"])).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == [201, 201]
    (made,) = shop.sandbox.every("customer")
    assert shop.stripe_id(customer["customerId"]) == made["id"]
    other = make_customer(shop.client)
    assert shop.post(path, headers=bearer(other["license"])).status_code == 403


def test_new_details_reach_stripe(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    path = f"/api/customers/{customer_id}"
    answer = shop.client.patch(path, json={"email": "new@example.com", "company": "New Ltd"}, headers=ADMIN)
    assert answer.status_code == 200
    made = shop.sandbox.get("customer", shop.stripe_id(customer_id))
    assert (made["email"], made["name"]) == ("new@example.com", "New Ltd")
    assert shop.client.patch(path, json={"companyName": None, "name": None}, headers=ADMIN).status_code == 200
    assert not shop.sandbox.get("customer", made["id"])["name"]


def test_two_changes_of_details_at_once_end_the_same_here_and_at_stripe(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    path = f"/api/customers/{customer_id}"
    changes = [{"email": "new@example.com"}, {"companyName": "Corp"}, {"name": "New"}]

    def change(body: dict[str, str]) -> int:
        return shop.app.test_client().patch(path, json=body, headers=ADMIN).status_code

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(change, changes)) == {200}
    (at_stripe,) = shop.sandbox.every("customer")
    assert (at_stripe["email"], at_stripe["name"]) == ("new@example.com", "Corp")


def test_new_details_are_refused_whole_while_stripe_is_down(shop: Shop) -> None:
    customer_id, _ = shop.subscribe(email="old@example.com")
    path = f"/api/customers/{customer_id}"
    shop.sandbox.faults.fail_next(3, 500, method="POST", path="/customers")
    answer = shop.client.patch(path, json={"email": "new@example.com"}, headers=ADMIN)
    assert answer.status_code == 502
    assert shop.get(path)["email"] == "old@example.com"
    assert shop.client.patch(path, json={"email": "new@example.com"}, headers=ADMIN).status_code == 200
    assert shop.sandbox.get("customer", shop.stripe_id(customer_id))["email"] == "new@example.com"


def test_details_of_a_customer_deleted_at_stripe_can_be_changed(shop: Shop) -> None:
    customer_id, _ = shop.subscribe()
    shop.sandbox.delete_customer(shop.stripe_id(customer_id))
    answer = shop.client.patch(f"/api/customers/{customer_id}", json={"name": "N"}, headers=ADMIN)
    assert (answer.status_code, shop.get(f"/api/customers/{customer_id}")["name"]) == (200, "N")
