"""Overage: how a day of too many devices becomes a line of an invoice, exactly once.

1. Days are computed into `overage_days` whenever something asks, a new revision for new figures.
2. A period that is over is closed: its open days get the name of its bill. From here on they never change.
3. What has a bill and no invoice item is looked for at Stripe by that name, and made if it is not there.
Each step may be repeated; a process that dies leaves the next one to go on from where it was.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from app.context import now
from app.db import Cursor, Row, lock
from app.entitlements import entitle
from app.errors import Conflict, Invalid, NotFound, Refused
from app.extensions import db, settings, stripe
from app.overage import LATE_PREFIX, MONTH_DAYS, Bill, bills_of, cap_for, invoiced_periods, owed, summarize
from app.queries import overage, subscriptions
from app.services.customers import get_customer, get_customer_with_subscriptions
from app.services.licenses import lock_customer_or_404

log = logging.getLogger(__name__)
LOCK_SECONDS: Final = 10
DAYS_UNTIL_DUE: Final = 30
REFRESHED: Final = timedelta(days=400)
TAX_BEHAVIOR: Final = "exclusive"


def switch_on(customer_id: str, *, cap: int | None = None, price: int | None = None) -> int:
    """Let this customer go over its limit, up to the cap that its licenses have then: the cap.

    `price`: its own per extra device and month. Raises Conflict (also with OVERAGE=off), Invalid.
    """
    if settings.overage == "off":
        raise Conflict("Overage is off for this service. Set OVERAGE=shadow or OVERAGE=on first.")
    if price is not None and (price <= 0 or price % MONTH_DAYS):
        raise Invalid(f"The price must be divisible by {MONTH_DAYS}: a month has as many device-days.")
    with db.transaction("customer.overage") as cur:
        customer = lock_customer_or_404(cur, customer_id)
        own_price = customer["overage_price"] if price is None else price
        granted = entitle(customer, subscriptions.select_subscriptions(cur, [customer_id]), now())
        cap = cap_for(granted, cap, own_price)
        overage.update_terms(cur, customer_id, cap=cap, price=own_price, at=now())
        return cap


def switch_off(customer_id: str) -> None:
    """From now on no day counts; what is open is invoiced with its period. Raises Conflict."""
    with db.transaction("customer.overage") as cur:
        customer = lock_customer_or_404(cur, customer_id)
        if customer["overage_cap"] is None:
            raise Conflict("Overage is off for this customer already.")
        overage.update_terms(cur, customer_id, cap=None, price=customer["overage_price"], at=now())


def settle(customer_id: str) -> None:
    """Bring to Stripe what is owed for every period that is over; the three steps above.

    Does nothing for an erased customer (what was open is waived), nor with OVERAGE=off. No transaction may
    be open. Raises what the gateway does; the same call may then be made again.
    """
    if settings.overage == "off":
        return
    with db.statement() as cur:
        if not overage.select_billable_subscriptions(cur, customer_id):
            return
    with db.lease(f"overage {customer_id}", LOCK_SECONDS), stripe.slot():
        with db.statement() as cur:
            known = overage.select_billable_subscriptions(cur, customer_id)  # none once it is erased
        subscription_ids = [row["subscription_id"] for row in known]
        invoices = {found: stripe.list_invoices(subscription=found) for found in subscription_ids}
        bills = _close_periods(customer_id, invoices)
        for row in known:
            own, is_live = invoices[row["subscription_id"]], row["ended_at"] is None
            if not own:  # a first one may be yet to come
                continue
            owed_by_it = [bill for bill in bills if bill.subscription_id == row["subscription_id"]]
            for bill in owed_by_it:
                _send(customer_id, bill, own, is_live=is_live)
            if not is_live and (owed_by_it or row["is_billed"]):
                _invoice_rest(row["subscription_id"], own[0])


def _close_periods(customer_id: str, invoices: dict[str, list[dict[str, Any]]]) -> list[Bill]:
    """Compute the days and put those of periods that are over on bills: the bills Stripe may not have yet."""
    is_on = settings.overage == "on"
    with _changing_days(customer_id, invoiced_periods(invoices)) as cur:
        unclosed = [row for row in overage.select_paid_periods(cur, customer_id) if not row["closed_as"]]
        if unclosed:
            overage.compute_days(cur, customer_id, unclosed[0]["starts_at"])
        for period in (row for row in unclosed if row["is_over"]):
            if is_on:
                subscription_id = period["subscription_id"]
                bill = f"overage-{customer_id}-{subscription_id}-{period['starts_at']:%Y%m%dT%H%M%SZ}"
                overage.put_on_bill(cur, customer_id, bill, subscription_id, period)
            overage.close_period(cur, period, "billed" if is_on else "shadow", now())
        return bills_of(overage.select_days(cur, customer_id, unsent=True)) if is_on else []


def _send(customer_id: str, bill: Bill, invoices: list[dict[str, Any]], *, is_live: bool) -> None:
    """Find the bill's line at Stripe, or make it; a database restored since has forgotten it."""
    item_id = None
    try:
        if bill.days:
            items = stripe.list_invoice_items(invoices[0]["customer"])
            found = next((item for item in items if item["metadata"].get("overage") == bill.bill), None)
            item_id = str(found["id"]) if found else _make_item(bill, invoices, is_live)
            _, amount = owed(bill.days)
            if found and found["amount"] != amount:
                note = {"bill": bill.bill, "item": item_id, "here": amount, "there": found["amount"]}
                log.error("stripe bills another amount of overage", extra=note)
    except Refused as error:
        if not error.missing:
            raise
        log.warning("stripe no longer has who pays", extra={"customer_id": customer_id, "bill": bill.bill})
        return
    with db.transaction() as cur:
        overage.mark_billed(cur, customer_id, bill.bill, item_id, now())
    log.info("overage billed", extra={"customer_id": customer_id, "bill": bill.bill, "item": item_id})


def _make_item(bill: Bill, invoices: list[dict[str, Any]], is_live: bool) -> str:
    """On the renewal's draft, else pending for the next invoice, or for one of its own.

    Stripe repeats a refusal for a key, so another place has another key. It does not collect the drafts of a
    subscription that ended. https://docs.stripe.com/billing/subscriptions/cancel
    """
    params = bill.item_params(invoices[0]["customer"], invoices[0]["currency"])
    params["discountable"] = settings.overage_discountable
    if settings.stripe_tax:
        params["tax_behavior"] = TAX_BEHAVIOR
    is_late = bill.bill.startswith(LATE_PREFIX)
    draft = next((i["id"] for i in invoices if i["status"] == "draft" and is_live and not is_late), None)
    if draft:
        params["invoice"] = draft
    elif is_live:
        params["subscription"] = bill.subscription_id
    return stripe.create_invoice_item(params, f"{bill.bill}-{draft or 'pending'}")


def _invoice_rest(subscription_id: str, newest: dict[str, Any]) -> None:
    """No renewal will take what is pending of a subscription that ended: put it on an invoice of its own.

    That stays a draft until everything is on it, so that a repeat finds it and goes on.
    """
    pending = [
        item["id"]
        for item in stripe.list_invoice_items(newest["customer"])
        if item["invoice"] is None
        and item["metadata"].get("overage")
        and item["metadata"].get("subscription_id") == subscription_id
    ]
    drafts = stripe.list_invoices(customer=newest["customer"], status="draft")
    invoice = next((i["id"] for i in drafts if i["metadata"].get("overage") == subscription_id), None)
    if invoice is None and not pending:
        return
    if invoice is None:
        params = {name: newest[name] for name in ("customer", "currency", "collection_method")} | {
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "metadata": {"overage": subscription_id},
            "automatic_tax": {"enabled": settings.stripe_tax},
        }
        if newest["collection_method"] == "send_invoice":
            params["days_until_due"] = DAYS_UNTIL_DUE
        ended, key = stripe.retrieve_subscription(subscription_id) or {}, f"overage-rest-{pending[0]}"
        # Checkout gives a card to the subscription, and the customer no default.
        names = ("default_payment_method", "default_source")
        paid_by = {name: ended[name] for name in names if ended.get(name)}
        try:
            invoice = stripe.create_invoice(params | paid_by, key)
        except Refused:  # the card may be gone since
            if not paid_by:
                raise
            invoice = stripe.create_invoice(params, f"{key}-without-card")
    for item_id in pending:
        stripe.add_invoice_item(invoice, item_id, f"overage-rest-{invoice}-{item_id}")
    stripe.finalize_invoice(invoice, f"overage-rest-{invoice}")


def refresh(customer_id: str) -> None:
    """Compute the days of the last year and a month, so that evidence stays when reports are pruned."""
    with _changing_days(customer_id) as cur:
        overage.compute_days(cur, customer_id, now() - REFRESHED)


def bill_late(customer_id: str) -> Row | None:
    """Bill what was late when last computed, as a pending item: device_days, amount.

    None when nothing is late. Raises Conflict where nothing can be billed.
    """
    if settings.overage != "on":
        raise Conflict("OVERAGE is not on: nothing is billed.")
    with _changing_days(customer_id) as cur:
        late = overage.select_waiting_days(cur, customer_id, ["late"])
        subscriptions_at_stripe = overage.select_billable_subscriptions(cur, customer_id)
        if not late:
            return None
        if not subscriptions_at_stripe:
            raise Conflict("This customer has no subscription that could be billed.")
        named = hashlib.sha256(repr([(row["day"], row["revision"]) for row in late]).encode()).hexdigest()
        bill = f"{LATE_PREFIX}{customer_id}-{named[:16]}"
        overage.put_on_bill(cur, customer_id, bill, subscriptions_at_stripe[0]["subscription_id"], None)
    settle(customer_id)
    device_days, amount = owed(late)
    return {"customer_id": customer_id, "device_days": device_days, "amount": amount}


def decide(customer_id: str, day: date, *, hold: bool, reason: str | None = None) -> Row:
    """Hold a day back from its bill, or release one that is held: its new revision.

    Released after the bill of its period it is late. Raises NotFound, Conflict.
    """
    refresh(customer_id)
    with _changing_days(customer_id) as cur:
        revisions = overage.select_days(cur, customer_id, day=day)
        if not revisions:
            raise NotFound(f"There is no overage of {day} on record.")
        state = "billed" if revisions[-1]["bill"] else revisions[-1]["state"]
        if hold == (state == "held") or state == "billed":
            raise Conflict(f"{day} is {state}.")
        return overage.insert_decision(cur, customer_id, day, hold=hold, reason=reason)


def billing_of(customer_id: str, which: str) -> Row:
    """The overage of the `current` or `previous` paid period, as docs/overage.md says. Raises NotFound."""
    customer, rows = get_customer_with_subscriptions(customer_id)
    granted = entitle(customer, rows, now())
    best = granted.subscription or {"subscription_id": None}
    with _changing_days(customer_id) as cur:
        paid = overage.select_paid_periods(cur, customer_id)
        periods = [row for row in paid if row["is_over"] == (which == "previous")]
        if not periods:
            raise NotFound(f"There is no {which} paid period.")
        own = [row for row in periods if row["subscription_id"] == best["subscription_id"]]
        period = (own or periods)[-1]
        overage.compute_days(cur, customer_id, period["starts_at"])
        revisions = overage.select_days(cur, customer_id, period=period)
    days, device_days, amount = summarize(revisions)
    price = customer["overage_price"] or granted.plan.overage_cents
    return {
        "period": {"start": period["starts_at"], "end": period["ends_at"]},
        "included": days[-1]["included"] if days else granted.device_limit,
        "price_per_device_month": days[-1]["price"] * MONTH_DAYS if days else price,
        "currency": best.get("currency") or "usd",
        "days": days,
        "device_days": device_days,
        "amount": amount,
        "state": _state(period, revisions),
    }


def _state(period: Row, revisions: list[Row]) -> str:
    if period["closed_as"] == "billed":
        return "open" if any(row["bill"] and row["state"] != "billed" for row in revisions) else "billed"
    return "shadow" if period["closed_as"] or settings.overage == "shadow" else "open"


def evidence_of(customer_id: str, day: date) -> Row:
    """The newest revision of a day with the reports that made it, and all revisions. Raises NotFound."""
    get_customer(customer_id)
    with db.statement() as cur:
        revisions = overage.select_days(cur, customer_id, day=day)
    if not revisions:
        raise NotFound(f"There is no overage of {day} on record.")
    reports = [
        report | {"reportedAt": datetime.fromisoformat(report["reportedAt"]).astimezone(UTC)}
        for report in revisions[-1]["reports"]
    ]
    return {**revisions[-1], "reports": reports, "revisions": revisions}


@contextmanager
def _changing_days(customer_id: str, invoiced: Sequence[Row] = ()) -> Iterator[Cursor]:
    """A transaction that alone computes, closes and decides for this customer, whose periods are known."""
    with db.transaction() as cur:
        lock(cur, f"overage days {customer_id}", LOCK_SECONDS)
        overage.insert_periods(cur, customer_id, invoiced)
        yield cur
