"""Objects as Stripe publishes them at the pinned API version.

Fields a billing service never reads (Connect, shipping …) are present only where the SDK's
classes promise them and leaving them out would make a reader fail.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from .world import Obj, new_id

DAY = 86_400


def automatic_tax(given: Obj | None) -> Obj:
    enabled = bool(given and given.get("enabled"))
    return {
        "disabled_reason": None,
        "enabled": enabled,
        "liability": {"type": "self"} if enabled else None,
    }


def account(id: str) -> Obj:
    return {
        "id": id,
        "object": "account",
        "business_profile": {"name": "Sandbox", "support_email": None, "url": None},
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": "owner@example.com",
        "metadata": {},
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Sandbox", "timezone": "Etc/UTC"}},
        "type": "standard",
    }


def listing(data: list[Obj], url: str, has_more: bool = False) -> Obj:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def customer(now: int, p: Obj) -> Obj:
    id = new_id("cus", 14)
    return {
        "id": id,
        "object": "customer",
        "address": p.get("address"),
        "balance": p.get("balance", 0),
        "created": now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": p.get("description"),
        "email": p.get("email"),
        "invoice_prefix": new_id("", 8)[1:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": metadata({}, p.get("metadata")),
        "name": p.get("name"),
        "next_invoice_sequence": 1,
        "phone": p.get("phone"),
        "preferred_locales": p.get("preferred_locales", []),
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": p.get("test_clock"),
    }


def product(now: int, p: Obj) -> Obj:
    return {
        "id": p.get("id") or new_id("prod", 14),
        "object": "product",
        "active": p.get("active", True),
        "created": now,
        "default_price": None,
        "description": p.get("description"),
        "images": p.get("images", []),
        "livemode": False,
        "marketing_features": [],
        "metadata": metadata({}, p.get("metadata")),
        "name": p["name"],
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": p.get("statement_descriptor"),
        "tax_code": None,
        "type": "service",
        "unit_label": p.get("unit_label"),
        "updated": now,
        "url": p.get("url"),
    }


def price(now: int, p: Obj) -> Obj:
    recurring = p.get("recurring")
    amount = p.get("unit_amount")
    exact = p.get("unit_amount_decimal") or (None if amount is None else str(amount))
    if exact is not None and Decimal(exact) == int(Decimal(exact)):
        amount = int(Decimal(exact))
    return {
        "id": new_id("price"),
        "object": "price",
        "active": p.get("active", True),
        "billing_scheme": "per_unit",
        "created": now,
        "currency": p["currency"].lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": p.get("lookup_key"),
        "metadata": metadata({}, p.get("metadata")),
        "nickname": p.get("nickname"),
        "product": p["product"],
        "recurring": recurring
        and {
            "interval": recurring["interval"],
            "interval_count": recurring.get("interval_count", 1),
            "meter": None,
            "trial_period_days": None,
            "usage_type": "licensed",
        },
        "tax_behavior": p.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": amount,
        "unit_amount_decimal": exact,
    }


def plan(price: Obj) -> Obj:
    """The old twin of a price that subscription items still carry."""
    recurring = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit",
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "nickname": price["nickname"],
        "product": price["product"],
        "usage_type": "licensed",
    }


def coupon(now: int, p: Obj) -> Obj:
    return {
        "id": p.get("id") or new_id("", 8)[1:],
        "object": "coupon",
        "amount_off": p.get("amount_off"),
        "created": now,
        "currency": p.get("currency"),
        "duration": p.get("duration", "once"),
        "duration_in_months": p.get("duration_in_months"),
        "livemode": False,
        "max_redemptions": p.get("max_redemptions"),
        "metadata": metadata({}, p.get("metadata")),
        "name": p.get("name"),
        "percent_off": p.get("percent_off"),
        "redeem_by": p.get("redeem_by"),
        "times_redeemed": 0,
        "valid": True,
    }


def promotion_code(now: int, p: Obj) -> Obj:
    restrictions = p.get("restrictions", {})
    return {
        "id": new_id("promo"),
        "object": "promotion_code",
        "active": p.get("active", True),
        "code": p.get("code") or new_id("", 8)[1:].upper(),
        "created": now,
        "customer": p.get("customer"),
        "customer_account": None,
        "expires_at": p.get("expires_at"),
        "livemode": False,
        "max_redemptions": p.get("max_redemptions"),
        "metadata": metadata({}, p.get("metadata")),
        "promotion": {"coupon": p["promotion"]["coupon"], "type": "coupon"},
        "restrictions": {
            "first_time_transaction": restrictions.get("first_time_transaction", False),
            "minimum_amount": restrictions.get("minimum_amount"),
            "minimum_amount_currency": restrictions.get("minimum_amount_currency"),
        },
        "times_redeemed": 0,
    }


def discount(now: int, coupon: str, promotion_code: str | None, sub: Obj, end: int | None) -> Obj:
    return {
        "id": new_id("di"),
        "object": "discount",
        "checkout_session": None,
        "customer": sub["customer"],
        "customer_account": None,
        "end": end,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": promotion_code,
        "source": {"coupon": coupon, "type": "coupon"},
        "start": now,
        "subscription": sub["id"],
        "subscription_item": None,
    }


def subscription(now: int, customer: str, currency: str, p: Obj) -> Obj:
    """Without items; those come from `subscription_item`."""
    id = new_id("sub")
    return {
        "id": id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": automatic_tax(p.get("automatic_tax")),
        "billing_cycle_anchor": now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": p.get("collection_method", "charge_automatically"),
        "created": now,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "days_until_due": p.get("days_until_due"),
        "default_payment_method": p.get("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": p.get("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": listing([], f"/v1/subscription_items?subscription={id}"),
        "latest_invoice": None,
        "livemode": False,
        "metadata": metadata({}, p.get("metadata")),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now,
        "status": "incomplete",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {
            "end_behavior": {
                "missing_payment_method": p.get("trial_settings", {})
                .get("end_behavior", {})
                .get("missing_payment_method", "create_invoice")
            }
        },
        "trial_start": None,
    }


def subscription_item(now: int, sub: str, price: Obj, quantity: int, period: tuple[int, int]) -> Obj:
    return {
        "id": new_id("si", 14),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": now,
        "current_period_end": period[1],
        "current_period_start": period[0],
        "discounts": [],
        "metadata": {},
        "plan": plan(price),
        "price": price,
        "quantity": quantity,
        "subscription": sub,
        "tax_rates": [],
    }


def invoice(now: int, customer: Obj, currency: str, reason: str, p: Obj, sub: Obj | None = None) -> Obj:
    """A draft without lines and sums (see `invoices.total_up`), of a subscription if `sub` is given.

    `p`: auto_advance, automatic_tax, collection_method, days_until_due, description, discounts
    (ids), due_date, metadata.
    """
    id = new_id("in")
    first = sub["items"]["data"][0] if sub else None
    return {
        "id": id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Sandbox",
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": p["auto_advance"],
        "automatic_tax": {**automatic_tax(p.get("automatic_tax")), "provider": None, "status": None},
        "automatically_finalizes_at": None,
        "billing_reason": reason,
        "collection_method": p.get("collection_method", "charge_automatically"),
        "created": now,
        "currency": currency,
        "customer": customer["id"],
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "default_payment_method": p.get("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": p.get("description"),
        "discounts": list(p.get("discounts", [])),
        "due_date": p.get("due_date"),
        "effective_at": None,
        "ending_balance": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "lines": {**listing([], f"/v1/invoices/{id}/lines"), "total_count": 0},
        "livemode": False,
        "metadata": metadata({}, p.get("metadata")),
        "next_payment_attempt": None,
        "number": None,
        "parent": sub
        and {
            "quote_details": None,
            "subscription_details": {"metadata": sub["metadata"], "subscription": sub["id"]},
            "type": "subscription_details",
        },
        "payment_settings": {"payment_method_options": None, "payment_method_types": None},
        "period_end": first["current_period_end"] if first else now,
        "period_start": first["current_period_start"] if first else now,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "test_clock": customer["test_clock"],
        "webhooks_delivered_at": None,
    }


def subscription_line(
    item: Obj, name: str, share: float, start: int, *, proration: bool = False, percent_off: float = 0
) -> Obj:
    """A line for `share` of an item's period of the product `name`; a negative share is a credit.

    A proration takes no discount as such: `percent_off` is in its amount.
    """
    price = item["price"]
    full = Decimal(price["unit_amount_decimal"] or 0) * item["quantity"]
    each = f"{price['currency'].upper()} {(price['unit_amount'] or 0) / 100:,.2f}"
    description = f"{item['quantity']} × {name} (at {each} / {price['recurring']['interval']})"
    if proration:
        day = datetime.fromtimestamp(start, UTC).strftime("%d %b %Y")
        description = f"{'Unused' if share < 0 else 'Remaining'} time on {name} after {day}"
    details = {
        "invoice_item": None,
        "proration": proration,
        "proration_details": {"credited_items": None},
        "subscription": item["subscription"],
        "subscription_item": item["id"],
    }
    return _line(
        amount=rounded(full * Decimal(share) * (1 - Decimal(percent_off) / 100)),
        currency=price["currency"],
        description=description,
        discountable=not proration,
        parent={
            "invoice_item_details": None,
            "subscription_item_details": details,
            "type": "subscription_item_details",
        },
        period={"start": start, "end": item["current_period_end"]},
        pricing=pricing(price),
        quantity=item["quantity"],
    )


def item_line(item: Obj) -> Obj:
    """The invoice line of an invoice item."""
    parent = item["parent"] and item["parent"]["subscription_details"]
    details = {
        "invoice_item": item["id"],
        "proration": item["proration"],
        "proration_details": {"credited_items": None},
        "subscription": parent and parent["subscription"],
    }
    kind = "subscription_item_details" if item["proration"] else "invoice_item_details"
    if item["proration"]:
        details["subscription_item"] = parent["subscription_item"]
    shared = (
        "amount",
        "currency",
        "description",
        "discountable",
        "metadata",
        "period",
        "pricing",
        "quantity",
    )
    return _line(
        parent={"invoice_item_details": None, "subscription_item_details": None, kind: details, "type": kind},
        **{name: item[name] for name in shared},
    )


def _line(**given: Any) -> Obj:
    return {
        "id": new_id("il"),
        "object": "line_item",
        "discount_amounts": [],
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "pretax_credit_amounts": [],
        "quantity_decimal": str(given["quantity"]),
        "subscription": None,
        "subtotal": given["amount"],
        "taxes": [],
        **given,
    }


def pricing(price: Obj) -> Obj:
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def rounded(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def invoice_item(now: int, customer: Obj, p: Obj) -> Obj:
    """`p`: amount, currency, description, discountable, metadata, parent, period, pricing,
    proration, quantity."""
    return {
        "id": new_id("ii"),
        "object": "invoiceitem",
        "amount": p["amount"],
        "currency": p["currency"],
        "customer": customer["id"],
        "customer_account": None,
        "date": now,
        "description": p.get("description"),
        "discountable": p.get("discountable", True),
        "discounts": [],
        "frozen_fields": None,
        "invoice": None,
        "livemode": False,
        "metadata": metadata({}, p.get("metadata")),
        "net_amount": p["amount"],
        "parent": p.get("parent"),
        "period": p.get("period", {"start": now, "end": now}),
        "pricing": p.get("pricing"),
        "proration": p.get("proration", False),
        "proration_details": None,
        "quantity": p.get("quantity", 1),
        "quantity_decimal": str(p.get("quantity", 1)),
        "tax_rates": [],
        "test_clock": customer["test_clock"],
    }


def charge(now: int, invoice: Obj) -> Obj:
    """A successful payment of an invoice by card."""
    return {
        "id": new_id("ch"),
        "object": "charge",
        "amount": invoice["amount_due"],
        "amount_captured": invoice["amount_due"],
        "amount_refunded": 0,
        "balance_transaction": new_id("txn"),
        "billing_details": {"address": None, "email": None, "name": None, "phone": None},
        "captured": True,
        "created": now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "description": "Subscription update" if invoice["parent"] else "Payment for Invoice",
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": {},
        "outcome": {"network_status": "approved_by_network", "type": "authorized"},
        "paid": True,
        "payment_intent": new_id("pi"),
        "payment_method": new_id("pm"),
        "receipt_email": None,
        "refunded": False,
        "status": "succeeded",
    }


def dispute(now: int, charge: Obj, reason: str) -> Obj:
    return {
        "id": new_id("dp"),
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {"due_by": now + 7 * DAY, "has_evidence": False, "submission_count": 0},
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "status": "needs_response",
    }


def subscription_schedule(now: int, sub: Obj, price: str) -> Obj:
    """Now the present price, `price` from the period's end on for one period, then released."""
    item = sub["items"]["data"][0]
    start, end = item["current_period_start"], item["current_period_end"]

    def phase(price: str, start: int, end: int | None) -> Obj:
        items = [{"metadata": {}, "price": price, "quantity": item["quantity"], "tax_rates": []}]
        return {"start_date": start, "end_date": end, "items": items, "metadata": {}, "trial_end": None}

    return {
        "id": new_id("sub_sched"),
        "object": "subscription_schedule",
        "application": None,
        "canceled_at": None,
        "completed_at": None,
        "created": now,
        "current_phase": {"start_date": start, "end_date": end},
        "customer": sub["customer"],
        "customer_account": None,
        "end_behavior": "release",
        "livemode": False,
        "metadata": {},
        "phases": [phase(item["price"]["id"], start, end), phase(price, end, None)],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": sub["id"],
        "test_clock": sub["test_clock"],
    }


def checkout_session(now: int, p: Obj, base_url: str, subtotal: int, total: int) -> Obj:
    id = new_id("cs_test", 58)
    return {
        "id": id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": p.get("allow_promotion_codes"),
        "amount_subtotal": subtotal,
        "amount_total": total,
        "automatic_tax": {**automatic_tax(p.get("automatic_tax")), "provider": None, "status": None},
        "billing_address_collection": p.get("billing_address_collection"),
        "cancel_url": p.get("cancel_url"),
        "client_reference_id": p.get("client_reference_id"),
        "client_secret": None,
        "consent": None,
        "consent_collection": None,
        "created": now,
        "currency": None,
        "custom_fields": [],
        "custom_text": {},
        "customer": p.get("customer"),
        "customer_account": None,
        "customer_creation": None if p.get("customer") else "always",
        "customer_details": None,
        "customer_email": p.get("customer_email"),
        "discounts": [
            {"coupon": d.get("coupon"), "promotion_code": d.get("promotion_code")}
            for d in p.get("discounts", [])
        ],
        "expires_at": p.get("expires_at", now + 24 * 3600),
        "invoice": None,
        "invoice_creation": None,
        "livemode": False,
        "locale": p.get("locale"),
        "metadata": metadata({}, p.get("metadata")),
        "mode": "subscription",
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": p.get("payment_method_collection", "always"),
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "setup_intent": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": p.get("success_url"),
        "tax_id_collection": {
            "enabled": p.get("tax_id_collection", {}).get("enabled", False),
            "required": "never",
        },
        "total_details": {
            "amount_discount": subtotal - total,
            "amount_shipping": 0,
            "amount_tax": 0,
        },
        "ui_mode": "hosted_page",
        "url": f"{base_url}/checkout/{id}",
        "wallet_options": None,
    }


def checkout_line(price: Obj, quantity: int) -> Obj:
    amount = (price["unit_amount"] or 0) * quantity
    return {
        "id": new_id("li"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": None,
        "price": price,
        "quantity": quantity,
    }


def webhook_endpoint(now: int, p: Obj) -> Obj:
    """Its secret is in the answer to its creation only, like Stripe's."""
    return {
        "id": new_id("we"),
        "object": "webhook_endpoint",
        "api_version": p.get("api_version"),
        "application": None,
        "created": now,
        "description": p.get("description"),
        "enabled_events": p["enabled_events"],
        "livemode": False,
        "metadata": metadata({}, p.get("metadata")),
        "status": "enabled",
        "url": p["url"],
    }


def portal_session(now: int, p: Obj, configuration: Obj, base_url: str) -> Obj:
    id = new_id("bps")
    return {
        "id": id,
        "object": "billing_portal.session",
        "configuration": configuration["id"],
        "created": now,
        "customer": p["customer"],
        "customer_account": None,
        "flow": None,
        "livemode": False,
        "locale": p.get("locale"),
        "on_behalf_of": None,
        "return_url": p.get("return_url") or configuration["default_return_url"],
        "url": f"{base_url}/portal/{id}",
    }


def portal_configuration(now: int, p: Obj, is_default: bool) -> Obj:
    return {
        "id": new_id("bpc"),
        "object": "billing_portal.configuration",
        "active": True,
        "application": None,
        "business_profile": {
            "headline": None,
            "privacy_policy_url": None,
            "terms_of_service_url": None,
            **p.get("business_profile", {}),
        },
        "created": now,
        "default_return_url": p.get("default_return_url"),
        "features": p.get("features", {}),
        "is_default": is_default,
        "livemode": False,
        "login_page": {"enabled": False, "url": None},
        "metadata": metadata({}, p.get("metadata")),
        "name": p.get("name"),
        "updated": now,
    }


def metadata(old: dict[str, str], given: Any) -> dict[str, str]:
    """Metadata after a request: keys merge, an empty value unsets its key, "" unsets all."""
    if given == "":
        return {}
    merged = {**old, **(given or {})}
    return {key: value for key, value in merged.items() if value != ""}
