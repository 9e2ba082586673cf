"""Changes of a subscription that people ask for: trial, upgrade, cancel, resume."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from app.context import now
from app.db import Cursor, Row
from app.entitlements import ENDED_STATUSES, describe, ends_with_period, entitle, is_live, is_local, status_at
from app.errors import Conflict, DomainError, Forbidden, NoAnswer, NotFound, PaymentRefused, Unavailable
from app.extensions import db, settings, stripe
from app.plans import INTERVALS
from app.queries import customers, subscriptions
from app.services.audit import audited
from app.services.checkout import price_for_sale
from app.services.customers import (
    get_customer,
    get_customer_with_subscriptions,
    start_trial,
    trial_used_before_erasure,
)
from app.services.licenses import current_license, issue_license, lock_customer_or_404
from app.services.stripe_sync import sync_customer

T = TypeVar("T")
NEEDS_AUTHENTICATION: Final = "subscription_payment_intent_requires_action"


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
        customer, rows = get_customer_with_subscriptions(any_id)
        current = entitle(customer, rows, now()).subscription
        if current is None:
            raise NotFound(f"Customer {any_id} has no subscription.")
        return describe(customer, current, now())
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, any_id)
    if only_of is not None and (row is None or row["customer_id"] != only_of):
        raise Forbidden("This license is for another customer.")
    if row is None:
        raise NotFound(f"There is no subscription {any_id}.")
    return describe(get_customer(row["customer_id"]), row, now())


def subscription_to_change(customer_id: str) -> dict[str, Any] | None:
    """The live subscription at Stripe that counts; None: the customer has to check out."""
    customer, rows = get_customer_with_subscriptions(customer_id)
    current = entitle(customer, rows, now()).subscription
    return describe(customer, current, now()) if current and is_live(current) else None


def preview_change(subscription_id: str, plan: str, interval: str | None = None) -> dict[str, Any]:
    """What Stripe would charge now for `upgrade`, in the currency's smallest unit; raises what that would."""
    present = _fetch(_find(subscription_id))
    interval = interval or _interval(present)
    if (present["plan"], present["billing_interval"]) == (plan, interval):
        raise Conflict(f"The subscription is on {plan} by the {interval} already.")
    price = _price_to_move_to(present, plan, interval)
    invoice = stripe.preview_change(subscription_id, present["stripe_price_id"], price["id"])
    return {
        "subscription_id": subscription_id,
        "plan": plan,
        "interval": interval,
        "previous_plan": present["plan"],
        "previous_interval": present["billing_interval"],
        "currency": invoice["currency"],
        "amount_due": invoice["amount_due"],
        "cancel_at_period_end": ends_with_period(present),
        "cancel_at": present["cancel_at"],
    }


def upgrade(
    subscription_id: str, plan: str, interval: str | None = None
) -> tuple[dict[str, Any], Row | None]:
    """Move a live subscription to another plan or interval, up or down, prorated and paid at once.

    The described subscription and, unless revoked, the license. Raises PaymentRefused with nothing changed,
    with the page where the customer confirms a payment if the bank asks for it; Conflict for a trial, a
    subscription that is not live, or no change.
    """
    before = _find(subscription_id)
    customer_id = before["customer_id"]
    asked = audited("subscription.upgrade", customer_id, subscription_id, plan=plan, interval=interval)
    with asked, db.lease(f"customer {customer_id}"):
        present = _fetch(before)
        interval = interval or _interval(present)
        if (present["plan"], present["billing_interval"]) != (plan, interval):
            _move(present, price_id=_price_to_move_to(present, plan, interval)["id"])
        elif (before["plan"], before["billing_interval"]) == (plan, interval):
            raise Conflict(f"The subscription is on {plan} by the {interval} already.")
        synced = sync_customer(customer_id)
        license_row = synced.license
        if license_row is None and not synced.customer["revoked_at"]:
            license_row = current_license(customer_id)
        return describe(synced.customer, _pick(synced.subscriptions, subscription_id), now()), license_row


def _move(present: Row, *, price_id: str) -> None:
    ids = present["subscription_id"], present["stripe_price_id"], price_id
    try:
        _change(present, f"to-{price_id}", lambda key: stripe.change_price(*ids, key))
    except PaymentRefused as error:
        if error.stripe_code != NEEDS_AUTHENTICATION:
            raise
        # Stripe has no page for a change that it refused. Made pending, it takes effect once confirmed there.
        made = _change(
            present, f"pending-{price_id}", lambda key: stripe.change_price(*ids, key, pending=True)
        )
        if made.get("pending_update"):
            url = made["latest_invoice"]["hosted_invoice_url"]
            message = f"The bank wants the customer to confirm this payment, at {url}"
            raise PaymentRefused(message, url=url) from error


def _price_to_move_to(present: Row, plan: str, interval: str) -> Row:
    """The price, if this subscription can be moved. Raises Conflict with what to do instead."""
    if is_local(present):
        raise Conflict("This is a trial. Use checkout to subscribe.")
    if not is_live(present):
        invoice = (present["details"] or {}).get("unpaidInvoice")
        instead = f"Its open invoice has to be paid first{', at ' + invoice['url'] if invoice else '.'}"
        if present["status"] in ENDED_STATUSES:
            instead = "It has ended; use checkout."
        elif present["status"] == "paused":
            instead = "It has to be resumed at Stripe first."
        raise Conflict(f"This subscription is {present['status']}. {instead}")
    return price_for_sale(plan, interval)


def cancel(subscription_id: str, *, at_period_end: bool) -> dict[str, Any]:
    """End a subscription now or at the end of the paid period; a local trial ends at once."""
    before = _find(subscription_id)
    customer_id = before["customer_id"]
    asked = audited("subscription.cancel", customer_id, subscription_id, at_period_end=at_period_end)
    if is_local(before):
        with asked:
            return _end_trial(before)
    with asked, db.lease(f"customer {customer_id}"):
        present = _fetch(before)
        if present["status"] in ENDED_STATUSES:
            if before["status"] in ENDED_STATUSES:
                raise Conflict("This subscription has ended already.")
        elif not at_period_end:
            _change(present, "cancel-now", lambda key: stripe.cancel(subscription_id, key))
        elif not ends_with_period(present):
            _change(present, "cancel-later", lambda key: stripe.cancel_at_period_end(subscription_id, key))
        synced = sync_customer(customer_id)
        return describe(synced.customer, _pick(synced.subscriptions, subscription_id), now())


def _end_trial(row: Row) -> dict[str, Any]:
    with db.transaction() as cur:
        customer = lock_customer_or_404(cur, row["customer_id"])
        present = subscriptions.select_subscription(cur, row["subscription_id"])
        if present is None or status_at(present, now()) != "trialing":
            raise Conflict("The trial has ended already.")
        ended = subscriptions.end_trials(cur, row["customer_id"], now())[0]
        if not customer["revoked_at"]:
            issue_license(cur, customer)
        return describe(customer, ended, now())


def resume(subscription_id: str) -> dict[str, Any]:
    """Withdraw a pending cancellation, of ours or of the billing portal's."""
    before = _find(subscription_id)
    customer_id = before["customer_id"]
    with audited("subscription.resume", customer_id, subscription_id), db.lease(f"customer {customer_id}"):
        if is_local(before):
            raise Conflict("This is a trial. Use checkout to subscribe.")
        present = _fetch(before)
        if present["status"] in ENDED_STATUSES:
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
        synced = sync_customer(customer_id)
        return describe(synced.customer, _pick(synced.subscriptions, subscription_id), now())


def deactivatable(customer_id: str) -> list[dict[str, Any]]:
    """The described subscriptions that `deactivate` would end, the one that counts first."""
    customer = get_customer(customer_id)
    if customer["stripe_customer_id"] and stripe.configured:
        sync_customer(customer_id)
    customer, rows = get_customer_with_subscriptions(customer_id)
    current = entitle(customer, rows, now()).subscription
    running = [describe(customer, row, now()) for row in rows if status_at(row, now()) not in ENDED_STATUSES]
    return sorted(running, key=lambda row: current is None or row["id"] != current["id"])


def deactivate(customer_id: str, *, at_period_end: bool) -> tuple[dict[str, Any], str]:
    """Cancel all that the customer has running: the described one that counted, and its plan before."""
    running = deactivatable(customer_id)
    if not running:
        raise Conflict("Nothing is live: the customer is in trial mode already.")
    canceled = [cancel(row["subscription_id"], at_period_end=at_period_end) for row in running]
    return canceled[0], running[0]["plan"]


def _find(subscription_id: str) -> Row:
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, subscription_id)
    if row is None:
        raise NotFound(f"There is no subscription {subscription_id}.")
    return row


def _fetch(row: Row) -> Row:
    """A subscription as Stripe has it now. Raises NotFound when it has become another product's."""
    if is_local(row):
        return row
    synced = sync_customer(row["customer_id"])
    if row["subscription_id"] in synced.missing:
        raise Conflict(f"Stripe does not find {row['subscription_id']}. Look: flask customer explain")
    return _pick(synced.subscriptions, row["subscription_id"])


def _pick(rows: list[Row], subscription_id: str) -> Row:
    for row in rows:
        if row["subscription_id"] == subscription_id:
            return row
    raise NotFound(f"There is no subscription {subscription_id} of this customer any more.")


def _interval(row: Row) -> str:
    return row["billing_interval"] if row["billing_interval"] in INTERVALS else "month"


def _change(row: Row, what: str, call: Callable[[str], T]) -> T:
    """Ask Stripe for one change under a key that no earlier attempt with an outcome has used.

    An attempt without an outcome (no answer, a kill) keeps its key: asked again, Stripe does it once.
    `updated_at` moves whenever Stripe's state was seen to, whoever changed it.
    """
    key = f"{row['subscription_id']}-{what}-{row['changes']}-{row['updated_at'].timestamp()}"
    try:
        answer = call(key)
    except DomainError as error:
        if not isinstance(error, NoAnswer | Unavailable):
            _count_change(row)
        raise
    _count_change(row)
    return answer


def _count_change(row: Row) -> None:
    with db.transaction() as cur:
        customers.lock_customer(cur, row["customer_id"])  # in the order of everybody who changes both
        subscriptions.count_change(cur, row["subscription_id"])
