"""Preparing an account at Stripe: what is there is found, what is missing is made, once."""

import hashlib
from typing import Any

from app.context import now
from app.extensions import settings, stripe
from app.plans import PAID_PLANS, PLANS, Plan
from app.stripe_gateway import WEBHOOK_EVENTS


def set_up(webhook_url: str | None) -> tuple[dict[str, str], list[str]]:
    """The `.env` lines for what there is now, and notes for the operator."""
    lines: dict[str, str] = {}
    notes: list[str] = []
    with stripe.slot():
        prices = stripe.list_prices()
        for plan in (PLANS[name] for name in PAID_PLANS):
            price_id = _price_of(plan, prices)
            if price_id is not None:
                lines[f"STRIPE_PRICE_{plan.name.upper()}"] = price_id
            else:
                notes.append(
                    f"{plan.name.capitalize()} is sold by hand: give a price of yours the lookup key "
                    f"zemfyre_{plan.name} to sell it online."
                )
        endpoint = stripe.find_webhook(webhook_url) if webhook_url else None
        if endpoint:
            notes.append(
                "The webhook endpoint exists; Stripe told its secret when it was made (see the dashboard)."
            )
            missing = set(WEBHOOK_EVENTS) - set(endpoint["enabled_events"])
            if missing and "*" not in endpoint["enabled_events"]:
                notes.append(f"Add these events to it in the dashboard: {', '.join(sorted(missing))}")
        elif webhook_url:
            # Nothing at Stripe tells a first endpoint from one made again after a deletion, but the time.
            key = hashlib.sha256(f"{webhook_url} {now():%Y%m%d%H%M}".encode()).hexdigest()[:32]
            lines["STRIPE_WEBHOOK_SECRET"] = stripe.create_webhook(webhook_url, key)
    return lines, notes


def _price_of(plan: Plan, prices: list[dict[str, Any]]) -> str | None:
    """The active price of a plan, the configured one first, made if there is none.

    None for a plan that is not sold online.
    """
    configured = settings.stripe_prices.get((plan.name, "month"))
    if configured and stripe.price_is_active(configured):
        return configured
    of_plan = [price for price in prices if stripe.plan_of(price) == plan.name]
    active = [price for price in of_plan if price["active"]]
    if active:
        return str(active[0]["id"])
    if plan.monthly_cents is None:
        return None
    key = f"{plan.name}-after-{of_plan[0]['id'] if of_plan else 'none'}"
    return stripe.create_product_with_price(plan.name, _description(plan), plan.monthly_cents, key)


def _description(plan: Plan) -> str:
    return f"Up to {plan.max_devices} devices"
