"""Subscriptions that people ask for: trial, checkout, upgrade, cancel, resume, portal."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from app.context import now
from app.db import Cursor, Row
from app.entitlements import ENDED_STATUSES, describe, ends_with_period, entitle, is_live, is_local, status_at
from app.errors import (
    Conflict,
    DomainError,
    Forbidden,
    NotFound,
    Unavailable,
    invalid_field,
)
from app.extensions import db, settings, stripe
from app.plans import PLANS
from app.queries import customers, subscriptions
from app.services.customers import (
    find_stripe_customers,
    get_customer,
    get_customer_with_subscriptions,
    start_trial,
    trial_used_before_erasure,
)
from app.services.licenses import issue_license, lock_customer_or_404
from app.services.stripe_sync import set_link, sync_customer
from app.stripe_gateway import NoAnswer, Refused

CHANGE_WAIT_SECONDS: Final = 5
SESSION_PLACEHOLDER: Final = "{CHECKOUT_SESSION_ID}"


def create_trial(cur: Cursor, customer_id: str, plan: str) -> tuple[dict[str, Any], Row]:
    """Begin the one trial of a paid plan, inside a transaction: the described subscription and a new license.

    Raises Conflict when it was used up, or when there ever was a paid subscription.
    """
    customer = lock_customer_or_404(cur, customer_id)
    if customer["revoked_at"]:
        raise Forbidden("This customer's licenses are revoked. Reinstate them first.")
    rows = subscriptions.select_subscriptions(cur, [customer_id])
    if any(row["paid"] or is_live(row) for row in rows):
        raise Conflict("This customer has had a paid subscription. Use checkout.")
    if customer["trial_used_at"] or trial_used_before_erasure(cur, customer["email"]):
        raise Conflict("This customer's trial is used up. Use checkout.")
    started = start_trial(cur, customer, plan, days=settings.trial_days)
    return describe(customer, started, now()), issue_license(cur, customer)


def get_subscription(any_id: str, only_of: str | None = None) -> dict[str, Any]:
    """A described subscription by its own id, or the one that counts by the customer's.

    With `only_of`, anything that is not that customer's is Forbidden, whether it exists or not.
    """
    if any_id.startswith("cust_"):
        if only_of not in (None, any_id):
            raise Forbidden("This license is for another customer.")
        return _current(any_id)
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, any_id)
    if only_of is not None and (row is None or row["customer_id"] != only_of):
        raise Forbidden("This license is for another customer.")
    if row is None:
        raise NotFound(f"There is no subscription {any_id}.")
    return describe(get_customer(row["customer_id"]), row, now())


def _current(customer_id: str) -> dict[str, Any]:
    customer, rows = get_customer_with_subscriptions(customer_id)
    current = entitle(customer, rows, now()).subscription
    if current is None:
        raise NotFound(f"Customer {customer_id} has no subscription.")
    return describe(customer, current, now())


def start_checkout(
    customer_id: str,
    plan: str,
    *,
    success_url: str | None = None,
    cancel_url: str | None = None,
    promo_code: str | None = None,
) -> dict[str, Any]:
    """A Stripe Checkout page where the customer subscribes: sessionId, checkoutUrl, plan, expiresAt.

    One session of a customer is open at a time, so that nobody pays twice in two tabs: the same
    wish gets the same session again, another wish closes it. Raises Conflict when a subscription
    is live already, here or, by a webhook still on its way, at Stripe only.
    """
    with db.lease(f"checkout {customer_id}"):
        customer = get_customer(customer_id)
        price_id = _price_of(plan)
        stripe_customer_id = _ensure_stripe_customer(customer)
        success = success_url or f"{settings.base_url}/checkout/success?session_id={SESSION_PLACEHOLDER}"
        params: dict[str, Any] = {
            "mode": "subscription",
            "customer": stripe_customer_id,
            "client_reference_id": customer_id,
            "line_items": [{"price": price_id, "quantity": 1}],
            "success_url": success,
            "cancel_url": cancel_url or f"{settings.base_url}/checkout/cancel",
            "subscription_data": {"metadata": {"customer_id": customer_id}},
        }
        if promo_code is None:
            params["allow_promotion_codes"] = True
        else:
            promotion = stripe.find_promotion_code(promo_code, stripe_customer_id)
            if promotion is None:
                raise invalid_field("promoCode", "There is no such code, or it has expired.")
            params["discounts"] = [{"promotion_code": promotion}]
        session = _open_session(customer_id, params)
        return {
            "session_id": session["id"],
            "checkout_url": session["url"],
            "plan": plan,
            "expires_at": datetime.fromtimestamp(session["expires_at"], UTC),
        }


def _open_session(customer_id: str, params: dict[str, Any]) -> dict[str, Any]:
    """The open session with these very parameters, or a new one with every other closed."""
    wish = _digest(json.dumps(params, sort_keys=True))
    sessions = stripe.list_checkouts(params["customer"])
    is_open = [session for session in sessions if session["status"] == "open"]
    same = [session for session in is_open if (session.get("metadata") or {}).get("wish") == wish][:1]
    under_way = [s for s in is_open if s not in same and not stripe.expire_checkout(s["id"])]
    # Asked only now, when no other page can be paid any more: what was paid on one shows here.
    sync_customer(customer_id)
    if _live_subscription(customer_id):
        for session in same:
            stripe.expire_checkout(session["id"])
        raise Conflict("This customer has a live subscription. Use upgrade.")
    if under_way:
        raise Conflict("A payment is under way in an earlier checkout page. Look again in a moment.")
    if same:
        return same[0]
    state = sessions[0]["id"] if sessions else "first"
    params = params | {"metadata": {"customer_id": customer_id, "wish": wish}}
    return stripe.create_checkout(params, f"checkout-{wish}-after-{state}-{_minute()}")


def _minute() -> str:
    """Part of a key whose effect is looked for before it is asked again: a refusal is repeated no longer."""
    return f"{now():%Y%m%d%H%M}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _ensure_stripe_customer(customer: Row) -> str:
    """Stripe's id of this customer; made, found again after a crash, or made anew after a deletion."""
    customer_id, known = customer["customer_id"], customer["stripe_customer_id"]
    if known and not stripe.customer_is_deleted(known):
        return str(known)
    if known:
        sync_customer(customer_id)  # what the deleted one had is taken in before it is forgotten
    found = next(iter(find_stripe_customers(customer)), None)
    if found is None:
        name = customer["company_name"] or customer["name"]
        state = f"{known or 'none'}-{customer['updated_at'].timestamp()}"
        key = f"customer-{customer_id}-after-{state}-{_minute()}"
        found = stripe.create_customer(customer_id, customer["email"], name, key)
    with db.transaction() as cur:
        set_link(cur, lock_customer_or_404(cur, customer_id), found)
    return found


def _price_of(plan: str) -> str:
    price_id = stripe.price_of(plan)
    if price_id is None and PLANS[plan].monthly_cents is None:
        raise invalid_field("plan", f"{plan.capitalize()} is not sold online. Contact sales.")
    if price_id is None:
        raise Unavailable(f"Stripe has no active price for {plan}. Run: flask stripe setup")
    return price_id


def upgrade(subscription_id: str, plan: str) -> tuple[dict[str, Any], Row | None]:
    """Move a live subscription to another plan, up or down, prorated and paid at once.

    Raises PaymentRefused with nothing changed, or Conflict for a trial, a subscription that is not
    live or the plan it has already.
    """
    before = _stripe_subscription(subscription_id)
    with _changing(subscription_id):
        price_id = _price_of(plan)
        sync_customer(before["customer_id"])
        present = _stripe_subscription(subscription_id)
        if not is_live(present):
            instead = "Its open invoice has to be paid first."
            if _has_ended(present):
                instead = "It has ended; use checkout."
            elif present["status"] == "paused":
                instead = "It has to be resumed at Stripe first."
            raise Conflict(f"This subscription is {present['status']}. {instead}")
        if present["plan"] != plan:
            _change(
                present,
                f"to-{price_id}",
                lambda key: stripe.change_price(subscription_id, price_id, key),
            )
        elif before["plan"] == plan:
            raise Conflict(f"The subscription is on {plan} already.")
        return _after_change(subscription_id)


def cancel(subscription_id: str, *, at_period_end: bool) -> dict[str, Any]:
    """End a subscription now or at the end of the paid period; a local trial ends at once."""
    before = _subscription(subscription_id)
    if is_local(before):
        return _cancel_trial(before)
    with _changing(subscription_id):
        sync_customer(before["customer_id"])
        present = _subscription(subscription_id)
        if _has_ended(present):
            if _has_ended(before):
                raise Conflict("This subscription has ended already.")
        elif not at_period_end:
            _change(present, "cancel-now", lambda key: stripe.cancel(subscription_id, key))
        elif not ends_with_period(present):
            _change(
                present,
                "cancel-later",
                lambda key: stripe.cancel_at_period_end(subscription_id, key),
            )
        return _after_change(subscription_id)[0]


def _cancel_trial(row: Row) -> dict[str, Any]:
    with db.transaction() as cur:
        customer = customers.lock_customer(cur, row["customer_id"])
        present = subscriptions.select_subscription(cur, row["subscription_id"])
        if customer is None or present is None:
            raise NotFound(f"There is no subscription {row['subscription_id']}.")
        if status_at(present, now()) != "trialing":
            raise Conflict("The trial has ended already.")
        ended = subscriptions.end_trials(cur, row["customer_id"], now())[0]
        if not customer["revoked_at"]:
            issue_license(cur, customer)
        return describe(customer, ended, now())


def resume(subscription_id: str) -> dict[str, Any]:
    """Withdraw a pending cancellation, of ours or of the billing portal's."""
    before = _stripe_subscription(subscription_id)
    with _changing(subscription_id):
        sync_customer(before["customer_id"])
        present = _stripe_subscription(subscription_id)
        if _has_ended(present):
            raise Conflict("This subscription has ended and cannot be resumed. Use checkout.")
        if present["cancel_at_period_end"] or present["cancel_at"]:
            _change(
                present,
                "resume",
                lambda key: stripe.withdraw_cancellation(
                    subscription_id, has_cancel_at=not present["cancel_at_period_end"], key=key
                ),
            )
        elif not (before["cancel_at_period_end"] or before["cancel_at"]):
            raise Conflict("No cancellation is pending.")
        return _after_change(subscription_id)[0]


def open_portal(customer_id: str, return_url: str | None) -> str:
    """The address of Stripe's billing portal for this customer."""
    with db.lease(f"checkout {customer_id}"):
        stripe_customer_id = _ensure_stripe_customer(get_customer(customer_id))
        back = return_url or f"{settings.base_url}/checkout/back"
        # A portal address lives for minutes: the same minute may share one, a later one may not.
        key = f"portal-{stripe_customer_id}-{_digest(back)}-{_minute()}"
        return stripe.create_portal(stripe_customer_id, back, key)


def deactivate(customer_id: str, *, at_period_end: bool) -> tuple[dict[str, Any], str]:
    """Cancel all that the customer has live, or its running trial.

    Answers the subscription that counted, and its plan before.
    """
    customer = get_customer(customer_id)
    if customer["stripe_customer_id"] and stripe.configured:
        sync_customer(customer_id)
    current = _current(customer_id)
    if current["status"] in ENDED_STATUSES:
        raise Conflict("Nothing is live: the customer is in trial mode already.")
    with db.statement() as cur:
        rows = subscriptions.select_subscriptions(cur, [customer_id])
    for row in filter(is_live, rows):
        if row["subscription_id"] != current["subscription_id"]:
            cancel(row["subscription_id"], at_period_end=at_period_end)
    return cancel(current["subscription_id"], at_period_end=at_period_end), current["plan"]


def complete_checkout(session_id: str) -> dict[str, Any] | None:
    """Sync the customer of a finished session of ours: its described subscription, None if not ours."""
    session = stripe.retrieve_checkout(session_id)
    customer_id = (session or {}).get("client_reference_id")
    if session is None or not isinstance(customer_id, str) or session["status"] != "complete":
        return None
    with db.statement() as cur:
        customer = customers.select_customer(cur, customer_id)
    if customer is None or customer["stripe_customer_id"] != session["customer"]:
        return None
    sync_customer(customer_id)
    return describe(customer, _subscription(session["subscription"]), now())


def _has_ended(row: Row) -> bool:
    return row["status"] in ENDED_STATUSES


def _subscription(subscription_id: str) -> Row:
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, subscription_id)
    if row is None:
        raise NotFound(f"There is no subscription {subscription_id}.")
    return row


def _stripe_subscription(subscription_id: str) -> Row:
    row = _subscription(subscription_id)
    if is_local(row):
        raise Conflict("This is a trial. Use checkout to subscribe.")
    return row


def _live_subscription(customer_id: str) -> Row | None:
    with db.statement() as cur:
        rows = subscriptions.select_subscriptions(cur, [customer_id])
    return next(filter(is_live, rows), None)


@contextmanager
def _changing(subscription_id: str) -> Iterator[None]:
    """One change of a subscription after the other, so that each is answered with what it made."""
    with db.lease(f"change {subscription_id}", CHANGE_WAIT_SECONDS):
        yield


def _change(row: Row, what: str, call: Callable[[str], None]) -> None:
    """Ask Stripe for one change under a key that no earlier attempt with an outcome has used.

    An attempt without an outcome (no answer, a kill) keeps its key: asked again, Stripe does it once.
    `updated_at` moves whenever Stripe's state was seen to, by whatever hand.
    """
    key = f"{row['subscription_id']}-{what}-{row['changes']}-{row['updated_at'].timestamp()}"
    try:
        call(key)
    except Refused as error:
        _count_change(row)
        if error.missing:
            raise
        raise Conflict(
            "Stripe does not take this change in the subscription's present state. Its dashboard tells why."
        ) from error
    except DomainError as error:
        if not isinstance(error, NoAnswer | Unavailable):
            _count_change(row)
        raise
    _count_change(row)


def _count_change(row: Row) -> None:
    with db.transaction() as cur:
        customers.lock_customer(cur, row["customer_id"])  # in the order of everybody who changes both
        subscriptions.count_change(cur, row["subscription_id"])


def _after_change(subscription_id: str) -> tuple[dict[str, Any], Row | None]:
    """What Stripe has made of it: the described subscription and, unless revoked, the license."""
    customer_id = _subscription(subscription_id)["customer_id"]
    sync_customer(customer_id)
    with db.transaction() as cur:
        customer = customers.lock_customer(cur, customer_id)
        if customer is None:
            raise NotFound(f"There is no customer {customer_id}.")
        license_row = None if customer["revoked_at"] else issue_license(cur, customer)
        return describe(customer, _subscription(subscription_id), now()), license_row
