"""What Stripe shows a customer: checkout pages, the billing portal, invoices."""

from collections.abc import Iterable
from typing import Any, Final

from app.context import now
from app.db import Row
from app.entitlements import KNOWN_STATUSES, describe, is_live
from app.errors import Conflict, Unavailable, invalid_field
from app.extensions import db, settings, stripe
from app.plans import PLANS
from app.queries import customers
from app.services.audit import audited
from app.services.customers import digest, find_stripe_customers, get_customer, this_minute
from app.services.licenses import lock_customer_or_404
from app.services.stripe_sync import is_ours, price_plans, sync_customer
from app.stripe_objects import Object, as_time, named_by

TAX: Final = {
    "automatic_tax": {"enabled": True},
    "tax_id_collection": {"enabled": True},
    "billing_address_collection": "required",
    "customer_update": {"address": "auto", "name": "auto"},
}


def start_checkout(
    customer_id: str,
    plan: str,
    *,
    interval: str = "month",
    success_url: str | None = None,
    cancel_url: str | None = None,
    promo_code: str | None = None,
) -> dict[str, Any]:
    """A page where the customer subscribes: session_id, checkout_url, plan, expires_at.

    One page of a customer is open at a time, so that nobody pays twice in two tabs: asked for the same again
    it is the same page, asked for another it is closed. Raises Conflict with what to do instead while a
    subscription is not over, here or, by a webhook still on its way, at Stripe only.
    """
    get_customer(customer_id)
    asked = audited("subscription.checkout", customer_id, customer_id, plan=plan, interval=interval)
    with asked, db.lease(f"customer {customer_id}"):
        price = price_for_sale(plan, interval)
        stripe_id = ensure_stripe_customer(get_customer(customer_id))
        own_pages = f"{settings.base_url}/checkout"
        params: dict[str, Any] = {
            "mode": "subscription",
            "customer": stripe_id,
            "client_reference_id": customer_id,
            "line_items": [{"price": price["id"], "quantity": 1}],
            "success_url": success_url or f"{own_pages}/success?session_id={{CHECKOUT_SESSION_ID}}",
            "cancel_url": cancel_url or f"{own_pages}/cancel",
            "subscription_data": {"metadata": {"customer_id": customer_id}},
            **(TAX if settings.stripe_tax else {}),
        }
        if promo_code is None:
            params["allow_promotion_codes"] = True
        else:
            promotion = stripe.find_promotion_code(promo_code, stripe_id)
            if promotion is None:
                raise invalid_field("promoCode", "There is no such code, or it has expired.")
            params["discounts"] = [{"promotion_code": promotion}]
        wanted = digest(params)
        pages = stripe.list_checkouts(stripe_id)
        is_open = [page for page in pages if page["status"] == "open"]
        same = [page for page in is_open if (page.get("metadata") or {}).get("wanted") == wanted][:1]
        others = [page for page in is_open if page not in same]
        being_paid = [page for page in others if not stripe.expire_checkout(page["id"])]
        # Asked only now that no other page can be paid any more: what was paid on one shows here.
        instead = instead_of_checkout(sync_customer(customer_id).subscriptions)
        if instead:
            for page in same:
                stripe.expire_checkout(page["id"])
            raise Conflict(instead)
        if being_paid:
            raise Conflict("A payment is under way in an earlier checkout page. Look again in a minute.")
        params["metadata"] = {"customer_id": customer_id, "wanted": wanted}
        key = f"checkout-{wanted}-after-{pages[0]['id'] if pages else 'first'}-{this_minute()}"
        session = same[0] if same else stripe.create_checkout(params, key)
    return {
        "session_id": session["id"],
        "checkout_url": session["url"],
        "plan": plan,
        "expires_at": as_time(session["expires_at"]),
    }


def price_for_sale(plan: str, interval: str) -> Row:
    """Stripe's price of a plan. Raises Invalid, Conflict (archived) or Unavailable without one."""
    price = stripe.selling_price(plan, interval)
    if price is None and PLANS[plan].monthly_cents is None:
        raise invalid_field("plan", f"{plan.capitalize()} is not sold online. Contact sales.")
    if price is None:
        raise Unavailable(f"Stripe has no active price for {plan} by the {interval}. Run: flask stripe setup")
    return dict(price)


def instead_of_checkout(rows: Iterable[Row]) -> str | None:
    """What to do while a subscription is not over; None: check out."""
    for row in rows:
        status, invoice = row["status"], (row["details"] or {}).get("unpaidInvoice")
        pay = f" Its open invoice can be paid at {invoice['url']}" if invoice else ""
        if is_live(row):
            return f"This customer has a live subscription. Use upgrade.{pay}"
        if status == "unpaid":
            return f"This customer's subscription is unpaid. Pay its open invoice, or cancel it first.{pay}"
        if status == "paused":
            return "This customer's subscription is paused. Resume it at Stripe, or cancel it first."
        if status == "incomplete" and invoice:
            return f"This customer's first payment is still open. Pay it, or cancel the subscription.{pay}"
        if status not in KNOWN_STATUSES:
            return f"This customer's subscription is {status}, which may still cost. Cancel it first."
    return None


def ensure_stripe_customer(customer: Row) -> str:
    """Stripe's id of this customer: the linked one, one that is found there, or a new one."""
    customer_id, known = customer["customer_id"], customer["stripe_customer_id"]
    if known and not (stripe.retrieve_customer(known) or {"deleted": True}).get("deleted"):
        return str(known)
    if known:
        missing = sync_customer(customer_id).missing  # what the deleted one had ends, before it is forgotten
        if missing:
            raise Conflict(f"Stripe does not find {', '.join(missing)}. Look: flask customer explain")
    there = stripe.find_customers(customer_id, customer["email"])
    named = (found for found in find_stripe_customers(customer, there) if found != known)
    found = next(named, None) or _left_without_customer(customer, there)
    if found:
        adopt_stripe_customer(customer_id, found)
        return found
    name = customer["company_name"] or customer["name"]
    state = f"{known or 'none'}-{customer['updated_at'].timestamp()}-{this_minute()}"
    key = f"customer-{customer_id}-after-{state}"
    created = stripe.create_customer(customer_id, customer["email"], name, key)
    _link(customer_id, created)
    return created


def _link(customer_id: str, stripe_id: str) -> None:
    with db.transaction() as cur:
        customer = lock_customer_or_404(cur, customer_id)
        customers.update_customer(cur, customer | {"stripe_customer_id": stripe_id})


def _left_without_customer(customer: Row, there: Iterable[Object]) -> str | None:
    """Stripe's customer of the same address that lost ours: it names one that a restored database does not
    know, or none and pays for one of our plans, as from a payment link.
    """
    for found in there:
        if (found["email"] or "").lower() != customer["email"].lower():
            continue
        named = named_by(found)
        paid = [] if named else list(stripe.list_subscriptions(found["id"]))
        with db.statement() as cur:
            if customers.select_customer_by_stripe_id(cur, found["id"]):
                continue
            is_lost = named is not None and customers.select_customer(cur, named) is None
            plan_of = price_plans(cur)
            if is_lost or any(is_ours(subscription, plan_of) for subscription in paid):
                return str(found["id"])
    return None


def adopt_stripe_customer(customer_id: str, stripe_id: str) -> None:
    """Link a customer that Stripe has already, write our id into its metadata, and sync what it pays."""
    key = f"adopt-{stripe_id}-{customer_id}-{this_minute()}"
    stripe.update_customer(stripe_id, {"metadata": {"customer_id": customer_id}}, key)
    _link(customer_id, stripe_id)
    sync_customer(customer_id)


def complete_checkout(session_id: str) -> dict[str, Any] | None:
    """Sync the customer of a finished session of ours: its described subscription, None if not ours."""
    session = stripe.retrieve_checkout(session_id)
    if session is None or session["status"] != "complete":
        return None
    with db.statement() as cur:
        customer = customers.select_customer_by_stripe_id(cur, session["customer"])
    if customer is None or customer["customer_id"] != session.get("client_reference_id"):
        return None
    synced = sync_customer(customer["customer_id"])
    bought = (row for row in synced.subscriptions if row["subscription_id"] == session["subscription"])
    return next((describe(customer, row, now()) for row in bought), None)


def open_portal(customer_id: str, return_url: str | None = None) -> str:
    """The address of Stripe's billing portal for this customer."""
    get_customer(customer_id)
    with audited("customer.portal", customer_id, customer_id), db.lease(f"customer {customer_id}"):
        stripe_id = ensure_stripe_customer(get_customer(customer_id))
        back = return_url or f"{settings.base_url}/checkout/back"
        # A portal address lives for minutes: the same minute may share one, a later one may not.
        return stripe.create_portal(stripe_id, back, f"portal-{stripe_id}-{digest(back)}-{this_minute()}")


def list_invoices(customer_id: str, limit: int = 50) -> list[dict[str, Any]]:
    """Stripe's invoices of this customer, newest first; nothing of them is stored."""
    customer = get_customer(customer_id)
    stripe_id = customer["stripe_customer_id"] or next(iter(find_stripe_customers(customer)), None)
    return [
        {
            "number": invoice.get("number"),
            "status": invoice["status"],
            "currency": invoice["currency"],
            "total": invoice["total"],
            "amount_due": invoice["amount_due"],
            "created_at": as_time(invoice["created"]),
            "due_at": as_time(invoice.get("due_date")),
            "paid_at": as_time((invoice.get("status_transitions") or {}).get("paid_at")),
            "next_payment_attempt_at": as_time(invoice.get("next_payment_attempt")),
            "hosted_invoice_url": invoice.get("hosted_invoice_url"),
            "pdf_url": invoice.get("invoice_pdf"),
        }
        for invoice in (stripe.list_invoices(limit, customer=stripe_id) if stripe_id else ())
    ]
