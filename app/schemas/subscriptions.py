"""Subscriptions in and out."""

from marshmallow import fields, validate

from app.plans import PAID_PLANS
from app.schemas.base import CamelSchema, Flag, InputSchema, Instant, Text, Url

# Anchored in a way that Python and the readers of the OpenAPI document (ECMA 262) take alike.
CUSTOMER_ID = validate.Regexp(r"^[A-Za-z0-9_]{1,255}(?![\s\S])", error="Not a customer id.")
_paid_plan = validate.OneOf(PAID_PLANS)


class CheckoutRequest(InputSchema):
    customerId = fields.String(attribute="customer_id", required=True, validate=CUSTOMER_ID)
    plan = fields.String(required=True, validate=_paid_plan)
    successUrl = Url(attribute="success_url", load_default=None)
    cancelUrl = Url(attribute="cancel_url", load_default=None)
    promoCode = Text(attribute="promo_code", max_length=500, load_default=None)


class CheckoutAnswer(CamelSchema):
    session_id = fields.String(required=True)
    checkout_url = fields.String(required=True)
    plan = fields.String(required=True)
    expires_at = Instant(required=True)


class TrialRequest(InputSchema):
    customerId = fields.String(attribute="customer_id", required=True, validate=CUSTOMER_ID)
    plan = fields.String(required=True, validate=_paid_plan)


class UpgradeRequest(InputSchema):
    plan = fields.String(required=True, validate=_paid_plan)


class CancelRequest(InputSchema):
    body_optional = True

    atPeriodEnd = Flag(attribute="at_period_end", load_default=False)


class NoBody(InputSchema):
    """For a POST that needs no body."""

    body_optional = True


class PortalRequest(InputSchema):
    body_optional = True

    returnUrl = Url(attribute="return_url", load_default=None)


class PortalAnswer(CamelSchema):
    url = fields.String(required=True)


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
    status = fields.String(required=True)
    trial_ends_at = Instant(required=True, allow_none=True)
    current_period_ends_at = Instant(required=True, allow_none=True)
    cancel_at_period_end = fields.Boolean(required=True)
    cancel_at = Instant(required=True, allow_none=True)
    device_limit = fields.Integer(required=True, allow_none=True)
    features = fields.Nested(FeaturesSchema, required=True)
    limits = fields.Nested(LimitsSchema, required=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)


class SubscriptionAnswer(CamelSchema):
    subscription = fields.Nested(SubscriptionSchema, required=True)


class LicensedSubscriptionAnswer(SubscriptionAnswer):
    license = fields.String(required=True, allow_none=True)
