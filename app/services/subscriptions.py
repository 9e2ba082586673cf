"""Changes of a subscription that people ask for: trial, upgrade, cancel, resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from app.context import now
from app.db import Cursor, Row
from app.entitlements import (
    ENDED_STATUSES,
    describe,
    describe_customer,
    ends_with_period,
    is_live,
    is_local,
    status_at,
)
from app.errors import Conflict, DomainError, Forbidden, NoAnswer, NotFound, PaymentRefused, Unavailable
from app.extensions import db, settings, stripe
from app.plans import INTERVALS
from app.queries import customers, subscriptions
from app.services.audit import audited
from app.services.checkout import price_for_sale
from app.services.customers import describe_one, get_customer, get_customer_with_subscriptions, start_trial
from app.services.licenses import current_license, issue_license, lock_customer_or_404
from app.services.stripe_sync import Synced, sync_customer

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
    if customer["trial_used_at"] or customers.select_email_was_erased(cur, customer["email"]):
        raise Conflict("This customer's trial is used up. Use checkout.")
    at = now().replace(microsecond=0)
    subscriptions.end_subscriptions(cur, customer_id, at, only_trials=True)
    started = start_trial(cur, customer, plan, at, days=settings.trial_days)
    customer = customers.update_customer(cur, customer | {"trial_used_at": at})
    return describe(customer, started, at), issue_license(cur, customer, at=at)


def get_subscription(any_id: str, only_of: str | None = None) -> dict[str, Any]:
    """A described subscription by its own id, or the one that counts by the customer's.

    With `only_of`, anything that is not that customer's is Forbidden, whether it exists or not.
    """
    row: Row | None = None
    owner: str | None = any_id
    if not any_id.startswith("cust_"):
        with db.statement() as cur:
            row = subscriptions.select_subscription(cur, any_id)
        owner = row["customer_id"] if row else None
    if only_of is not None and only_of != owner:
        raise Forbidden("This license is for another customer.")
    if owner is None:
        raise NotFound(f"There is no subscription {any_id}.")
    if row:
        return describe(get_customer(owner), row, now())
    current: dict[str, Any] | None = describe_one(owner)["subscription"]
    if current is None:
        raise NotFound(f"Customer {any_id} has no subscription.")
    return current


def subscription_to_change(customer_id: str) -> dict[str, Any] | None:
    """The live subscription at Stripe that counts; None: the customer has to check out."""
    current: dict[str, Any] | None = describe_one(customer_id)["subscription"]
    return current if current and is_live(current) else None


def preview_change(subscription_id: str, plan: str, interval: str | None = None) -> dict[str, Any]:
    """What Stripe would charge now for `upgrade`, in the currency's smallest unit; raises what that would."""
    present = _find(subscription_id)
    if not is_local(present):
        _, present = _sync(present)
    interval, price = _wanted_price(present, plan, interval)
    if price is None:
        raise Conflict(f"The subscription is on {plan} by the {interval} already.")
    invoice = stripe.preview_change(subscription_id, present["stripe_price_id"], price["id"])
    return {
        "interval": interval,
        "previous_plan": present["plan"],
        "previous_interval": present["billing_interval"],
        "currency": invoice["currency"],
        "amount_due": invoice["amount_due"],
    }


def upgrade(
    subscription_id: str, plan: str, interval: str | None = None
) -> tuple[dict[str, Any], Row | None]:
    """Move a live subscription to another plan or interval, up or down, prorated and paid at once.

    The described subscription and, unless revoked, the license. Raises PaymentRefused with nothing changed,
    with the page where the customer confirms a payment if the bank asks for it; Conflict for a trial, a
    subscription that is not live, or no change.
    """
    with _asked("upgrade", subscription_id, plan=plan, interval=interval) as (before, present):
        interval, price = _wanted_price(present, plan, interval)
        if price:
            _move(present, price["id"])
        elif (before["plan"], before["billing_interval"]) == (plan, interval):
            raise Conflict(f"The subscription is on {plan} by the {interval} already.")
        synced, row = _sync(present)
        changed = describe(synced.customer, row, now())
        if synced.customer["revoked_at"]:
            return changed, None
        return changed, synced.license or current_license(present["customer_id"])


def _wanted_price(present: Row, plan: str, interval: str | None) -> tuple[str, Row | None]:
    """The interval and the price to move to, None for no change. Raises Conflict with what to do instead."""
    status, invoice = present["status"], (present["details"] or {}).get("unpaidInvoice")
    if is_local(present):
        raise Conflict("This is a trial. Use checkout to subscribe.")
    if not is_live(present):
        instead = f"Its open invoice has to be paid first{', at ' + invoice['url'] if invoice else '.'}"
        if status in ENDED_STATUSES:
            instead = "It has ended; use checkout."
        elif status == "paused":
            instead = "It has to be resumed at Stripe first."
        raise Conflict(f"This subscription is {status}. {instead}")
    known = present["billing_interval"] if present["billing_interval"] in INTERVALS else "month"
    interval = interval or known
    if (present["plan"], present["billing_interval"]) == (plan, interval):
        return interval, None
    return interval, price_for_sale(plan, interval)


def _move(present: Row, price_id: str) -> None:
    prices = present["stripe_price_id"], price_id
    try:
        _change(present, f"to-{price_id}", stripe.change_price, *prices)
    except PaymentRefused as error:
        if error.stripe_code != NEEDS_AUTHENTICATION:
            raise
        # Stripe has no page for a change that it refused. Made pending, it takes effect once confirmed there.
        made = _change(present, f"pending-{price_id}", stripe.change_price, *prices, pending=True)
        if made.get("pending_update"):
            url = made["latest_invoice"]["hosted_invoice_url"]
            message = f"The bank wants the customer to confirm this payment, at {url}"
            raise PaymentRefused(message, url=url) from error


def cancel(subscription_id: str, *, at_period_end: bool) -> dict[str, Any]:
    """End a subscription now or at the end of the paid period; a local trial ends at once."""
    with _asked("cancel", subscription_id, at_period_end=at_period_end) as (before, present):
        if is_local(present):
            return _end_trial(present)
        if present["status"] in ENDED_STATUSES:
            if before["status"] in ENDED_STATUSES:
                raise Conflict("This subscription has ended already.")
        elif not at_period_end:
            _change(present, "cancel-now", stripe.cancel)
        elif not ends_with_period(present):
            _change(present, "cancel-later", stripe.cancel_at_period_end)
        synced, row = _sync(present)
        return describe(synced.customer, row, now())


def _end_trial(row: Row) -> dict[str, Any]:
    with db.transaction() as cur:
        customer = lock_customer_or_404(cur, row["customer_id"])
        present = subscriptions.select_subscription(cur, row["subscription_id"])
        if present is None or status_at(present, now()) != "trialing":
            raise Conflict("The trial has ended already.")
        (ended,) = subscriptions.end_subscriptions(cur, row["customer_id"], now(), only_trials=True)
        if not customer["revoked_at"]:
            issue_license(cur, customer)
        return describe(customer, ended, now())


def resume(subscription_id: str) -> dict[str, Any]:
    """Withdraw a pending cancellation, of ours or of the billing portal's."""
    with _asked("resume", subscription_id) as (before, present):
        if is_local(present):
            raise Conflict("This is a trial. Use checkout to subscribe.")
        if present["status"] in ENDED_STATUSES:
            raise Conflict("This subscription has ended and cannot be resumed. Use checkout.")
        if present["cancel_at_period_end"] or present["cancel_at"]:
            has_cancel_at = not present["cancel_at_period_end"]
            _change(present, "resume", stripe.withdraw_cancellation, has_cancel_at=has_cancel_at)
        elif not (before["cancel_at_period_end"] or before["cancel_at"]):
            raise Conflict("No cancellation is pending.")
        synced, row = _sync(present)
        return describe(synced.customer, row, now())


def deactivatable(customer_id: str) -> list[dict[str, Any]]:
    """The described subscriptions that `deactivate` would end, the one that counts first."""
    if get_customer(customer_id)["stripe_customer_id"]:
        sync_customer(customer_id)
    customer, rows = get_customer_with_subscriptions(customer_id)
    current = describe_customer(customer, rows, now())["subscription"]
    running = [describe(customer, row, now()) for row in rows if status_at(row, now()) not in ENDED_STATUSES]
    return sorted(running, key=lambda row: row["id"] != current["id"])


def deactivate(customer_id: str, *, at_period_end: bool) -> tuple[dict[str, Any], str]:
    """Cancel all that the customer has running: the described one that counted, and its plan before."""
    running = deactivatable(customer_id)
    if not running:
        raise Conflict("Nothing is live: the customer is in trial mode already.")
    canceled = [cancel(row["subscription_id"], at_period_end=at_period_end) for row in running]
    return canceled[0], running[0]["plan"]


@contextmanager
def _asked(what: str, subscription_id: str, **note: Any) -> Iterator[tuple[Row, Row]]:
    """Audit that a change is asked for, and let nobody else change the customer meanwhile.

    The subscription as it is known here, and as Stripe has it now: a change that was asked for before, with
    its answer lost, shows in the difference.
    """
    before = _find(subscription_id)
    customer_id = before["customer_id"]
    asked = audited(f"subscription.{what}", customer_id, subscription_id, **note)
    with asked, db.lease(f"customer {customer_id}"):
        yield before, before if is_local(before) else _sync(before)[1]


def _find(subscription_id: str) -> Row:
    with db.statement() as cur:
        row = subscriptions.select_subscription(cur, subscription_id)
    if row is None:
        raise NotFound(f"There is no subscription {subscription_id}.")
    return row


def _sync(row: Row) -> tuple[Synced, Row]:
    """Fetch the customer from Stripe: all of it, and this subscription.

    Raises Conflict when Stripe does not find it, NotFound when it has become another customer's.
    """
    synced, subscription_id = sync_customer(row["customer_id"]), row["subscription_id"]
    if subscription_id in synced.missing:
        raise Conflict(f"Stripe does not find {subscription_id}. Look: flask customer explain")
    for found in synced.subscriptions:
        if found["subscription_id"] == subscription_id:
            return synced, found
    raise NotFound(f"There is no subscription {subscription_id} of this customer any more.")


def _change(row: Row, what: str, call: Callable[..., T], *args: str, **options: bool) -> T:
    """Ask Stripe for one change under a key that no earlier attempt with an outcome has used.

    An attempt without an outcome (no answer, a kill) keeps its key: asked again, Stripe does it once.
    `updated_at` moves whenever Stripe's state was seen to, whoever changed it.
    """
    key = f"{row['subscription_id']}-{what}-{row['changes']}-{row['updated_at'].timestamp()}"
    try:
        answer = call(row["subscription_id"], *args, key=key, **options)
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
