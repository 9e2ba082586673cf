"""The module that talks to Stripe: errors, keys, retries, the account, the bulkhead; rows of its answers."""

import inspect
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import responses
import stripe
from flask import Flask

import app.stripe_gateway as module
from app.config import load_settings
from app.errors import DomainError, Invalid, NoAnswer, PaymentRefused, Refused, StripeFailed, Unavailable
from app.plans import PLANS
from app.stripe_gateway import StripeGateway
from app.stripe_objects import as_time, plan_of_price, subscription_row
from tests.stripe_sandbox import Sandbox

API = "https://api.stripe.com/v1"
KEY = "sk_test_0123456789abcdef"
SUB = f"{API}/subscriptions/sub_1"
T0 = 1_790_000_000


def gateway(**settings: str) -> StripeGateway:
    def remember(account_id: str, livemode: bool) -> dict[str, Any]:
        return {"account_id": account_id, "livemode": livemode}

    return StripeGateway(load_settings({"STRIPE_SECRET_KEY": KEY, **settings}), remember)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[responses.RequestsMock]:
    """Stripe's answers; the account is known already, and retries do not wait."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.001)
    with responses.RequestsMock() as mock:
        mock.get(f"{API}/account", json={"id": "acct_1", "object": "account"})
        yield mock


def refused(api: responses.RequestsMock, status: int, **answer: Any) -> tuple[DomainError, list[str]]:
    """What a POST raises when Stripe answers so, and the idempotency keys of its attempts."""
    api.post(SUB, status=status, headers={"Request-Id": "req_1", **answer.pop("headers", {})}, **answer)
    with pytest.raises(DomainError) as caught:
        gateway().cancel_at_period_end("sub_1", "key-1")
    return caught.value, [
        c.request.headers["Idempotency-Key"] for c in api.calls if c.request.method == "POST"
    ]


def error(**fields: str) -> dict[str, Any]:
    return {"error": {"type": "invalid_request_error", "message": "Stripe's words.", **fields}}


@pytest.mark.parametrize(
    ("status", "fields", "kind", "code"),
    [
        (402, {"type": "card_error", "code": "card_declined"}, PaymentRefused, 402),
        (400, {"code": "resource_missing"}, PaymentRefused, 402),
        (404, {"code": "resource_missing", "param": "id"}, Refused, 409),
        (400, {"param": "line_items"}, Refused, 409),
        (400, {"type": "idempotency_error"}, Refused, 409),
        (400, {"param": "discounts[0][promotion_code]"}, Invalid, 422),
        (400, {"param": "email"}, Invalid, 422),
        (401, {}, Unavailable, 503),
        (403, {}, Unavailable, 503),
        (429, {"code": "rate_limit"}, Unavailable, 503),
        (409, {"type": "idempotency_error"}, Unavailable, 503),
        (500, {"type": "api_error"}, StripeFailed, 502),
    ],
)
def test_each_refusal_has_its_code_and_keeps_stripes_words_and_request_id(
    api: responses.RequestsMock, status: int, fields: dict[str, str], kind: type[DomainError], code: int
) -> None:
    raised, _ = refused(api, status, json=error(**fields))
    assert (type(raised), raised.code) == (kind, code)
    assert "Stripe's words. (Stripe request req_1)" in raised.message
    assert raised.stripe_code == fields.get("code")
    assert getattr(raised, "missing", False) is (code == 409 and fields.get("code") == "resource_missing")
    if status in (401, 403):
        assert raised.message.startswith("STRIPE_SECRET_KEY: ")


def test_a_key_that_stripe_quotes_is_in_no_message_and_no_log(
    api: responses.RequestsMock, caplog: pytest.LogCaptureFixture
) -> None:
    raised, _ = refused(api, 401, json=error(message=f"Invalid API Key provided: {KEY}"))
    assert KEY not in raised.message + caplog.text


@pytest.mark.parametrize(("header", "attempts"), [({}, 3), ({"Stripe-Should-Retry": "false"}, 1)])
def test_a_failure_of_stripe_is_tried_again_under_the_same_key(
    api: responses.RequestsMock, header: dict[str, str], attempts: int
) -> None:
    raised, keys = refused(api, 503, json=error(type="api_error"), headers=header)
    assert (raised.code, keys) == (502, ["key-1"] * attempts)


@pytest.mark.parametrize("failure", [requests.ReadTimeout(), requests.ConnectionError()])
def test_silence_is_502_and_known_as_such(api: responses.RequestsMock, failure: Exception) -> None:
    raised, keys = refused(api, 200, body=failure)
    assert (type(raised), raised.code, keys) == (NoAnswer, 502, ["key-1"] * 3)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body",
    [
        "{}", "[]", "null", "5", "<html>", '{"object": "list"}', '{"error": "x"}',
        '{"object": "list", "data": 1}',
    ],
)  # fmt: skip
def test_an_answer_that_is_not_stripes_is_502(api: responses.RequestsMock, status: int, body: str) -> None:
    raised, _ = refused(api, status, body=body)
    assert (type(raised), raised.code) == (StripeFailed, 502)


def test_one_log_line_for_each_attempt_names_stripes_request(
    api: responses.RequestsMock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.stripe_gateway")
    refused(api, 500, json=error())
    lines = [record for record in caplog.records if record.message == "stripe call"]
    assert [(line.call, line.status, line.stripe_request) for line in lines[1:]] == [  # type: ignore[attr-defined]
        ("POST subscriptions/:id", "500", "req_1")
    ] * 3


def test_what_stripe_does_not_find_is_none(api: responses.RequestsMock) -> None:
    missing = error(code="resource_missing", param="id")
    for path in ("subscriptions/sub_1", "checkout/sessions/cs_1", "customers/cus_1"):
        api.get(f"{API}/{path}", json=missing, status=404)
    api.delete(f"{API}/customers/cus_1", json=missing, status=404)
    asked = gateway()
    assert asked.retrieve_subscription("sub_1") is None
    assert asked.retrieve_checkout("cs_1") is None
    assert asked.retrieve_customer("cus_1") is None
    asked.delete_customer("cus_1")
    assert len(api.calls) == 5


def test_every_call_that_writes_has_a_key_in_the_source() -> None:
    verbs = "create|update|expire|cancel|add_lines|finalize_invoice"
    calls = re.findall(rf"(\S*)self\._v1\.[\w.]+\.(?:{verbs})\b", inspect.getsource(StripeGateway))
    assert len(calls) > 10
    assert all(call.endswith("_post(") for call in calls), calls


def test_version_timeouts_key_and_no_telemetry(api: responses.RequestsMock) -> None:
    api.get(f"{API}/customers/cus_1", json={"id": "cus_1", "object": "customer"})
    asked = gateway()
    assert [asked.retrieve_customer("cus_1") for _ in range(2)] == [{"id": "cus_1", "object": "customer"}] * 2
    assert [call.request.path_url for call in api.calls].count("/v1/account") == 1
    for call in api.calls:
        assert call.request.headers["Stripe-Version"] == stripe.api_version
        assert call.request.headers["Authorization"] == f"Bearer {KEY}"
        assert "X-Stripe-Client-Telemetry" not in call.request.headers
        assert call.request.req_kwargs["timeout"] == (5, 20)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"account": "acct_other"}, "the key is of account acct_other, test mode, but this database is for"),
        ({"revoked": True}, "Stripe refuses this key: Expired API Key provided"),
        ({"without": ["customer_write"]}, "Having the 'rak_customer_write' permission would allow"),
        ({"without": ["accounts_kyc_basic_read"]}, "Having the 'rak_accounts_kyc_basic_read' permission"),
    ],
)
def test_a_key_that_may_not_is_503_by_its_settings_name(
    sandbox: Sandbox, stripe_environ: dict[str, str], make_app: Any, key: dict[str, Any], said: str
) -> None:
    stripe_environ["STRIPE_WEBHOOK_SECRET"] = ""
    assert make_app().test_cli_runner().invoke(args=["stripe", "setup"]).exit_code == 0
    sandbox.add_key("rk_test_another", **key)
    other: Flask = make_app(STRIPE_SECRET_KEY="rk_test_another")
    with other.app_context(), pytest.raises(Unavailable) as caught:
        from app.extensions import stripe as asked

        asked.create_customer("cust_abcdefghijkl", "a@example.com", None, "k")
    assert caught.value.message.startswith("STRIPE_SECRET_KEY: ")
    assert said in caught.value.message
    assert sandbox.every("customer") == []


# Rows


def price(id: str = "price_1", lookup_key: str | None = "zemfyre_starter", **metadata: str) -> dict[str, Any]:
    recurring = {"interval": "month"}
    return {
        "id": id, "lookup_key": lookup_key, "metadata": metadata, "recurring": recurring, "unit_amount": 2900,
        "currency": "usd",
    }  # fmt: skip


def item(sold: dict[str, Any], start: int = T0, quantity: int = 1) -> dict[str, Any]:
    period = {"current_period_start": start, "current_period_end": start + 100}
    return {"price": sold, "quantity": quantity, **period}


def row(*items: dict[str, Any], lacking: str = "", **fields: Any) -> dict[str, Any]:
    found = {
        "id": "sub_1", "customer": "cus_1", "status": "active", "created": T0, "trial_end": None,
        "items": {"data": list(items) or [item(price())]}, **fields,
    }  # fmt: skip
    found.pop(lacking, None)
    return subscription_row(found, lambda sold: plan_of_price(sold, {"price_e": "enterprise"}) or "unknown")


def test_the_row_of_an_ordinary_subscription() -> None:
    assert row(item(price(), quantity=3), customer={"id": "cus_7"}, cancel_at=T0 + 100) == {
        "subscription_id": "sub_1", "stripe_subscription_id": "sub_1", "stripe_customer_id": "cus_7",
        "stripe_price_id": "price_1", "plan": "starter", "billing_interval": "month",
        "amount": 8700, "currency": "usd", "status": "active", "paid": True, "trial_ends_at": None,
        "current_period_starts_at": as_time(T0), "current_period_ends_at": as_time(T0 + 100),
        "cancel_at_period_end": False, "cancel_at": as_time(T0 + 100), "ended_at": None,
        "created_at": as_time(T0), "details": {},
    }  # fmt: skip


@pytest.mark.parametrize("lacking", ["id", "items", "status", "created", "customer"])
def test_a_subscription_that_lacks_something_is_a_failure_of_stripe(lacking: str) -> None:
    with pytest.raises(StripeFailed):
        row(lacking=lacking)


@pytest.mark.parametrize(
    ("sold", "plan"),
    [
        (price(lookup_key="zemfyre_professional_year"), "professional"),
        (price(lookup_key=None, zemfyre_plan="starter"), "starter"),
        (price("price_e", lookup_key="zemfyre_starter"), "enterprise"),
        (price(lookup_key="zemfyre_gold"), "unknown"),
        (price(lookup_key=None, zemfyre_plan="trial"), "unknown"),
    ],
)
def test_the_plan_is_the_prices(sold: dict[str, Any], plan: str) -> None:
    assert row(item(sold))["plan"] == plan


def test_the_best_plan_counts_and_quantity_0_sells_nothing() -> None:
    pro, odd = price("price_p", "zemfyre_professional"), price("price_x", None)
    assert row(item(odd), item(pro), item(price()))["stripe_price_id"] == "price_p"
    assert row(item(pro, quantity=0), item(price()))["plan"] == "starter"
    assert row(item(pro, quantity=0))["plan"] not in PLANS


@pytest.mark.parametrize(
    ("fields", "start", "paid"),
    [
        ({"status": "past_due"}, T0, True),
        ({"status": "incomplete"}, T0, False),
        ({"status": "trialing", "trial_end": T0 + 50}, T0, False),
        ({"status": "active", "trial_end": T0 + 50}, T0 + 50, True),
        ({"status": "canceled", "trial_end": T0 + 50}, T0, False),
        ({"collection_method": "send_invoice", "latest_invoice": "in_1"}, T0, False),
    ],
)
def test_paid_is_read_from_the_state_alone(fields: dict[str, Any], start: int, paid: bool) -> None:
    assert row(item(price(), start=start), **fields)["paid"] is paid


def test_what_operators_are_shown_beside_the_state() -> None:
    invoice = {
        "id": "in_1", "status": "open", "hosted_invoice_url": "https://pay", "amount_due": 5,
        "currency": "usd", "next_payment_attempt": T0,
    }  # fmt: skip
    phases = [{"start_date": T0, "items": []}, {"start_date": T0 + 9, "items": [{"price": "price_e"}]}]
    schedule = {"current_phase": {"start_date": T0, "end_date": T0 + 9}, "phases": phases}
    paused = {"behavior": "void", "resumes_at": None}
    assert row(latest_invoice=invoice, schedule=schedule, pause_collection=paused)["details"] == {
        "pauseCollection": {"behavior": "void", "resumesAt": None},
        "scheduledChange": {"price": "price_e", "plan": "enterprise", "at": "2026-09-21T14:13:29Z"},
        "unpaidInvoice": {
            "id": "in_1", "url": "https://pay", "amountDue": 5, "currency": "usd",
            "nextPaymentAttemptAt": "2026-09-21T14:13:20Z",
        },
    }  # fmt: skip


# The bulkhead


def test_two_web_requests_call_two_wait_and_the_next_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, api: responses.RequestsMock
) -> None:
    monkeypatch.setattr(module, "QUEUE_SECONDS", 0.05)
    asked, web = gateway(), Flask("web")
    release, inside = threading.Event(), threading.Semaphore(0)

    def occupy() -> None:
        with web.test_request_context(), asked.slot(), asked.slot():
            inside.release()
            release.wait(10)

    with asked.slot(), ThreadPoolExecutor(2) as pool:
        running = [pool.submit(occupy) for _ in range(2)]
        for _ in running:
            assert inside.acquire(timeout=10)
        with web.test_request_context(), pytest.raises(Unavailable, match="slow"), asked.slot():
            pass
        release.set()
        for one in running:
            one.result(10)
    for _ in range(5):
        with web.test_request_context(), pytest.raises(ZeroDivisionError), asked.slot():
            raise ZeroDivisionError  # a place is given back whatever happens


def test_the_console_stays_below_the_rate(
    monkeypatch: pytest.MonkeyPatch, api: responses.RequestsMock
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    api.get(f"{API}/customers/cus_1", json={"id": "cus_1", "object": "customer"})
    asked = gateway(STRIPE_RATE="1")
    for _ in range(3):
        asked.retrieve_customer("cus_1")
    assert [round(wait) for wait in waits] == [0, 1, 2, 3]
