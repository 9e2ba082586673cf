"""Bring the database to Stripe's state. What is stored was fetched, never taken from an event's payload."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from app.context import now
from app.db import Cursor, Row, lock
from app.entitlements import ENDED_STATUSES, KNOWN_STATUSES, LIVE_STATUSES, entitle, is_live, is_local
from app.errors import NotFound, Refused
from app.extensions import db, settings, stripe
from app.queries import customers, subscriptions
from app.queries import stripe as stripe_rows
from app.services.licenses import issue_license
from app.stripe_objects import UNKNOWN, Object, customer_of, named_by, plan_of_price, subscription_row

log = logging.getLogger(__name__)

LOCK_SECONDS: Final = 90
COMPARED: Final = (
    "stripe_price_id", "plan", "billing_interval", "amount", "currency", "status", "trial_ends_at",
    "current_period_starts_at", "current_period_ends_at", "cancel_at_period_end", "cancel_at", "ended_at",
    "details",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the database and Stripe disagree about one subscription (or link)."""

    customer_id: str
    subject: str
    ours: str
    stripes: str


@dataclass(slots=True)
class Synced:
    """A customer after its sync. `license`: the row issued, None when nothing changed or it is revoked.

    `missing`: ids that Stripe does not find; `foreign`: subscriptions at Stripe that are not ours;
    `unplanned`: those of either kind that sell no plan.
    """

    customer: Row
    subscriptions: list[Row] = field(default_factory=list)
    license: Row | None = None
    differences: list[Difference] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    foreign: list[Object] = field(default_factory=list)
    unplanned: list[Object] = field(default_factory=list)


def sync_customer(
    customer_id: str, *, also: Iterable[str] = (), event_id: str | None = None, dry_run: bool = False
) -> Synced:
    """Fetch this customer's subscriptions and store them, as one step.

    The lock is taken before Stripe is asked and kept until the answer is stored: the newest fetch is the last
    one stored, whatever order events come in. `also`: further customers at Stripe that name this one.
    Raises NotFound, and whatever Stripe refuses.
    """
    with stripe.slot(), db.transaction() as cur:
        lock(cur, f"sync {customer_id}", LOCK_SECONDS)
        customer = customers.select_customer(cur, customer_id)
        if customer is None:
            raise NotFound(f"There is no customer {customer_id}.")
        if customer["erased_at"]:
            return Synced(customer)
        rows = subscriptions.select_subscriptions(cur, [customer_id])
        known = {row["subscription_id"]: row for row in rows}
        found, missing = _fetch([customer["stripe_customer_id"], *also], rows)
        is_deleted = _is_deleted(customer, found)
        plan_of = price_plans(cur)
        ours = {i: s for i, s in found.items() if i in known or is_ours(s, plan_of)}
        fetched = [fetched_row(subscription, plan_of, rows) for subscription in ours.values()]
        if is_deleted:
            ended = {"status": "canceled", "ended_at": now().replace(microsecond=0)}
            fetched += [known[i] | ended for i in missing if i in known]
            missing = []
        synced = Synced(customer, rows, missing=missing)
        synced.foreign = [s for i, s in found.items() if i not in ours]
        synced.unplanned = [s for s in found.values() if subscription_row(s, plan_of)["plan"] == UNKNOWN]
        synced.differences = [
            d for row in fetched for d in compare(customer_id, known.get(row["subscription_id"]), row)
        ]
        if (synced.differences or is_deleted) and not dry_run:
            remember_prices(cur, fetched)
            store(cur, synced, fetched, event_id, unlink=is_deleted)
        return synced


def _fetch(stripe_customer_ids: Iterable[str | None], rows: list[Row]) -> tuple[dict[str, Object], list[str]]:
    """Subscriptions at Stripe by id, of these customers and of our rows; and ids that it does not find."""
    found: dict[str, Object] = {}
    missing = []
    for stripe_id in dict.fromkeys(filter(None, stripe_customer_ids)):
        try:
            found |= {listed["id"]: listed for listed in stripe.list_subscriptions(stripe_id)}
        except Refused as error:
            if not error.missing:
                raise
            missing.append(stripe_id)
    for row in rows:
        subscription_id = row["subscription_id"]
        if is_local(row) or subscription_id in found or row["status"] in ENDED_STATUSES:
            continue
        if subscription := stripe.retrieve_subscription(subscription_id):
            found[subscription_id] = subscription
        else:
            missing.append(subscription_id)
    return found, missing


def _is_deleted(customer: Row, found: Mapping[str, Object]) -> bool:
    """Whether the linked customer was deleted at Stripe, which ended what it had."""
    linked = customer["stripe_customer_id"]
    if linked is None or any(s["status"] not in ENDED_STATUSES for s in found.values()):
        return False
    return bool((stripe.retrieve_customer(linked) or {}).get("deleted"))


def fetched_row(
    subscription: Object, plan_of: Callable[[Object], str], known: Iterable[Row] | None = None
) -> Row:
    """A subscription as a row; with the `known` rows of its customer, `paid` is looked up if need be."""
    row = subscription_row(subscription, plan_of)
    if known is None or row["paid"] or subscription.get("collection_method") != "send_invoice":
        return row
    was_paid = any(r["paid"] for r in known if r["subscription_id"] == row["subscription_id"])
    if was_paid or row["status"] in ("incomplete", "incomplete_expired", "trialing"):
        return row
    # Its latest invoice is open, but an earlier one may have been paid.
    return row | {"paid": bool(stripe.list_invoices(1, subscription=row["subscription_id"], status="paid"))}


def price_plans(cur: Cursor) -> Callable[[Object], str]:
    """A function that tells the plan of a price, `unknown` if it sells none, and remembers what it read."""
    pinned = {price_id: plan for (plan, _), price_id in settings.stripe_prices.items()}
    remembered: dict[str, str] = {}

    def plan_of(price: Object) -> str:
        price_id = price["id"]
        plan = plan_of_price(price, pinned) or remembered.get(price_id)
        if plan is None:
            plan = remembered[price_id] = stripe_rows.select_price_plan(cur, price_id) or UNKNOWN
        return plan

    return plan_of


def remember_prices(cur: Cursor, fetched: Iterable[Row]) -> None:
    """Put on record what the prices of these subscriptions sell, for the day when Stripe no longer says."""
    plans = {row["stripe_price_id"]: row["plan"] for row in fetched if row["plan"] != UNKNOWN}
    for price_id, plan in plans.items():
        stripe_rows.upsert_price(cur, price_id, plan)


def is_ours(subscription: Object, plan_of: Callable[[Object], str]) -> bool:
    """Whether it carries our metadata or a price of a plan; one that did before is a row of ours already."""
    items = subscription["items"]["data"]
    return named_by(subscription) is not None or any(plan_of(item["price"]) != UNKNOWN for item in items)


def compare(customer_id: str, ours: Row | None, stripes: Row) -> list[Difference]:
    """What differs between a row and the subscription at Stripe."""
    subject = stripes["subscription_id"]
    if ours is None:
        return [Difference(customer_id, subject, "missing", f"{stripes['plan']} {stripes['status']}")]
    return [
        Difference(customer_id, f"{subject} {name}", _text(ours[name]), _text(stripes[name]))
        for name in COMPARED
        if ours[name] != stripes[name]
    ]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value) if value else "none"
    return "none" if value is None else str(value)


def store(
    cur: Cursor, synced: Synced, fetched: list[Row], event_id: str | None, *, unlink: bool = False
) -> None:
    """Store what was fetched of a customer whose sync lock is taken, and issue the license that follows."""
    customer = customers.lock_customer(cur, synced.customer["customer_id"])
    if customer is None or customer["erased_at"]:
        return  # while Stripe was asked
    customer_id = customer["customer_id"]
    known = {row["subscription_id"]: row for row in synced.subscriptions}
    for row in fetched:
        if compare(customer_id, known.get(row["subscription_id"]), row):
            _store_subscription(cur, row | {"customer_id": customer_id, "event_id": event_id})
    rows = subscriptions.select_subscriptions(cur, [customer_id])
    has_trial = any(is_local(row) and row["status"] == "trialing" for row in rows)
    if has_trial and any(row["paid"] for row in fetched):  # the first payment ends them for good
        subscriptions.end_subscriptions(cur, customer_id, now(), only_trials=True)
        rows = subscriptions.select_subscriptions(cur, [customer_id])
    if unlink:
        customers.update_customer(cur, customer | {"stripe_customer_id": None})
    synced.customer, synced.subscriptions = customer, rows
    live = sum(map(is_live, rows))
    if live > 1:
        extra = {"customer_id": customer_id, "count": live}
        log.warning("customer has several live subscriptions", extra=extra)
    if not customer["revoked_at"]:
        entitlement = entitle(customer, rows, now().replace(microsecond=0))
        synced.license = issue_license(cur, customer, entitlement)


def _store_subscription(cur: Cursor, row: Row) -> None:
    subscriptions.upsert_stripe_subscription(cur, row)
    extra = {"customer_id": row["customer_id"], "subscription_id": row["subscription_id"]}
    if row["plan"] == UNKNOWN:
        more = {"price": row["stripe_price_id"]}
        log.error("price belongs to no plan; it grants nothing", extra=extra | more)
    if row["status"] not in KNOWN_STATUSES:
        log.error("unknown subscription status; it grants nothing", extra=extra | {"status": row["status"]})


def link_customer(customer_id: str, stripe_customer_id: str) -> str | None:
    """Remember Stripe's id for a customer that has none; None when there is no such customer.

    One that is linked to another keeps that link: what is paid at either counts.
    """
    with db.transaction() as cur:
        customer = customers.lock_customer(cur, customer_id)
        if customer is None or customer["erased_at"]:
            return None
        if customer["stripe_customer_id"] is None:
            customers.update_customer(cur, customer | {"stripe_customer_id": stripe_customer_id})
        elif customer["stripe_customer_id"] != stripe_customer_id:
            log.warning("customer has two customers at stripe", extra={"customer_id": customer_id})
    return customer_id


def unlicensed_payers(
    found: Iterable[Object], ignored: set[str], *, belongs_to: str | None
) -> dict[str, str]:
    """Live subscriptions that grant nothing, with the reason; none that an operator ignores.

    `found`: subscriptions at Stripe that sell no plan, or belong to nobody here (`belongs_to` is None).
    """
    why = f"which sells no plan, for {belongs_to}" if belongs_to else "and belongs to no customer here"
    payers = {}
    for subscription in found:
        prices = [item["price"] for item in subscription["items"]["data"] if item.get("quantity", 1) != 0]
        price_ids, payer = [price["id"] for price in prices], customer_of(subscription)
        ids = {subscription["id"], payer, *price_ids, *(str(price["product"]) for price in prices)}
        if subscription["status"] in LIVE_STATUSES and prices and ids.isdisjoint(ignored):
            payers[subscription["id"]] = f"{payer} pays {', '.join(price_ids)}, {why}"
    return payers
