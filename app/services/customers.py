"""Customers: joining with a trial, changing their details, figures of their own."""

import base64
import hashlib
import secrets
from datetime import datetime
from typing import Any

from psycopg2.errors import UniqueViolation

from app.context import now
from app.db import Cursor, Row
from app.encoding import json_text
from app.entitlements import describe, describe_customer, entitle
from app.errors import Conflict, Refused
from app.extensions import db, settings, stripe
from app.licenses import Token
from app.queries import customers, subscriptions
from app.services.licenses import issue_license, lock_customer_or_404, require_serving
from app.stripe_objects import named_by


def create_customer(
    cur: Cursor,
    *,
    email: str,
    name: str | None = None,
    company_name: str | None = None,
    plan: str | None = None,
) -> tuple[dict[str, Any], Row]:
    """Add a customer with a running trial, inside a transaction: the customer and its first license.

    With a plan that is its one trial of a paid plan. If the trial was used up before an erasure, it begins as
    expired; Conflict when a plan is asked for then, or when the address is taken.
    """
    at, plan = now().replace(microsecond=0), plan or "trial"
    trial_is_used = customers.select_email_was_erased(cur, email)
    wanted = {
        "customer_id": new_id("cust_"),
        "email": email,
        "name": name,
        "company_name": company_name,
        "trial_used_at": at if trial_is_used or plan != "trial" else None,
    }
    customer = customers.insert_customer(cur, wanted)
    if customer is None:
        there = customers.find_customer(cur, email) or {}
        raise Conflict(f"There is a customer with this email already: {there.get('customer_id')}.")
    if trial_is_used and plan != "trial":
        raise Conflict("The trial of this email is used up. Create it without a plan, then use checkout.")
    started = start_trial(cur, customer, plan, at, days=0 if trial_is_used else settings.trial_days)
    entitlement = entitle(customer, [started], at)
    return describe_customer(customer, [started], at), issue_license(cur, customer, entitlement, at=at)


def start_trial(cur: Cursor, customer: Row, plan: str, at: datetime, *, days: int) -> Row:
    """Begin a trial of our own, inside the caller's transaction."""
    trial = {"subscription_id": new_id("trial_"), "customer_id": customer["customer_id"], "plan": plan}
    return subscriptions.insert_trial(cur, trial, at, days)


def update_customer(customer_id: str, changes: Row) -> dict[str, Any]:
    """Change email, name or company (absent: as it is), at Stripe first, so that a failure there changes
    nothing here. Raises Conflict when the address is taken.
    """
    with db.lease(f"customer {customer_id}"):
        before = get_customer(customer_id)
        changes = {name: value for name, value in changes.items() if value != before[name]}
        if not changes:
            return describe_one(customer_id)
        after = before | changes
        with db.statement() as cur:
            same_email = customers.find_customer(cur, after["email"])
        if same_email and same_email["customer_id"] != customer_id:
            raise Conflict(f"Another customer has this email: {same_email['customer_id']}.")
        # Only what changed: at Stripe the customer may have given a billing address or another email since.
        there, wanted = (
            {"email": row["email"], "name": row["company_name"] or row["name"] or ""}
            for row in (before, after)
        )
        at_stripe = {name: value for name, value in wanted.items() if value != there[name]}
        if at_stripe and before["stripe_customer_id"] and stripe.configured:
            state = f"{before['updated_at'].timestamp()}-{digest(at_stripe)}-{this_minute()}"
            key = f"update-{customer_id}-after-{state}"
            try:
                stripe.update_customer(before["stripe_customer_id"], at_stripe, key)
            except Refused as error:
                if not error.missing:  # one that was deleted there needs to hear nothing
                    raise
        try:
            with db.transaction() as cur:
                customers.update_customer(cur, lock_customer_or_404(cur, customer_id) | changes)
        except UniqueViolation:
            raise Conflict("Another customer has this email.") from None
        return describe_one(customer_id)


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
        given = {"max_devices": max_devices, "retention_days": retention_days}
        changes = {name: value for name, value in given.items() if clear or value is not None}
        return customers.update_customer(cur, before | changes)


def get_customer(customer_id: str) -> Row:
    """The row, or NotFound; an erased customer is not found."""
    with db.statement() as cur:
        return require_serving(customers.select_customer(cur, customer_id), customer_id)


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


def list_customers(**filters: Any) -> list[dict[str, Any]]:
    """Customers with the subscription that counts; the filters are `select_customers_with_current`'s."""
    at = now()
    with db.statement() as cur:
        found = subscriptions.select_customers_with_current(cur, at=at, **filters)
    return [
        customer | {"subscription": current and describe(customer, current, at)}
        for customer, current in found
    ]


def find_stripe_customers(customer: Row, found_there: list[dict[str, Any]] | None = None) -> list[str]:
    """Stripe's ids of this customer: the linked one, and those that name it and are linked to nobody else.

    `found_there`: what `stripe.find_customers` found of it, if it was asked already.
    """
    customer_id, linked = customer["customer_id"], customer["stripe_customer_id"]
    at_stripe = stripe.find_customers(customer_id, customer["email"]) if found_there is None else found_there
    named = [found["id"] for found in at_stripe if named_by(found) == customer_id]
    with db.statement() as cur:
        owners = {
            stripe_id: customers.select_customer_by_stripe_id(cur, stripe_id)
            for stripe_id in filter(None, [linked, *named])
        }
    return [one for one, owner in owners.items() if owner is None or owner["customer_id"] == customer_id]


def new_id(prefix: str) -> str:
    """Unguessable: 80 random bits as 16 letters and digits."""
    return prefix + base64.b32encode(secrets.token_bytes(10)).decode().lower()


def digest(value: Any) -> str:
    """Part of an idempotency key: what is asked for."""
    return hashlib.sha256(json_text(value).encode()).hexdigest()[:32]


def this_minute() -> str:
    """Part of an idempotency key whose effect is looked for before the call is made again: so a refusal,
    which Stripe repeats for 24 hours, is repeated for a minute at most.
    """
    return f"{now():%Y%m%d%H%M}"
