"""Bringing the database to where Stripe is. Stripe's state is fetched, never a payload applied."""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.context import now, set_actor
from app.db import Cursor, Row, lock
from app.entitlements import ENDED_STATUSES, KNOWN_STATUSES, is_live
from app.errors import DomainError, NotFound
from app.extensions import db, stripe
from app.observe import WEBHOOK_LAG, WEBHOOKS
from app.queries import customers, events, subscriptions
from app.services.customers import find_stripe_customers, get_customer
from app.services.licenses import issue_license
from app.stripe_gateway import WEBHOOK_EVENTS, named_by

log = logging.getLogger(__name__)

COMPARED: Final = (
    "stripe_price_id",
    "plan",
    "status",
    "trial_ends_at",
    "current_period_starts_at",
    "current_period_ends_at",
    "cancel_at_period_end",
    "cancel_at",
    "ended_at",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the database and Stripe disagree about one subscription (or link)."""

    customer_id: str
    subject: str
    ours: str
    stripes: str
    at: str | None = None
    """The customer at Stripe whose subscription it is."""


def sync_customer(
    customer_id: str,
    event_id: str | None = None,
    *,
    also: Iterable[str | None] = (),
    dry_run: bool = False,
) -> list[Difference]:
    """Fetch this customer's subscriptions and store them, as one step: what differed.

    The lock is taken before Stripe is asked and held until the answer is stored, so the newest
    fetch is always the last one stored, whatever order events come in. `also` are further customers
    at Stripe that name ours; a subscription once known is followed whosever it is there.
    """
    with stripe.slot(), db.transaction() as cur:
        lock(cur, f"sync {customer_id}", 90)
        customer = customers.select_customer(cur, customer_id)
        if customer is None:
            raise NotFound(f"There is no customer {customer_id}.")
        if customer["erased_at"]:
            return []
        known = {
            row["subscription_id"]: row for row in subscriptions.select_subscriptions(cur, [customer_id])
        }
        fetched = list(_fetch([customer["stripe_customer_id"], *also], known))
        differences = [
            d for row in fetched for d in _compare(customer_id, known.get(row["subscription_id"]), row)
        ]
        gone = bool(customer["stripe_customer_id"]) and not any(map(is_live, fetched)) and _is_gone(customer)
        if (differences or gone) and not dry_run:
            _store(cur, customer_id, known, fetched, event_id, forget_link=gone)
        return differences


def _fetch(stripe_customer_ids: Iterable[str | None], known: dict[str, Row]) -> Iterator[dict[str, Any]]:
    """Every subscription of these customers at Stripe, and the known ones: what Stripe lacks as canceled."""
    found = set()
    for stripe_customer_id in filter(None, dict.fromkeys(stripe_customer_ids)):
        for row in stripe.list_subscriptions(stripe_customer_id):
            found.add(row["subscription_id"])
            yield row
    for row in known.values():
        if row["stripe_subscription_id"] is None or row["subscription_id"] in found:
            continue
        if row["status"] in ENDED_STATUSES:
            continue
        fetched = stripe.retrieve_subscription(row["subscription_id"])
        yield fetched or {**row, "status": "canceled", "ended_at": now().replace(microsecond=0)}


def _is_gone(customer: Row) -> bool:
    return stripe.customer_is_deleted(customer["stripe_customer_id"])


def _store(
    cur: Cursor,
    customer_id: str,
    known: dict[str, Row],
    fetched: list[dict[str, Any]],
    event_id: str | None,
    *,
    forget_link: bool,
) -> None:
    customer = customers.lock_customer(cur, customer_id)
    if customer is None or customer["erased_at"]:
        return  # in this moment: what was paid ended with it
    for row in fetched:
        before = known.get(row["subscription_id"])
        if not _compare(customer_id, before, row):
            continue
        stored = subscriptions.upsert_stripe_subscription(
            cur, row | {"customer_id": customer_id, "event_id": event_id}
        )
        _report_oddities(stored)
    if any(row["paid"] for row in fetched):
        subscriptions.end_trials(cur, customer_id, now())  # the first payment ends them for good
    if forget_link:
        set_link(cur, customer, None)
    live = [row for row in subscriptions.select_subscriptions(cur, [customer_id]) if is_live(row)]
    if len(live) > 1:
        log.warning(
            "customer has several live subscriptions",
            extra={"customer_id": customer_id, "count": len(live)},
        )
    if not customer["revoked_at"]:
        issue_license(cur, customer)


def _report_oddities(row: Row) -> None:
    extra = {"customer_id": row["customer_id"], "subscription_id": row["subscription_id"]}
    if row["plan"] == "unknown":
        log.error(
            "price belongs to no plan; it grants nothing",
            extra=extra | {"price": row["stripe_price_id"]},
        )
    if row["status"] not in KNOWN_STATUSES:
        log.error(
            "unknown subscription status; it grants nothing",
            extra=extra | {"status": row["status"]},
        )


def _compare(customer_id: str, ours: Row | None, stripes: dict[str, Any]) -> list[Difference]:
    subject, at = stripes["subscription_id"], stripes.get("stripe_customer_id")
    if ours is None:
        return [Difference(customer_id, subject, "missing", f"{stripes['plan']} {stripes['status']}", at)]
    return [
        Difference(customer_id, f"{subject} {name}", _text(ours[name]), _text(stripes[name]), at)
        for name in COMPARED
        if ours[name] != stripes[name]
    ]


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def handle_event(event: dict[str, Any]) -> str:
    """Follow one verified event: fetch anew whose state it tells of. `done` or `ignored`.

    Any failure is put on record if the database allows, then raised, so that Stripe sends it again.
    """
    set_actor(f"stripe:{event['event_id']}")
    record = _event_record(event)
    with db.statement() as cur:
        known = events.select_event(cur, record["event_id"])
    if known and known["outcome"] == "done":
        return "done"
    try:
        outcome = _follow(event, record)
    except Exception as error:
        record |= {"outcome": "failed", "error": _summary(error)}
        _count(event, "failed")
        with db.transaction() as cur:
            events.upsert_event(cur, record)
        raise
    _count(event, outcome)
    return outcome


def _follow(event: dict[str, Any], record: dict[str, Any]) -> str:
    if event["type"] in WEBHOOK_EVENTS and event["livemode"] == stripe.livemode:
        return _sync_and_record(*_whose(record), record)
    return _sync_and_record(None, None, record)


def _sync_and_record(customer_id: str | None, also: str | None, record: dict[str, Any]) -> str:
    """The effect of an event and its record, in one transaction; of an erased customer no id is kept."""
    record = record | {
        "customer_id": customer_id,
        "outcome": "done" if customer_id else "ignored",
        "error": None,
    }
    if customer_id:
        sync_customer(customer_id, record["event_id"], also=[also])
    with db.transaction() as cur:
        if customer_id:
            customer = customers.lock_customer(cur, customer_id)
            if customer is None or customer["erased_at"]:
                record |= {"object_id": None, "stripe_customer_id": None}
        events.upsert_event(cur, record)
    return str(record["outcome"])


def _whose(record: Row) -> tuple[str | None, str | None]:
    """Our customer that an event tells of, and the one at Stripe, if that names ours."""
    stripe_id = record["stripe_customer_id"]
    named = _owner(stripe_id)
    return (named, stripe_id) if named else (_holder(record["object_id"]) or record["customer_id"], None)


def _owner(stripe_customer_id: str | None) -> str | None:
    """Our customer that one of Stripe's is, by our record or else by Stripe's; linked, if none was."""
    if stripe_customer_id is None:
        return None
    with db.statement() as cur:
        customer = customers.select_customer_by_stripe_id(cur, stripe_customer_id)
    if customer is not None:
        return str(customer["customer_id"])
    named = stripe.owner_of(stripe_customer_id)
    return link_customer(named, stripe_customer_id) if named else None


def _holder(subscription_id: str | None) -> str | None:
    """Our customer that has this subscription on record, whoever it is Stripe's by now."""
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, subscription_id or "")
    return str(row["customer_id"]) if row else None


def link_customer(customer_id: str, stripe_customer_id: str) -> str | None:
    """Remember Stripe's id for a customer that has none; None when there is no such customer.

    One that is linked to another keeps that link: of both what is paid counts.
    """
    with db.transaction() as cur:
        customer = customers.lock_customer(cur, customer_id)
        if customer is None or customer["erased_at"]:
            return None
        if customer["stripe_customer_id"] is None:
            set_link(cur, customer, stripe_customer_id)
        elif customer["stripe_customer_id"] != stripe_customer_id:
            log.warning("customer has two customers at stripe", extra={"customer_id": customer_id})
    return customer_id


def set_link(cur: Cursor, customer: Row, stripe_customer_id: str | None) -> None:
    """Put on record whom Stripe knows this customer as, from now on."""
    customers.update_stripe_customer_id(cur, customer["customer_id"], stripe_customer_id)


def _event_record(event: dict[str, Any]) -> dict[str, Any]:
    names = ("event_id", "type", "object_id", "stripe_customer_id", "created_at")
    return {name: event[name] for name in names} | {
        "customer_id": None,
        "outcome": "ignored",
        "error": None,
    }


def _count(event: dict[str, Any], outcome: str) -> None:
    kind = event["type"] if event["type"] in WEBHOOK_EVENTS else "other"
    WEBHOOKS.labels(kind, outcome).inc()
    WEBHOOK_LAG.observe(max(0.0, (now() - event["created_at"]).total_seconds()))
    log.info(
        "stripe event",
        extra={"event": event["event_id"], "type": event["type"], "outcome": outcome},
    )


def _summary(error: Exception) -> str:
    text = error.message if isinstance(error, DomainError) else type(error).__name__
    return text[:500]


def replay_event(event_id: str) -> str:
    """Follow an event of the record once more: the present state of its customer is fetched."""
    with db.statement() as cur:
        known = events.select_event(cur, event_id)
        if known is None:
            raise NotFound(f"There is no event {event_id} on record.")
    return _sync_and_record(*_whose(known), known)


def sync_all(
    *, dry_run: bool, progress: Callable[[int, int], None] = lambda done, ahead: None
) -> tuple[list[Difference], dict[str, str]]:
    """Compare every customer with Stripe, page by page through Stripe's own lists: what differs, and
    which customers could not be mended, with the reason.

    Without `dry_run` each customer that differs is fetched anew and mended. `progress` is told how
    many more steps are done, and how many more have come into sight.
    """
    with db.statement() as cur:
        linked = {row["customer_id"]: row["stripe_customer_id"] for row in customers.select_customers(cur)}
        known = {row["subscription_id"]: row for row in subscriptions.select_stripe_subscriptions(cur)}
    owners = {stripe_id: owner for owner, stripe_id in linked.items() if stripe_id}
    unlinked: dict[str, str] = {}
    for customer in stripe.list_customers():
        owner = named_by(customer)
        if owner is None or owner not in linked:
            continue
        if owners.setdefault(customer["id"], owner) == owner and not linked[owner]:
            unlinked.setdefault(owner, customer["id"])
    differences = [
        Difference(owner, "stripe_customer_id", "none", stripe_id) for owner, stripe_id in unlinked.items()
    ]
    progress(0, len(known))
    differing = _compare_all(linked, owners, known, lambda done: progress(done, 0))
    failed: dict[str, str] = {}
    if dry_run:
        return differences + [difference for found in differing.values() for difference in found], failed
    for owner, stripe_id in unlinked.items():
        link_customer(owner, stripe_id)
    progress(0, len(differing))
    for owner, found in differing.items():
        try:
            also = [difference.at for difference in found if difference.at in owners]
            differences += sync_customer(owner, also=also) or found
        except DomainError as error:
            failed[owner] = error.message
        progress(1, 0)
    return differences, failed


def sync_one(customer_id: str, *, dry_run: bool) -> list[Difference]:
    """The same for one customer."""
    customer = get_customer(customer_id)
    found = find_stripe_customers(customer)
    differences = []
    if found and customer["stripe_customer_id"] is None:
        differences.append(Difference(customer_id, "stripe_customer_id", "none", found[0]))
        if not dry_run:
            link_customer(customer_id, found[0])
    return differences + sync_customer(customer_id, also=found, dry_run=dry_run)


def _compare_all(
    present: Container[str],
    owners: Mapping[str, str],
    known: Mapping[str, Row],
    progress: Callable[[int], None],
) -> dict[str, list[Difference]]:
    """What differs, by customer. `present` are ours, `owners` tells of Stripe's whose they are."""
    differing: dict[str, list[Difference]] = {}
    seen = set()
    for fetched in stripe.list_subscriptions():
        progress(1)
        seen.add(fetched["subscription_id"])
        ours = known.get(fetched["subscription_id"])
        held_by = str(ours["customer_id"]) if ours else None
        owner = owners.get(fetched["stripe_customer_id"], held_by)
        if owner != held_by:
            ours = None
        if owner is not None and owner in present and (found := _compare(owner, ours, fetched)):
            differing.setdefault(owner, []).extend(found)
    for subscription_id, ours in known.items():
        if (
            subscription_id not in seen
            and ours["customer_id"] in present
            and ours["status"] not in ENDED_STATUSES
        ):
            missing = Difference(
                ours["customer_id"], subscription_id, f"{ours['plan']} {ours['status']}", "missing"
            )
            differing.setdefault(ours["customer_id"], []).append(missing)
    return differing
