"""All calls to Stripe, as plain dicts: the only module that imports `stripe`. Only extensions imports it.

Shapes and parameters: https://docs.stripe.com/api at the SDK's pinned version.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import stripe
from flask import g, has_request_context

from app.config import Settings
from app.errors import (
    BadRequest,
    Conflict,
    DomainError,
    NoAnswer,
    PaymentRefused,
    Refused,
    StripeFailed,
    Unavailable,
    invalid_field,
)
from app.observe import STRIPE_SECONDS, redacted
from app.stripe_objects import LOOKUP_KEYS, WEBHOOK_EVENTS, read_event

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 20
RETRIES: Final = 2
CALLS_BEGIN_WITHIN_SECONDS: Final = 40
"""Of a web request: with the last call it ends before its lease (60 s) and the proxy's patience (65 s)."""
PLACES: Final = 2
QUEUE_SECONDS: Final = 5
WEBHOOK_TOLERANCE_SECONDS: Final = 300
PAGE: Final = 100
EXPANDED: Final = ["latest_invoice", "schedule"]
SUBSCRIPTION_PAGE: Final[dict[str, Any]] = {
    "status": "all", "limit": PAGE, "expand": [f"data.{name}" for name in EXPANDED],
}  # fmt: skip
# Stripe's parameters that repeat a field of our callers → the field.
_FIELDS: Final = {
    "discounts": "promoCode", "email": "email", "success_url": "successUrl", "cancel_url": "cancelUrl",
    "return_url": "returnUrl",
}  # fmt: skip
_PATH: Final = re.compile(
    r".*/v1/(?P<noun>(?:(?:checkout|billing_portal)/)?\w+)"
    r"(?P<id>/(?!search\b|create_preview\b)[^/?]+)?(?P<verb>/\w+)?"
)
# https://docs.stripe.com/error-codes: another request is at work with the same object or key.
_BUSY_CODES: Final = ("lock_timeout", "idempotency_key_in_use", "rate_limit")


class HttpClient(stripe.RequestsClient):
    """The SDK's HTTP client with our bulkhead, rate, metrics, log and errors.

    Any SDK call raises: Unavailable, PaymentRefused, Refused, Invalid, StripeFailed, NoAnswer.
    """

    def __init__(self, slot: Callable[[], Any], calls_per_second: int) -> None:
        super().__init__(timeout=(CONNECT_SECONDS, READ_SECONDS))
        self._slot = slot
        self._seconds_apart = 1 / calls_per_second
        self._next_call = 0.0
        self._turn = threading.Lock()

    def request_with_retries(self, *args: Any, **kwargs: Any) -> Any:
        if has_request_context() and time.perf_counter() - g.started > CALLS_BEGIN_WITHIN_SECONDS:
            raise StripeFailed("Stripe is slow to answer. Try again.")
        with self._slot():
            try:
                answer = super().request_with_retries(*args, **kwargs)
            except stripe.APIConnectionError as error:
                raise NoAnswer("Stripe did not answer. Try again.") from error
        _raise_for(*answer)
        return answer

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        """One attempt."""
        if not has_request_context():
            self._wait_for_turn()
        started, status, stripe_request = time.monotonic(), "none", None
        try:
            answer = super().request(method, url, *args, **kwargs)
            status, stripe_request = str(answer[1]), answer[2].get("Request-Id")
            return answer
        finally:
            seconds, call = time.monotonic() - started, _call_name(method, url)
            STRIPE_SECONDS.labels(call, status).observe(seconds)
            log.log(
                logging.INFO if status.startswith("2") else logging.WARNING,
                "stripe call",
                extra={
                    "call": call, "status": status, "ms": round(seconds * 1000, 1),
                    "stripe_request": stripe_request,
                },
            )  # fmt: skip

    def _wait_for_turn(self) -> None:
        """Keep the console's threads together below STRIPE_RATE."""
        with self._turn:
            at = max(self._next_call, time.monotonic())
            self._next_call = at + self._seconds_apart
        time.sleep(max(0.0, at - time.monotonic()))


class StripeGateway:
    """Calls to Stripe with a bulkhead, and a check that the key belongs to this database's account.

    Every POST carries an idempotency key: after NoAnswer the same call may be made again. Any other answer,
    a refusal too, Stripe repeats for that key for 24 hours.
    `remember_account(id, livemode)` stores the account at first contact and returns the stored row.
    """

    def __init__(
        self, settings: Settings, remember_account: Callable[[str, bool], Mapping[str, Any]]
    ) -> None:
        self._settings = settings
        self._remember_account = remember_account
        self._account_is_checked = False
        self._running = threading.Semaphore(PLACES)
        self._entered = threading.Semaphore(2 * PLACES)
        self._inside = threading.local()
        stripe.enable_telemetry = False
        base = settings.stripe_api_base
        self._client = stripe.StripeClient(
            settings.stripe_secret_key or "not set",
            http_client=HttpClient(self._place, settings.stripe_rate),
            max_network_retries=RETRIES,
            base_addresses={"api": base.rstrip("/")} if base else {},
        )

    @property
    def configured(self) -> bool:
        return self._settings.stripe_secret_key is not None

    def require_configured(self) -> None:
        if not self.configured:
            raise Unavailable("Stripe is not configured: STRIPE_SECRET_KEY is not set.")

    @property
    def livemode(self) -> bool:
        return "_live_" in (self._settings.stripe_secret_key or "")

    @property
    def _v1(self) -> Any:
        """Stripe's API, once the key is known to belong to the account that this database is for."""
        self.require_configured()
        if not self._account_is_checked:
            account = str(self._client.v1.accounts.retrieve_current().id)
            known = self._remember_account(account, self.livemode)
            if (known["account_id"], known["livemode"]) != (account, self.livemode):
                raise Unavailable(
                    f"STRIPE_SECRET_KEY: the key is of account {account}, {_mode(self.livemode)}, but this "
                    f"database is for {known['account_id']}, {_mode(known['livemode'])}. Nothing was changed."
                )
            self._account_is_checked = True
        return self._client.v1

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place in the bulkhead for several calls together; to be entered before a transaction is opened.

        It checks the account, which reads the database. Raises Unavailable.
        """
        _ = self._v1
        with self._place():
            yield

    @contextmanager
    def _place(self) -> Iterator[None]:
        """When Stripe is slow, two web requests at most call it at once, and two wait a moment.

        So the other threads go on with reports and licenses. Entering twice in one thread counts once.
        """
        if not has_request_context() or getattr(self._inside, "place", False):
            yield
            return
        if not self._entered.acquire(blocking=False):
            raise Unavailable("Too many requests are waiting for Stripe. Try again shortly.")
        try:
            if not self._running.acquire(timeout=QUEUE_SECONDS):
                raise Unavailable("Stripe is slow to answer. Try again shortly.")
            self._inside.place = True
            try:
                yield
            finally:
                self._inside.place = False
                self._running.release()
        finally:
            self._entered.release()

    # Customers

    def find_customers(self, customer_id: str, email: str) -> list[dict[str, Any]]:
        """Customers with our id in their metadata or with this address, in any letter case, newest first.

        The search runs up to a minute behind; the list by address does not, but compares letter case.
        https://docs.stripe.com/search
        """
        quoted = email.replace("\\", "\\\\").replace('"', '\\"')
        found = list(self._v1.customers.list({"email": email, "limit": PAGE}).data)
        for query in (f"metadata['customer_id']:'{customer_id}'", f'email:"{quoted}"'):
            found += self._v1.customers.search({"query": query, "limit": PAGE}).data
        by_id = {customer.id: customer.to_dict() for customer in found}
        return sorted(by_id.values(), key=lambda customer: -customer["created"])

    def retrieve_customer(self, stripe_customer_id: str) -> dict[str, Any] | None:
        """None: Stripe does not find it. One that was deleted there has `deleted`."""
        return _or_none(self._v1.customers.retrieve, stripe_customer_id)

    def create_customer(self, customer_id: str, email: str, name: str | None, key: str) -> str:
        params = {"email": email, "metadata": {"customer_id": customer_id}}
        return str(_post(self._v1.customers.create, params | ({"name": name} if name else {}), key=key)["id"])

    def update_customer(self, stripe_customer_id: str, changes: dict[str, Any], key: str) -> None:
        """Change these of Stripe's fields and no other."""
        _post(self._v1.customers.update, stripe_customer_id, changes, key=key)

    def delete_customer(self, stripe_customer_id: str) -> None:
        """Delete for good; Stripe ends the subscriptions at once. Not found is fine."""
        _or_none(self._v1.customers.delete, stripe_customer_id)

    def list_customers(self) -> Iterator[dict[str, Any]]:
        """Every customer of the account, but those of a test clock."""
        return _all(self._v1.customers.list({"limit": PAGE}))

    # Subscriptions

    def list_subscriptions(self, stripe_customer_id: str) -> Iterator[dict[str, Any]]:
        """Every subscription of a customer, ended ones too."""
        return _all(self._v1.subscriptions.list({"customer": stripe_customer_id, **SUBSCRIPTION_PAGE}))

    def subscription_page(self, after: str | None) -> list[dict[str, Any]]:
        """A hundred subscriptions of the account that follow `after`, but those of a test clock."""
        params = SUBSCRIPTION_PAGE | ({"starting_after": after} if after else {})
        _ = self._v1
        # Making the SDK's objects of a page takes ten times as long as reading it.
        return list(self._client.raw_request("get", "/v1/subscriptions", **params).data["data"])

    def retrieve_subscription(self, subscription_id: str) -> dict[str, Any] | None:
        """None: Stripe does not find it."""
        return _or_none(self._v1.subscriptions.retrieve, subscription_id, {"expand": EXPANDED})

    def preview_change(self, subscription_id: str, from_price: str, to_price: str) -> dict[str, Any]:
        """The invoice that `change_price` would make at once."""
        items = [{"id": self._item_id(subscription_id, from_price), "price": to_price}]
        details = {"items": items, "proration_behavior": "always_invoice"}
        params = {"subscription": subscription_id, "subscription_details": details}
        return self._v1.invoices.create_preview(params).to_dict()  # type: ignore[no-any-return]

    def change_price(
        self, subscription_id: str, from_price: str, to_price: str, key: str, *, pending: bool = False
    ) -> dict[str, Any]:
        """Move the item of one price to another price, prorated and paid at once: the subscription.

        A refused payment changes nothing; with `pending` the change waits in `pending_update` until the
        customer pays `latest_invoice` at its `hosted_invoice_url`.
        """
        params = {
            "items": [{"id": self._item_id(subscription_id, from_price), "price": to_price}],
            "payment_behavior": "pending_if_incomplete" if pending else "error_if_incomplete",
            "proration_behavior": "always_invoice",
            "expand": EXPANDED,
        }
        return _post(self._v1.subscriptions.update, subscription_id, params, key=key)

    def cancel(self, subscription_id: str, key: str) -> None:
        """End it now. Stripe does not find one that has ended already, which is fine."""
        try:
            _post(self._v1.subscriptions.cancel, subscription_id, {}, key=key)
        except Refused as error:
            if not error.missing:
                raise

    def cancel_at_period_end(self, subscription_id: str, key: str) -> None:
        _post(self._v1.subscriptions.update, subscription_id, {"cancel_at_period_end": True}, key=key)

    def withdraw_cancellation(self, subscription_id: str, *, has_cancel_at: bool, key: str) -> None:
        """Stripe takes one of the two fields at a time, and the portal sets `cancel_at`."""
        params = {"cancel_at": ""} if has_cancel_at else {"cancel_at_period_end": False}
        _post(self._v1.subscriptions.update, subscription_id, params, key=key)

    def _item_id(self, subscription_id: str, price_id: str) -> str:
        found = self.retrieve_subscription(subscription_id)
        items = found["items"]["data"] if found else []
        ids = [str(item["id"]) for item in items if item["price"]["id"] == price_id]
        if not ids:
            raise Conflict(f"{subscription_id} does not sell {price_id} any more. Try again.")
        return ids[0]

    # Prices and promotion codes

    def selling_price(self, plan: str, interval: str) -> dict[str, Any] | None:
        """The price that sells this plan now: the pinned one, else the active one with its lookup key.

        None when there never was one. Raises Conflict for an archived price, or a pin that Stripe lacks.
        """
        if pinned := self._settings.stripe_prices.get((plan, interval)):
            setting = f"STRIPE_PRICE_{plan.upper()}{'_YEAR' if interval == 'year' else ''}"
            price = _or_none(self._v1.prices.retrieve, pinned)
            if price is None:
                raise Conflict(f"{setting}: Stripe has no price {pinned}.")
            if not price["active"]:
                raise Conflict(f"{setting}: the price {pinned} is archived. Name an active one.")
            return price
        found = self.list_prices([LOOKUP_KEYS[plan, interval]])
        active = [price for price in found if price["active"]]
        if found and not active:
            raise Conflict(f"The price {found[0]['id']} of {LOOKUP_KEYS[plan, interval]} is archived.")
        return active[0] if active else None

    def list_prices(self, lookup_keys: list[str]) -> list[dict[str, Any]]:
        """The prices that carry one of these lookup keys, archived ones too."""
        page = self._v1.prices.list({"lookup_keys": lookup_keys, "limit": PAGE})
        return [price.to_dict() for price in page.data]

    def create_product(self, params: dict[str, Any], key: str) -> str:
        return str(_post(self._v1.products.create, params, key=key)["id"])

    def create_price(self, params: dict[str, Any], key: str) -> dict[str, Any]:
        return _post(self._v1.prices.create, params, key=key)

    def update_price(self, price_id: str, params: dict[str, Any], key: str) -> None:
        _post(self._v1.prices.update, price_id, params, key=key)

    def find_promotion_code(self, code: str, stripe_customer_id: str) -> str | None:
        """The id of an active promotion code that this customer may use, in any letter case.

        The same code may exist once for everybody and once for each of several customers.
        """
        page = self._v1.promotion_codes.list({"code": code, "active": True, "limit": PAGE})
        by_owner = {found.customer: str(found.id) for found in page.data}
        return by_owner.get(stripe_customer_id) or by_owner.get(None)

    # Checkout, portal, invoices

    def create_checkout(self, params: dict[str, Any], key: str) -> dict[str, Any]:
        return _post(self._v1.checkout.sessions.create, params, key=key)

    def list_checkouts(self, stripe_customer_id: str) -> list[dict[str, Any]]:
        """The newest checkout sessions of a customer."""
        page = self._v1.checkout.sessions.list({"customer": stripe_customer_id, "limit": PAGE})
        return [session.to_dict() for session in page.data]

    def expire_checkout(self, session_id: str) -> bool:
        """Close an open session so that it can no longer be paid; False when it just was."""
        key = f"expire-{session_id}-{int(time.time()) // 60}"  # a failure is repeated no longer than a minute
        try:
            _post(self._v1.checkout.sessions.expire, session_id, {}, key=key)
        except Refused:
            return False
        return True

    def retrieve_checkout(self, session_id: str) -> dict[str, Any] | None:
        """None: Stripe does not find it."""
        return _or_none(self._v1.checkout.sessions.retrieve, session_id)

    def create_portal(self, stripe_customer_id: str, return_url: str, key: str) -> str:
        params = {"customer": stripe_customer_id, "return_url": return_url}
        return str(_post(self._v1.billing_portal.sessions.create, params, key=key)["url"])

    def list_invoices(self, limit: int | None = None, **filters: str) -> list[dict[str, Any]]:
        """Of a customer, subscription or status, newest first, with all lines; without a limit every one."""
        params = filters | {"limit": min(limit or PAGE, PAGE)}
        found = list(islice(_all(self._v1.invoices.list(params)), limit))
        for invoice in found:
            if invoice["lines"]["has_more"]:  # Stripe shows the first ten with it
                lines = self._v1.invoices.line_items.list(invoice["id"], {"limit": PAGE})
                invoice["lines"]["data"] = list(_all(lines))
        return found

    def retrieve_invoice(self, invoice_id: str) -> dict[str, Any] | None:
        """None: Stripe does not find it."""
        return _or_none(self._v1.invoices.retrieve, invoice_id)

    def retrieve_charge(self, charge_id: str) -> dict[str, Any] | None:
        """None: Stripe does not find it."""
        return _or_none(self._v1.charges.retrieve, charge_id)

    def retrieve_dispute(self, dispute_id: str) -> dict[str, Any] | None:
        """With its `charge` expanded. None: Stripe does not find it."""
        return _or_none(self._v1.disputes.retrieve, dispute_id, {"expand": ["charge"]})

    # Invoice items

    def list_invoice_items(self, stripe_customer_id: str) -> list[dict[str, Any]]:
        """Pending ones and those of every invoice, newest first."""
        return list(_all(self._v1.invoice_items.list({"customer": stripe_customer_id, "limit": PAGE})))

    def create_invoice_item(self, params: dict[str, Any], key: str) -> str:
        return str(_post(self._v1.invoice_items.create, params, key=key)["id"])

    def create_invoice(self, params: dict[str, Any], key: str) -> str:
        """A draft."""
        return str(_post(self._v1.invoices.create, params, key=key)["id"])

    def add_invoice_item(self, invoice_id: str, item_id: str, key: str) -> None:
        """Put a pending item on a draft."""
        _post(self._v1.invoices.add_lines, invoice_id, {"lines": [{"invoice_item": item_id}]}, key=key)

    def finalize_invoice(self, invoice_id: str, key: str) -> None:
        """Make a draft final; Stripe collects it then."""
        _post(self._v1.invoices.finalize_invoice, invoice_id, {"auto_advance": True}, key=key)

    # Webhooks

    def find_webhook(self, url: str) -> dict[str, Any] | None:
        """The enabled webhook endpoint with this address."""
        endpoints = _all(self._v1.webhook_endpoints.list({"limit": PAGE}))
        return next((e for e in endpoints if e["url"] == url and e["status"] == "enabled"), None)

    def create_webhook(self, url: str, key: str) -> str:
        """A webhook endpoint for the events we follow; its signing secret, which Stripe shows only once."""
        params = {"url": url, "enabled_events": list(WEBHOOK_EVENTS), "api_version": stripe.api_version}
        return str(_post(self._v1.webhook_endpoints.create, params, key=key)["secret"])

    def read_event(self, payload: bytes, signature: str) -> dict[str, Any]:
        """The event as `stripe_objects.read_event` reduces it, if one of our secrets signed it within the
        last five minutes. Raises BadRequest. https://docs.stripe.com/webhooks/signature
        """
        if not self._settings.stripe_webhook_secrets:
            raise Unavailable("Stripe is not configured: STRIPE_WEBHOOK_SECRET is not set.")
        self.require_configured()  # else nobody's state could be fetched
        try:
            text = payload.decode()
            if not any(_is_signed(text, signature, s) for s in self._settings.stripe_webhook_secrets):
                raise BadRequest("The Stripe-Signature does not fit the body, or is too old.")
            return read_event(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadRequest("The body is not a Stripe event.") from None


def _is_signed(text: str, signature: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(text, signature, secret, WEBHOOK_TOLERANCE_SECONDS))
    except (stripe.SignatureVerificationError, ValueError, TypeError, AttributeError):
        return False  # a hostile header makes the SDK raise more than its own error


def _all(first_page: Any) -> Iterator[dict[str, Any]]:
    return (found.to_dict() for found in first_page.auto_paging_iter())


def _or_none(retrieve: Callable[..., Any], object_id: str, params: Any = None) -> dict[str, Any] | None:
    try:
        return retrieve(object_id, params or {}).to_dict()  # type: ignore[no-any-return]
    except Refused as error:
        if error.missing:
            return None
        raise


def _post(call: Callable[..., Any], *args: Any, key: str) -> dict[str, Any]:
    """The object that a change at Stripe answers with, `key` being its idempotency key."""
    return call(*args, {"idempotency_key": key}).to_dict()  # type: ignore[no-any-return]


def _mode(livemode: bool) -> str:
    return "live mode" if livemode else "test mode"


def _call_name(method: str, url: str) -> str:
    """`POST subscriptions/:id/resume`: the route, without ids and parameters."""
    found = _PATH.match(url)
    if not found:
        return "other"
    return f"{method.upper()} {found['noun']}{'/:id' if found['id'] else ''}{found['verb'] or ''}"


def _raise_for(body: str | bytes, status: int, headers: Mapping[str, str]) -> None:
    """Raise our error for an answer of Stripe's that is none of use."""
    request_id = headers.get("Request-Id")
    try:
        answer = json.loads(body)
        if 200 <= status < 300 and _is_well_formed(answer):
            return
        error = answer["error"]
        raise _refusal(status, dict(error), request_id)
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = f"Stripe failed with status {status}" if status >= 500 else "Stripe's answer is not usable"
        raise StripeFailed(f"{reason} (Stripe request {request_id}). Try again.") from None


def _is_well_formed(answer: Any) -> bool:
    """One of Stripe's objects, or a page of them."""
    if answer["object"] not in ("list", "search_result"):
        return isinstance(answer["object"], str) and (answer["object"] == "invoice" or bool(answer["id"]))
    return isinstance(answer["has_more"], bool) and all(
        isinstance(found["id"], str) for found in answer["data"]
    )


def _refusal(status: int, error: dict[str, Any], request_id: str | None) -> DomainError:
    """Stripe's error as one of ours, in Stripe's words. https://docs.stripe.com/api/errors"""
    code, param = error.get("code"), str(error.get("param") or "")
    message = str(error.get("message", "no reason given")).encode(errors="replace").decode()
    # Cut and without NUL, as the database could not store it otherwise.
    words = redacted(f"{message.replace(chr(0), '')[:300]} (Stripe request {request_id})")
    refusal = _classified(status, error.get("type"), code, param, words)
    refusal.stripe_code = code
    log.warning(
        "stripe refused",
        extra={"status": status, "stripe_code": code, "param": param, "stripe_request": request_id},
    )
    return refusal


def _classified(status: int, kind: str | None, code: str | None, param: str, words: str) -> DomainError:
    if status in (401, 403):
        return Unavailable(f"STRIPE_SECRET_KEY: Stripe refuses this key: {words}")
    if status in (409, 429) or code in _BUSY_CODES:
        return Unavailable(f"Stripe asks us to try again shortly: {words}")
    if status >= 500:
        return StripeFailed(f"Stripe failed. Try again: {words}")
    # Without a payment method Stripe names neither an object nor a parameter.
    if status == 402 or kind == "card_error" or (code == "resource_missing" and not param):
        return PaymentRefused(f"The payment was refused: {words}")
    for prefix, field in _FIELDS.items():
        if param.startswith(prefix):
            return invalid_field(field, f"Stripe does not take this: {words}")
    refused = Refused(f"Stripe refused: {words}")
    refused.missing = code == "resource_missing"
    return refused
