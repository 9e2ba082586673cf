"""Overage in and out."""

from marshmallow import fields, validate

from app.schemas.base import CamelSchema, InputSchema, Instant, Text


class PeriodQuery(InputSchema):
    period = fields.String(load_default="current", validate=validate.OneOf(("current", "previous")))


class DecisionRequest(InputSchema):
    reason = Text(max_length=500, allow_none=True, load_default=None)


class PeriodSchema(CamelSchema):
    start = Instant(required=True)
    end = Instant(required=True)


class DaySchema(CamelSchema):
    day = fields.Date(required=True)
    total = fields.Integer(required=True)
    included = fields.Integer(required=True)
    over = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf(("open", "held", "late", "billed")))
    revision = fields.Integer(required=True)


class BillingAnswer(CamelSchema):
    """`amount` is in the smallest unit of the currency."""

    period = fields.Nested(PeriodSchema, required=True)
    included = fields.Integer(required=True, allow_none=True)
    price_per_device_month = fields.Integer(required=True, allow_none=True)
    currency = fields.String(required=True)
    days = fields.List(fields.Nested(DaySchema), required=True)
    device_days = fields.Integer(required=True)
    amount = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf(("open", "billed", "shadow")))


class RevisionSchema(DaySchema):
    due = fields.Integer(required=True, metadata={"description": "Device-days beside those billed before"})
    price = fields.Integer(required=True, metadata={"description": "Per device-day"})
    reason = fields.String(required=True, allow_none=True)
    actor = fields.String(required=True)
    created_at = Instant(required=True)
    invoice_item_id = fields.String(required=True, allow_none=True)
    billed_at = Instant(required=True, allow_none=True)


class EvidenceAnswer(RevisionSchema):
    """The newest revision with the highest report of each instance, and every revision."""

    reports = fields.List(fields.Dict(), required=True)
    revisions = fields.List(fields.Nested(RevisionSchema), required=True)
