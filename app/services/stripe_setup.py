"""Prepare an account at Stripe: what is there is found, what is missing is made, once."""

import hashlib
from typing import Any, Final

from app.context import now
from app.errors import Conflict
from app.extensions import settings, stripe
from app.plans import INTERVALS, PAID_PLANS, PLANS, Plan
from app.stripe_objects import LOOKUP_KEYS, WEBHOOK_EVENTS

YEAR_IN_MONTHS: Final = 10
"""What a year costs."""


def set_up(webhook_url: str | None) -> tuple[dict[str, str], list[str]]:
    """The `.env` lines for what there is now, and notes for the operator."""
    lines: dict[str, str] = {}
    notes: list[str] = []
    for plan in (PLANS[name] for name in PAID_PLANS):
        made: dict[str, dict[str, Any]] = {}
        for interval in INTERVALS:
            price = _find_price(plan, interval) or _make_price(plan, interval, made.get("month"))
            if price is None:
                continue
            made[interval] = price
            # Stripe Tax needs it on every price; once set, it stays. https://docs.stripe.com/tax/products-prices
            if settings.stripe_tax and price.get("tax_behavior") in (None, "unspecified"):
                stripe.update_price(price["id"], {"tax_behavior": "exclusive"}, f"setup-tax-{price['id']}")
            lines[f"STRIPE_PRICE_{plan.name.upper()}{'_YEAR' if interval == 'year' else ''}"] = price["id"]
        if not made:
            notes.append(
                f"{plan.name.capitalize()} is sold by hand: give a price of yours the lookup key "
                f"{LOOKUP_KEYS[plan.name, 'month']} to sell it online."
            )
    if webhook_url:
        _set_up_webhook(webhook_url, lines, notes)
    return lines, notes


def _find_price(plan: Plan, interval: str) -> dict[str, Any] | None:
    """The price that sells the plan; None also for an archived one, which another replaces."""
    try:
        return stripe.selling_price(plan.name, interval)
    except Conflict:
        found = stripe.list_prices([LOOKUP_KEYS[plan.name, interval]])
        return next((price for price in found if price["active"]), None)


def _make_price(plan: Plan, interval: str, monthly: dict[str, Any] | None) -> dict[str, Any] | None:
    """A new price of the plan, on the product of its monthly one; None for a plan that is not sold online."""
    if plan.monthly_cents is None:
        return None
    archived = stripe.list_prices([LOOKUP_KEYS[plan.name, interval]])
    key = f"{plan.name}-{interval}-after-{archived[0]['id'] if archived else 'none'}"
    metadata = {"zemfyre_plan": plan.name}
    product = monthly["product"] if monthly else None
    if product is None:
        described = {"name": f"Zemfyre {plan.name.capitalize()}", "metadata": metadata}
        described["description"] = f"Up to {plan.max_devices} devices"
        product = stripe.create_product(described, f"setup-product-{key}")
    price = {
        "product": product,
        "currency": "usd",
        "unit_amount": plan.monthly_cents * (YEAR_IN_MONTHS if interval == "year" else 1),
        "recurring": {"interval": interval},
        "lookup_key": LOOKUP_KEYS[plan.name, interval],
        "transfer_lookup_key": True,
        "metadata": metadata,
    }
    return stripe.create_price(price, f"setup-price-{product}-{key}")


def _set_up_webhook(url: str, lines: dict[str, str], notes: list[str]) -> None:
    endpoint = stripe.find_webhook(url)
    if endpoint is None:
        # Nothing at Stripe tells a first endpoint from one made again after a deletion, but the time.
        key = hashlib.sha256(f"{url} {now():%Y%m%d%H%M}".encode()).hexdigest()[:32]
        lines["STRIPE_WEBHOOK_SECRET"] = stripe.create_webhook(url, f"setup-webhook-{key}")
        return
    notes.append(
        "The webhook endpoint exists; Stripe showed its secret when it was made (see the dashboard)."
    )
    missing = set(WEBHOOK_EVENTS) - set(endpoint["enabled_events"])
    if missing and "*" not in endpoint["enabled_events"]:
        notes.append(f"Add these events to it in the dashboard: {', '.join(sorted(missing))}")
