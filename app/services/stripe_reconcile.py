"""`flask stripe sync`: compare every customer with Stripe through Stripe's lists, and mend what differs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Final

from flask import Flask, current_app

from app.context import actor, set_actor
from app.db import Row
from app.entitlements import ENDED_STATUSES, is_local
from app.errors import DomainError
from app.extensions import db, stripe
from app.queries import customers, subscriptions
from app.queries import stripe as stripe_rows
from app.services.customers import find_stripe_customers, get_customer
from app.services.licenses import register_key, signing_key
from app.services.stripe_sync import (
    Difference,
    Synced,
    compare,
    fetched_row,
    is_ours,
    link_customer,
    price_plans,
    remember_prices,
    store,
    sync_customer,
    unlicensed_payers,
)
from app.stripe_objects import UNKNOWN, Object, customer_of, named_by

CONNECTIONS: Final = 8
PAGE: Final = 100
TOGETHER: Final = 25
"""Customers that are mended in one transaction: their rows stay locked for a fraction of a second."""
Progress = Callable[[int, int], None]
PlanOf = Callable[[Object], str]


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

    def add(self, other: "Report") -> None:
        self.differences += other.differences
        self.failed |= other.failed
        self.payers |= other.payers
        self.missing |= other.missing

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


def sync_one(customer_id: str, *, dry_run: bool) -> Report:
    """Compare one customer with Stripe, and mend it."""
    customer, report = get_customer(customer_id), Report()
    found = find_stripe_customers(customer)
    if found and customer["stripe_customer_id"] is None:
        report.differences.append(Difference(customer_id, "stripe_customer_id", "none", found[0]))
        if not dry_run:
            link_customer(customer_id, found[0])
    synced = sync_customer(customer_id, also=found, dry_run=dry_run)
    report.add(_report_of(synced))
    with db.statement() as cur:
        ignored = stripe_rows.select_ignored(cur)
    report.payers |= unlicensed_payers(synced.unplanned, ignored, belongs_to=customer_id)
    return report


def _report_of(synced: Synced) -> Report:
    reason = f"of {synced.customer['customer_id']} is not found at Stripe"
    return Report(synced.differences, missing=dict.fromkeys(synced.missing, reason))


def sync_all(*, dry_run: bool, progress: Progress = lambda done, ahead: None) -> Report:
    """Compare all customers, a hundred at a time, and mend those that differ with several connections.

    `progress(done, ahead)`: how many more steps are done, and how many more have come into sight.
    """
    report, seen, jobs = Report(), set(), {}
    if not dry_run:
        with db.transaction() as cur:  # else the first license of each connection waits for this row
            register_key(cur, signing_key().public)
    with db.statement() as cur, ThreadPoolExecutor(CONNECTIONS) as pool:
        here, unlisted = _read_customers(report, dry_run=dry_run)
        plan_of, ignored = price_plans(cur), stripe_rows.select_ignored(cur)
        progress(0, len(here.known))
        for after, page in _pages():
            rows = [fetched_row(subscription, plan_of) for subscription in page]
            if not dry_run:
                remember_prices(cur, rows)
            differing = _compare_page(report, here, zip(page, rows, strict=True), plan_of, ignored)
            seen |= {subscription["id"] for subscription in page}
            progress(len(page), len(differing))
            for start in range(0, 0 if dry_run else len(differing), TOGETHER):
                some = set(differing[start : start + TOGETHER])
                jobs[pool.submit(_in_context(), _mend, here, after, some)] = len(some)
        for row in here.known.values():
            if row["subscription_id"] not in seen and row["status"] not in ENDED_STATUSES:
                unlisted.add(row["customer_id"])
        for customer_id in unlisted & set(here.customers):
            jobs[pool.submit(_in_context(), _check, here, customer_id, dry_run)] = 0
        for job in as_completed(jobs):
            report.add(job.result())
            progress(jobs[job], 0)
    return report


def _compare_page(
    report: Report, here: Here, page: Iterable[tuple[Object, Row]], plan_of: PlanOf, ignored: set[str]
) -> list[str]:
    """Add to the report what differs, and who pays for nothing: the customers that differ."""
    differing = set()
    for subscription, row in page:
        owner, known = here.owner(subscription), here.known.get(subscription["id"])
        if owner is None or row["plan"] == UNKNOWN:
            report.payers |= unlicensed_payers([subscription], ignored, belongs_to=owner)
        if owner and (known or is_ours(subscription, plan_of)):
            found = compare(owner, known if known and known["customer_id"] == owner else None, row)
            report.differences += found
            differing |= {owner} if found else set()
    return sorted(differing)


def _read_customers(report: Report, *, dry_run: bool) -> tuple[Here, set[str]]:
    """Compare the links, and mend them; also the customers whose link Stripe did not list."""
    with db.statement() as cur:
        linked = {row["customer_id"]: row["stripe_customer_id"] for row in customers.select_customers(cur)}
        rows = subscriptions.select_subscriptions(cur)
    known = {row["subscription_id"]: row for row in rows if not is_local(row)}
    owners = {stripe_id: owner for owner, stripe_id in linked.items() if stripe_id}
    listed = set()
    for customer in stripe.list_customers():
        listed.add(customer["id"])
        owner = named_by(customer) or ""
        if owner not in linked or owners.setdefault(customer["id"], owner) != owner or linked[owner]:
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


def _mend(here: Here, after: str | None, differing: set[str]) -> Report:
    """Mend some customers of one page together, and those that this misses one by one."""
    report = Report()
    try:
        mended = _store_together(here, after, differing)
    except DomainError:
        mended = set()
    for customer_id in sorted(differing - mended):
        report.add(_check(here, customer_id, False))
    report.differences = []  # the comparison has named them
    return report


def _store_together(here: Here, after: str | None, differing: set[str]) -> set[str]:
    """As `sync_customer`, for many: take their locks, fetch the page once more, store their rows."""
    with db.transaction() as cur:
        stripe_rows.lock_syncs(cur, sorted(differing))
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


def _check(here: Here, customer_id: str, dry_run: bool) -> Report:
    """Sync one customer."""
    also = [stripe_id for stripe_id, owner in here.owners.items() if owner == customer_id]
    try:
        return _report_of(sync_customer(customer_id, also=also, dry_run=dry_run))
    except DomainError as error:
        return Report(failed={customer_id: error.message})
