"""Subscriptions, checkout, portal and invoices in and out."""

from marshmallow import fields, validate

from app.plans import INTERVALS, PAID_PLANS
from app.schemas.base import CamelSchema, Flag, InputSchema, Instant, Text, Url, no_default
from app.schemas.paging import Digits

# Anchored in a way that Python and the readers of the OpenAPI document (ECMA 262) take alike.
CUSTOMER_ID = validate.Regexp(r"^[A-Za-z0-9_]{1,255}(?![\s\S])", error="Not a customer id.")
_paid_plan = validate.OneOf(PAID_PLANS)
_interval = validate.OneOf(INTERVALS)
ABOUT_CUSTOMER_ID = {"description": "The customer's id", "example": "cust_k3v9x2m7q4p8w1z6"}
ABOUT_PLAN = {"description": "A plan that is sold", "example": "professional"}


class CheckoutRequest(InputSchema):
    customerId = fields.String(
        attribute="customer_id", required=True, validate=CUSTOMER_ID, metadata=ABOUT_CUSTOMER_ID
    )
    plan = fields.String(required=True, validate=_paid_plan, metadata=ABOUT_PLAN)
    interval = fields.String(
        validate=_interval,
        load_default=lambda: "month",
        metadata={"description": "How often it is paid; monthly if absent", "example": "year"},
    )
    successUrl = Url(
        attribute="success_url",
        allow_none=True,
        load_default=no_default,
        metadata={
            "description": "Where the browser goes after the payment; {CHECKOUT_SESSION_ID} is filled in",
            "example": "https://app.example.com/paid?session={CHECKOUT_SESSION_ID}",
        },
    )
    cancelUrl = Url(
        attribute="cancel_url",
        allow_none=True,
        load_default=no_default,
        metadata={
            "description": "Where the page's way back leads",
            "example": "https://app.example.com/plans",
        },
    )
    promoCode = Text(
        attribute="promo_code",
        max_length=500,
        allow_none=True,
        load_default=no_default,
        metadata={
            "description": "A promotion code to apply; without one the page lets the customer enter it",
        },
    )


class CheckoutAnswer(CamelSchema):
    session_id = fields.String(required=True)
    checkout_url = fields.String(
        required=True, metadata={"description": "The page where the customer pays", "format": "uri"}
    )
    plan = fields.String(required=True)
    expires_at = Instant(required=True, metadata={"description": "The page can be paid until then"})


class DeployedCheckoutAnswer(CheckoutAnswer):
    """With the two spellings that deployed clients read."""

    session = fields.String(attribute="session_id", data_key="session_id", required=True, dump_only=True)
    url = fields.String(attribute="checkout_url", data_key="checkout_url", required=True, dump_only=True)


class TrialRequest(InputSchema):
    customerId = fields.String(
        attribute="customer_id", required=True, validate=CUSTOMER_ID, metadata=ABOUT_CUSTOMER_ID
    )
    plan = fields.String(required=True, validate=_paid_plan, metadata=ABOUT_PLAN)


class UpgradeRequest(InputSchema):
    plan = fields.String(required=True, validate=_paid_plan, metadata=ABOUT_PLAN)
    interval = fields.String(
        validate=_interval,
        allow_none=True,
        load_default=no_default,
        metadata={"description": "How often it is paid; unchanged if absent", "example": "month"},
    )


class CancelRequest(InputSchema):
    body_optional = True

    atPeriodEnd = Flag(
        attribute="at_period_end",
        load_default=lambda: False,
        metadata={"description": "Let the paid period run out first; at once if absent", "example": True},
    )


class EmptyRequest(InputSchema):
    """For a POST that needs no body."""

    body_optional = True


class PortalRequest(InputSchema):
    body_optional = True

    returnUrl = Url(
        attribute="return_url",
        allow_none=True,
        load_default=no_default,
        metadata={
            "description": "Where the portal leads back to",
            "example": "https://app.example.com/account",
        },
    )


class PortalAnswer(CamelSchema):
    url = fields.String(
        required=True, metadata={"description": "Stripe's billing portal; open it soon", "format": "uri"}
    )


class InvoicesQuery(InputSchema):
    limit = Digits(load_default=50, validate=validate.Range(1, 200))


class InvoiceSchema(CamelSchema):
    """One of Stripe's invoices; amounts in the currency's smallest unit."""

    number = fields.String(required=True, allow_none=True, metadata={"description": "null for a draft"})
    status = fields.String(required=True, metadata={"example": "paid"})
    currency = fields.String(required=True, metadata={"example": "usd"})
    total = fields.Integer(required=True, metadata={"example": 9900})
    amount_due = fields.Integer(required=True, metadata={"example": 9900})
    created_at = Instant(required=True)
    due_at = Instant(required=True, allow_none=True)
    paid_at = Instant(required=True, allow_none=True)
    next_payment_attempt_at = Instant(required=True, allow_none=True)
    hosted_invoice_url = fields.String(
        required=True, allow_none=True, metadata={"description": "The page to see it and pay it at"}
    )
    pdf_url = fields.String(required=True, allow_none=True)


class InvoicesAnswer(CamelSchema):
    invoices = fields.List(fields.Nested(InvoiceSchema), required=True)


class FeaturesSchema(CamelSchema):
    maxDevices = fields.Integer(required=True, allow_none=True)
    dataRetentionDays = fields.Integer(required=True, allow_none=True)
    canExportData = fields.Boolean(required=True)
    hasAdvancedAlerts = fields.Boolean(required=True)
    hasApiAccess = fields.Boolean(required=True)
    hasMqttAccess = fields.Boolean(required=True)
    hasCustomBranding = fields.Boolean(required=True)


class LimitsSchema(CamelSchema):
    maxUsers = fields.Integer(required=True, allow_none=True)
    maxAlertRules = fields.Integer(required=True, allow_none=True)
    maxDashboards = fields.Integer(required=True, allow_none=True)


class SubscriptionSchema(CamelSchema):
    """`deviceLimit`, `features` and `limits` are what this subscription grants now; null is unlimited."""

    subscription_id = fields.String(required=True)
    customer_id = fields.String(required=True)
    plan = fields.String(required=True)
    status = fields.String(
        required=True, metadata={"description": "Stripe's word, or `expired` for a trial that ran out"}
    )
    interval = fields.String(
        required=True, allow_none=True, metadata={"description": "`month`, `year`, or null for a trial"}
    )
    trial_ends_at = Instant(required=True, allow_none=True)
    current_period_ends_at = Instant(required=True, allow_none=True)
    cancel_at_period_end = fields.Boolean(
        required=True, metadata={"description": "A cancellation is pending for the end of the period"}
    )
    cancel_at = Instant(required=True, allow_none=True)
    device_limit = fields.Integer(
        required=True, allow_none=True, metadata={"description": "null is unlimited"}
    )
    features = fields.Nested(FeaturesSchema, required=True)
    limits = fields.Nested(LimitsSchema, required=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)


class SubscriptionAnswer(CamelSchema):
    subscription = fields.Nested(SubscriptionSchema, required=True)


class LicensedSubscriptionAnswer(SubscriptionAnswer):
    license = fields.String(
        required=True, allow_none=True, metadata={"description": "The new license; null while revoked"}
    )
