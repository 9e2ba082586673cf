"""Customers: joining with a trial, changing their details, own figures, leaving for good."""

import hashlib
import hmac
import secrets
import string
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from psycopg2.errors import UniqueViolation

from app.context import now
from app.db import Cursor, Row
from app.entitlements import ENDED_STATUSES, describe_customer, entitle, is_local
from app.errors import Conflict, NotFound
from app.extensions import db, settings, stripe
from app.licenses import Token
from app.queries import audit, customers, events, idempotency, licenses, subscriptions, usage
from app.services.licenses import issue_license, lock_customer_or_404, require_serving

ID_LENGTH: Final = 16
_ID_ALPHABET: Final = string.ascii_lowercase + string.digits


def create_customer(
    cur: Cursor,
    *,
    email: str,
    name: str | None = None,
    company_name: str | None = None,
    plan: str | None = None,
) -> tuple[dict[str, Any], Row]:
    """Add a customer with a running trial, inside a transaction: the customer and its first license.

    With a plan that is its one trial of a paid plan. Raises Conflict when the address is taken, or
    when a plan is asked for but the trial was used up before an erasure.
    """
    customer_id, at = new_id("cust_"), now().replace(microsecond=0)
    customer = customers.insert_customer(
        cur, customer_id=customer_id, email=email, name=name, company_name=company_name
    )
    if customer is None:
        there = customers.select_customers(cur, limit=1, email=email)
        raise Conflict(f"There is a customer with this email already: {there[0]['customer_id']}.")
    trial_is_used = trial_used_before_erasure(cur, email)
    if trial_is_used and plan not in (None, "trial"):
        raise Conflict("The trial of this email is used up. Create it without a plan, then use checkout.")
    if trial_is_used:
        customers.update_trial_used(cur, customer_id, at)
    started = start_trial(cur, customer, plan or "trial", days=0 if trial_is_used else settings.trial_days)
    entitlement = entitle(customer, [started], now())
    return describe_customer(customer, [started], now()), issue_license(cur, customer, entitlement)


def start_trial(cur: Cursor, customer: Row, plan: str, *, days: int) -> Row:
    """End the trial that there may be and begin one of `plan`, inside the caller's transaction."""
    at, customer_id = now().replace(microsecond=0), customer["customer_id"]
    subscriptions.end_trials(cur, customer_id, at)
    started = subscriptions.insert_trial(
        cur,
        subscription_id=new_id("trial_"),
        customer_id=customer_id,
        plan=plan,
        starts_at=at,
        ends_at=at + timedelta(days=days),
    )
    if plan != "trial":
        customers.update_trial_used(cur, customer_id, at)
    return started


def update_customer(customer_id: str, changes: Row) -> dict[str, Any]:
    """Change email, name or company (absent: as it is), at Stripe first, so that a failure there changes
    nothing here. Raises Conflict when the address is taken.
    """
    if not changes:
        return describe_one(customer_id)
    if get_customer(customer_id)["stripe_customer_id"] and stripe.configured:
        with db.lease(f"checkout {customer_id}"):
            return _update(customer_id, changes)
    return _update(customer_id, changes)


def _update(customer_id: str, changes: Row) -> dict[str, Any]:
    before = get_customer(customer_id)
    wanted: Row = {name: changes.get(name, before[name]) for name in ("email", "name", "company_name")}
    with db.statement() as cur:
        same_email = customers.select_customers(cur, limit=1, email=wanted["email"])
    if same_email and same_email[0]["customer_id"] != customer_id:
        raise Conflict("Another customer has this email.")
    if before["stripe_customer_id"] and stripe.configured:
        name = wanted["company_name"] or wanted["name"]
        key = (
            f"customer-update-{customer_id}-{before['updated_at'].timestamp()}-{_digest(wanted)}-{now():%H%M}"
        )
        stripe.update_customer(before["stripe_customer_id"], wanted["email"], name, key)
    try:
        with db.transaction() as cur:
            present = lock_customer_or_404(cur, customer_id)
            wanted = {name: changes.get(name, present[name]) for name in wanted}
            after = customers.update_customer(cur, customer_id=customer_id, **wanted)
            return describe_customer(after, subscriptions.select_subscriptions(cur, [customer_id]), now())
    except UniqueViolation:
        raise Conflict("Another customer has this email.") from None


def override(
    customer_id: str, *, max_devices: int | None, retention_days: int | None, clear: bool = False
) -> Row:
    """Give an enterprise customer figures of its own; None leaves one as it is, `clear` drops both first."""
    with db.transaction("customer.override") as cur:
        before = lock_customer_or_404(cur, customer_id)
        granted = entitle(before, subscriptions.select_subscriptions(cur, [customer_id]), now())
        is_set = max_devices is not None or retention_days is not None
        if is_set and granted.plan.name != "enterprise":
            raise Conflict("Only an enterprise customer has figures of its own. Upgrade it first.")
        kept = {"max_devices": None, "retention_days": None} if clear else before
        return customers.update_overrides(
            cur,
            customer_id,
            max_devices=kept["max_devices"] if max_devices is None else max_devices,
            retention_days=kept["retention_days"] if retention_days is None else retention_days,
        )


def get_customer(customer_id: str) -> Row:
    """The row, or NotFound; an erased customer is not found."""
    with db.statement() as cur:
        customer = customers.select_customer(cur, customer_id)
    if customer is None or customer["erased_at"]:
        raise NotFound(f"There is no customer {customer_id}.")
    return customer


def describe_one(customer_id: str, presented: Token | None = None) -> dict[str, Any]:
    """A customer with the subscription that counts; raises as below."""
    return describe_customer(*get_customer_with_subscriptions(customer_id, presented), now())


def get_customer_with_subscriptions(
    customer_id: str, presented: Token | None = None
) -> tuple[Row, list[Row]]:
    """The row with every subscription there ever was. `presented`: the license that came with the request.

    Raises NotFound, also for an erased customer, and what `require_serving` does.
    """
    jti = presented.jti if presented else None
    with db.statement() as cur:
        customer, rows = subscriptions.select_customer_with_subscriptions(cur, customer_id, jti) or (None, [])
    return require_serving(customer, customer_id, presented), rows


def describe_many(page: Sequence[Row]) -> list[dict[str, Any]]:
    """The same for a page of customers, with one more statement in all."""
    of = subscriptions_of(page)
    return [describe_customer(customer, of[customer["customer_id"]], now()) for customer in page]


def subscriptions_of(page: Sequence[Row]) -> dict[str, list[Row]]:
    """Every subscription of each of these customers."""
    found: dict[str, list[Row]] = {customer["customer_id"]: [] for customer in page}
    with db.statement() as cur:
        for row in subscriptions.select_subscriptions(cur, list(found)):
            found[row["customer_id"]].append(row)
    return found


def export_customer(customer_id: str) -> dict[str, Any]:
    """Everything that is held about a customer, as rows by table."""
    customer = get_customer(customer_id)
    with db.transaction() as cur:
        audit.insert_audit(cur, "customer.export", customer_id=customer_id, subject=customer_id)
        return {
            "customer": customer,
            "subscriptions": subscriptions.select_subscriptions(cur, [customer_id]),
            "licenses": licenses.select_license_history(cur, customer_id),
            "usageReports": usage.select_usage_reports(cur, customer_id, since=None, limit=None),
            "instances": usage.select_instances_of(cur, customer_id),
            "stripeEvents": events.select_events(cur, limit=None, customer_id=customer_id),
            "idempotencyKeys": idempotency.select_answers_about(cur, customer_id),
            "audit": audit.select_audit(cur, customer_id=customer_id),
        }


def erase_customer(customer_id: str) -> None:
    """Delete the customer at Stripe and every personal field here; the figures stay.

    Its licenses are revoked, and a keyed hash of the address remembers that the trial is used up.
    Done again after a failure half-way, it completes. No checkout can begin meanwhile.
    """
    with db.lease(f"checkout {customer_id}"):
        customer = get_customer(customer_id)
        stripe_ids = _delete_at_stripe(customer)
        with db.transaction("customer.erase") as cur:
            _erase(cur, customer, stripe_ids)


def _delete_at_stripe(customer: Row) -> list[str]:
    """Delete whatever Stripe has of this customer, also what was never linked: Stripe's ids."""
    deleted: list[str] = []
    if customer["stripe_customer_id"] or stripe.configured:
        while wanted := [found for found in _all_at_stripe(customer) if found not in deleted]:
            for found in wanted:
                stripe.delete_customer(found)
            deleted += wanted
    return deleted


def _all_at_stripe(customer: Row) -> list[str]:
    """By the link, by its name and address, and by whom its subscriptions are, if they name it still."""
    customer_id, linked = customer["customer_id"], customer["stripe_customer_id"]
    with db.statement() as cur:
        rows = subscriptions.select_subscriptions(cur, [customer_id])
    fetched = [
        stripe.retrieve_subscription(row["subscription_id"])
        for row in rows
        if not is_local(row) and row["status"] not in ENDED_STATUSES
    ]
    paying = {row["stripe_customer_id"] for row in fetched if row} - {linked}
    named = [stripe_id for stripe_id in sorted(paying) if stripe.owner_of(stripe_id) == customer_id]
    return ([linked] if linked else []) + find_stripe_customers(customer, also=named)


def find_stripe_customers(customer: Row, also: Sequence[str] = ()) -> list[str]:
    """Customers at Stripe that name this one of ours (those of its address, and `also`), but for those that
    are somebody else's here.
    """
    found = [*also, *stripe.find_customers(customer["customer_id"], customer["email"])]
    with db.statement() as cur:
        others = customers.select_linked_to_others(cur, customer["customer_id"], found)
    return [stripe_id for stripe_id in dict.fromkeys(found) if stripe_id not in others]


def _erase(cur: Cursor, customer: Row, stripe_ids: list[str]) -> None:
    at, customer_id = now(), customer["customer_id"]
    present = customers.lock_customer(cur, customer_id) or customer
    # The address may have been changed since it was read: neither has a trial to come.
    for email in {customer["email"], present["email"]} - {None}:
        customers.insert_erased_email(cur, email_hash(cur, email))
    subscriptions.end_all(cur, customer_id, at)
    licenses.revoke_licenses(cur, customer_id, at)
    licenses.forget_tokens(cur, customer_id)
    customers.erase_customer(cur, customer_id, at)
    audit.erase_audit(cur, customer_id)
    events.forget_stripe_customers(cur, customer_id, stripe_ids)
    idempotency.delete_answers_about(cur, customer_id)


def trial_used_before_erasure(cur: Cursor, email: str) -> bool:
    """Whether a customer with this address was erased: its trial is used up."""
    return customers.select_email_was_erased(cur, email_hash(cur, email))


def email_hash(cur: Cursor, email: str) -> str:
    """HMAC-SHA-256 of an address in lower case: recognisable to us, no address to anyone else."""
    key = customers.select_email_hash_key(cur)
    return hmac.new(key.encode(), email.lower().encode(), hashlib.sha256).hexdigest()


def new_id(prefix: str) -> str:
    """Unguessable: about 82 bits."""
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(value.items())).encode()).hexdigest()[:16]
