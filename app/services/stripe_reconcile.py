"""`flask stripe sync`: compare every customer with Stripe through Stripe's lists, and mend what differs."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Final

from flask import Flask, current_app

from app.context import actor, set_actor
from app.db import Row, lock
from app.entitlements import ENDED_STATUSES
from app.errors import DomainError
from app.extensions import db, stripe
from app.queries import customers, subscriptions
from app.queries import stripe as stripe_rows
from app.services.customers import find_stripe_customers, get_customer
from app.services.stripe_sync import (
    LOCK_SECONDS,
    Difference,
    Synced,
    compare,
    fetched_row,
    is_ours,
    link_customer,
    price_plans,
    store,
    sync_customer,
    unlicensed_payers,
)
from app.stripe_objects import UNKNOWN, Object, customer_of, named_by

CONNECTIONS: Final = 8
PAGE: Final = 100
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Report:
    """What differed; and what is left to do, by id with the reason, for which the exit code is 1.

    `failed`: customers that could not be mended; `payers`: subscriptions that grant nobody anything;
    `missing`: ids of ours that Stripe does not find.
    """

    differences: list[Difference] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    payers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: lists instead of mappings."""
        listed = {
            name: [{"id": key, "reason": reason} for key, reason in getattr(self, name).items()]
            for name in ("failed", "payers", "missing")
        }
        differences = [
            {"customerId": d.customer_id, "subject": d.subject, "ours": d.ours, "stripes": d.stripes}
            for d in self.differences
        ]
        return {"differences": differences, **listed}


@dataclass(slots=True)
class Here:
    """What the database has: customers and Stripe's subscriptions by id, and who owns what at Stripe."""

    customers: dict[str, str | None]
    known: dict[str, Row]
    owners: dict[str, str]
    """Our customer's id by Stripe's."""

    def owner(self, subscription: Object) -> str | None:
        """The customer that a subscription belongs to: by its customer there, our row, or its metadata."""
        row = self.known.get(subscription["id"])
        held_by = row["customer_id"] if row else named_by(subscription)
        owner = self.owners.get(customer_of(subscription), held_by)
        return owner if owner in self.customers else None

    def row(self, subscription_id: str, owner: str) -> Row | None:
        row = self.known.get(subscription_id)
        return row if row and row["customer_id"] == owner else None

    def at_stripe(self, owner: str) -> list[str]:
        return [stripe_id for stripe_id, other in self.owners.items() if other == owner]


def sync_one(customer_id: str, *, dry_run: bool) -> Report:
    """Compare one customer with Stripe, and mend it."""
    customer, report = get_customer(customer_id), Report()
    found = find_stripe_customers(customer)
    if found and customer["stripe_customer_id"] is None:
        report.differences.append(Difference(customer_id, "stripe_customer_id", "none", found[0]))
        if not dry_run:
            link_customer(customer_id, found[0])
    synced = sync_customer(customer_id, also=found, dry_run=dry_run)
    _add(report, synced)
    with db.statement() as cur:
        report.payers |= unlicensed_payers(synced.unplanned, stripe_rows.select_ignored(cur))
    return report


def _add(report: Report, synced: Synced) -> None:
    report.differences += synced.differences
    customer_id = synced.customer["customer_id"]
    report.missing |= dict.fromkeys(synced.missing, f"of {customer_id}, is not found at Stripe")


def sync_all(*, dry_run: bool, progress: Progress = lambda done, ahead: None) -> Report:
    """Compare all customers, a hundred at a time, and mend those that differ with several connections.

    `progress(done, ahead)`: how many more steps are done, and how many more have come into sight.
    """
    report, seen = Report(), set()
    with db.statement() as cur, ThreadPoolExecutor(CONNECTIONS) as pool:
        here, unlisted = _read_customers(report, dry_run=dry_run)
        plan_of, ignored = price_plans(cur), stripe_rows.select_ignored(cur)
        progress(0, len(here.known))
        jobs = []
        for after, page in _pages():
            seen |= {subscription["id"] for subscription in page}
            differing: dict[str, list[Difference]] = defaultdict(list)
            for subscription in page:
                owner, row = here.owner(subscription), fetched_row(subscription, plan_of)
                if owner is None or row["plan"] == UNKNOWN:
                    report.payers |= unlicensed_payers([subscription], ignored)
                if owner and (subscription["id"] in here.known or is_ours(subscription, plan_of)):
                    differing[owner] += compare(owner, here.row(subscription["id"], owner), row)
            differing = {owner: found for owner, found in differing.items() if found}
            report.differences += [difference for found in differing.values() for difference in found]
            progress(len(page), len(differing))
            if differing and not dry_run:
                jobs.append(pool.submit(_in_context(), _mend_page, here, after, set(differing)))
        for job in as_completed(jobs):
            report.failed |= job.result()
            progress(1, 0)
        unlisted |= {
            row["customer_id"]
            for row in here.known.values()
            if row["subscription_id"] not in seen and row["status"] not in ENDED_STATUSES
        }
        wanted = unlisted & set(here.customers)
        checks = {pool.submit(_in_context(), _check, here, owner, dry_run): owner for owner in wanted}
        for check in as_completed(checks):
            synced = check.result()
            if isinstance(synced, str):
                report.failed[checks[check]] = synced
            else:
                _add(report, synced)
    return report


def _read_customers(report: Report, *, dry_run: bool) -> tuple[Here, set[str]]:
    """Compare the links, and mend them; also the customers whose link Stripe did not list."""
    with db.statement() as cur:
        linked = {row["customer_id"]: row["stripe_customer_id"] for row in customers.select_customers(cur)}
        known = {row["subscription_id"]: row for row in subscriptions.select_stripe_subscriptions(cur)}
    owners = {stripe_id: owner for owner, stripe_id in linked.items() if stripe_id}
    listed = set()
    for customer in stripe.list_customers():
        listed.add(customer["id"])
        owner = named_by(customer)
        if (
            owner is None
            or owner not in linked
            or owners.setdefault(customer["id"], owner) != owner
            or linked[owner]
        ):
            continue
        linked[owner] = customer["id"]
        report.differences.append(Difference(owner, "stripe_customer_id", "none", customer["id"]))
        if not dry_run:
            link_customer(owner, customer["id"])
    unlisted = {owner for owner, stripe_id in linked.items() if stripe_id and stripe_id not in listed}
    return Here(linked, known, owners), unlisted


def _pages() -> Iterator[tuple[str | None, list[dict[str, Any]]]]:
    """Every subscription of the account: what each page follows, and the page."""
    after = None
    while page := stripe.subscription_page(after):
        yield after, page
        after = page[-1]["id"]
        if len(page) < PAGE:
            return


def _in_context() -> Callable[..., Any]:
    """Runs a function in another thread as this one would: same application, same actor."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    name = actor() or ""

    def run(job: Callable[..., Any], *args: Any) -> Any:
        with app.app_context():
            set_actor(name)
            return job(*args)

    return run


def _mend_page(here: Here, after: str | None, differing: set[str]) -> dict[str, str]:
    """Mend customers of one page together, and those that this misses one by one: who failed, and why."""
    failed = {}
    try:
        mended = _store_page(here, after, differing)
    except DomainError:
        mended = set()
    for customer_id in sorted(differing - mended):
        synced = _check(here, customer_id, False)
        if isinstance(synced, str):
            failed[customer_id] = synced
    return failed


def _store_page(here: Here, after: str | None, differing: set[str]) -> set[str]:
    """As `sync_customer`, for many: take their locks, fetch the page once more, store their rows."""
    with db.transaction() as cur:
        for customer_id in sorted(differing):
            lock(cur, f"sync {customer_id}", LOCK_SECONDS)
        rows, fetched = defaultdict(list), defaultdict(list)
        for row in subscriptions.select_subscriptions(cur, sorted(differing)):
            rows[row["customer_id"]].append(row)
        plan_of = price_plans(cur)
        for subscription in stripe.subscription_page(after):
            owner = here.owner(subscription)
            if owner in differing and (subscription["id"] in here.known or is_ours(subscription, plan_of)):
                fetched[owner].append(fetched_row(subscription, plan_of, rows[owner]))
        for owner, found in sorted(fetched.items()):
            store(cur, Synced({"customer_id": owner}, rows[owner]), found, None)
        return set(fetched)


def _check(here: Here, customer_id: str, dry_run: bool) -> Synced | str:
    """Sync one customer: what came of it, or why it failed."""
    try:
        return sync_customer(customer_id, also=here.at_stripe(customer_id), dry_run=dry_run)
    except DomainError as error:
        return error.message
