"""Subscriptions, checkout, portal and invoices in and out."""

from typing import Any, Final

from marshmallow import fields, validate

from app.plans import INTERVALS, PAID_PLANS
from app.schemas.base import CamelSchema, Flag, InputSchema, Instant, Text, Url, no_default
from app.schemas.paging import Digits

# Anchored in a way that Python and the readers of the OpenAPI document (ECMA 262) take alike.
CUSTOMER_ID = validate.Regexp(r"^[A-Za-z0-9_]{1,255}(?![\s\S])", error="Not a customer id.")
ABOUT_CUSTOMER_ID = {"description": "The customer's id", "example": "cust_k3v9x2m7q4p8w1z6"}
ABOUT_PLAN = {"description": "A plan that is sold", "example": "professional"}
ABOUT_PAID = {"description": "URL of the page after the payment; {CHECKOUT_SESSION_ID} is filled in"}
ABOUT_CODE = {"description": "Applied at once; without one the page lets the customer enter a code"}
ABOUT_INTERVAL = {"description": "How often it is paid; absent: unchanged, or monthly", "example": "year"}

OPTIONAL: Final[dict[str, Any]] = {"allow_none": True, "load_default": no_default}
"""An input that may be left out, or null."""
NULLABLE: Final[dict[str, Any]] = {"allow_none": True, "required": True}
"""An output that is always there, perhaps null."""


class TrialRequest(InputSchema):
    customerId = fields.String(
        attribute="customer_id", required=True, validate=CUSTOMER_ID, metadata=ABOUT_CUSTOMER_ID
    )
    plan = fields.String(required=True, validate=validate.OneOf(PAID_PLANS), metadata=ABOUT_PLAN)


class CheckoutRequest(TrialRequest):
    interval = fields.String(
        validate=validate.OneOf(INTERVALS), load_default=lambda: "month", metadata=ABOUT_INTERVAL
    )
    successUrl = Url(attribute="success_url", metadata=ABOUT_PAID, **OPTIONAL)
    cancelUrl = Url(attribute="cancel_url", metadata={"description": "Where its way back leads"}, **OPTIONAL)
    promoCode = Text(attribute="promo_code", max_length=500, metadata=ABOUT_CODE, **OPTIONAL)


class CheckoutAnswer(CamelSchema):
    session_id = fields.String(required=True)
    checkout_url = fields.String(required=True, metadata={"format": "uri"})
    plan = fields.String(required=True)
    expires_at = Instant(required=True, metadata={"description": "The page can be paid until then"})


class DeployedCheckoutAnswer(CheckoutAnswer):
    """With the two spellings that deployed clients read; the route adds them."""

    session = fields.String(data_key="session_id", required=True)
    url = fields.String(data_key="checkout_url", required=True)


class UpgradeRequest(InputSchema):
    plan = fields.String(required=True, validate=validate.OneOf(PAID_PLANS), metadata=ABOUT_PLAN)
    interval = fields.String(validate=validate.OneOf(INTERVALS), metadata=ABOUT_INTERVAL, **OPTIONAL)


class EmptyRequest(InputSchema):
    """For a POST that needs no body."""

    body_optional = True


class CancelRequest(EmptyRequest):
    atPeriodEnd = Flag(
        attribute="at_period_end",
        load_default=lambda: False,
        metadata={"description": "Let the paid period run out first; at once if absent", "example": True},
    )


class PortalRequest(EmptyRequest):
    returnUrl = Url(attribute="return_url", metadata={"description": "Where it leads back to"}, **OPTIONAL)


class PortalAnswer(CamelSchema):
    url = fields.String(required=True, metadata={"description": "It lives for minutes", "format": "uri"})


class InvoicesQuery(InputSchema):
    limit = Digits(load_default=50, validate=validate.Range(1, 200))


class InvoiceSchema(CamelSchema):
    """One of Stripe's invoices; amounts in the currency's smallest unit."""

    number = fields.String(metadata={"description": "null for a draft"}, **NULLABLE)
    status = fields.String(required=True, metadata={"example": "paid"})
    currency = fields.String(required=True, metadata={"example": "usd"})
    total = fields.Integer(required=True, metadata={"example": 9900})
    amount_due = fields.Integer(required=True, metadata={"example": 9900})
    created_at = Instant(required=True)
    due_at = Instant(**NULLABLE)
    paid_at = Instant(**NULLABLE)
    next_payment_attempt_at = Instant(**NULLABLE)
    hosted_invoice_url = fields.String(metadata={"description": "The page to see and pay it"}, **NULLABLE)
    pdf_url = fields.String(**NULLABLE)


class InvoicesAnswer(CamelSchema):
    invoices = fields.List(fields.Nested(InvoiceSchema), required=True)


class FeaturesSchema(CamelSchema):
    maxDevices = fields.Integer(**NULLABLE)
    dataRetentionDays = fields.Integer(**NULLABLE)
    canExportData = fields.Boolean(required=True)
    hasAdvancedAlerts = fields.Boolean(required=True)
    hasApiAccess = fields.Boolean(required=True)
    hasMqttAccess = fields.Boolean(required=True)
    hasCustomBranding = fields.Boolean(required=True)


class LimitsSchema(CamelSchema):
    maxUsers = fields.Integer(**NULLABLE)
    maxAlertRules = fields.Integer(**NULLABLE)
    maxDashboards = fields.Integer(**NULLABLE)


class SubscriptionSchema(CamelSchema):
    """`deviceLimit`, `features` and `limits` are what this subscription grants now; null is unlimited."""

    subscription_id = fields.String(required=True)
    customer_id = fields.String(required=True)
    plan = fields.String(required=True)
    status = fields.String(required=True, metadata={"description": "Stripe's, or `expired` for a trial"})
    interval = fields.String(metadata={"description": "`month`, `year`, or null for a trial"}, **NULLABLE)
    trial_ends_at = Instant(**NULLABLE)
    current_period_ends_at = Instant(**NULLABLE)
    cancel_at_period_end = fields.Boolean(required=True)
    cancel_at = Instant(**NULLABLE)
    device_limit = fields.Integer(**NULLABLE)
    features = fields.Nested(FeaturesSchema, required=True)
    limits = fields.Nested(LimitsSchema, required=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)


class SubscriptionAnswer(CamelSchema):
    subscription = fields.Nested(SubscriptionSchema, required=True)


class LicensedSubscriptionAnswer(SubscriptionAnswer):
    license = fields.String(metadata={"description": "The new license; null while revoked"}, **NULLABLE)
