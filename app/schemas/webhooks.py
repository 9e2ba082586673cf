"""What Stripe is answered."""

from marshmallow import fields

from app.schemas.base import CamelSchema


class WebhookAnswer(CamelSchema):
    received = fields.Boolean(required=True)
    outcome = fields.String(required=True)
