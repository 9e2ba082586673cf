"""Why a customer has the entitlements that it has."""

from dataclasses import asdict
from typing import Any

from app.context import now
from app.db import Row
from app.entitlements import entitle
from app.errors import DomainError
from app.extensions import db
from app.queries import audit, events, licenses, subscriptions
from app.services.customers import get_customer
from app.services.stripe_sync import sync_customer

SHOWN_EVENTS = 5
SHOWN_REFUSALS = 10


def explain(customer_id: str) -> dict[str, Any]:
    """Everything that decides about a customer, and what was tried of late.

    `subscription` is the row that counts, its `details` what Stripe says beside its state: pauseCollection,
    scheduledChange, unpaidInvoice. `other_products` are live subscriptions that are not ours; None, with the
    reason in `stripe_error`, when Stripe was not reached. `differences` are those between it and our rows.
    """
    customer = get_customer(customer_id)
    with db.statement() as cur:
        rows = subscriptions.select_subscriptions(cur, [customer_id])
        license_row = licenses.lock_current_license(cur, customer_id)
        last_events = events.select_events(cur, limit=SHOWN_EVENTS, customer_id=customer_id)
        refused = audit.select_audit(cur, customer_id=customer_id, limit=SHOWN_REFUSALS, only_refused=True)
    granted = entitle(customer, rows, now())
    of_line = ("at", "actor", "action", "subject")
    return {
        **_pick(customer, "customer_id", "stripe_customer_id", "revoked_at", "revoke_reason", "overage_cap"),
        "overrides": _pick(customer, "max_devices", "retention_days", "overage_price"),
        **asdict(granted),
        "plan": granted.plan.name,
        "period_ends_at": granted.period_end,
        "subscriptions": rows,
        "license": license_row and _pick(license_row, "jti", "kid", "issued_at", "renews_at", "expires_at"),
        "last_events": last_events,
        "refusals": [_pick(line, *of_line) | {"message": line["after"]["refused"]} for line in refused],
        **_at_stripe(customer_id, customer["stripe_customer_id"]),
    }


def _pick(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def _at_stripe(customer_id: str, stripe_id: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"other_products": None, "differences": [], "missing": [], "stripe_error": None}
    if stripe_id is None:
        return found
    try:
        synced = sync_customer(customer_id, dry_run=True)
    except DomainError as error:
        return found | {"stripe_error": error.message}
    found["other_products"] = [
        {
            "subscription_id": sub["id"],
            "status": sub["status"],
            "description": sub.get("description"),
            "prices": [item["price"]["id"] for item in sub["items"]["data"]],
        }
        for sub in synced.foreign
    ]
    found["differences"] = [f"{d.subject}: {d.ours} here, {d.stripes} at Stripe" for d in synced.differences]
    return found | {"missing": synced.missing}
