"""The one module that talks to Stripe: its answers as ours, keys, retries, rows, the bulkhead."""

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import responses
import stripe

import app.stripe_gateway as module
from app.config import load_settings
from app.errors import DomainError, Invalid, PaymentRefused, StripeFailed, Unavailable
from app.stripe_gateway import NoAnswer, Refused, StripeGateway

API = "https://api.stripe.com/v1"
KEY = "sk_test_0123456789abcdef"
T0 = 1_790_000_000


def gateway(**settings: str) -> StripeGateway:
    return StripeGateway(load_settings({"STRIPE_SECRET_KEY": KEY, **settings}))


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.001)


@pytest.fixture
def api() -> Any:
    with responses.RequestsMock(assert_all_requests_are_fired=True) as mock:
        yield mock


def refusal(type: str = "invalid_request_error", **fields: str) -> dict[str, Any]:
    return {"error": {"type": type, "message": "no", **fields}}


def refused(api: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> DomainError:
    """What a POST raises when Stripe answers so."""
    api.post(f"{API}/subscriptions/sub_1", json=body, status=status, headers=headers)
    with pytest.raises(DomainError) as caught:
        gateway().cancel_at_period_end("sub_1", "key-1")
    return caught.value


# Errors


def test_a_declined_card_is_402_with_stripes_words(api: Any) -> None:
    error = refused(
        api, 402, {"error": {"type": "card_error", "code": "card_declined", "message": "Declined."}}
    )
    assert isinstance(error, PaymentRefused)
    assert (error.code, error.message) == (402, "The payment was refused: Declined.")
    assert len(api.calls) == 1


def test_too_many_requests_is_503_with_retry_after(api: Any) -> None:
    error = refused(api, 429, refusal(code="rate_limit"))
    assert isinstance(error, Unavailable)
    assert (error.code, error.headers["Retry-After"].isdigit()) == (503, True)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failure_of_stripe_is_502_after_two_retries_under_one_key(api: Any, status: int) -> None:
    error = refused(api, status, refusal("api_error"))
    assert (type(error), error.code) == (StripeFailed, 502)
    assert [call.request.headers["Idempotency-Key"] for call in api.calls] == ["key-1"] * 3


def test_stripes_word_not_to_retry_is_heeded(api: Any) -> None:
    assert refused(api, 500, refusal("api_error"), {"Stripe-Should-Retry": "false"}).code == 502
    assert len(api.calls) == 1


@pytest.mark.parametrize(
    "failure", [requests.ReadTimeout(), requests.ConnectTimeout(), requests.ConnectionError()]
)
def test_no_answer_is_502_and_known_as_such(api: Any, failure: Exception) -> None:
    api.post(f"{API}/subscriptions/sub_1", body=failure)
    with pytest.raises(NoAnswer) as caught:
        gateway().cancel_at_period_end("sub_1", "key-1")
    assert caught.value.code == 502
    assert {call.request.headers["Idempotency-Key"] for call in api.calls} == {"key-1"}
    assert len(api.calls) == 3


@pytest.mark.parametrize(("status", "type"), [(409, "idempotency_error"), (409, "api_error")])
def test_a_key_in_use_passes(api: Any, status: int, type: str) -> None:
    error = refused(api, status, refusal(type))
    assert isinstance(error, Unavailable)
    assert "another request" in error.message


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "null",
        '"x"',
        "5",
        '{"object": "list"}',
        '{"object": "list", "data": null}',
        '{"id": 5, "object": "x"}',
        "\xff",
    ],
)
def test_an_answer_that_is_none_is_502(api: Any, body: str) -> None:
    api.get(f"{API}/prices", body=body.encode("latin-1"))
    with pytest.raises(StripeFailed) as caught:
        gateway().price_of("starter")
    assert caught.value.code == 502


@pytest.mark.parametrize("body", ['{"error": "x"}', '{"error": null}', "{}", "[]", "x"])
def test_a_refusal_without_a_reason_is_502(api: Any, body: str) -> None:
    api.post(f"{API}/subscriptions/sub_1", body=body, status=400)
    with pytest.raises(StripeFailed) as caught:
        gateway().cancel_at_period_end("sub_1", "key-1")
    assert caught.value.code == 502


def test_a_key_that_was_used_otherwise_is_refused(api: Any) -> None:
    error = refused(api, 400, refusal("idempotency_error"))
    assert isinstance(error, Refused)  # so that the next attempt is made under another key


def test_wrong_credentials_are_502_without_telling_them(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = refused(api, 401, refusal(message=f"Invalid API Key provided: {KEY}"))
    assert error.code == 502
    assert KEY not in error.message + caplog.text


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("discounts[0][promotion_code]", "promoCode"),
        ("email", "email"),
        ("success_url", "successUrl"),
        ("cancel_url", "cancelUrl"),
    ],
)
def test_what_the_caller_gave_and_stripe_refused_is_422(api: Any, param: str, field: str) -> None:
    error = refused(api, 400, refusal(param=param))
    assert isinstance(error, Invalid)
    assert list(error.errors["json"]) == [field]


def test_any_other_refusal_is_502_and_has_an_answer(api: Any) -> None:
    error = refused(api, 400, refusal(param="line_items"))
    assert (error.code, isinstance(error, NoAnswer)) == (502, False)


def test_an_answer_that_is_no_json_is_502(api: Any) -> None:
    api.get(f"{API}/subscriptions/sub_1", body="<html>proxy</html>", status=200)
    with pytest.raises(StripeFailed):
        gateway().retrieve_subscription("sub_1")


def test_what_stripe_lacks_is_none(api: Any) -> None:
    missing = refusal(code="resource_missing")
    api.get(f"{API}/subscriptions/sub_1", json=missing, status=404)
    api.get(f"{API}/customers/cus_1", json=missing, status=404)
    api.get(f"{API}/checkout/sessions/cs_1", json=missing, status=404)
    api.get(f"{API}/subscriptions", json=missing, status=400)
    api.delete(f"{API}/customers/cus_1", json=missing, status=404)
    api.delete(f"{API}/subscriptions/sub_1", json=missing, status=404)
    stripe_ = gateway()
    assert stripe_.retrieve_subscription("sub_1") is None
    assert stripe_.retrieve_checkout("cs_1") is None
    assert stripe_.customer_is_deleted("cus_1") is True
    assert list(stripe_.list_subscriptions("cus_1")) == []
    stripe_.delete_customer("cus_1")
    stripe_.cancel("sub_1", "k")
    assert len(api.calls) == 6


def test_without_a_key_nothing_is_asked(api: Any) -> None:
    with pytest.raises(Unavailable, match="STRIPE_SECRET_KEY"):
        StripeGateway(load_settings({})).retrieve_subscription("sub_1")
    assert len(api.calls) == 0


# How it asks


POSTS: dict[str, Callable[[StripeGateway], Any]] = {
    "customers": lambda g: g.create_customer("cust_1", "a@example.com", None, "k"),
    "customers/cus_1": lambda g: g.update_customer("cus_1", "a@example.com", "A", "k"),
    "subscriptions/sub_1": lambda g: g.change_price("sub_1", "price_2", "k"),
    "checkout/sessions": lambda g: g.create_checkout({"mode": "subscription"}, "k"),
    "checkout/sessions/cs_1/expire": lambda g: g.expire_checkout("cs_1"),
    "billing_portal/sessions": lambda g: g.create_portal("cus_1", "https://x.example", "k"),
    "products": lambda g: g.create_product_with_price("starter", "10 devices", 2900, "k"),
    "webhook_endpoints": lambda g: g.create_webhook("https://x.example/hook", "k"),
}


@pytest.mark.parametrize("path", POSTS)
def test_every_post_carries_a_key(api: Any, path: str) -> None:
    api.post(f"{API}/{path}", json={"id": "new_1", "object": "x", "url": "u", "secret": "s"})
    if path == "products":
        api.post(f"{API}/prices", json={"id": "price_1", "object": "price"})
    if path.startswith("subscriptions"):
        item = {"id": "si_1", "price": {"id": "price_1", "lookup_key": None, "metadata": {}}}
        api.get(f"{API}/{path}", json={"id": "sub_1", "object": "subscription", "items": {"data": [item]}})
    POSTS[path](gateway())
    posts = [call.request for call in api.calls if call.request.method == "POST"]
    assert posts
    keys = {request.headers["Idempotency-Key"].partition("-")[0] for request in posts}
    assert keys <= {"k", "setup", "expire"}


def test_every_post_of_the_module_is_in_this_list() -> None:
    """A new call to Stripe that writes must come with its key: count the keys against the calls."""
    source = inspect.getsource(module)
    writes = sum(source.count(f".{verb}(") for verb in ("create", "update", "expire", "cancel"))
    assert source.count("_options(") - 1 == writes


def test_version_timeouts_and_no_telemetry(api: Any) -> None:
    api.get(f"{API}/customers/cus_1", json={"id": "cus_1", "object": "customer"})
    stripe_ = gateway()
    assert [stripe_.customer_is_deleted("cus_1") for _ in range(2)] == [False, False]
    for call in api.calls:
        assert call.request.headers["Stripe-Version"] == stripe.api_version
        assert call.request.headers["Authorization"] == f"Bearer {KEY}"
        assert "X-Stripe-Client-Telemetry" not in call.request.headers
        assert call.request.req_kwargs["timeout"] == (5, 20)


def test_another_base_is_asked(api: Any) -> None:
    api.get("http://127.0.0.1:12111/v1/customers/cus_1", json={"id": "cus_1", "object": "customer"})
    assert gateway(STRIPE_API_BASE="http://127.0.0.1:12111/").customer_is_deleted("cus_1") is False


def test_lists_are_read_to_their_end(api: Any) -> None:
    def page(ids: list[str], more: bool) -> dict[str, Any]:
        data = [{"id": id, "object": "customer"} for id in ids]
        return {"object": "list", "data": data, "has_more": more, "url": "/v1/customers"}

    first = responses.matchers.query_param_matcher({"limit": "100"})
    second = responses.matchers.query_param_matcher({"limit": "100", "starting_after": "cus_2"})
    api.get(f"{API}/customers", json=page(["cus_1", "cus_2"], True), match=[first])
    api.get(f"{API}/customers", json=page(["cus_3"], False), match=[second])
    assert [found["id"] for found in gateway().list_customers()] == ["cus_1", "cus_2", "cus_3"]


def test_a_lost_answer_leaves_the_customer_to_be_found_by_our_id(api: Any) -> None:
    others = [
        {"id": f"cus_{n}", "object": "customer", "metadata": {"customer_id": f"cust_{n}"}} for n in range(3)
    ]
    bare = {"id": "cus_x", "object": "customer", "metadata": {}}
    api.get(f"{API}/customers", json={"object": "list", "data": [bare, *others], "has_more": False})
    assert gateway().find_customers("cust_2", "a@example.com") == ["cus_2"]
    assert gateway().find_customers("cust_9", "a@example.com") == []


@pytest.mark.parametrize(("key", "live"), [("sk_test_1", False), ("sk_live_1", True), ("rk_live_1", True)])
def test_the_mode_is_the_keys(key: str, live: bool) -> None:
    assert gateway(STRIPE_SECRET_KEY=key).livemode is live


# Rows


def price(id: str = "price_1", lookup_key: str | None = "zemfyre_starter", **metadata: str) -> dict[str, Any]:
    return {"id": id, "lookup_key": lookup_key, "metadata": metadata}


def item(sold: dict[str, Any], start: int = T0, end: int = T0 + 100) -> dict[str, Any]:
    return {"id": f"si_{sold['id']}", "price": sold, "current_period_start": start, "current_period_end": end}


def subscription(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "sub_1", "customer": "cus_1", "status": "active", "created": T0, "ended_at": None,
        "trial_end": None, "cancel_at": None, "cancel_at_period_end": False,
        "items": {"data": list(items) or [item(price())]},
        **fields,
    }  # fmt: skip


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_the_row_of_an_ordinary_subscription() -> None:
    assert gateway().subscription_row(subscription()) == {
        "subscription_id": "sub_1",
        "stripe_subscription_id": "sub_1",
        "stripe_customer_id": "cus_1",
        "stripe_price_id": "price_1",
        "plan": "starter",
        "status": "active",
        "paid": True,
        "trial_ends_at": None,
        "current_period_starts_at": at(T0),
        "current_period_ends_at": at(T0 + 100),
        "cancel_at_period_end": False,
        "cancel_at": None,
        "ended_at": None,
        "created_at": at(T0),
    }


def test_the_period_is_the_items_even_if_one_stands_on_top() -> None:
    row = gateway().subscription_row(subscription(item(price()), current_period_end=T0 + 7))
    assert row["current_period_ends_at"] == at(T0 + 100)


def test_a_portal_cancellation_sets_only_cancel_at() -> None:
    row = gateway().subscription_row(subscription(cancel_at=T0 + 100))
    assert (row["cancel_at"], row["cancel_at_period_end"]) == (at(T0 + 100), False)


def test_an_expanded_customer_is_read_too() -> None:
    row = gateway().subscription_row(subscription(customer={"id": "cus_7", "object": "customer"}))
    assert row["stripe_customer_id"] == "cus_7"


@pytest.mark.parametrize(
    ("sold", "plan"),
    [
        (price(lookup_key="zemfyre_professional"), "professional"),
        (price(lookup_key=None, zemfyre_plan="starter"), "starter"),
        (price("price_e", lookup_key=None), "enterprise"),
        (price("price_e", lookup_key="zemfyre_starter"), "enterprise"),
        (price(lookup_key=None), "unknown"),
        (price(lookup_key="zemfyre_gold"), "unknown"),
        (price(lookup_key=None, zemfyre_plan="trial"), "unknown"),
        (price(lookup_key=None, zemfyre_plan="unknown"), "unknown"),
    ],
)
def test_the_plan_is_the_prices(sold: dict[str, Any], plan: str) -> None:
    """By configured id, then lookup key, then the metadata that stays when the key moves on."""
    row = gateway(STRIPE_PRICE_ENTERPRISE="price_e").subscription_row(subscription(item(sold)))
    assert (row["plan"], row["stripe_price_id"]) == (plan, sold["id"])


def test_of_several_items_the_best_plan_counts() -> None:
    items = [
        item(price("price_addon", None)),
        item(price("price_p", "zemfyre_professional"), end=T0 + 50),
        item(price("price_s")),
    ]
    row = gateway().subscription_row(subscription(*items))
    assert (row["plan"], row["stripe_price_id"]) == ("professional", "price_p")
    assert row["current_period_ends_at"] == at(T0 + 50)


def test_an_upgrade_changes_the_item_that_counts(api: Any) -> None:
    found = subscription(item(price("price_addon", None)), item(price("price_s")))
    api.get(f"{API}/subscriptions/sub_1", json={"object": "subscription", **found})
    api.post(f"{API}/subscriptions/sub_1", json={"object": "subscription", **found})
    gateway().change_price("sub_1", "price_2", "k")
    sent = requests.utils.unquote(api.calls[1].request.body)
    assert "items[0][id]=si_price_s&items[0][price]=price_2" in sent
    assert "payment_behavior=error_if_incomplete" in sent


def test_a_status_never_heard_of_is_kept_as_it_is() -> None:
    assert gateway().subscription_row(subscription(status="frozen"))["status"] == "frozen"


@pytest.mark.parametrize(
    ("fields", "start", "paid"),
    [
        ({"status": "active"}, T0, True),
        ({"status": "past_due"}, T0, True),
        ({"status": "paused"}, T0, True),
        ({"status": "incomplete"}, T0, False),
        ({"status": "incomplete_expired"}, T0, False),
        ({"status": "trialing", "trial_end": T0 + 50}, T0, False),
        ({"status": "active", "trial_end": T0 + 50}, T0 + 50, True),
        ({"status": "canceled", "trial_end": T0 + 50, "ended_at": T0 + 20}, T0, False),
        ({"status": "canceled", "trial_end": T0 + 50, "ended_at": T0 + 50}, T0, False),
        ({"status": "canceled", "trial_end": T0 + 50, "ended_at": T0 + 70}, T0 + 50, True),
        ({"status": "paused", "trial_end": T0 + 50}, T0, False),
    ],
)
def test_paid_is_read_from_the_state_alone(fields: dict[str, Any], start: int, paid: bool) -> None:
    found = subscription(item(price(), start=start, end=start + 100), **fields)
    assert gateway().subscription_row(found)["paid"] is paid


# The bulkhead


def test_surplus_calls_are_sent_away_at_once_and_the_rest_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_SECONDS", 0.05)
    stripe_ = gateway(STRIPE_MAX_CONCURRENCY="2")
    release, inside = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        with stripe_.slot(), stripe_.slot():
            inside.release()
            release.wait(10)

    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(hold) for _ in range(2)]
        for _ in held:
            inside.acquire(timeout=10)
        with pytest.raises(Unavailable, match="slow") as caught, stripe_.slot():
            pass
        assert caught.value.headers["Retry-After"].isdigit()
        release.set()
        for one in held:
            one.result(10)
    for _ in range(5):
        with stripe_.slot():
            pass


def test_a_failure_inside_gives_the_slot_back() -> None:
    stripe_ = gateway(STRIPE_MAX_CONCURRENCY="1")
    for _ in range(3):
        with pytest.raises(RuntimeError), stripe_.slot():
            raise RuntimeError
    free = []
    with stripe_.slot():
        free.append(True)
    assert free == [True]
