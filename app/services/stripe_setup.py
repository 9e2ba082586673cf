"""Preparing an account at Stripe: what is there is found, what is missing is made, once."""

from app.parts import parts
from app.plans import PAID_PLANS, PLANS, Plan


def set_up(webhook_url: str | None) -> tuple[dict[str, str], list[str]]:
    """The `.env` lines for what there is now, and notes for the operator."""
    stripe = parts().stripe
    lines: dict[str, str] = {}
    notes: list[str] = []
    with stripe.slot():
        found = {stripe.plan_of(price): str(price["id"]) for price in stripe.list_prices()}
        for plan in (PLANS[name] for name in PAID_PLANS):
            price_id = found.get(plan.name)
            if price_id is None and plan.monthly_cents is not None:
                price_id = stripe.create_product_with_price(plan.name, _description(plan), plan.monthly_cents)
            if price_id is not None:
                lines[f"STRIPE_PRICE_{plan.name.upper()}"] = price_id
            else:
                notes.append(
                    f"{plan.name.capitalize()} is sold by hand: give a price of yours the lookup key "
                    f"zemfyre_{plan.name} to sell it online."
                )
        if webhook_url and stripe.find_webhook(webhook_url):
            notes.append(
                "The webhook endpoint exists; Stripe told its secret when it was made (see the dashboard)."
            )
        elif webhook_url:
            lines["STRIPE_WEBHOOK_SECRET"] = stripe.create_webhook(webhook_url)
    return lines, notes


def _description(plan: Plan) -> str:
    return f"Up to {plan.max_devices} devices"
