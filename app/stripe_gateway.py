"""All of Stripe behind plain functions and dicts: the only module that imports `stripe`.

Shapes and parameters: https://docs.stripe.com/api at the SDK's pinned version.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import stripe

from app.config import Settings
from app.errors import (
    BadRequest,
    DomainError,
    PaymentRefused,
    StripeFailed,
    Unavailable,
    invalid_field,
)
from app.observe import STRIPE_SECONDS
from app.plans import PAID_PLANS, PLANS

T = TypeVar("T")
log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 20
RETRIES: Final = 2
QUEUE_SECONDS: Final = 5
WEBHOOK_TOLERANCE_SECONDS: Final = 300
PAGE: Final = 100
LOOKUP_KEYS: Final = {plan: f"zemfyre_{plan}" for plan in PAID_PLANS}
WEBHOOK_EVENTS: Final = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.paid",
    "invoice.payment_failed",
    "customer.deleted",
)
# Stripe's parameters that repeat a field of our callers → the field.
_FIELDS: Final = {
    "discounts": "promoCode",
    "email": "email",
    "success_url": "successUrl",
    "cancel_url": "cancelUrl",
    "return_url": "returnUrl",
}
_IDENTIFIER: Final = re.compile(r"[\x21-\x7e]{1,255}")


class StripeGateway:
    """Calls to Stripe with timeouts, retries, a bulkhead, and our own errors.

    Raises Unavailable (not configured, too many waiting, rate limited), StripeFailed (no usable
    answer; Refused), PaymentRefused or Invalid. NoAnswer leaves open whether Stripe acted: every
    POST carries an idempotency key, so the same call may simply be made again. Any other answer,
    a refusal too, Stripe would repeat for that key for 24 hours.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running = threading.Semaphore(2)
        self._entered = threading.Semaphore(4)
        self._inside = threading.local()
        self._client: stripe.StripeClient | None = None

    @property
    def configured(self) -> bool:
        return self._settings.stripe_secret_key is not None

    @property
    def livemode(self) -> bool:
        return "_live_" in (self._settings.stripe_secret_key or "")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place in the bulkhead: when Stripe is slow, its callers never take every worker thread.

        A few may call at once, as many again may wait a moment; whoever comes then is told to come
        back. Entering twice in one thread counts once.
        """
        if getattr(self._inside, "slot", False):
            yield
            return
        if not self._entered.acquire(blocking=False):
            raise Unavailable("Too many requests are waiting for Stripe. Try again shortly.")
        try:
            if not self._running.acquire(timeout=QUEUE_SECONDS):
                raise Unavailable("Stripe is slow to answer. Try again shortly.")
            try:
                self._inside.slot = True
                yield
            finally:
                self._inside.slot = False
                self._running.release()
        finally:
            self._entered.release()

    # Customers

    def find_customers(self, customer_id: str, email: str) -> list[str]:
        """Stripe's ids of the customers with this address and our id in their metadata, newest first."""
        page = self._call("customers.list", lambda c: c.v1.customers.list({"email": email, "limit": PAGE}))
        found = (customer.to_dict() for customer in page.data)
        return [str(c["id"]) for c in found if named_by(c) == customer_id]

    def create_customer(self, customer_id: str, email: str, name: str | None, key: str) -> str:
        params: Any = {"email": email, "metadata": {"customer_id": customer_id}}
        if name:
            params["name"] = name
        created = self._call("customers.create", lambda c: c.v1.customers.create(params, _options(key)))
        return str(created.id)

    def update_customer(self, stripe_customer_id: str, email: str, name: str | None, key: str) -> None:
        """Tell Stripe of a new address or name; a customer that was deleted there needs to hear nothing."""
        params: Any = {"email": email, "name": name or ""}
        self._or_none(
            "customers.update",
            lambda c: c.v1.customers.update(stripe_customer_id, params, _options(key)),
        )

    def customer_is_deleted(self, stripe_customer_id: str) -> bool:
        """Whether Stripe no longer has this customer."""
        found = self._or_none("customers.retrieve", lambda c: c.v1.customers.retrieve(stripe_customer_id))
        return found is None or bool(getattr(found, "deleted", False))

    def owner_of(self, stripe_customer_id: str) -> str | None:
        """Our id in the metadata of a customer, as Stripe has it now."""
        found = self._or_none("customers.retrieve", lambda c: c.v1.customers.retrieve(stripe_customer_id))
        return None if found is None else named_by(found.to_dict())

    def delete_customer(self, stripe_customer_id: str) -> None:
        """Delete for good; Stripe ends the subscriptions at once. Gone already is fine."""
        self._or_none("customers.delete", lambda c: c.v1.customers.delete(stripe_customer_id))

    def list_customers(self) -> Iterator[dict[str, Any]]:
        """Every customer of the account, page by page."""
        yield from self._pages("customers.list", lambda c, p: c.v1.customers.list(p), {})

    # Subscriptions

    def list_subscriptions(self, stripe_customer_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows for `upsert_stripe_subscription`, of one customer or of all, ended ones included.

        A customer that Stripe does not have has none.
        """
        params = {"status": "all"}
        if stripe_customer_id:
            params["customer"] = stripe_customer_id
        try:
            for found in self._pages("subscriptions.list", lambda c, p: c.v1.subscriptions.list(p), params):
                yield self.subscription_row(found)
        except Refused as error:
            if not error.missing:
                raise

    def retrieve_subscription(self, subscription_id: str) -> dict[str, Any] | None:
        """The same for one subscription; None when Stripe has none of this id."""
        found = self._or_none(
            "subscriptions.retrieve", lambda c: c.v1.subscriptions.retrieve(subscription_id)
        )
        return self.subscription_row(found.to_dict()) if found is not None else None

    def change_price(self, subscription_id: str, price_id: str, key: str) -> None:
        """Move to another price, prorated and paid at once. A refused payment changes nothing."""
        current = self._call("subscriptions.retrieve", lambda c: c.v1.subscriptions.retrieve(subscription_id))
        item = self._item_that_counts(current.to_dict())
        params: Any = {
            "items": [{"id": item["id"], "price": price_id}],
            "payment_behavior": "error_if_incomplete",
            "proration_behavior": "always_invoice",
        }
        self._call(
            "subscriptions.update",
            lambda c: c.v1.subscriptions.update(subscription_id, params, _options(key)),
        )

    def cancel(self, subscription_id: str, key: str) -> None:
        """End it now. Stripe knows no keys for this call: one that has ended already counts as done."""
        self._or_none(
            "subscriptions.cancel",
            lambda c: c.v1.subscriptions.cancel(subscription_id, {}, _options(key)),
        )

    def cancel_at_period_end(self, subscription_id: str, key: str) -> None:
        self._update(subscription_id, {"cancel_at_period_end": True}, key)

    def withdraw_cancellation(self, subscription_id: str, *, has_cancel_at: bool, key: str) -> None:
        """Stripe takes one of the two fields at a time, and the portal sets `cancel_at`."""
        params: dict[str, Any] = {"cancel_at": ""} if has_cancel_at else {"cancel_at_period_end": False}
        self._update(subscription_id, params, key)

    def _update(self, subscription_id: str, params: Any, key: str) -> None:
        self._call(
            "subscriptions.update",
            lambda c: c.v1.subscriptions.update(subscription_id, params, _options(key)),
        )

    def subscription_row(self, subscription: Mapping[str, Any]) -> dict[str, Any]:
        """Stripe's subscription as a row of ours.

        The period stands on the items since 2025-03-31.basil. `paid`: the first payment was made, or
        fell due after a trial.
        """
        item = self._item_that_counts(subscription)
        status, trial_end = subscription["status"], subscription.get("trial_end")
        return {
            "subscription_id": subscription["id"],
            "stripe_subscription_id": subscription["id"],
            "stripe_customer_id": _id(subscription["customer"]),
            "stripe_price_id": item["price"]["id"],
            "plan": self.plan_of(item["price"]),
            "billing_interval": item["price"]["recurring"]["interval"],
            "status": status,
            "paid": status not in ("incomplete", "incomplete_expired", "trialing")
            and (trial_end is None or item["current_period_start"] >= trial_end),
            "trial_ends_at": _time(trial_end),
            "current_period_starts_at": _time(item.get("current_period_start")),
            "current_period_ends_at": _time(item.get("current_period_end")),
            "cancel_at_period_end": bool(subscription.get("cancel_at_period_end")),
            "cancel_at": _time(subscription.get("cancel_at")),
            "ended_at": _time(subscription.get("ended_at")),
            "created_at": _time(subscription["created"]),
        }

    def _item_that_counts(self, subscription: Mapping[str, Any]) -> dict[str, Any]:
        """Of several items the one with the best plan."""
        items = (subscription.get("items") or {}).get("data")
        if not items:
            raise StripeFailed("Stripe told of a subscription that sells nothing.")
        ranks = {name: plan.rank for name, plan in PLANS.items()}
        return max(items, key=lambda item: ranks.get(self.plan_of(item["price"]), -1))

    # Prices and promotion codes

    def plan_of(self, price: Mapping[str, Any]) -> str:
        """The plan that a price sells, or `unknown`.

        By configured id, by lookup key, or by the metadata that `flask stripe setup` writes: when a
        lookup key moves to a new price, subscribers of the old one keep their plan.
        """
        for (plan, _), price_id in self._settings.stripe_prices.items():
            if price["id"] == price_id:
                return plan
        for plan, lookup_key in LOOKUP_KEYS.items():
            if price.get("lookup_key") == lookup_key:
                return plan
        plan = str((price.get("metadata") or {}).get("zemfyre_plan"))
        return plan if plan in PAID_PLANS else "unknown"

    def price_of(self, plan: str) -> str | None:
        """The price that sells this plan now: as configured, else the active one with its lookup key."""
        if (plan, "month") in self._settings.stripe_prices:
            return self._settings.stripe_prices[plan, "month"]
        params: Any = {"lookup_keys": [LOOKUP_KEYS[plan]], "active": True, "limit": 1}
        page = self._call("prices.list", lambda c: c.v1.prices.list(params))
        return str(page.data[0].id) if page.data else None

    def price_is_active(self, price_id: str) -> bool:
        """Whether this account has the price and sells at it."""
        found = self._or_none("prices.retrieve", lambda c: c.v1.prices.retrieve(price_id))
        return found is not None and bool(found.active)

    def find_promotion_code(self, code: str, stripe_customer_id: str) -> str | None:
        """The id of an active promotion code that this customer may use, in whatever letter case.

        The same code may exist once for everybody and once for each of several customers.
        """
        params: Any = {"code": code, "active": True, "limit": PAGE}
        page = self._call("promotion_codes.list", lambda c: c.v1.promotion_codes.list(params))
        by_owner = {found["customer"] and _id(found["customer"]): str(found["id"]) for found in page.data}
        return by_owner.get(stripe_customer_id) or by_owner.get(None)

    # Checkout and portal

    def create_checkout(self, params: Any, key: str) -> dict[str, Any]:
        created = self._call(
            "checkout.sessions.create", lambda c: c.v1.checkout.sessions.create(params, _options(key))
        )
        return created.to_dict()

    def list_checkouts(self, stripe_customer_id: str) -> list[dict[str, Any]]:
        """The newest checkout sessions of a customer."""
        params: Any = {"customer": stripe_customer_id, "limit": PAGE}
        page = self._call("checkout.sessions.list", lambda c: c.v1.checkout.sessions.list(params))
        return [session.to_dict() for session in page.data]

    def expire_checkout(self, session_id: str) -> bool:
        """Close an open session so that it can no longer be paid; False when it just was."""
        key = f"expire-{session_id}-{int(time.time()) // 60}"  # a failure is repeated no longer than a minute
        try:
            self._call(
                "checkout.sessions.expire",
                lambda c: c.v1.checkout.sessions.expire(session_id, {}, _options(key)),
            )
        except Refused:
            return False
        return True

    def retrieve_checkout(self, session_id: str) -> dict[str, Any] | None:
        found = self._or_none(
            "checkout.sessions.retrieve", lambda c: c.v1.checkout.sessions.retrieve(session_id)
        )
        return found.to_dict() if found is not None else None

    def create_portal(self, stripe_customer_id: str, return_url: str, key: str) -> str:
        params: Any = {"customer": stripe_customer_id, "return_url": return_url}
        created = self._call(
            "billing_portal.sessions.create",
            lambda c: c.v1.billing_portal.sessions.create(params, _options(key)),
        )
        return str(created.url)

    # Setting up an account

    def list_prices(self) -> list[dict[str, Any]]:
        """The prices that carry one of our lookup keys, archived ones too."""
        params: Any = {"lookup_keys": list(LOOKUP_KEYS.values()), "limit": PAGE}
        page = self._call("prices.list", lambda c: c.v1.prices.list(params))
        return [price.to_dict() for price in page.data]

    def create_product_with_price(self, plan: str, description: str, cents: int, key: str) -> str:
        """A product and its monthly price in USD, both marked with the plan; the price's id."""
        metadata = {"zemfyre_plan": plan}
        product_params: Any = {
            "name": f"Zemfyre {plan.capitalize()}",
            "description": description,
            "metadata": metadata,
        }
        product = self._call(
            "products.create",
            lambda c: c.v1.products.create(product_params, _options(f"setup-product-{key}")),
        )
        price_params: Any = {
            "product": product.id,
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": "month"},
            "lookup_key": LOOKUP_KEYS[plan],
            "transfer_lookup_key": True,
            "metadata": metadata,
        }
        price = self._call(
            "prices.create",
            lambda c: c.v1.prices.create(price_params, _options(f"setup-price-{product.id}-{key}")),
        )
        return str(price.id)

    def find_webhook(self, url: str) -> dict[str, Any] | None:
        """The enabled webhook endpoint with this address."""
        for endpoint in self._pages(
            "webhook_endpoints.list", lambda c, p: c.v1.webhook_endpoints.list(p), {}
        ):
            if endpoint["url"] == url and endpoint["status"] == "enabled":
                return endpoint
        return None

    def create_webhook(self, url: str, key: str) -> str:
        """A webhook endpoint for the events we follow; its signing secret, which Stripe tells only once."""
        params: Any = {
            "url": url,
            "enabled_events": list(WEBHOOK_EVENTS),
            "api_version": stripe.api_version,
        }
        created = self._call(
            "webhook_endpoints.create",
            lambda c: c.v1.webhook_endpoints.create(params, _options(f"setup-webhook-{key}")),
        )
        return str(created.secret)

    # Webhooks

    def read_event(self, payload: bytes, signature: str) -> dict[str, Any]:
        """The event, if one of our secrets signed it within the last five minutes: event_id, type,
        livemode, created_at, and whose state it tells of (see `_whereabouts`).

        Raises BadRequest. https://docs.stripe.com/webhooks/signature
        """
        if not self._settings.stripe_webhook_secrets:
            raise Unavailable("Stripe is not configured: STRIPE_WEBHOOK_SECRET is not set.")
        self._open()  # without a key nobody's state could be fetched
        try:
            text = payload.decode()
            if not any(self._is_signed(text, signature, s) for s in self._settings.stripe_webhook_secrets):
                raise BadRequest("The Stripe-Signature does not fit the body, or is too old.")
            event = json.loads(text)
            if not (isinstance(event, dict) and isinstance(event["data"]["object"], dict)):
                raise TypeError
            return {
                "event_id": _identifier(event["id"]),
                "type": _identifier(event["type"]),
                "livemode": bool(event["livemode"]),
                "created_at": datetime.fromtimestamp(int(event["created"]), UTC),
                **_whereabouts(event["data"]["object"]),
            }
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise BadRequest("The body is not a Stripe event.") from None

    @staticmethod
    def _is_signed(text: str, signature: str, secret: str) -> bool:
        try:
            return bool(
                stripe.WebhookSignature.verify_header(text, signature, secret, WEBHOOK_TOLERANCE_SECONDS)
            )
        except (stripe.SignatureVerificationError, ValueError, TypeError, AttributeError):
            # A hostile header makes the SDK raise more than its own error.
            return False

    # The one place that calls

    def _pages(
        self, name: str, call: Callable[[stripe.StripeClient, Any], Any], params: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Every object of a list, a hundred at a time."""
        after: dict[str, Any] = {}
        while True:
            wanted = {"limit": PAGE} | params | after
            page = self._call(name, lambda c: call(c, wanted))  # noqa: B023 - called at once
            yield from (found.to_dict() for found in page.data)
            if not (page.has_more and page.data):
                return
            after = {"starting_after": page.data[-1].id}

    def _or_none(self, name: str, call: Callable[[stripe.StripeClient], T]) -> T | None:
        try:
            return self._call(name, call)
        except Refused as error:
            if error.missing:
                return None
            raise

    def _call(self, name: str, call: Callable[[stripe.StripeClient], T]) -> T:
        client = self._open()
        with self.slot():
            started = time.monotonic()
            outcome = "ok"
            try:
                return _heard(call(client))
            except stripe.StripeError as error:
                outcome = type(error).__name__
                raise _translated(error) from error
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                outcome = "Unreadable"
                raise StripeFailed("Stripe gave an answer that is none. Try again.") from error
            finally:
                seconds = time.monotonic() - started
                STRIPE_SECONDS.labels(name, outcome).observe(seconds)
                log.info(
                    "stripe call",
                    extra={"call": name, "outcome": outcome, "ms": round(seconds * 1000, 1)},
                )

    def _open(self) -> stripe.StripeClient:
        if self._settings.stripe_secret_key is None:
            raise Unavailable("Stripe is not configured: STRIPE_SECRET_KEY is not set.")
        if self._client is None:
            stripe.enable_telemetry = False
            base = self._settings.stripe_api_base
            self._client = stripe.StripeClient(
                self._settings.stripe_secret_key,
                http_client=stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS)),
                max_network_retries=RETRIES,
                base_addresses={"api": base.rstrip("/")} if base else {},
            )
        return self._client


class NoAnswer(StripeFailed):
    """Stripe was not heard: it may have acted or not."""


class Refused(StripeFailed):
    """Stripe did not take a request; `missing` when the object of that id is not there."""

    def __init__(self, message: str, *, missing: bool) -> None:
        super().__init__(message)
        self.missing = missing


def _heard(answer: T) -> T:
    """The answer, if it is one of Stripe's objects or a list of them. Raises ValueError, KeyError."""
    found: Any = answer
    is_list = isinstance(found, stripe.StripeObject) and found["object"] == "list"
    if is_list and not isinstance(found["has_more"], bool):
        raise ValueError("a list without an end")
    for single in found["data"] if is_list else [found]:
        if not isinstance(single, stripe.StripeObject) or not isinstance(single["id"], str):
            raise ValueError("no object of Stripe's")
    return answer


def _translated(error: stripe.StripeError) -> DomainError:
    if isinstance(error, stripe.CardError):
        return PaymentRefused(f"The payment was refused: {error.user_message or 'card declined'}")
    if isinstance(error, stripe.RateLimitError) or error.http_status == 429:
        return Unavailable("Stripe asks us to slow down. Try again shortly.")
    if error.http_status == 409:
        return Unavailable("Stripe is making the same change for another request. Try again shortly.")
    if isinstance(error, stripe.InvalidRequestError | stripe.IdempotencyError):
        code = getattr(error.error, "code", None)
        at = getattr(error, "param", None) or ""
        log.warning("stripe refused a request", extra={"stripe_code": code, "param": at})
        for param, field in _FIELDS.items():
            if at.startswith(param):
                return invalid_field(field, "Stripe does not take this.")
        return Refused("Stripe refused the request.", missing=code == "resource_missing")
    log.error("stripe failed", extra={"stripe_error": type(error).__name__, "status": error.http_status})
    unheard = isinstance(error, stripe.APIConnectionError)
    return (NoAnswer if unheard else StripeFailed)("Stripe failed or did not answer. Try again.")


def named_by(customer: Mapping[str, Any]) -> str | None:
    """Our id in the metadata of a customer of Stripe's."""
    return (customer.get("metadata") or {}).get("customer_id")


def _options(key: str) -> Any:
    return {"idempotency_key": key}


def _id(value: Any) -> str:
    """An id, whether the object was expanded or not."""
    return str(value if isinstance(value, str) else value["id"])


def _identifier(value: Any) -> str:
    """Text that can be an id or a type of Stripe's. Raises TypeError, ValueError."""
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError("not an identifier")
    return str(value)


def _whereabouts(found: dict[str, Any]) -> dict[str, str | None]:
    """An event's object reduced to ids: its own and its customer's."""
    customer = found.get("id") if found.get("object") == "customer" else found.get("customer")
    if isinstance(customer, dict):
        customer = customer.get("id")
    ids = {"object_id": found.get("id"), "stripe_customer_id": customer}
    return {
        name: value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None
        for name, value in ids.items()
    }


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
