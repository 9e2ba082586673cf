"""Stripe slow, and processes killed while it works, with the service as it runs in production."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import requests

from app import stripe_gateway
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.server import Server, wait_until
from tests.shop import Shop, assert_refused

Serve = Callable[..., Server]
CHECKOUT = "/api/subscriptions/create-checkout"


def ask_for_page(server: Server, customer_id: str) -> requests.Response:
    return server.post(CHECKOUT, {"customerId": customer_id, "plan": "starter"}, headers=ADMIN)


def test_slow_stripe_does_not_keep_reports_waiting(shop: Shop, serve: Serve) -> None:
    """Sixteen threads, twice as many callers who wait for Stripe: reports are answered meanwhile."""
    reporter = make_customer(shop.client)
    customers = [shop.customer() for _ in range(32)]
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="16")
    shop.sandbox.faults.delay, shop.sandbox.faults.delay_path = 3.0, "/prices"
    with ThreadPoolExecutor(len(customers)) as pool:
        waiting = [pool.submit(ask_for_page, server, customer_id) for customer_id in customers]
        wait_until(lambda: sum(r.path == "/v1/prices" for r in shop.sandbox.requests) >= 2)
        for number in range(20):
            body = report_body(reporter["customerId"], instanceId=f"i{number}")
            answer = server.post("/api/usage/report", body, headers=bearer(reporter["license"]))
            assert answer.status_code == 201
        assert sum(not one.done() for one in waiting) >= 2, "Stripe was to be slow all the while"
        answers = [one.result() for one in waiting]
    served = [answer for answer in answers if answer.status_code == 201]
    surplus = [answer for answer in answers if answer.status_code != 201]
    assert len(served) >= 2
    assert len(surplus) >= len(customers) - 8
    assert {answer.status_code for answer in surplus} == {503}
    assert all(answer.headers["Retry-After"].isdigit() for answer in surplus)
    assert len(shop.sandbox.every("checkout.session")) == len(served)
    assert len(shop.get(f"/api/usage/{reporter['customerId']}")["reports"]) == 20
    shop.sandbox.faults.clear()
    turned_away = [c for c, answer in zip(customers, answers, strict=True) if answer.status_code == 503]
    assert ask_for_page(server, turned_away[0]).status_code == 201


def test_a_request_ends_before_its_lease_and_the_proxys_patience(shop: Shop, monkeypatch: Any) -> None:
    """Each answer is in time, but all of them together take too long: no further call begins."""
    monkeypatch.setattr(stripe_gateway, "CALLS_BEGIN_WITHIN_SECONDS", 0.3)
    customer_id = shop.customer()
    shop.sandbox.faults.delay = 0.2
    assert_refused(shop.try_checkout(customer_id), 502, "slow")
    assert len(shop.sandbox.requests) == 2
    shop.sandbox.faults.clear()
    shop.checkout(customer_id)
    assert len(shop.sandbox.every("checkout.session")) == 1


def killed_while(server: Server, shop: Shop, path: str, call: Callable[[], Any]) -> None:
    """`kill -9` while Stripe works on a POST to `path`; Stripe finishes all the same."""
    shop.sandbox.requests.clear()
    shop.sandbox.faults.delay, shop.sandbox.faults.delay_path = 1.0, path
    failed = threading.Event()

    def ask() -> None:
        try:
            call()
        except requests.RequestException:
            failed.set()

    caller = threading.Thread(target=ask)
    caller.start()
    wait_until(lambda: any(r.method == "POST" and r.path.endswith(path) for r in shop.sandbox.requests))
    server.kill()
    caller.join(30)
    assert failed.is_set()
    wait_until(lambda: all(r.status is not None for r in shop.sandbox.requests))
    shop.sandbox.faults.clear()


def test_killed_while_a_page_is_made(shop: Shop, serve: Serve) -> None:
    server = serve(WEB_CONCURRENCY="1")
    for number, path in enumerate(("/v1/customers", "/v1/checkout/sessions"), start=1):
        customer_id = shop.customer()
        killed_while(server, shop, path, partial(ask_for_page, server, customer_id))
        server.restart()
        answer = ask_for_page(server, customer_id)
        assert answer.status_code == 201
        assert shop.sandbox.every("checkout.session")[-1]["id"] == answer.json()["sessionId"]
        kinds = ("customer", "checkout.session")
        assert [len(shop.sandbox.every(kind)) for kind in kinds] == [number, number]
        shop.sandbox.pay(answer.json()["sessionId"])
        shop.deliver()
        assert shop.charges() == [2900] * number
        assert shop.plan_and_status(customer_id) == ("starter", "active")


def test_killed_while_an_upgrade_is_paid(shop: Shop, serve: Serve) -> None:
    customer_id, subscription_id = shop.subscribe("starter")
    server = serve(WEB_CONCURRENCY="1")
    path = f"/api/subscriptions/{subscription_id}/upgrade"

    def upgrade() -> requests.Response:
        return server.post(path, {"plan": "professional"}, headers=ADMIN)

    killed_while(server, shop, f"/v1/subscriptions/{subscription_id}", upgrade)
    assert shop.plan_and_status(customer_id) == ("starter", "active")
    server.restart()
    answer = upgrade()
    assert (answer.status_code, answer.json()["subscription"]["plan"]) == (200, "professional")
    assert len(shop.charges()) == 2
    assert shop.plan_and_status(customer_id) == ("professional", "active")
