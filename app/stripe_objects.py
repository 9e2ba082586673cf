"""What we read out of Stripe's objects, as plain dicts. Pure: no SDK, no SQL.

Shapes: https://docs.stripe.com/api at the SDK's pinned version.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from app.errors import StripeFailed
from app.plans import INTERVALS, PAID_PLANS, PLANS

Object = Mapping[str, Any]

WITHOUT_DECIMALS: Final = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
)
WITH_THREE_DECIMALS: Final = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))

WEBHOOK_EVENTS: Final = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.created",
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_failed",
    "customer.deleted",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
)
LOOKUP_KEYS: Final = {
    (plan, interval): f"zemfyre_{plan}" + ("_year" if interval == "year" else "")
    for plan in PAID_PLANS
    for interval in INTERVALS
}
UNKNOWN: Final = "unknown"
"""The plan of a price that sells none of ours."""
_IDENTIFIER: Final = re.compile(r"[\x21-\x7e]{1,255}")


def named_by(found: Object) -> str | None:
    """Our customer's id in the metadata of one of Stripe's objects."""
    named = (found.get("metadata") or {}).get("customer_id")
    return named if isinstance(named, str) else None


def customer_of(found: Object) -> str:
    """The id of the customer that an object belongs to, expanded or not."""
    customer = found["customer"]
    return str(customer if isinstance(customer, str) else customer["id"])


def plan_of_price(price: Object, pinned: Mapping[str, str]) -> str | None:
    """The plan that a price sells by setting (`pinned`: plans by price id), lookup key or metadata."""
    lookup_key = price.get("lookup_key")
    by_key = next((plan for (plan, _), key in LOOKUP_KEYS.items() if key == lookup_key), None)
    in_metadata = (price.get("metadata") or {}).get("zemfyre_plan")
    return pinned.get(price["id"]) or by_key or (in_metadata if in_metadata in PAID_PLANS else None)


def plan_item(subscription: Object, plan_of: Callable[[Object], str]) -> Object | None:
    """The item with the best plan; of items without a plan the first; None when nothing is sold."""
    items = [item for item in subscription["items"]["data"] if item.get("quantity", 1) != 0]
    if not items:
        return None
    ranks = {name: plan.rank for name, plan in PLANS.items()}
    best: Object = max(items, key=lambda item: ranks.get(plan_of(item["price"]), -1))
    return best


def subscription_row(subscription: Object, plan_of: Callable[[Object], str]) -> dict[str, Any]:
    """A subscription as a row of ours. Raises StripeFailed for one that lacks what all of Stripe's have.

    The period stands on the items since 2025-03-31.basil. `paid`: the first payment was made, or fell due
    after a trial; of one with `collection_method` send_invoice only when its latest invoice is paid.
    """
    try:
        return _subscription_row(subscription, plan_of)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise StripeFailed("Stripe answered with something that is no subscription. Try again.") from error


def _subscription_row(subscription: Object, plan_of: Callable[[Object], str]) -> dict[str, Any]:
    item = plan_item(subscription, plan_of)
    shown = item or subscription["items"]["data"][0]
    status, trial_end = subscription["status"], subscription.get("trial_end")
    price, quantity = shown["price"], shown.get("quantity", 1)
    return {
        "subscription_id": subscription["id"],
        "stripe_subscription_id": subscription["id"],
        "stripe_customer_id": customer_of(subscription),
        "stripe_price_id": price["id"],
        "plan": plan_of(price) if item else UNKNOWN,
        "billing_interval": price["recurring"]["interval"],
        "amount": (price.get("unit_amount") or 0) * quantity,
        "currency": price["currency"],
        "status": status,
        "paid": status not in ("incomplete", "incomplete_expired", "trialing")
        and (trial_end is None or shown["current_period_start"] >= trial_end)
        and not _awaits_transfer(subscription),
        "trial_ends_at": as_time(trial_end),
        "current_period_starts_at": as_time(shown.get("current_period_start")),
        "current_period_ends_at": as_time(shown.get("current_period_end")),
        "cancel_at_period_end": bool(subscription.get("cancel_at_period_end")),
        "cancel_at": as_time(subscription.get("cancel_at")),
        "ended_at": as_time(subscription.get("ended_at")),
        "created_at": as_time(subscription["created"]),
        "details": _details(subscription, plan_of),
    }


def _awaits_transfer(subscription: Object) -> bool:
    """An invoice was sent and is not paid: Stripe calls the subscription `active` all the same."""
    invoice = subscription.get("latest_invoice")
    sends = subscription.get("collection_method") == "send_invoice"
    return sends and not (isinstance(invoice, Mapping) and invoice["status"] == "paid")


def _details(subscription: Object, plan_of: Callable[[Object], str]) -> dict[str, Any]:
    """What operators are shown beside the state: see the comment on `subscriptions.details`."""
    details: dict[str, Any] = {}
    if paused := subscription.get("pause_collection"):
        details["pauseCollection"] = {
            "behavior": paused["behavior"], "resumesAt": _text_time(paused.get("resumes_at")),
        }  # fmt: skip
    schedule = subscription.get("schedule")
    if isinstance(schedule, Mapping) and (planned := _planned_phase(schedule)):
        price = planned["items"][0]["price"]
        price_id = price if isinstance(price, str) else price["id"]
        details["scheduledChange"] = {
            "price": price_id, "plan": plan_of({"id": price_id}), "at": _text_time(planned["start_date"]),
        }  # fmt: skip
    invoice = subscription.get("latest_invoice")
    if isinstance(invoice, Mapping) and invoice["status"] in ("open", "uncollectible"):
        details["unpaidInvoice"] = {
            "id": invoice["id"], "url": invoice.get("hosted_invoice_url"),
            "amountDue": invoice["amount_due"], "currency": invoice["currency"],
            "nextPaymentAttemptAt": _text_time(invoice.get("next_payment_attempt")),
        }  # fmt: skip
    return details


def _planned_phase(schedule: Object) -> Object | None:
    current = schedule.get("current_phase") or {}
    later = (p for p in schedule["phases"] if p["start_date"] >= (current.get("end_date") or 0))
    return next(later, None) if current else None


def read_event(event: Any) -> dict[str, Any]:
    """A verified event reduced to event_id, type, livemode, created_at, object_id and stripe_customer_id.

    The last two are None where it does not say.

    Snapshot and thin events: https://docs.stripe.com/event-destinations#thin-events
    Raises KeyError, TypeError, ValueError, AttributeError or OverflowError for anything else.
    """
    if event["object"] == "v2.core.event":
        related = event.get("related_object") or {}
        found = {"id": related.get("id"), "object": related.get("type")}
        created_at = datetime.fromisoformat(event["created"]).astimezone(UTC)
    else:
        found = event["data"]["object"]
        created_at = datetime.fromtimestamp(int(event["created"]), UTC)
    customer = found.get("id") if found.get("object") == "customer" else found.get("customer")
    if isinstance(customer, Mapping):
        customer = customer.get("id")
    if not is_identifier(event["id"]) or not is_identifier(event["type"]):
        raise ValueError("not an identifier")
    return {
        "event_id": event["id"],
        "type": event["type"].removeprefix("v1."),
        "livemode": bool(event["livemode"]),
        "created_at": created_at,
        "object_id": found.get("id") if is_identifier(found.get("id")) else None,
        "stripe_customer_id": customer if is_identifier(customer) else None,
    }


def is_identifier(value: Any) -> bool:
    """Whether it may be one of Stripe's ids, or the name of an event."""
    return isinstance(value, str) and bool(_IDENTIFIER.fullmatch(value))


def amount_text(amount: int, currency: str) -> str:
    """`29.00 EUR`, `2,900 JPY`: an amount in Stripe's smallest unit (https://docs.stripe.com/currencies)."""
    decimals = 0 if currency in WITHOUT_DECIMALS else 3 if currency in WITH_THREE_DECIMALS else 2
    return f"{amount / 10**decimals:,.{decimals}f} {currency.upper()}"


def as_time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _text_time(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
