"""Personal data: handed out on demand, erased on demand."""

from typing import Any

from app.context import now
from app.db import Row
from app.entitlements import ENDED_STATUSES
from app.extensions import db, stripe
from app.queries import audit, customers, events, idempotency, licenses, overage, subscriptions, usage
from app.services.customers import find_stripe_customers, get_customer, this_minute
from app.services.stripe_sync import sync_customer


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
            "overageTerms": overage.select_exported(cur, "overage_terms", customer_id),
            "overagePeriods": overage.select_exported(cur, "overage_periods", customer_id),
            "overageDays": overage.select_days(cur, customer_id),
            "stripeEvents": events.select_events(cur, limit=None, customer_id=customer_id),
            "idempotencyKeys": idempotency.select_answers_about(cur, customer_id),
            "audit": audit.select_audit(cur, customer_id=customer_id),
        }


def erase_customer(customer_id: str) -> None:
    """Delete the customer at Stripe and every personal field here; the figures stay, open overage is waived.

    Its licenses are revoked, and a keyed hash of the address remembers that the trial is used up.
    Done again after a failure half-way, it completes. No checkout can begin meanwhile.
    """
    with db.lease(f"customer {customer_id}"), db.lease(f"overage {customer_id}"):
        customer = get_customer(customer_id)
        stripe_ids = _leave_stripe(customer) if customer["stripe_customer_id"] or stripe.configured else []
        at = now()
        with db.transaction("customer.erase") as cur:
            present = customers.lock_customer(cur, customer_id) or customer
            # The address may have been changed since it was read: neither has a trial to come.
            for email in {customer["email"], present["email"]} - {None}:
                customers.insert_erased_email(cur, email)
            subscriptions.end_subscriptions(cur, customer_id, at, only_trials=False)
            licenses.revoke_licenses(cur, customer_id, at, forget=True)
            cleared = dict.fromkeys(("email", "name", "company_name", "stripe_customer_id", "revoke_reason"))
            customers.update_customer(cur, present | cleared | {"erased_at": at})
            audit.erase_audit(cur, customer_id)
            events.forget_stripe_customers(cur, customer_id, stripe_ids)
            idempotency.delete_answers_about(cur, customer_id)


def _leave_stripe(customer: Row) -> list[str]:
    """Delete whatever Stripe has of this customer, also what was never linked: Stripe's ids.

    One that other products are sold to stays, without our metadata and subscriptions.
    """
    customer_id = customer["customer_id"]
    found = find_stripe_customers(customer)
    foreign = sync_customer(customer_id, also=found, dry_run=True).foreign
    others = {sub["id"]: sub["customer"] for sub in foreign if sub["status"] not in ENDED_STATUSES}
    for stripe_id in found:
        if stripe_id not in others.values():
            stripe.delete_customer(stripe_id)
            continue
        for sub in stripe.list_subscriptions(stripe_id):
            if sub["id"] not in others and sub["status"] not in ENDED_STATUSES:
                stripe.cancel(sub["id"], f"erase-{sub['id']}-{this_minute()}")
        key = f"erase-{stripe_id}-{customer_id}-{this_minute()}"
        stripe.update_customer(stripe_id, {"metadata": {"customer_id": ""}}, key)
    return found
