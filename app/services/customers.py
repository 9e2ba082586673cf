"""Customers: joining with a trial, changing their details, figures of their own."""

import hashlib
import hmac
import secrets
import string
from datetime import timedelta
from typing import Any, Final

from psycopg2.errors import UniqueViolation

from app.context import now
from app.db import Cursor, Row
from app.encoding import json_text
from app.entitlements import describe, describe_customer, entitle
from app.errors import Conflict, NotFound, Refused
from app.extensions import db, settings, stripe
from app.licenses import Token
from app.queries import customers, subscriptions
from app.services.licenses import issue_license, lock_customer_or_404, require_serving
from app.stripe_objects import named_by

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

    With a plan that is its one trial of a paid plan. If the trial was used up before an erasure, it begins as
    expired; Conflict when a plan is asked for then, or when the address is taken.
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
    with db.lease(f"customer {customer_id}"):
        before = get_customer(customer_id)
        changes = {name: value for name, value in changes.items() if value != before[name]}
        if not changes:
            return describe_one(customer_id)
        after = before | changes
        with db.statement() as cur:
            same_email = customers.select_customers(cur, limit=1, email=after["email"])
        if same_email and same_email[0]["customer_id"] != customer_id:
            raise Conflict(f"Another customer has this email: {same_email[0]['customer_id']}.")
        # Only what changed: at Stripe the customer may have given a billing address or another email since.
        wanted = {"email": after["email"], "name": after["company_name"] or after["name"] or ""}
        there = {"email": before["email"], "name": before["company_name"] or before["name"] or ""}
        at_stripe = {name: value for name, value in wanted.items() if value != there[name]}
        if at_stripe and before["stripe_customer_id"] and stripe.configured:
            state = f"{before['updated_at'].timestamp()}-{digest(at_stripe)}-{this_minute()}"
            try:
                stripe.update_customer(
                    before["stripe_customer_id"], at_stripe, f"update-{customer_id}-after-{state}"
                )
            except Refused as error:
                if not error.missing:  # one that was deleted there needs to hear nothing
                    raise
        try:
            with db.transaction() as cur:
                present = lock_customer_or_404(cur, customer_id) | changes
                names = ("email", "name", "company_name")
                stored = customers.update_customer(
                    cur, customer_id=customer_id, **{name: present[name] for name in names}
                )
                rows = subscriptions.select_subscriptions(cur, [customer_id])
                return describe_customer(stored, rows, now())
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


def list_customers(
    *,
    limit: int | None = None,
    after: int | None = None,
    email: str | None = None,
    q: str | None = None,
    plan: str | None = None,
    status: str | None = None,
) -> list[dict[str, Any]]:
    """Customers with the subscription that counts, oldest first, in one statement; `after` is an `id`."""
    at = now()
    with db.statement() as cur:
        found = subscriptions.select_customers_with_current(
            cur, at=at, limit=limit, after=after, email=email, q=q, plan=plan, status=status
        )
    return [
        customer | {"subscription": current and describe(customer, current, at)}
        for customer, current in found
    ]


def find_stripe_customers(customer: Row) -> list[str]:
    """Stripe's ids of this customer: the one that it is linked to and those that name it, but for those
    that another customer here is linked to.
    """
    customer_id, linked = customer["customer_id"], customer["stripe_customer_id"]
    named = [
        c["id"] for c in stripe.find_customers(customer_id, customer["email"]) if named_by(c) == customer_id
    ]
    found = [*([linked] if linked else []), *named]
    with db.statement() as cur:
        others = customers.select_linked_to_others(cur, customer_id, found)
    return [stripe_id for stripe_id in dict.fromkeys(found) if stripe_id not in others]


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


def digest(value: Any) -> str:
    """Part of an idempotency key: what is asked for."""
    return hashlib.sha256(json_text(value).encode()).hexdigest()[:32]


def this_minute() -> str:
    """Part of an idempotency key whose effect is looked for before the call is made again: so a refusal,
    which Stripe repeats for 24 hours, is repeated for a minute at most.
    """
    return f"{now():%Y%m%d%H%M}"
