"""Stripe's events: each says only whose state to fetch. Stored once, with what became of it."""

import logging
from typing import Any, Final

from app.context import now, set_actor
from app.db import Row
from app.errors import DomainError, NotFound
from app.extensions import db, stripe
from app.observe import WEBHOOK_LAG, WEBHOOKS
from app.queries import customers, events, subscriptions
from app.queries import stripe as stripe_rows
from app.services import overage
from app.services.stripe_sync import link_customer, sync_customer, unlicensed_payers
from app.stripe_objects import WEBHOOK_EVENTS, Object, amount_text, customer_of, named_by

log = logging.getLogger(__name__)

OBJECTS: Final = ("sub", "in", "cs", "ch", "dp", "du")
"""Prefixes of the ids of Stripe's objects that lead to a customer."""


def handle_event(event: dict[str, Any]) -> str:
    """Follow one verified event, as `stripe.read_event` gives it: `done` or `ignored`.

    A failure is stored, if the database allows, and raised, so that Stripe sends the event again.
    """
    set_actor(f"stripe:{event['event_id']}")
    with db.statement() as cur:
        known = events.select_event(cur, event["event_id"])
    if known and known["outcome"] == "done":
        return "done"
    is_followed = event["type"] in WEBHOOK_EVENTS and event["livemode"] == stripe.livemode
    try:
        outcome = _follow(event) if is_followed else _record(event, "ignored")
    except Exception as error:
        _count(event, "failed")
        _record(
            event, "failed", error=error.message if isinstance(error, DomainError) else type(error).__name__
        )
        raise
    _count(event, outcome)
    return outcome


def replay_event(event_id: str) -> str:
    """Follow a stored event once more: the present state of its customer is fetched. `done` or `ignored`."""
    with db.statement() as cur:
        known = events.select_event(cur, event_id)
    if known is None:
        raise NotFound(f"There is no event {event_id} on record.")
    return _follow(known)


def _follow(event: Row) -> str:
    found = _fetch_object(event)
    stripe_id = event["stripe_customer_id"] or (found and customer_of(found))
    note = _note(event, found)
    customer_id, unclaimed = _owner(stripe_id) if stripe_id else (None, [])
    also = [stripe_id] if stripe_id and customer_id else []
    if customer_id is None:  # the one that has the subscription on record, whoever has it at Stripe by now
        with db.statement() as cur:
            held = subscriptions.select_subscription(cur, event["object_id"] or "")
        customer_id = held["customer_id"] if held else event.get("customer_id")
    if customer_id is None:
        return _record(event, "ignored", note=note or _name_payers(unclaimed))
    sync_customer(customer_id, also=also, event_id=event["event_id"])
    overage.settle(customer_id)
    return _record(event, "done", customer_id=customer_id, note=note)


def _fetch_object(event: Row) -> Object | None:
    """The event's object, where the event does not name the customer, or is of a charge or dispute."""
    kind = (event["object_id"] or "").partition("_")[0]
    if kind not in OBJECTS or (event["stripe_customer_id"] and kind != "ch"):
        return None
    retrieve = {
        "sub": stripe.retrieve_subscription, "in": stripe.retrieve_invoice, "cs": stripe.retrieve_checkout,
        "ch": stripe.retrieve_charge, "dp": stripe.retrieve_dispute, "du": stripe.retrieve_dispute,
    }[kind]  # fmt: skip
    found = retrieve(event["object_id"])
    return {**found, **found["charge"], "dispute": found} if found and found["object"] == "dispute" else found


def _note(event: Row, found: Object | None) -> str | None:
    """What operators are shown of a refund or a dispute."""
    if found is None or not event["type"].startswith("charge."):
        return None
    currency = found["currency"]
    if dispute := found.get("dispute"):
        return (
            f"{amount_text(dispute['amount'], currency)} disputed ({dispute['reason']}): {dispute['status']}"
        )
    refunded, whole = amount_text(found["amount_refunded"], currency), amount_text(found["amount"], currency)
    return f"{refunded} of {whole} refunded"


def _owner(stripe_id: str) -> tuple[str | None, list[Object]]:
    """Our customer that belongs to one of Stripe's, by our record or by our id in the metadata there.

    Else None, with the subscriptions there.
    """
    with db.statement() as cur:
        customer = customers.select_customer_by_stripe_id(cur, stripe_id)
    if customer is not None:
        return str(customer["customer_id"]), []
    found = stripe.retrieve_customer(stripe_id)
    if found is None or found.get("deleted"):
        return None, []
    there: list[Object] = list(stripe.list_subscriptions(stripe_id))
    for name in filter(None, map(named_by, [found, *there])):
        if link_customer(name, stripe_id):
            return name, []
    return None, there


def _name_payers(unclaimed: list[Object]) -> str | None:
    """Say loudly that a customer at Stripe pays and belongs to nobody here."""
    if not unclaimed:
        return None
    with db.statement() as cur:
        ignored = stripe_rows.select_ignored(cur)
    payers = unlicensed_payers(unclaimed, ignored, belongs_to=None)
    for subscription_id, reason in payers.items():
        log.error("pays, but no license", extra={"subscription_id": subscription_id, "reason": reason})
    return "; ".join(f"{payer}: {reason}" for payer, reason in payers.items())[:500] or None


def _record(event: Row, outcome: str, **more: str | None) -> str:
    """Store the event with its outcome (customer_id, note, error), after its effect: whatever is killed in
    between comes again.
    """
    record = {"customer_id": None, "note": None, "error": None, **more, "outcome": outcome}
    with db.statement() as cur:
        events.upsert_event(cur, event | record)
    return outcome


def _count(event: Row, outcome: str) -> None:
    kind = event["type"] if event["type"] in WEBHOOK_EVENTS else "other"
    WEBHOOKS.labels(kind, outcome).inc()
    WEBHOOK_LAG.observe(max(0.0, (now() - event["created_at"]).total_seconds()))
    log.info("stripe event", extra={"event": event["event_id"], "type": event["type"], "outcome": outcome})
